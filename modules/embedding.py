"""An embedding of which only the rows in use are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowsInUse(nn.Module):
    """Stands in for an embedding while that is trained on texts that use few of its rows.

    A row that no text uses has no gradient, and AdamW without weight decay leaves it where it is. Left out, it costs
    no gradient and no moments either: SST uses 16,204 of GPT-2's 50,257 rows in training.

    Args:
        whole: the embedding, V rows.
        used: numbers of the rows that will be looked up, each once.
    """

    def __init__(self, whole: nn.Embedding, used: Tensor):
        super().__init__()
        self.whole = whole.requires_grad_(False)
        self.rows = nn.Parameter(whole.weight[used])  # (K, C)
        slots = torch.full((whole.num_embeddings,), -1, device=used.device)
        slots[used] = torch.arange(len(used), device=used.device)
        # No buffers, which processes that train together would send one another at every step.
        self.used, self.slots = used, slots  # (V,) where each row stands in `rows`

    def forward(self, tokens: Tensor) -> Tensor:
        """(N,) -> (N, C)"""
        return F.embedding(self.slots[tokens], self.rows)


@contextmanager
def whole_vocabulary(network: nn.Module) -> Iterator[None]:
    """Within it, `network.wte` is a whole embedding as it now is, to be saved, loaded or asked for any token."""
    embedding = network.wte
    if isinstance(embedding, RowsInUse):
        with torch.no_grad():
            embedding.whole.weight[embedding.used] = embedding.rows
        network.wte = embedding.whole
    try:
        yield
    finally:
        network.wte = embedding
