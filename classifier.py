"""Fine-tunes GPT-2 on sentiment: the Stanford Sentiment Treebank and CFIMDB (paper, section 5)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from training.flags import DEMO, Parser, add_common_flags, check_method, method_name

DEMO_IS_OVER = """\
These are toy data: they show that everything works, not how well. The real thing:
  ./setup.sh python data/download.py
  ./setup.sh python classifier.py --fine-tune-mode full-model --model_size mini
or, with the published weights from the Hub, --model_size gpt2."""


def parse_flags(arguments: list[str] | None = None) -> dict:
    parser = Parser(DEMO | {"fine_tune_mode": "full-model"}, prog="classifier.py", description=__doc__)
    task = parser.add_argument_group("task")
    task.add_argument("--dataset", choices=("both", "sst", "cfimdb"), default="both", help="one run each")
    task.add_argument(
        "--fine_tune_mode", choices=("last-linear-layer", "full-model"),
        help="train the head on a frozen network (default, but with --use_lora), or everything",
    )  # fmt: skip
    add_common_flags(parser, epochs=10, batch_size=8, lr=1e-3, hidden_dropout_prob=0.3)
    parser.set_defaults(output_dir="runs")
    settings = vars(parser.parse_args(arguments))
    if settings["fine_tune_mode"] is None:
        settings["fine_tune_mode"] = "full-model" if settings["use_lora"] else "last-linear-layer"
    check_method(parser, settings)
    if settings["push_to_hub"] is not None and settings["dataset"] == "both":
        parser.error("--push_to_hub goes with --dataset sst or --dataset cfimdb: a name holds one model")
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("classifier.py", lambda stop: fine_tune_all(settings, stop))


def fine_tune_all(settings: dict, stop) -> None:
    """Reads every file before it trains on any: a bad one ends it before hours pass."""
    from tasks.report import make_folders, model_name, read_splits, train_and_report
    from tasks.sentiment import Sentiment
    from training.ranks import together

    with together():
        make_folders(settings)
        datasets = ("sst", "cfimdb") if settings["dataset"] == "both" else (settings["dataset"],)
        tasks = [Sentiment(dataset, settings["data_dir"], settings["skip_bad_rows"]) for dataset in datasets]
        splits = {task.name: read_splits(task, settings) for task in tasks}
    mode = method_name(settings)
    for number, task in enumerate(tasks, start=1):
        train_and_report(
            task,
            splits[task.name],
            Path(settings["output_dir"]) / f"{task.name}-{model_name(settings)}-{mode}",
            mode,
            lambda split, name=task.name: f"{mode}-{name}-{split}-out.csv",
            settings | {"dataset": task.name},
            stop,
            more_to_come=len(tasks) - number,
        )
    if settings["demo"]:
        print(DEMO_IS_OVER)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
