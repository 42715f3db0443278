"""A page in the browser that shows what trained models say, and which words moved them."""

from __future__ import annotations

import signal
import sys

from training.flags import Parser, add_hardware_flags, whole_number


def parse_flags(arguments: list[str] | None = None) -> dict:
    parser = Parser(prog="app.py", description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=[], metavar="RUN",
        help="runs' folders, models' or adapters', or ones on the Hub; without any, the small model in this repository",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=7860, metavar="N",
        help="where this machine, and no other, finds the page",
    )  # fmt: skip
    add_hardware_flags(parser)
    return vars(parser.parse_args(arguments))


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("app.py", lambda stop: run(settings, stop), goes_on="", needs_less="fewer models need less")


def run(settings: dict, stop) -> None:
    from page.layout import build, serve
    from page.models import load_models
    from training.hardware import Precision, make_deterministic, pick_device

    precision = Precision(settings["precision"], pick_device(settings["device"]))
    make_deterministic(0, precision.device)
    models = load_models(settings["models"], precision, stop)
    serve(build(models, precision, stop), settings["port"], stop)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
