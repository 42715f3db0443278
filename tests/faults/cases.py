"""What is trained while files fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call of a script; `every` is its `--save_every_steps`."""

    name: str
    script: str
    flags: tuple[str, ...]
    every: int | None = 2

    @property
    def folders(self) -> tuple[str, ...]:
        return "--output_dir", "runs", "--predictions_dir", "predictions"


def _case(name: str, script: str, flags: str, every: int | None = 2) -> Case:
    saves = ("--save_every_steps", str(every)) if every else ()
    common = ("--precision", "fp32", "--device", "cpu", *saves)
    return Case(name, script, (*flags.split(), *common), every)


_SST = "--dataset sst --max_train_samples 40 --max_eval_samples 10 --skip_bad_rows"
_QUORA = "--max_train_samples 32 --max_eval_samples 8 --epochs 2 --lr 1e-3 --skip_bad_rows"
_SONNETS = "--epochs 2 --lr 1e-3 --batch_size 4 --max_new_tokens 6 --max_eval_samples 1 --num_candidates 2"
_MICRO = "--lr 3e-3 --micro_batch_size 3 --max_grad_norm 1 --checkpoint_activations"
_LORA = "--use_lora --lora_rank 4"

CASES = {
    case.name: case
    for case in (
        _case("sst-full", "classifier", f"{_SST} --fine_tune_mode full-model --epochs 2 --lr 3e-3"),
        _case("sst-lora", "classifier", f"{_SST} {_LORA} --save_merged --epochs 2 --lr 3e-3"),
        _case("sst-last", "classifier", f"{_SST} --fine_tune_mode last-linear-layer --epochs 3 --lr 1e-2"),
        _case("sst-patience", "classifier", f"{_SST} --fine_tune_mode full-model --epochs 9 --patience 2 --lr 1e-2"),
        _case("sst-epochs", "classifier", f"{_SST} --fine_tune_mode full-model --epochs 3 --lr 3e-3", every=None),
        _case("sst-micro", "classifier", f"{_SST} --fine_tune_mode full-model --epochs 2 {_MICRO}"),
        _case("both-last", "classifier", "--max_train_samples 24 --max_eval_samples 8 --skip_bad_rows --epochs 2"),
        _case("quora-full", "paraphrase_detection", _QUORA),
        _case("quora-lora", "paraphrase_detection", f"{_QUORA} {_LORA} --head_init cloze --lora_target all-linear"),
        _case("sonnets-full", "sonnet_generation", _SONNETS),
        _case("sonnets-lora", "sonnet_generation", f"{_SONNETS} {_LORA} --patience 1"),
    )
}
