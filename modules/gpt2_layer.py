"""A GPT-2 block."""

from __future__ import annotations

from torch import Tensor, nn

from config import GPT2Config
from modules.attention import CausalSelfAttention
from modules.cache import LayerCache
from modules.dropout import Dropout
from modules.gelu import gelu
from modules.linear import Linear
from modules.ragged import Rows


class GPT2MLP(nn.Module):
    """Two linear layers around GELU."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_width)
        self.c_proj = Linear(config.mlp_width, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(gelu(self.c_fc(x))))  # (N, C) -> (N, 4C) -> (N, C)


class GPT2Layer(nn.Module):
    """Attention, then the MLP, each on the normed input and added to it (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, rows: Rows, only_last: bool = False, past: LayerCache | None = None) -> Tensor:
        """(N, C) -> (N, C), or (B, C) if only the last token of each row is wanted."""
        attended = self.attn(self.ln_1(x), rows, only_last, past)
        x = (x[rows.last] if only_last else x) + attended
        return x + self.mlp(self.ln_2(x))
