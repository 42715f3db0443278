"""Fine-tunes GPT-2 on Shakespeare's sonnets, and has it continue others from their first lines (paper, section 5)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from training.flags import DEMO, Parser, add_common_flags, check_method, method_name, number, whole_number

LEAST_TEMPERATURE = 1e-3  # logits are divided by it, and float32 ends somewhere
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
    task.add_argument(
        "--temperature", type=number(least=0), default=1.2, metavar="T", help="0 always takes the likeliest token"
    )
    task.add_argument("--top_k", type=whole_number(1), metavar="K", help="draw from the K likeliest tokens")
    task.add_argument(
        "--top_p", type=number(above=0, most=1), default=0.9, metavar="P",
        help="draw from the fewest tokens that have this probability together",
    )  # fmt: skip
    task.add_argument(
        "--max_new_tokens", type=whole_number(1, 1 << 20), default=256, metavar="N", help="after a prompt, at most"
    )
    task.add_argument(
        "--num_candidates", type=whole_number(1, 1 << 12), default=1, metavar="N",
        help="continue each prompt N times and keep what is most like the others",
    )  # fmt: skip
    add_common_flags(parser, epochs=20, batch_size=8, lr=1e-5, patience=2)
    settings = vars(parser.parse_args(arguments))
    check_method(parser, settings)
    if 0 < settings["temperature"] < LEAST_TEMPERATURE:
        parser.error(f"--temperature is 0, which always takes the likeliest token, or at least {LEAST_TEMPERATURE}")
    if settings["temperature"] == 0 and settings["num_candidates"] > 1:
        parser.error("--num_candidates goes with a --temperature above 0: without one they are all the same")
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("sonnet_generation.py", lambda stop: run(settings, stop))


def run(settings: dict, stop) -> None:
    from tasks.report import make_folder, model_name
    from tasks.sonnet_report import generate_and_score, read_prompts
    from tasks.sonnets import SonnetTask, read_sonnets, split
    from training.finetune import fine_tune
    from training.run import locked

    method, model = method_name(settings), model_name(settings)
    parent = "runs/demo" if settings["demo"] else "runs"
    settings["output_dir"] = settings["output_dir"] or f"{parent}/sonnets-{model}-{method}"
    make_folder(settings, "output_dir")
    make_folder(settings, "predictions_dir")
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
        generate_and_score(trained, name, prompts, sonnets.poems, settings, stop)
    print(f"{trained.seconds:.0f} s of training and evaluation; the model is {trained.run / 'best'}", flush=True)
    if settings["demo"]:
        print(DEMO_IS_OVER)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
