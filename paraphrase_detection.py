"""Fine-tunes GPT-2 to tell whether two questions mean the same: Quora's pairs, as a cloze (paper, section 5)."""

from __future__ import annotations

import signal
import sys

from training.flags import DEMO, Parser, add_common_flags, check_method

DEMO_IS_OVER = """\
These are toy data: they show that everything works, not how well. The real thing:
  ./setup.sh python data/download.py
  ./setup.sh python paraphrase_detection.py --use_lora --lora_rank 16 --model_size mini
or, with the published weights from the Hub, --model_size gpt2."""


def parse_flags(arguments: list[str] | None = None) -> dict:
    demo = DEMO | {"output_dir": None, "lr": 1e-4}
    parser = Parser(demo, prog="paraphrase_detection.py", description=__doc__)
    task = parser.add_argument_group("task")
    task.add_argument(
        "--head_init", choices=("random", "cloze"), default="random",
        help="start the head from small random numbers, or from the embeddings of the words no and yes",
    )  # fmt: skip
    task.add_argument(
        "--prediction_labels", choices=("01", "tokens"), default="01",
        help="write 0 and 1, or GPT-2's ids of the words no and yes, as the course's grader wants them",
    )  # fmt: skip
    add_common_flags(parser, epochs=10, batch_size=8, lr=1e-5, hidden_dropout_prob=0.0)
    settings = vars(parser.parse_args(arguments))
    check_method(parser, settings)
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("paraphrase_detection.py", lambda stop: run(settings, stop))


def run(settings: dict, stop) -> None:
    from tasks.paraphrase import Paraphrase
    from tasks.report import run_task

    task = Paraphrase(settings["data_dir"], settings["skip_bad_rows"], settings["prediction_labels"])
    run_task(task, settings, "para-{}-output.csv", stop, "runs/demo" if settings["demo"] else "runs")
    if settings["demo"]:
        print(DEMO_IS_OVER)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
