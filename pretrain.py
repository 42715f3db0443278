"""Trains a tokenizer and a small GPT-2 from nothing on plain text (Radford et al. 2019)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from training.flags import (
    MOST,
    TOY_DATA,
    Parser,
    add_hardware_flags,
    add_resuming_flags,
    add_step_flags,
    number,
    whole_number,
)

DEMO = {
    "corpus": [str(TOY_DATA / "sonnets.txt")],
    "held_out": 0.2,
    "output_dir": "runs/demo/pretrain",
    "vocab_size": 512,
    "n_layer": 2,
    "n_embd": 128,
    "n_head": 4,
    "n_positions": 256,
    "dropout": 0.1,
    "tokens": 60_000,
    "batch_tokens": 512,
    "eval_every_steps": 25,
}
DEMO_IS_OVER = """\
These are toy data: they show that everything works, not how well. The real thing:
  ./setup.sh python pretrain.py --corpus FILE_OR_FOLDER --minutes 120"""


def parse_flags(arguments: list[str] | None = None) -> dict:
    parser = Parser(DEMO, prog="pretrain.py", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--corpus", nargs="+", metavar="PATH",
        help="text files, .gz or plain, or folders of .txt and .txt.gz files; documents are parted by blank lines",
    )  # fmt: skip
    data.add_argument(
        "--leave_out", nargs="+", default=[], metavar="PATH",
        help="files the model will be scored on: documents that share eight words in a row with them are left out",
    )  # fmt: skip
    data.add_argument(
        "--held_out", type=number(above=0, below=1), default=0.01, metavar="SHARE", help="of the documents, to score on"
    )
    data.add_argument("--output_dir", default="runs/pretrain", metavar="DIR", help="the folder of the run")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--vocab_size", type=whole_number(257, 1 << 24), default=8192, metavar="N", help="of the tokenizer"
    )
    model.add_argument("--n_layer", type=whole_number(1, 1 << 10), default=3, metavar="N", help="blocks")
    model.add_argument("--n_embd", type=whole_number(1, 1 << 16), default=224, metavar="N", help="width")
    model.add_argument("--n_head", type=whole_number(1, 1 << 16), default=7, metavar="N", help="heads of attention")
    model.add_argument(
        "--n_positions", type=whole_number(2, 1 << 24), default=512, metavar="N", help="tokens of context"
    )
    model.add_argument(
        "--dropout", type=number(least=0, below=1), default=0.0, metavar="P", help="in training, all three"
    )
    model.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the weights as saved")

    training = parser.add_argument_group("training")
    budget = training.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=number(above=0, most=1e7), metavar="N", help="of training")
    budget.add_argument(
        "--tokens", type=whole_number(1, 1 << 60), metavar="N", help="to train on, over as many passes as it takes"
    )
    training.add_argument(
        "--batch_tokens", type=whole_number(2), default=2048, metavar="N",
        help="a step, at most, unless a single document takes more of the context",
    )  # fmt: skip
    add_step_flags(training, max_grad_norm=1.0)
    training.add_argument(
        "--lr", type=number(above=0, most=MOST), default=3e-3, metavar="RATE",
        help="of AdamW, at its highest; Muon's, for the matrices of the blocks, goes along with it",
    )  # fmt: skip
    training.add_argument(
        "--weight_decay", type=number(least=0, most=MOST), default=0.1, metavar="W", help="of matrices"
    )
    training.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=11711, metavar="N", help="of everything random"
    )
    training.add_argument(
        "--eval_every_steps", type=whole_number(1), default=2000, metavar="N", help="score every N steps"
    )
    add_resuming_flags(training)
    add_hardware_flags(parser)
    settings = vars(parser.parse_args(arguments))
    if not settings["corpus"]:
        parser.error("--corpus PATH says what to train on")
    if settings["minutes"]:
        settings["tokens"] = None  # of the demo
    if not settings["minutes"] and not settings["tokens"]:
        parser.error("--minutes N or --tokens N says for how long to train")
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse_flags(arguments)

    from training.script import run_script

    def work(stop) -> None:
        from tasks.report import make_folder
        from training.run import locked

        make_folder(settings, "output_dir")
        with locked(Path(settings["output_dir"])):
            pretrain(settings, stop)

    return run_script("pretrain.py", work)


def pretrain(settings: dict, stop) -> None:
    import hashlib
    from dataclasses import replace

    import torch

    from config import GPT2Config
    from models.files import sha256
    from models.gpt2 import GPT2Model, without_values
    from models.heads import GPT2LMHeadModel
    from models.pretrained import save_pretrained, save_tokenizer
    from models.tokenizer import train_tokenizer
    from tasks.corpus import find_texts, hold_out, leave_out, read_documents
    from training import ranks
    from training.batching import Pieces
    from training.hardware import Precision, describe, make_deterministic, pick_device
    from training.pretraining import Pretrainer
    from training.run import Run, refuse_full_disk
    from training.tracking import refuse_missing

    refuse_missing(settings["track"])
    with ranks.together():
        precision = Precision(settings["precision"], pick_device(settings["device"]))
        shape = {name: settings[name] for name in ("vocab_size", "n_layer", "n_embd", "n_head", "n_positions")}
        pdrop = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), settings["dropout"])
        config = GPT2Config(**shape, **pdrop)
        count = sum(parameter.numel() for parameter in without_values(GPT2Model, config).parameters())
        refuse_too_large(count, precision.device)
        files, scored_on = find_texts(settings["corpus"]), find_texts(settings["leave_out"])
        documents = read_documents(files)
        allowed = leave_out(documents, scored_on)
        if scored_on:
            print(f"{len(documents) - len(allowed)} of {len(documents):,} documents are left out", flush=True)
        splits = dict(zip(("train", "held out"), hold_out(allowed, settings["held_out"]), strict=True))
        tokenizer = train_tokenizer(splits["train"], settings["vocab_size"], settings["n_positions"])
    end_of_text = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = replace(config, **end_of_text)

    make_deterministic(settings["seed"], precision.device)
    transformer = GPT2Model(config)
    transformer.init_weights()
    transformer.checkpoint_activations = settings["checkpoint_activations"]
    model = GPT2LMHeadModel(transformer).to(precision.device)
    folder = Path(settings["output_dir"])
    needed = 44 * count  # bytes: three states of a weight and two moments a parameter, two models
    ranks.on_first(lambda: refuse_full_disk(folder, needed))
    run = Run(
        folder,
        settings,
        {
            "data": {"corpus": list(map(sha256, files)), "leave_out": list(map(sha256, scored_on))},
            "model": {"tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()},
            "hardware": describe(precision.device) | {"processes": ranks.count()},
            "precision": precision.name,
            "parameters": count,
        },
        settings["resume"],
    )
    pieces = {}
    for name, documents in splits.items():
        ids = tokenizer(documents, verbose=False)["input_ids"]
        size = sum(len(document.encode()) for document in documents)
        pieces[name] = Pieces(ids, tokenizer.eos_token_id, config.n_positions, size)
        print(f"{name}: {len(documents):,} documents, {size:,} bytes, {sum(pieces[name].lengths):,} tokens", flush=True)
    print(f"{count:,} parameters, {precision.name} on {describe(precision.device)['device']}", flush=True)

    if ranks.rank():  # until here all drew the same numbers
        torch.manual_seed(settings["seed"] + ranks.rank())
    Pretrainer(model, pieces["train"], pieces["held out"], settings, run, precision, stop).fit()

    def write() -> None:
        save_tokenizer(tokenizer, run.best)
        save_pretrained(model, config, run.best, getattr(torch, settings["dtype"]))

    ranks.on_first(write)
    print(f"the model is {run.best}", flush=True)
    if settings["demo"]:
        print(DEMO_IS_OVER)


def refuse_too_large(parameters: int, device) -> None:
    """Raises InputError if the weights, their gradients and the optimizer's moments take more than there is."""
    import os

    from config import InputError

    needed = 16 * parameters
    if device.type == "cpu" and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            raise InputError(
                f"a network of {parameters:,} parameters takes {needed >> 30:,} GiB to train, and this machine has "
                f"{memory >> 30}; lower --n_embd, --n_layer, --vocab_size or --n_positions"
            )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # for Ctrl-C among the imports
    sys.exit(main())
