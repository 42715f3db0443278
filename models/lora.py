"""Low-rank adaptation (Hu et al. 2021; paper, section 4.3) through Hugging Face PEFT, in files stock `peft` loads.

               x  (N, in)
         ┌─────┴─────┐
         │           A  (r, in)     random
         W  frozen   B  (out, r)    0, so that training starts from the published network
         │           │ · alpha / r
         └──── + ────┘
               y  (N, out)

PEFT wraps the linear layers of our network where they stand, under the names they have in stock GPT-2, whose layers
hold the transpose of W but the same A and B. A classifier's head is trained whole and saved with them.
"""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from config import InputError, is_number, read_json, refuse_special
from models.files import replacing
from models.gpt2 import GPT2Model
from models.heads import GPT2ForSequenceClassification, GPT2LMHeadModel
from models.lora_linear import LoraLinear
from models.pretrained import refuse_not_finite
from models.tensors import check_tensors, write_tensors
from modules.dropout import Dropout
from modules.linear import Linear
from modules.ragged import Rows

TARGETS = {
    "attention": ["attn.c_attn", "attn.c_proj"],  # the paper's: query, key, value, output
    "all-linear": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
}
VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},  # alpha / sqrt(r) (Kalajdzievski 2023)
    "dora": {"use_dora": True},  # direction and magnitude apart (Liu et al. 2024)
    "pissa": {"init_lora_weights": "pissa"},  # starts from the principal singular vectors (Meng et al. 2024)
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PEFT puts before the names of the network
_HEAD = f"{_PREFIX}score.weight"
MOST_BYTES = 4 << 30  # of an adapter, which is read as a whole; rank 1024 in every layer of gpt2-xl takes half of that
MOST_REPEATS = 4  # in a pattern of layers' names, none of them of a group: matching takes no longer than that allows
_REPEATS, _NESTED = re.compile(r"[*+{]"), re.compile(r"\)[*+?{]")
_PEFT_RAISES = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, re.error)  # of what does not fit


class Lora:
    """A new adapter, to be trained: everything but the adapter and a classifier's head is frozen.

    Args:
        model: its linear layers are wrapped in place.
        base: name or directory of the model below, for `adapter_config.json`.
        rank: r.
        alpha: the update is scaled by alpha / r.
        dropout: on the way into A, in training.
        target: which layers, a key of `TARGETS`.
        variant: a key of `VARIANTS`.

    Raises:
        InputError: a rank above the network's width.
    """

    def __init__(
        self,
        model: GPT2ForSequenceClassification | GPT2LMHeadModel,
        base: str,
        rank: int = 16,
        alpha: float = 16,
        dropout: float = 0.1,
        target: str = "attention",
        variant: str = "lora",
    ):
        width = model.config.n_embd
        if not 1 <= rank <= width:
            raise InputError(f"--lora_rank {rank}: a rank lies between 1 and the network's width, {width}")
        self.model, self.base, self.variant = model, base, variant
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGETS[target], **VARIANTS[variant]
        )
        config._register_custom_module({Linear: LoraLinear})
        self.peft = PeftModel(model, config)
        if dropout:
            for layer in _lora_layers(model):
                layer.lora_dropout["default"] = Dropout(dropout)  # faster than torch's on a CPU
        self.head: nn.Linear | None = getattr(model, "score", None)
        if self.head:
            self.head.requires_grad_(True)
        # PiSSA takes out of W what it starts A and B with; that B A is what a saved adapter must not count as learned.
        self.start = {name: tensor.clone() for name, tensor in self._tensors().items()} if variant == "pissa" else {}

    def save(self, directory: Path) -> None:
        """Writes a PEFT adapter directory; each of its files is there whole or not at all."""
        config = copy.deepcopy(self.peft.peft_config["default"])
        tensors = self._tensors()
        if self.variant == "pissa":  # B A - B0 A0, as an adapter of twice the rank on the network as it was published
            tensors = _less(config, tensors, self.start)
        config.base_model_name_or_path, config.task_type = self.base, "CAUSAL_LM"
        if self.head:
            tensors[_HEAD] = self.head.weight.detach()
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        config.fan_in_fan_out = True  # how stock GPT-2 keeps its weights
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            with replacing(directory / CONFIG) as beside:
                shutil.copyfile(Path(folder) / CONFIG, beside)
        write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})

    def _tensors(self) -> dict[str, Tensor]:
        # Not by `state_dict()`, which parts again what was put together to be saved.
        parameters = dict(self.peft.named_parameters())
        tensors = get_peft_model_state_dict(self.peft, parameters, save_embedding_layers=False)
        return {name: tensor.detach() for name, tensor in tensors.items()}


class Adapters:
    """Models that share one network in memory: an adapter and, of classifiers, a head each, one of them in use. For
    evaluation.

    Args:
        transformer: the network. It is wrapped in place; `unload` gives it back as it was.
    """

    def __init__(self, transformer: GPT2Model):
        self.holder = nn.Module()
        self.holder.transformer = transformer
        self.learns = {name: parameter.requires_grad for name, parameter in transformer.named_parameters()}
        self.peft: PeftModel | None = None
        self.inner: dict[str, str] = {}  # what PEFT calls each adapter; not all names can be part of a parameter's
        self.heads: dict[str, Tensor | None] = {}
        self.name: str | None = None

    def load(self, name: str, directory: str | Path) -> None:
        """Reads an adapter that this project or stock PEFT saved, and uses it from now on.

        Raises:
            InputError: not an adapter, of a network of another shape, or the name is taken. What was loaded before
                is still there.
        """
        directory = Path(directory)
        if name in self.inner:
            raise InputError(f"{directory}: there is an adapter of the name {name} already")
        config, tensors = read_adapter(directory)
        head = tensors.pop(_HEAD, None)
        if head is None and config.task_type == "SEQ_CLS":
            raise InputError(f"{directory}: the adapter has no head, {_HEAD.removeprefix(_PREFIX)}")
        _refuse_other_shapes(self.holder.transformer, directory, tensors, head)
        _refuse_large_ranks(self.holder.transformer, directory, config)
        inner = f"adapter_{len(self.inner)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names it finds among the adapters that are there already
                if config.init_lora_weights == "pissa":
                    tensors = _less(config, tensors, self._pissa_start(config))
                config.init_lora_weights = True  # what a file holds needs no start of its own
                self._add(inner, config)
                outcome = set_peft_model_state_dict(self.peft, tensors, inner)
            missing = [key for key in outcome.missing_keys if "lora_" in key and inner in key.split(".")]
            if missing or outcome.unexpected_keys:
                named = ", ".join(key.removeprefix(_PREFIX) for key in [*missing, *outcome.unexpected_keys][:4])
                raise ValueError(f"its tensors do not fit its configuration: {named}")
        except _PEFT_RAISES as error:
            self._remove(inner)
            reason = " ".join(str(error).strip().splitlines()[:2])  # the first may be a heading
            raise InputError(f"{directory}: not an adapter for this network: {reason}") from error
        self.inner[name], self.heads[name] = inner, head
        self.holder.eval()
        self.use(name)

    def _add(self, inner: str, config: LoraConfig) -> None:
        if self.peft is None:
            self.peft = PeftModel(self.holder, config, inner)
        else:
            self.peft.add_adapter(inner, config)

    def _remove(self, inner: str) -> None:
        if self.peft and self.inner:
            if inner in self.peft.peft_config:
                self.peft.delete_adapter(inner)
            self.use(self.name)
        elif _lora_layers(self.holder):  # the first one, not all of whose layers may be there
            _unwrap(self.holder)
            self._restore(self.holder.transformer)
            self.peft = None
        else:
            self.peft = None

    def _pissa_start(self, config: LoraConfig) -> dict[str, Tensor]:
        """The A and B that PiSSA begins with, and takes out of W."""
        fresh = nn.Module()
        fresh.transformer = copy.deepcopy(self.holder.transformer)
        _unwrap(fresh)
        return get_peft_model_state_dict(PeftModel(fresh, copy.deepcopy(config)), save_embedding_layers=False)

    def use(self, name: str | None) -> None:
        """Has the network compute with one of the adapters, or, for None, as it was without any."""
        if name is not None:
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(self.inner[name], inference_mode=True)
        elif self.peft:
            self.peft.base_model.disable_adapter_layers()
        self.name = name

    def logits(self, tokens: Tensor, rows: Rows) -> Tensor:
        """(N,) tokens of B rows end to end -> (B, classes), by the adapter in use, which is a classifier's."""
        features = self.holder.transformer.encode(tokens, rows, only_last=True)
        return nn.functional.linear(features, self.heads[self.name].to(features))

    def merge(self) -> GPT2Model:
        """The network with the adapter in use folded into its weights, without the others."""
        return self._restore(self.peft.merge_and_unload(adapter_names=[self.inner[self.name]]).transformer)

    def unload(self) -> GPT2Model:
        """The network without any adapter, to the bit what it was."""
        return self._restore(self.peft.unload().transformer) if self.peft else self.holder.transformer

    def _restore(self, transformer: GPT2Model) -> GPT2Model:
        """PEFT freezes what it wraps, and leaves it so."""
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(self.learns[name])
        return transformer


def read_adapter(directory: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """A LoRA adapter's configuration, for our layers, and its tensors.

    Raises:
        InputError: not there, damaged, not LoRA, or a kind of LoRA that our layers do not compute as stock ones do.
    """
    if not (directory / WEIGHTS).is_file() and (directory / "adapter_model.bin").is_file():
        raise InputError(
            f"{directory}: adapter_model.bin is a pickle, which can run code when it is read; "
            "write it anew with PEFT's save_pretrained, which makes adapter_model.safetensors"
        )
    try:
        values = read_json(directory / CONFIG)
        refuse_special(directory / WEIGHTS)
        if (directory / WEIGHTS).stat().st_size > MOST_BYTES:
            raise InputError(f"{WEIGHTS} has more than {MOST_BYTES:,} bytes")
    except (InputError, OSError) as error:
        raise InputError(f"{directory}: not a whole PEFT adapter: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise InputError(f"{directory / CONFIG}: not the configuration of a LoRA adapter")
    if values.get("megatron_config"):  # has PEFT import modules
        raise InputError(f"{directory / CONFIG}: an adapter with megatron_config is not supported")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that a newer PEFT knows
            config = LoraConfig.from_peft_type(**values)
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            check_tensors(directory / WEIGHTS, file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except InputError:
        raise
    except (*_PEFT_RAISES, OSError, ImportError, SafetensorError) as error:
        file = WEIGHTS if isinstance(error, OSError | SafetensorError) else CONFIG
        raise InputError(f"{directory / file}: not a whole PEFT adapter: {error}") from error
    _refuse_other_kinds(directory, config)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{directory}: {name} holds {tensor.dtype}, not floating-point numbers")
        refuse_not_finite(directory, name, tensor.float())
    config.fan_in_fan_out, config.modules_to_save = False, None
    config._register_custom_module({Linear: LoraLinear})
    if values.get("task_type") == "FEATURE_EXTRACTION":  # of a network without a head, whose names lack the prefix
        tensors = {name.replace(_PREFIX, f"{_PREFIX}transformer.", 1): tensor for name, tensor in tensors.items()}
    return config, tensors


def _refuse_other_kinds(directory: Path, config: LoraConfig) -> None:
    start = config.init_lora_weights
    _refuse_numbers(directory, config)
    _refuse_patterns(directory, config)
    refused = {
        f"init_lora_weights={start!r}": start not in (True, False, "gaussian", "orthogonal", "eva", "pissa"),
        "target_parameters": bool(getattr(config, "target_parameters", None)),
        "alora_invocation_tokens": bool(getattr(config, "alora_invocation_tokens", None)),
        f"bias={config.bias!r}": config.bias != "none",
        "trainable_token_indices": bool(getattr(config, "trainable_token_indices", None)),
    }
    for setting, present in refused.items():
        if present:
            raise InputError(f"{directory}: an adapter with {setting} is not supported")


def _refuse_numbers(directory: Path, config: LoraConfig) -> None:
    config.rank_pattern, config.alpha_pattern = config.rank_pattern or {}, config.alpha_pattern or {}
    if not isinstance(config.rank_pattern, dict) or not isinstance(config.alpha_pattern, dict):
        raise InputError(f"{directory}: rank_pattern and alpha_pattern must be tables of layers and numbers")
    for r in (config.r, *config.rank_pattern.values()):
        if not isinstance(r, int) or not is_number(r, above=0):
            raise InputError(f"{directory}: r={r!r} is not a rank")
    for alpha in (config.lora_alpha, *config.alpha_pattern.values()):
        if not is_number(alpha, above=0):
            raise InputError(f"{directory}: lora_alpha={alpha!r} is not a number above 0")


def _refuse_patterns(directory: Path, config: LoraConfig) -> None:
    """PEFT takes the names of layers for regular expressions, of which some never end."""
    for setting in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        value = getattr(config, setting) or ()
        for pattern in (value,) if isinstance(value, str | int | float) else value:
            if not isinstance(pattern, str) or len(_REPEATS.findall(pattern)) > MOST_REPEATS or _NESTED.search(pattern):
                raise InputError(
                    f"{directory}: {setting} {pattern!r} is not a name of layers, or too intricate a pattern"
                )


def _refuse_large_ranks(transformer: GPT2Model, directory: Path, config: LoraConfig) -> None:
    """Before PEFT makes room for them."""
    most = 2 * transformer.config.mlp_width
    for r in (config.r, *config.rank_pattern.values()):
        if r > most:
            raise InputError(f"{directory}: an adapter of rank {r} is larger than what it adapts")


def _refuse_other_shapes(transformer: GPT2Model, directory: Path, tensors: dict[str, Tensor], head: Tensor | None):
    layers = {f"{_PREFIX}transformer.{name}": module for name, module in transformer.named_modules()}
    heads = [] if head is None else [(_HEAD, head)]
    for name, tensor in [*tensors.items(), *heads]:
        layer, lora, part = name.partition(".lora_")
        short = name.removeprefix(_PREFIX)
        if not lora and name != _HEAD:
            raise InputError(f"{directory}: {short} was trained along, which is supported of score.weight only")
        if layer not in layers and name != _HEAD:
            raise InputError(f"{directory}: the network has no layer {layer.removeprefix(_PREFIX)}")
        linear = getattr(layers.get(layer), "base_layer", layers.get(layer))
        if name != _HEAD and not isinstance(linear, nn.Linear):
            raise InputError(
                f"{directory}: an adapter of {layer.removeprefix(_PREFIX)} is not supported, only of linear layers"
            )
        if tensor.dim() != 2 and (name == _HEAD or (part[:2] in ("A.", "B.") and part.endswith("weight"))):
            raise InputError(f"{directory}: {short} is no matrix")
        if name == _HEAD:
            found, wanted = tensor.size(1), transformer.config.n_embd
        elif part.startswith("A."):
            found, wanted = tensor.size(1), linear.in_features
        else:  # B, its bias, or DoRA's magnitudes
            found, wanted = tensor.size(0), linear.out_features
        if found != wanted:
            raise InputError(
                f"{directory}: {short} is {found} wide, which fits another base model; this one needs {wanted}"
            )


def _less(config: LoraConfig, tensors: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """B A - B0 A0, as an adapter of twice the rank; `config` is made its configuration."""
    double = 2 * config.r, {name: 2 * rank for name, rank in config.rank_pattern.items()}
    grow = 2**0.5 if config.use_rslora else 2  # so that alpha / r, or alpha / sqrt(r), is what it was
    alphas = grow * config.lora_alpha, {name: grow * alpha for name, alpha in config.alpha_pattern.items()}
    (config.r, config.rank_pattern), (config.lora_alpha, config.alpha_pattern) = double, alphas
    config.init_lora_weights = True
    return {name: _difference(name, tensor, start[name].to(tensor)) for name, tensor in tensors.items()}


def _difference(name: str, tensor: Tensor, start: Tensor) -> Tensor:
    """B A - B0 A0 = [B, -B0] [A; A0]"""
    return torch.cat([tensor, start]) if ".lora_A." in name else torch.cat([tensor, -start], dim=1)


def _lora_layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _unwrap(module: nn.Module) -> None:
    """Puts the layers that adapters were wrapped around back in their places."""
    for path, layer in [(n, m) for n, m in module.named_modules() if isinstance(m, LoraLayer)]:
        module.set_submodule(path, layer.base_layer)
