"""The page: a tab for each kind of task, and what happens when something is clicked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at its import: nothing is sent anywhere

import gradio as gr
import numpy as np

from config import InputError
from models.generation import Sampling
from page.models import Classifier, Models, Poet
from tasks.occlusion import occlude
from tasks.sonnets import lines_with_words, recite
from tasks.verse import LINES, letters
from training.flags import LEAST_TEMPERATURE
from training.hardware import Precision
from training.interrupt import Interrupted, StopRequest
from training.objectives import TrainingFailed

HOST = "127.0.0.1"
FONTS = ["system-ui", "sans-serif"]  # the visitor's own; Gradio's would come from elsewhere
STRONGEST = 0.6  # of a word's colour, below which black and white letters can be read
POLL = 0.2  # seconds between two looks at whether the user wants an end
MOST_CHARACTERS = 1000  # of a text
MOST_WAITING = 16  # requests; who comes then is told to come again
WORDS = (
    "Words that moved it: each was left out in turn (occlusion). Red speaks for the likeliest class, violet against it"
)
CSS = """
.textfield { word-break: normal; overflow-wrap: anywhere }  /* of highlighted text, which Gradio cuts within words */
.output-class { text-align: center; overflow-wrap: anywhere }
"""
ABOUT = """# What a fine-tuned GPT-2 says
Choose a model, and then another: the answer is given anew for the same text. **Base** is the network before it was
fine-tuned, asked which class's name it would rather go on with."""


class Page(gr.Blocks):
    """Whose visitors are told what is wrong with their values, and the terminal is not."""

    async def preprocess_data(self, *args, **settings) -> list:
        try:
            return await super().preprocess_data(*args, **settings)
        except (TypeError, ValueError) as error:
            raise gr.Error("Not a value that can be used here.", print_exception=False) from error
        except gr.Error as error:
            error.print_exception = False
            raise


def build(models: Models, precision: Precision, stop: StopRequest) -> gr.Blocks:
    """The page over some models, to be launched."""
    with Page(title="Fine-tuned GPT-2", analytics_enabled=False) as page:
        gr.Markdown(ABOUT)
        if models.classifiers[1]:
            feelings = all(one.labels[-1] == "positive" for one in models.classifiers[1].values())
            with gr.Tab("Sentiment" if feelings else "Text"):
                _classifier_tab(models.classifiers[1], ["Text"], ["A film to see twice, and a pleasure to remember."])
        if models.classifiers[2]:
            with gr.Tab("Two questions"):
                questions = ["How do I learn to swim?", "What is the best way to learn swimming?"]
                _classifier_tab(models.classifiers[2], ["First question", "Second question"], questions)
        if models.poets:
            with gr.Tab("Sonnet"):
                _sonnet_tab(models.poets, precision, stop)
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def _classifier_tab(classifiers: dict[str, Classifier], asked: list[str], examples: list[str]) -> None:
    model = _choice(list(classifiers))
    with gr.Row():
        texts = [
            gr.Textbox(value, label=label, lines=3, max_lines=8, max_length=MOST_CHARACTERS)
            for label, value in zip(asked, examples, strict=True)
        ]
    button = gr.Button("Ask", variant="primary")
    probabilities = gr.Label(label="Probability of each class")
    words = [gr.HighlightedText(label=label, show_legend=False) for label in (WORDS, *asked[1:])]
    most = gr.Textbox(label="The word that moved it most", interactive=False, lines=2)

    def answer(name: str, *texts: str) -> tuple:
        examples = tuple(_checked(text).strip() for text in texts)  # as `predict.py` reads them
        chosen = classifiers[name]
        with _as_message():
            whole, parts = occlude(chosen, examples)
        largest = max((abs(moved) for text in parts for _, moved in text), default=0) or 1
        coloured = [[(word, STRONGEST * moved / largest) for word, moved in text] for text in parts]
        return dict(zip(chosen.labels, whole.tolist(), strict=True)), *coloured, _most(chosen.labels, whole, parts)

    _on(
        answer,
        [button.click, model.change, *(text.submit for text in texts)],
        [model, *texts],
        [probabilities, *words, most],
    )


def _most(labels: list[str], whole: np.ndarray, parts: list[list[tuple[str, float]]]) -> str:
    """The part with the largest effect, in words."""
    word, moved = max((part for text in parts for part in text), key=lambda part: abs(part[1]), default=("", 0.0))
    if not word:
        return "There are none."
    label, p = labels[whole.argmax()], whole.max()
    return f"Without “{word.strip()}”, {label} has a probability of {p - moved:.1%} instead of {p:.1%}."


def _sonnet_tab(poets: dict[str, Poet], precision: Precision, stop: StopRequest) -> None:
    model = _choice(list(poets))
    start = gr.Textbox(
        "When I do count the clock that tells the time,\nAnd see the brave day sunk in hideous night,",
        label="First lines", lines=3, max_lines=LINES, max_length=MOST_CHARACTERS,
    )  # fmt: skip
    with gr.Row():
        temperature = gr.Slider(0, 2, value=1.0, step=0.05, label="Temperature: 0 always takes the likeliest word")
        seed = gr.Number(1, label="Seed: another one, another poem", precision=0, minimum=0, maximum=2**32)
    button = gr.Button("Write", variant="primary")
    poem = gr.HighlightedText(label="Lines with the same letter rhyme", show_whitespaces=True)

    def write(name: str, first: str, temperature: float, seed: int) -> Iterator[list]:
        given = lines_with_words(_checked(first))
        if len(given) >= LINES:
            raise gr.Error(f"A sonnet has {LINES} lines: give fewer than that.", print_exception=False)
        if not (temperature == 0 or LEAST_TEMPERATURE <= temperature <= 2):
            raise gr.Error("The temperature is 0, or a number up to 2.", print_exception=False)
        if seed is None:
            raise gr.Error("The seed is a whole number.", print_exception=False)
        poet = poets[name]
        poet.finished.use()
        how = Sampling(temperature, poet.sampling["top_k"], poet.sampling["top_p"])
        with _as_message():
            model, tokenizer = poet.finished.model, poet.finished.tokenizer
            poem = recite(model, tokenizer, given, how, seed, poet.sampling["max_new_tokens"], stop)
            for lines in _step_by_step(poem, precision):
                yield [(f"{line}\n", letter) for line, letter in zip(lines, letters(lines), strict=True)]

    _on(write, [button.click, model.change], [model, start, temperature, seed], [poem])


def _choice(names: list[str]) -> gr.Radio:
    return gr.Radio(names, value=names[-1], label="Model")


def _on(answer: Callable, events: list, inputs: list, outputs: list) -> None:
    """One at a time over the whole page: the models share a network."""
    gr.on(
        events, answer, inputs, outputs, concurrency_id="network", concurrency_limit=1, trigger_mode="always_last",
        show_progress="minimal",
    )  # fmt: skip


def _checked(text: str) -> str:
    """Also what comes past the page's own limits."""
    if len(text or "") > MOST_CHARACTERS:
        raise gr.Error(f"A text here has at most {MOST_CHARACTERS} characters.", print_exception=False)
    return (text or "").replace("\0", "")


@contextmanager
def _as_message() -> Iterator[None]:
    """Shows the visitor what is wrong, rather than nothing."""
    try:
        yield
    except (InputError, TrainingFailed) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Interrupted as error:
        raise gr.Error("The page is being closed.", print_exception=False) from error


def _step_by_step(poem: Iterator[list[str]], precision: Precision) -> Iterator[list[str]]:
    """Each step may run in another thread, which autocast does not follow."""
    while True:
        with precision.autocast():
            lines = next(poem, None)
        if lines is None:
            return
        yield lines


def serve(page: gr.Blocks, port: int, stop: StopRequest) -> None:
    """Shows the page on this machine's own address until the user asks to stop.

    Raises:
        InputError: the port is taken.
        Interrupted: the user asked to stop.
    """
    try:
        _, address, _ = page.launch(
            server_name=HOST, server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
            theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]), css=CSS, footer_links=[],
            max_file_size=1,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"--port {port}: cannot be used ({error}); name another") from error
    try:
        print(f"{address} until Ctrl-C", flush=True)
        while True:
            stop.check()
            time.sleep(POLL)
    finally:
        page.close(verbose=False)
