"""Writing text: one token after another, each row remembering what it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.heads import GPT2LMHeadModel
from modules.cache import Cache
from modules.ragged import Rows

IDLE_ROWS = 0.25  # of the cache; with more rows than that finished, those left are copied into a smaller one


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 always takes the likeliest token.
        top_k: tokens to draw from, the likeliest; None for all.
        top_p: draw from the fewest tokens that have this probability together (Holtzman et al. 2020, section 3.1).

    Raises:
        ValueError: one of them out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a number of at least 0, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")

    def draw(self, logits: Tensor, chance: Tensor) -> Tensor:
        """
        Args:
            logits: (B, V)
            chance: (B,) uniform in [0, 1), what decides each row's draw.

        Returns:
            (B,) token ids.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities, tokens = self.probabilities(logits)
        sums = probabilities.cumsum(dim=-1)
        drawn = torch.searchsorted(sums, chance.unsqueeze(1).to(sums) * sums[:, -1:], right=True)
        last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1  # rounding may lead past it
        return tokens.gather(1, torch.minimum(drawn, last)).squeeze(1)

    def probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            logits: (B, V)

        Returns:
            (B, K) probabilities in falling order, 0 for what is never drawn, and (B, K) the tokens that have them.
        """
        k = min(self.top_k or logits.size(-1), logits.size(-1))
        logits, tokens = (logits.float() / self.temperature).topk(k)
        probabilities = logits.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.top_p, 0)
        return probabilities / probabilities.sum(dim=-1, keepdim=True), tokens


@torch.inference_mode()
def generate(
    model: GPT2LMHeadModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    num_candidates: int = 1,
    is_done: Callable[[int, list[int]], bool] | None = None,
) -> list[list[list[int]]]:
    """Continues all prompts at once. A row ends with the end-of-text token, or where `is_done` says so, or after
    `max_new_tokens`, or where the context is full.

    Args:
        model: put in evaluation mode.
        prompts: token ids, at least one each.
        seeds: one a prompt: its continuations depend on it and not on what else is in the batch, but for the rounding
            of sums.
        num_candidates: continuations of each prompt.
        is_done: (number of the prompt, its new token ids so far, the last one just written) -> is that all?

    Returns:
        For each prompt, `num_candidates` lists of new token ids, the end-of-text token included.

    Raises:
        ValueError: a prompt that is empty, longer than the context, or holds an id outside the vocabulary.
    """
    model.eval()
    network, end, weight = model.transformer, model.config.eos_token_id, model.transformer.ln_f.weight
    device = weight.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
    lengths = [len(prompt) for prompt in prompts]
    limits = [min(max_new_tokens, model.config.n_positions - length) for length in lengths]
    tokens = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.long, device=device)
    rows = Rows(lengths, device)
    network.check(tokens, rows)

    capacity = max(map(sum, zip(lengths, limits, strict=True)))
    cache = Cache(model.config, lengths, capacity, device, dtype)
    state = network.encode(tokens, rows, only_last=True, cache=cache)  # (prompts, C)
    texts = [_Text(prompt, limit) for prompt, limit in enumerate(limits) for _ in range(num_candidates)]
    live = texts
    places = torch.tensor([text.prompt for text in live], device=device)
    cache.select(places)
    state = state[places]  # (B, C), a row a text from here on
    chances = torch.cat([_chances(seed, num_candidates, max_new_tokens) for seed in seeds]).to(device)
    for step in range(max_new_tokens):
        drawn = sampling.draw(network.hidden_state_to_token(state), chances[:, step])
        for text, token in zip(live, drawn.tolist(), strict=True):
            if not text.done:
                text.tokens.append(token)
                text.done = token == end or len(text.tokens) == text.limit
                text.done = text.done or (is_done is not None and is_done(text.prompt, text.tokens))
        running = [row for row, text in enumerate(live) if not text.done]
        if not running:
            break
        if len(live) - len(running) > IDLE_ROWS * len(live) or cache.width == capacity:
            live = [live[row] for row in running]
            kept = torch.tensor(running, device=device)
            cache.select(kept)
            drawn, chances = drawn[kept], chances[kept]
        state = network.encode(drawn, cache.grow(), cache=cache)
    return [[text.tokens for text in texts if text.prompt == prompt] for prompt in range(len(prompts))]


class _Text:
    """What is being written after a prompt."""

    def __init__(self, prompt: int, limit: int):
        self.prompt, self.limit = prompt, limit
        self.tokens: list[int] = []
        self.done = limit == 0


def _chances(seed: int, texts: int, steps: int) -> Tensor:
    """(texts, steps) uniform in [0, 1); those of the first texts are the same however many there are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.rand(steps, dtype=torch.float64, generator=generator) for _ in range(texts)])
