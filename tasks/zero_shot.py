"""What a language model says of texts that it was never trained to put into classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from config import InputError
from models.heads import GPT2LMHeadModel
from models.tokenizer_files import token_ids
from modules.ragged import Rows
from tasks.classification import probabilities
from tasks.tokens import read_ids
from training.finished import Finished
from training.hardware import Precision
from training.interrupt import StopRequest

QUESTION = "{}\nIn short, this is"  # where a task has no prompt of its own
ROWS_AT_ONCE = 32


class ZeroShot:
    """Asks which class's name the model would rather go on with than it would after no text at all.

        log p(name | prompt with the text) - log p(name | prompt without)

    (Holtzman et al. 2021, "Surface form competition", section 3: PMI_DC). The second term keeps long or rare names from
    losing, and common ones from winning, whatever the text.

    Args:
        finished: a language model.
        labels: names of the classes.
        prompt: what the texts are put into, a `{}` for each; None for `QUESTION`.
        precision: what to compute in, and where.
        stop: asked after every batch whether the user wants an end.

    Raises:
        InputError: a class without a name, or a context too short for them or for the prompt.
    """

    def __init__(
        self, finished: Finished, labels: Sequence[str], prompt: str | None, precision: Precision, stop: StopRequest
    ):
        self.model, self.tokenizer = finished.model, finished.tokenizer
        self.prompt, self.precision, self.stop = prompt or QUESTION, precision, stop
        space = "" if self.prompt[-1:].isspace() else " "
        self.names = token_ids(self.tokenizer, [space + label for label in labels])
        self.room = self.model.config.n_positions - max(map(len, self.names))
        if not all(self.names):
            raise InputError("a class without a name")
        if self.room < 1:
            raise InputError(f"a context of {self.model.config.n_positions} tokens is too short for the classes' names")
        nothing = ("",) * self.prompt.count("{}")
        self.without = self._log_likelihoods([nothing])  # (1, classes)

    def __call__(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """n texts -> (n, classes) probabilities, in float64.

        Raises:
            Interrupted: the user asked to stop.
        """
        return probabilities(self._log_likelihoods(texts) - self.without)

    @torch.inference_mode()
    def _log_likelihoods(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """(n, classes) of each class's name after each text."""
        prompts = (ids[-self.room :] for ids in read_ids(self.tokenizer, texts, self.prompt))
        rows = [(ids, name) for ids in prompts for name in self.names]
        values = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            values += self._of_rows(rows[start : start + ROWS_AT_ONCE])
            self.stop.check()
        return np.array(values).reshape(len(texts), len(self.names))

    def _of_rows(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        """log p of what stands last in each row, after what stands first."""
        model, device = self.model, self.precision.device
        read = [[*ids, *name[:-1]] for ids, name in rows]
        tokens = torch.tensor([token for row in read for token in row], device=device)
        with self.precision.autocast():
            states = model.transformer.encode(tokens, Rows([len(row) for row in read], device))  # (N, C)
        at = torch.cat([Tensor([False] * (len(ids) - 1) + [True] * len(name)) for ids, name in rows]).bool()
        logits = model.transformer.hidden_state_to_token(states[at.to(device)].float())  # (n, V)
        names = torch.tensor([token for _, name in rows for token in name], device=device)
        each = logits.log_softmax(dim=1).gather(1, names[:, None]).flatten()
        return [part.sum().item() for part in each.cpu().double().split([len(name) for _, name in rows])]


def is_language_model(finished: Finished) -> bool:
    return isinstance(finished.model, GPT2LMHeadModel)
