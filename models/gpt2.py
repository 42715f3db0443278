"""GPT-2 (Radford et al. 2019), on batches without padding."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import GPT2Config
from models.pretrained import load_weights, locate
from modules.cache import Cache
from modules.dropout import Dropout
from modules.gpt2_layer import GPT2Layer
from modules.linear import linear
from modules.ragged import Rows, pack


class GPT2Model(nn.Module):
    """Token and position embeddings, `n_layer` blocks, a final norm.

    Parameters carry the names of the published checkpoints. Linear weights are (out, in), the transpose of what the
    checkpoints hold; `models.pretrained` turns them.

    Attributes:
        checkpoint_activations: keep only each block's input for the backward pass, and compute the block anew there
            (Chen et al. 2016): a third more arithmetic for a fraction of the memory, and the same gradients.
    """

    checkpoint_activations = False

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Layer(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    @classmethod
    def from_pretrained(cls, model: str | Path = "gpt2", config: GPT2Config | None = None) -> GPT2Model:
        """Loads a checkpoint, in float32, in evaluation mode.

        Args:
            model: a Hugging Face GPT-2 directory, or the name of a repository on the Hub such as `gpt2-medium`.
            config: what to build instead of the checkpoint's own `config.json`, for other dropout say.

        Raises:
            InputError: out of reach, not a GPT-2, or tensors missing, unknown, of another shape or not finite.
        """
        directory = locate(model)
        network = without_values(cls, config or GPT2Config.from_file(directory / "config.json"))
        load_weights(network, directory)
        return network.eval()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """A fresh network: N(0, 0.02), and the projections into the residual stream smaller by the square root of
        their number (Radford et al. 2019, section 2.3)."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "ln_" in name:
                nn.init.ones_(parameter)
            else:
                shrink = math.sqrt(2 * self.config.n_layer) if "c_proj" in name else 1
                nn.init.normal_(parameter, std=std / shrink, generator=generator)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """The course's interface: a padded rectangle in, a padded rectangle out.

        Args:
            input_ids: (B, T) token ids. Padding may stand anywhere and hold anything.
            attention_mask: (B, T) 1 at real tokens, whose positions are counted from 0; None if all are real.

        Returns:
            `last_hidden_state`: (B, T, C), after the final norm, 0 at padding.
            `last_token`: (B, C), the state at each row's last real token.

        Raises:
            ValueError: a row that is empty, longer than the context, or holds an id outside the vocabulary.
        """
        tokens, rows = pack(input_ids, attention_mask)
        self.check(tokens, rows)
        x = self.encode(tokens, rows)  # (N, C)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = x.new_zeros(*input_ids.shape, x.size(-1))
        return {"last_hidden_state": hidden.masked_scatter(mask.bool().unsqueeze(-1), x), "last_token": x[rows.last]}

    def encode(self, tokens: Tensor, rows: Rows, only_last: bool = False, cache: Cache | None = None) -> Tensor:
        """The network itself.

        Args:
            tokens: (N,) the real tokens of all rows, end to end.
            rows: where the rows lie.
            only_last: return the last token of each row only; the last block then computes nothing else.
            cache: of texts that are being written, what came before the tokens: empty if they are whole rows, else
                the cache whose `grow()` is `rows`. They are added to it.

        Returns:
            (N, C), or (B, C) if `only_last`.

        Raises:
            ValueError: as `forward`; on a GPU an id outside the vocabulary is not noticed, for to look at it would wait
                for all work before.
        """
        self.check(tokens if tokens.device.type == "cpu" else None, rows)
        x = self.drop(self.wte(tokens) + self.wpe(rows.positions))  # (N, C)
        if cache is None:
            x = rows.fill(x)  # (N', C)
        past = cache.layers if cache else [None] * len(self.h)
        for block, before in zip(self.h[:-1], past[:-1], strict=True):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, rows, use_reentrant=False)
            else:
                x = block(x, rows, past=before)
        x = self.ln_f(self.h[-1](x, rows, only_last, past[-1]))
        return x if only_last else x[: len(tokens)]

    def hidden_state_to_token(self, hidden_state: Tensor) -> Tensor:
        """(..., C) -> (..., vocab_size): next-token logits, through the transpose of the token embedding."""
        return linear(hidden_state, self.wte.weight)

    def check(self, tokens: Tensor | None, rows: Rows) -> None:
        """Raises ValueError naming the first row that the network cannot take, and the limit it breaks; without tokens,
        only by the rows' lengths."""
        limit, vocabulary = self.config.n_positions, self.config.vocab_size
        for row, length in enumerate(rows.lengths):
            if length == 0:
                raise ValueError(f"row {row} is empty: a row needs at least 1 token")
            if length > limit:
                raise ValueError(f"row {row} has {length} tokens: the limit is {limit} (n_positions)")
        if tokens is None:
            return
        outside = (tokens < 0) | (tokens >= vocabulary)
        if outside.any():
            at = int(outside.nonzero()[0])
            row = int((rows.last < at).sum())
            raise ValueError(
                f"row {row} holds the token id {int(tokens[at])}: ids run from 0 to {vocabulary - 1} (vocab_size)"
            )


def without_values(cls: type[nn.Module], *args) -> nn.Module:
    """Builds a module that takes no memory yet, for `load_weights` to fill."""
    with torch.device("meta"):
        return cls(*args)
