"""Ten epochs of last-linear-layer mode on SST: on stored features, against running the frozen network every epoch.

./setup.sh python benchmarks/last_linear_layer.py --model_path DIR --data_dir ../shared/data
"""

from __future__ import annotations

from timing import describe_machine, run  # isort: skip

import contextlib
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import classifier
from tasks.report import read_splits
from tasks.sentiment import Sentiment
from training.finetune import fine_tune
from training.hardware import keep_freed_memory
from training.interrupt import StopRequest


def main() -> None:
    describe_machine()
    keep_freed_memory()
    settings = classifier.parse_flags() | {"dataset": "sst", "fine_tune_mode": "last-linear-layer"}
    task = Sentiment("sst", settings["data_dir"])
    splits = read_splits(task, settings)
    seconds, predicted = {}, {}
    for store in (True, False):
        with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            started = time.perf_counter()
            result = fine_tune(Path(folder), task, splits, settings, StopRequest(), store_features=store)
            predicted[store] = [result.predict(split).argmax(axis=1) for split in ("dev", "test")]
            seconds[store] = time.perf_counter() - started
    same = all(map(np.array_equal, predicted[True], predicted[False]))
    print(
        f"{settings['epochs']} epochs on {len(splits['train'].texts)} texts: {seconds[True]:.1f} s on stored features, "
        f"{seconds[False]:.1f} s running the network anew, ratio {seconds[False] / seconds[True]:.1f}; "
        f"predictions {'the same' if same else 'DIFFER'}"
    )


if __name__ == "__main__":
    run(main)
