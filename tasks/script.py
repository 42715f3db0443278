"""The script around a task of one's own: `python -m tasks.NAME`."""

from __future__ import annotations

from tasks.classification import ClassificationTask
from tasks.report import run_task
from training.flags import Parser, add_common_flags, check_method
from training.script import run_script


def main(task: type[ClassificationTask], arguments: list[str] | None = None) -> int:
    """Reads the flags that all fine-tuning scripts share, trains, and reports.

    Returns:
        The exit code.
    """
    program = f"tasks.{task.name}"
    parser = Parser(prog=program, description=task.__doc__)
    add_common_flags(parser, epochs=10, batch_size=8, lr=1e-5, hidden_dropout_prob=0.0)
    settings = vars(parser.parse_args(arguments))
    check_method(parser, settings)

    def work(stop) -> None:
        run_task(task(settings["data_dir"], settings["skip_bad_rows"]), settings, f"{task.name}-{{}}-output.csv", stop)

    return run_script(program, work)
