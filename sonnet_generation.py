"""Fine-tunes GPT-2 on Shakespeare's sonnets, and has it continue others from their first lines (paper, section 5)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from training.flags import (
    DEMO,
    Parser,
    add_common_flags,
    add_sampling_flags,
    check_method,
    method_name,
    number,
    sampling_problem,
)  # fmt: skip

DEMO_IS_OVER = """\
These are toy data: they show that everything works, not how well. The real thing:
  ./setup.sh python data/download.py
  ./setup.sh python sonnet_generation.py --model_size mini --lr 1e-3
or, with the published weights from the Hub, --model_size gpt2."""


def parse_flags(arguments: list[str] | None = None) -> dict:
    demo = DEMO | {"output_dir": None, "lr": 1e-3, "temperature": 0.8, "num_candidates": 4}
    parser = Parser(demo, prog="sonnet_generation.py", description=__doc__)
    task = parser.add_argument_group("task")
    task.add_argument(
        "--train_size", type=number(above=0, below=1), default=0.9, metavar="SHARE",
        help="of the sonnets, to learn from; the rest say which epoch is best",
    )  # fmt: skip
    add_sampling_flags(task)
    add_common_flags(parser, epochs=20, batch_size=8, lr=1e-5, patience=2)
    settings = vars(parser.parse_args(arguments))
    check_method(parser, settings)
    if problem := sampling_problem(settings):
        parser.error(problem)
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("sonnet_generation.py", lambda stop: run(settings, stop))


def run(settings: dict, stop) -> None:
    from tasks.report import make_folders, model_name, push, refuse_folder
    from tasks.sonnet_report import FILES, generate_and_score, print_sonnet_summary, read_prompts, write_sonnet_card
    from tasks.sonnets import SonnetTask, read_sonnets, split
    from training.finetune import fine_tune
    from training.ranks import on_first, together
    from training.run import locked

    method, model = method_name(settings), model_name(settings)
    parent = "runs/demo" if settings["demo"] else "runs"
    settings["output_dir"] = settings["output_dir"] or f"{parent}/sonnets-{model}-{method}"
    with together():
        make_folders(settings)
        for file in FILES.values():
            refuse_folder(Path(settings["predictions_dir"]) / file)
        data = Path(settings["data_dir"])
        sonnets = read_sonnets(data / "sonnets.txt", skip_bad_rows=settings["skip_bad_rows"])
        sonnets = sonnets.sample(settings["max_train_samples"])
        train, validation = split(sonnets, settings["train_size"], settings["seed"])
        prompts = {name: read_prompts(data, name, settings["max_eval_samples"]) for name in ("dev", "test")}
    counts = {"to learn from": train, "to validate on": validation, **{name: p.given for name, p in prompts.items()}}
    sizes = ", ".join(f"{len(some.poems)} {name}" for name, some in counts.items())
    print(f"sonnets: {sizes}, {model}, {method}", flush=True)

    folder = Path(settings["output_dir"])
    with locked(folder):
        trained = fine_tune(folder, SonnetTask(), {"train": train, "dev": validation}, settings, stop)
        name = f"{model}, {method}, epoch {trained.epoch} of {trained.epochs}"

        def write() -> None:
            scores = generate_and_score(trained, name, prompts, sonnets.poems, settings, stop)
            sizes = {split: len(some.poems) for split, some in counts.items()}
            write_sonnet_card(trained, f"sonnets-{model}-{method}", model, sizes, scores, name, settings)
            print_sonnet_summary(trained, scores, name)
            push(trained, settings)

        on_first(write)
    if settings["demo"]:
        print(DEMO_IS_OVER)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
