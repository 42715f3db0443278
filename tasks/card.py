"""What a run says of itself when it is over: a model card in `best/`, and a few lines on the screen."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from config import read_json
from models.files import write_text
from models.pretrained import PUBLISHED
from models.trained import count_places, read_task
from training.finetune import Trained

CARD = "README.md"
SHOWN = (  # of the settings; nothing of where the run was made, so that the same run has the same card anywhere
    "fine_tune_mode", "use_lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_variant", "epochs",
    "patience", "batch_size", "lr", "weight_decay", "max_grad_norm", "hidden_dropout_prob", "dropout", "head_init",
    "train_size", "max_train_samples", "seed",
)  # fmt: skip


@dataclass
class Metric:
    """A number of the model's own.

    Attributes:
        kind: what the Hub calls it: `accuracy`, `f1`, `chrf`.
        split: `dev` or `test`.
    """

    kind: str
    name: str
    value: float
    split: str


@dataclass
class Scores:
    """A table: what each method, the model last or among them, has on one split."""

    title: str
    columns: Sequence[str]
    rows: dict[str, Sequence[str]]


def write_card(
    trained: Trained,
    name: str,
    model: str,
    sizes: dict[str, int],
    tables: Sequence[Scores],
    metrics: Sequence[Metric],
    settings: dict,
) -> None:
    """Writes `best/README.md`. It holds nothing that differs between a run and one that was interrupted.

    Args:
        trained: the run.
        name: of the model that came out.
        model: what was fine-tuned.
        sizes: rows of each split.
        settings: the script's flags.
    """
    best = trained.run / "best"
    task = read_task(best)
    pipeline = "text-classification" if task.labels else "text-generation"
    published = model if not settings["model_path"] and model in PUBLISHED else None
    split_names = {"dev": "validation", "test": "test"}
    data = ModelCardData(
        language="en",
        library_name="peft" if settings["use_lora"] else "transformers",
        pipeline_tag=pipeline,
        base_model=f"openai-community/{published}" if published else None,
        tags=["gpt2", task.name],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=pipeline, dataset_type=task.name, dataset_name=task.name, dataset_split=split_names[m.split],
                metric_type=m.kind, metric_name=m.name, metric_value=round(m.value, 4),
            )
            for m in metrics
        ] or None,
    )  # fmt: skip
    classes = f" Its classes are {', '.join(map(escaped, task.labels))}." if task.labels else ""
    parts = [
        f"# {escaped(name)}",
        f"{escaped(model)}, fine-tuned on {escaped(task.name)}; the weights of epoch {trained.epoch} of "
        f"{trained.epochs}, in {trained.precision.name}.{classes}",
        "## Scores",
        *(_table(table.title, table.columns, table.rows) for table in tables),
        "## Use",
        f"```python\n{_code(trained, settings['use_lora'])}\n```",
        "## Data",
        _data(trained.run, sizes),
        "## Settings",
        _table("flag", ["value"], {name: [str(settings[name])] for name in SHOWN if _says_something(name, settings)}),
        "## Licences",
        _licences(model, settings),
    ]
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    write_text(best / CARD, str(card))


def _says_something(name: str, settings: dict) -> bool:
    return settings.get(name) is not None and (settings["use_lora"] or "lora" not in name)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    text = "".join(c if c.isprintable() else " " for c in str(text))
    text = re.sub(r"([\\`*_\[\]!|<>~&$#])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([=+.)-])(?!\d)", r"\1\\\2", text)  # would begin a heading or a list


def _table(title: str, columns: Sequence[str], rows: dict[str, Sequence[str]]) -> str:
    lines = [[title, *columns], ["---"] * (len(columns) + 1), *([name, *cells] for name, cells in rows.items())]
    cells = ([cell if cell == "---" else escaped(cell) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _code(trained: Trained, adapter: bool) -> str:
    """How stock code loads the model."""
    task = read_task(trained.run / "best")
    kind = "SequenceClassification" if task.labels else "CausalLM"
    if task.labels:
        texts, length = ["a text"] if count_places(task.prompt) == 1 else ["one text", "another"], ""
        text = json.dumps(texts[0] if task.prompt is None else task.prompt.format(*texts))
    else:
        text, length = json.dumps(f"{trained.tokenizer.eos_token}When I do count the clock\n"), ", max_new_tokens=50"
    hint = "  # this folder, or its name on the Hub"
    if not adapter:
        name, what = ("classify", "text-classification") if task.labels else ("write", "text-generation")
        load = f'{name} = pipeline("{what}", "best"){hint}'
        return "\n".join(["from transformers import pipeline", load, f"print({name}({text}{length}))"])
    classes = f", num_labels={len(task.labels)}" if task.labels else ""
    use = f"model(**tokenizer({text}, return_tensors='pt')).logits"
    if not task.labels:
        use = f"tokenizer.decode(model.generate(**tokenizer({text}, return_tensors='pt'){length})[0])"
    return "\n".join(
        [
            f"from peft import AutoPeftModelFor{kind}",
            "from transformers import AutoTokenizer",
            f'tokenizer = AutoTokenizer.from_pretrained("best"){hint}',
            f'model = AutoPeftModelFor{kind}.from_pretrained("best"{classes})',
            f"print({use})",
        ]
    )


def _data(run: Path, sizes: dict[str, int]) -> str:
    hashes = read_json(run / "config.json")["data"]
    rows = ", ".join(f"{count} {name}" for name, count in sizes.items())
    files = {name: [digest] for name, digest in sorted(hashes.items())}
    return f"Rows in use: {rows}.\n\n{_table('file', ['sha256'], files)}"


def _licences(model: str, settings: dict) -> str:
    start = f"{escaped(model)}, whose licence holds for what comes of it"
    if not settings["model_path"]:
        start = f"OpenAI's {escaped(model)}, which is under the MIT licence"
        if model not in PUBLISHED:
            start = "the small model in the repository of the code, which is under the code's licence"
    return (
        f"The weights started from {start}. The data keep their owners' licences, which may restrict what is done with "
        "a model that learned from them. The code that trained it is under the Apache License 2.0."
    )


def print_summary(trained: Trained, scores: str) -> None:
    """The last lines of a run: where it is, how good it is, and how to use it."""
    task = read_task(trained.run / "best")
    texts = ["one text", "another"] if count_places(task.prompt) > 1 else ["a text" if task.labels else "a first line"]
    print(f"\n{trained.seconds:.0f} s of training and evaluation; the run is {trained.run}: {scores}")
    print(f"the model and its card are in {trained.run / 'best'}; to use it:")
    print(f"  ./setup.sh python predict.py {shlex.join([str(trained.run), *texts])}\n", flush=True)
