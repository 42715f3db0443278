"""Trains what is missing of the paper's runs, and writes its tables and figures with ours beside them."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

from training.flags import MODEL_SIZES, TOY_DATA, Parser, whole_number

DEMO = {
    "preset": "demo",
    "data_dir": str(TOY_DATA),
    "runs_dir": "runs/demo/reproduce",
    "report_dir": "runs/demo/report",
}
DEMO_IS_OVER = """\
These are toy data: they show that everything works, not how well. The real thing:
  ./setup.sh python data/download.py
  ./setup.sh python reproduce.py --preset quick
or, with the published weights from the Hub and a GPU, --preset paper."""


def parse_flags(arguments: list[str] | None = None) -> dict:
    parser = Parser(DEMO, prog="reproduce.py", description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument(
        "--preset",
        choices=("paper", "quick", "demo"),
        default="paper",
        help="every run, as the paper has it or in small",
    )
    what.add_argument("--tasks", nargs="+", choices=("sentiment", "paraphrase", "sonnet"), help="some of the three")
    what.add_argument("--seeds", type=_seeds, default="11711", metavar="N,N", help="a run of everything with each")
    what.add_argument("--model_size", choices=MODEL_SIZES, help="a GPT-2 to take the place of the paper's")
    what.add_argument("--model_path", metavar="DIR", help="any Hugging Face GPT-2 directory to take it")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--search", choices=("sentiment", "paraphrase", "sonnet"), help="look for better settings of a task instead"
    )
    search.add_argument("--trials", type=whole_number(1), default=30, metavar="N", help="by all workers together")
    search.add_argument(
        "--storage", metavar="URL", help="of Optuna, which workers share; search.db in --runs_dir if not given"
    )
    where = parser.add_argument_group("where")
    where.add_argument("--data_dir", default="data", metavar="DIR", help="where the course's files lie")
    where.add_argument("--runs_dir", metavar="DIR", help="of the runs' folders; else runs/reproduce/PRESET-MODEL")
    where.add_argument("--report_dir", default="report", metavar="DIR", help="where the report is written")
    where.add_argument("--report_only", action="store_true", help="train nothing")
    settings = vars(parser.parse_args(arguments))
    if settings["search"] and (settings["report_only"] or settings["tasks"]):
        parser.error("--search goes without --report_only and --tasks")
    if settings["storage"] is not None and not settings["search"]:
        parser.error("--storage goes with --search")
    return settings


def _seeds(text: str) -> list[int]:
    seeds = [whole_number(0, 2**63 - 1)(part) for part in text.split(",")]
    return list(dict.fromkeys(seeds))


_seeds.__name__ = "list of whole numbers"


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    return run_script("reproduce.py", lambda stop: reproduce(settings, stop))


def reproduce(settings: dict, stop) -> None:
    from config import InputError
    from reproduction.grid import PLACES, PRESETS
    from tasks.report import make_folder, model_name
    from training import ranks

    preset = PRESETS[settings["preset"]]
    flag = "model_path" if settings["model_path"] else "model_size"
    name = settings["preset"]
    if settings[flag]:
        flags = (f"--{flag}", settings[flag])
        rates = preset.rates if flags in preset.models.values() else {}  # they are the preset's own model's
        preset = replace(preset, models={PLACES[0]: flags}, rates=rates)
        name += f"-{model_name({'model_path': None, flag: settings[flag]})}"
    settings["runs_dir"] = settings["runs_dir"] or f"runs/reproduce/{name}"
    if settings["search"]:
        if ranks.count() > 1:
            raise InputError("--search shares its work through --storage: start it several times, without torchrun")
        from reproduction.search import search

        folder = Path(settings["runs_dir"]) / "search"
        make_folder({"runs_dir": folder}, "runs_dir")
        flags = [*preset.models[PLACES[0]], *preset.flags.get(settings["search"], ())]
        storage = settings["storage"] or f"sqlite:///{folder / 'search.db'}"
        search(settings["search"], settings["trials"], flags, settings["data_dir"], folder, storage, stop)
    else:
        from reproduction.runner import follow, lead

        if ranks.rank() > 0:
            follow()
            return
        with lead():
            train_and_report(preset, settings, stop)
    if settings["demo"]:
        print(DEMO_IS_OVER)


def train_and_report(preset, settings: dict, stop) -> None:
    """Trains what is missing of the grid, and writes the report."""
    from config import InputError
    from reproduction.grid import TASKS, grid
    from reproduction.plan import expected_seconds
    from reproduction.report import write_report
    from reproduction.results import Results
    from reproduction.runner import Study
    from tasks.report import make_folder
    from training.objectives import TrainingFailed

    train, runs = not settings["report_only"], Path(settings["runs_dir"])
    experiments = grid(preset, settings["tasks"] or TASKS)
    study = Study(runs, experiments, settings["seeds"], settings["data_dir"], train)
    try:
        outcomes = study.outcomes()
    except OSError as error:  # a name that is too long, a folder without permission
        raise InputError(f"--runs_dir {runs}: {error.strerror or error}") from error
    pending = [outcome for outcome in outcomes if outcome.problem]
    print(f"{len(outcomes)} runs, {len(outcomes) - len(pending)} of them done", flush=True)
    if len(pending) == len(outcomes) and not train:
        raise InputError(f"--runs_dir {runs}: no run of this grid is there; the first: {pending[0].problem}")
    make_folder(settings, "report_dir")
    if pending and train:
        make_folder({"runs_dir": runs}, "runs_dir")
        print("trying each kind on a few rows, to see how long the others take", flush=True)
        seconds = expected_seconds(study, pending, stop)
        for experiment, expected in seconds.items():
            count = sum(outcome.experiment == experiment for outcome in pending)
            print(f"  {experiment.name}: {count} times {_in_words(expected)}")
        print(f"at most {_in_words(sum(seconds[one.experiment] for one in pending))} in all", flush=True)
        study.execute(pending, seconds, stop)
    folder = Path(settings["report_dir"])
    results = Results(study.outcomes(), settings["data_dir"])
    write_report(folder, results)
    print(f"the report is {folder / 'report.md'} and {folder / 'report.html'}", flush=True)
    missing = [outcome for outcome in results.outcomes if outcome.problem]
    for outcome in missing:
        print(f"{outcome.folder.name}: {outcome.problem}")
    if missing and train:
        raise TrainingFailed(f"{len(missing)} of {len(results.outcomes)} runs failed; call again to try them again")


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
