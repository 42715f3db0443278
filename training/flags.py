"""The flags that the scripts share. Imports nothing slow: `--help` must not wait for torch."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from config import InputError

MODEL_SIZES = ("mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MOST = 1e4  # of what others are multiplied by, for float32 ends somewhere
TOY_DATA = Path(__file__).resolve().parents[1] / "data" / "mini"
DEMO = {  # what --demo sets in every fine-tuning script
    "model_size": "mini",
    "data_dir": str(TOY_DATA),
    "output_dir": "runs/demo",
    "predictions_dir": "predictions/demo",
}

SAMPLING = {"temperature": 1.2, "top_k": None, "top_p": 0.9, "max_new_tokens": 256, "num_candidates": 1}
LEAST_TEMPERATURE = 1e-3  # logits are divided by it, and float32 ends somewhere


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names the default of a flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        without = action.default is None or action.default is False or action.default == []
        return action.help if without else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Takes `-` and `_` alike in a flag's name, and answers a wrong one with one line.

    Args:
        demo: the defaults that `--demo` puts in place of the usual ones; flags that are given stand. Without any
            there is no such flag.
    """

    def __init__(self, demo: dict | None = None, **kwargs):
        super().__init__(
            allow_abbrev=False,
            formatter_class=_Help,
            epilog="In a flag's name - and _ are the same.",
            **kwargs,
        )
        self.demo = demo
        if demo:
            self.add_argument(
                "--demo", action="store_true", help="toy data and a small model: a minute or two, no download"
            )

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        arguments = list(sys.argv[1:] if args is None else args)
        end = arguments.index("--") if "--" in arguments else len(arguments)  # what follows is no flag
        arguments[:end] = [_underscored(argument) for argument in arguments[:end]]
        if any("\0" in argument for argument in arguments):
            self.error("an argument holds a NUL character")
        settings = super().parse_intermixed_args(arguments, namespace)
        if self.demo and settings.demo:
            self.set_defaults(**self.demo)
            settings = super().parse_intermixed_args(arguments, namespace)
        for name in (action.dest for action in self._actions if action.option_strings):
            value = getattr(settings, name, None)
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"--{name} is empty; give it a value, or leave it out")
        return settings

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {InputError(message)} (see {self.prog} --help)\n")


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def whole_number(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A converter for argparse: a whole number in [least, most]."""

    def convert(text: str) -> int:
        value = int(_plain(text))
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not {_range(least, most)}")
        return value

    convert.__name__ = "whole number"
    return convert


def number(
    above: float = -math.inf, least: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> Callable[[str], float]:
    """A converter for argparse: a finite number in the given range."""

    def convert(text: str) -> float:
        value = float(_plain(text))
        if not (math.isfinite(value) and above < value < below and least <= value <= most):
            bounds = [
                f"above {above:g}" if above > -math.inf else "",
                f"at least {least:g}" if least > -math.inf else "",
            ]
            bounds += [f"below {below:g}" if below < math.inf else "", f"at most {most:g}" if most < math.inf else ""]
            raise argparse.ArgumentTypeError(f"{text} is not a number {' and '.join(b for b in bounds if b)}".rstrip())
        return value

    convert.__name__ = "number"
    return convert


def _plain(text: str) -> str:
    """Raises ValueError for digits of other scripts and for `1_000`, which Python reads and most others do not."""
    if not text.isascii() or "_" in text:
        raise ValueError
    return text


def _range(least: int, most: float) -> str:
    return f"at least {least}" if most == math.inf else f"between {least} and {most}"


def add_common_flags(
    parser: Parser,
    epochs: int,
    batch_size: int,
    lr: float,
    hidden_dropout_prob: float | None = None,
    patience: int | None = None,
) -> None:
    """Adds what every script understands; the defaults are the paper's (section 5.3). Without a default for
    `hidden_dropout_prob` there is no head to drop out before."""
    model = parser.add_argument_group("model")
    model.add_argument("--model_size", choices=MODEL_SIZES, default="gpt2", help="which GPT-2")
    model.add_argument("--model_path", metavar="DIR", help="any Hugging Face GPT-2 directory instead")
    if hidden_dropout_prob is not None:
        model.add_argument(
            "--hidden_dropout_prob",
            type=number(least=0, below=1),
            default=hidden_dropout_prob,
            metavar="P",
            help="dropout before the head",
        )
    model.add_argument(
        "--dropout",
        type=number(least=0, below=1),
        metavar="P",
        help="the network's own three dropouts, if not as in its config.json",
    )

    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", default="data", metavar="DIR", help="where the course's files lie")
    data.add_argument("--max_train_samples", type=whole_number(1), metavar="N", help="train on N rows only, drawn once")
    data.add_argument("--max_eval_samples", type=whole_number(1), metavar="N", help="evaluate the first N rows only")
    data.add_argument(
        "--skip_bad_rows", action="store_true", help="go on when more than 1%% of a file's rows cannot be used"
    )
    data.add_argument("--output_dir", metavar="DIR", help="the run's folder, or where those of several are made")
    data.add_argument("--predictions_dir", default="predictions", metavar="DIR", help="where prediction files go")
    data.add_argument("--push_to_hub", metavar="NAME", help="put best/ on the Hugging Face Hub under this name")

    lora = parser.add_argument_group("LoRA")
    lora.add_argument("--use_lora", action="store_true", help="train a low-rank adapter and a head, nothing else")
    lora.add_argument("--lora_rank", type=whole_number(1), default=16, metavar="R", help="rank of the update")
    alpha = number(above=0, least=1 / MOST, most=MOST)
    lora.add_argument("--lora_alpha", type=alpha, default=16, metavar="A", help="scales the update by A / R")
    lora.add_argument(
        "--lora_dropout", type=number(least=0, below=1), default=0.1, metavar="P", help="on the way into the adapter"
    )
    lora.add_argument(
        "--lora_target", choices=("attention", "all-linear"), default="attention", help="the layers that get one"
    )
    lora.add_argument(
        "--lora_variant", choices=("lora", "rslora", "dora", "pissa"), default="lora", help="which of PEFT's kinds"
    )
    lora.add_argument(
        "--save_merged", action="store_true", help="also write merged/, the model with the adapter folded in"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=whole_number(1), default=epochs, metavar="N", help="passes over the data")
    training.add_argument(
        "--patience", type=whole_number(1), default=patience, metavar="N", help="stop after N epochs without a better"
    )
    training.add_argument("--batch_size", type=whole_number(1), default=batch_size, metavar="N", help="texts a step")
    add_step_flags(training)
    training.add_argument(
        "--lr", type=number(above=0, most=MOST), default=lr, metavar="RATE", help="learning rate of AdamW"
    )
    training.add_argument("--weight_decay", type=number(least=0, most=MOST), default=0.0, metavar="W", help="of AdamW")
    training.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), default=11711, metavar="N", help="of everything random"
    )
    add_resuming_flags(training)
    add_hardware_flags(parser).add_argument(
        "--shard", action="store_true", help="part the network among the processes, where it is too large for each"
    )


def add_sampling_flags(group: argparse._ArgumentGroup, defaults: dict = SAMPLING) -> None:
    """How text is written."""
    group.add_argument(
        "--temperature", type=number(least=0), metavar="T",
        help="0 always takes the likeliest token",
    )  # fmt: skip
    group.add_argument("--top_k", type=whole_number(1), metavar="K", help="draw from the K likeliest tokens")
    group.add_argument(
        "--top_p", type=number(above=0, most=1), metavar="P",
        help="draw from the fewest tokens that have this probability together",
    )  # fmt: skip
    group.add_argument(
        "--max_new_tokens", type=whole_number(1, 1 << 20), metavar="N",
        help="after a prompt, at most",
    )  # fmt: skip
    group.add_argument(
        "--num_candidates", type=whole_number(1, 1 << 12), metavar="N",
        help="continue each prompt N times and keep what is most like the others",
    )  # fmt: skip
    group.set_defaults(**defaults)


def sampling_problem(settings: dict) -> str:
    """What is wrong with the flags of `add_sampling_flags` taken together; nothing, if all is well."""
    if 0 < settings["temperature"] < LEAST_TEMPERATURE:
        return f"--temperature is 0, which always takes the likeliest token, or at least {LEAST_TEMPERATURE}"
    if settings["temperature"] == 0 and settings["num_candidates"] > 1:
        return "--num_candidates goes with a --temperature above 0: without one they are all the same"
    return ""


def check_method(parser: Parser, settings: dict) -> None:
    """Refuses flags that contradict one another."""
    if settings["use_lora"] and settings.get("fine_tune_mode") == "last-linear-layer":
        parser.error("--use_lora goes with --fine_tune_mode full-model")
    if settings["save_merged"] and not settings["use_lora"]:
        parser.error("--save_merged goes with --use_lora")


def method_name(settings: dict) -> str:
    """What a run's folder and the tables call the way of training: `full-model`, or `lora-16` and what is unusual."""
    if not settings["use_lora"]:
        return settings.get("fine_tune_mode") or "full-model"
    unusual = {"lora_target": "attention", "lora_variant": "lora"}
    parts = ["lora", str(settings["lora_rank"]), *(settings[k] for k, usual in unusual.items() if settings[k] != usual)]
    return "-".join(parts)


def add_step_flags(training: argparse._ArgumentGroup, max_grad_norm: float | None = None) -> None:
    training.add_argument(
        "--micro_batch_size", type=whole_number(1), metavar="N", help="texts in memory at once; a step adds them up"
    )
    training.add_argument(
        "--checkpoint_activations",
        action="store_true",
        default=None,  # as a run has it that was made before there was this flag
        help="less memory: compute a block anew in the backward pass",
    )
    training.add_argument(
        "--max_grad_norm", type=number(above=0), default=max_grad_norm, metavar="NORM",
        help="cut a step's gradient to this length",
    )  # fmt: skip


def add_resuming_flags(training: argparse._ArgumentGroup) -> None:
    training.add_argument(
        "--save_every_steps",
        type=whole_number(1),
        metavar="N",
        help="save for --resume every N steps too, not only after each evaluation",
    )
    training.add_argument("--resume", action="store_true", help="go on where an interrupted run was last saved")
    training.add_argument(
        "--track", choices=("wandb", "trackio"), help="show the run in Weights & Biases or Trackio, if it is installed"
    )


def add_hardware_flags(parser: Parser) -> argparse._ArgumentGroup:
    hardware = parser.add_argument_group("hardware", "several processes, started by torchrun, share the work")
    hardware.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto: bf16 where the hardware computes in it, fp16 on an older GPU, else fp32",
    )  # fmt: skip
    hardware.add_argument("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto", help="where to compute")
    hardware.add_argument(
        "--use_gpu",
        dest="device",
        action="store_const",
        const="cuda",
        default=argparse.SUPPRESS,
        help="as --device cuda",
    )
    return hardware
