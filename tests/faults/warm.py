"""Runs the scripts in forked children, so that each start does not wait for the imports again.

Reads a request a line from standard input, answers it with a line on standard output; both are JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

TIMEOUT = 120  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a child takes them once its output is where it belongs


def import_what_scripts_need() -> dict:
    import pronouncing
    import torch
    from peft import LoraConfig  # noqa: F401
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: F401
    from sklearn.linear_model import LogisticRegression  # noqa: F401
    from sklearn.metrics import f1_score  # noqa: F401
    from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    import classifier
    import models.lora  # noqa: F401
    import paraphrase_detection
    import sonnet_generation
    import tasks.baselines
    import tasks.paraphrase
    import tasks.report
    import tasks.sentiment
    import tasks.sonnet_report  # noqa: F401
    import training.script  # noqa: F401

    pronouncing.init_cmu()
    torch.set_num_threads(1)
    return {module.__name__: module.main for module in (classifier, paraphrase_detection, sonnet_generation)}


def count_steps(steps: Path, stop: list[int]) -> None:
    """Adds a byte to a file at every step of an optimizer.

    Args:
        stop: after how many steps the process sends itself which signal how many times.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    at, signum, times = stop or (0, 0, 0)
    done = 0

    def note(*_) -> None:
        nonlocal done
        with steps.open("ab") as file:
            file.write(b".")
        done += 1
        for _ in range(times if done == at else 0):
            os.kill(os.getpid(), signum)

    register_optimizer_step_post_hook(note)


def work(request: dict, main) -> None:
    """What a child does; never returns."""
    code = 1
    try:
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        for number, name in ((1, request["output"]), (2, request["error"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if request["most_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["most_bytes"], resource.RLIM_INFINITY))
        count_steps(Path(request["steps"]), request["stop_at_step"])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = main(request["arguments"])
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # as Python ends then
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def watch(child: int, request: dict) -> dict:
    """Waits for a child, with a signal for it in time, or a disk that fills up; says how it ended."""
    after, signum = request["signal_after"] or (TIMEOUT, signal.SIGKILL)
    fill = request["fill_after"]
    started, steps = time.monotonic(), Path(request["steps"])
    sent = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - started
        if ended:
            return {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "steps_when_signalled": sent}
        if sent is None and seconds >= after:
            os.kill(child, signum)  # not reaped yet, so its number is still its own
            sent = steps.stat().st_size if steps.exists() else 0
        if fill and seconds >= fill:
            fill = None
            fill_disk(Path(request["folder"]))
        if seconds >= 2 * TIMEOUT:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def fill_disk(folder: Path) -> None:
    with (folder.parent / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    scripts = import_what_scripts_need()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = os.fork()
        if child == 0:
            work(request, scripts[request["script"]])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        print(json.dumps(watch(child, request)), file=answers, flush=True)
    os._exit(0)  # the interpreter takes seconds to tidy up


if __name__ == "__main__":
    main()
