"""Writing text: one token after another, each row remembering what it has read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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

    def draw(self, logits: Tensor, seeds: Tensor, step: int) -> Tensor:
        """Has the tokens race: token i, for which e is drawn from the exponential distribution, has p_i / e, and is
        ahead of all others with probability p_i. The first in the race that top-k and top-p admit is the one.

        No token's place depends on the others', as it does in a draw along their sums, so rounding changes the outcome
        only where two are all but equal; and nothing is sorted, which takes longer than the network.

        Args:
            logits: (B, V)
            seeds: (B,) int64, decide each row's draws, together with
            step: the number of the draw.

        Returns:
            (B,) token ids.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.float() / self.temperature
        if self.top_k and self.top_k < logits.size(-1):
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
        p = logits.softmax(dim=-1)
        vocabulary = torch.arange(p.size(-1), device=p.device)
        race = p / -noise(seeds.unsqueeze(1), step, vocabulary).log()  # (B, V)
        drawn = race.argmax(dim=-1)
        rows = torch.arange(len(p), device=p.device)
        while self.top_p < 1 and len(rows):  # those whose first token may be one of the unlikely ones
            likelier = p[rows] > p[rows, drawn[rows]].unsqueeze(1)
            before = (p[rows] * likelier).sum(dim=-1)
            rows = rows[(before >= self.top_p) & (before > 0)]  # a top_p may be less than the least float32
            race[rows, drawn[rows]] = -1
            drawn[rows] = race[rows].argmax(dim=-1)
        return drawn


def noise(seeds: Tensor, step: int | Tensor, tokens: Tensor) -> Tensor:
    """Uniform in (0, 1): a number for each seed, step and token id; their shapes broadcast. It is the finalizer of
    splitmix64 (Steele et al. 2014) of their sum, each times an odd number of its own."""
    step = torch.as_tensor(step, device=seeds.device)
    x = seeds + step * -0x61C8864680B583EB + tokens * -0x3B314601E57A13AD  # int64 wraps around
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    x = x ^ (x >> 31 & 0x1FFFFFFFF)
    return ((x >> 41 & 0x7FFFFF).float() + 0.5) / (1 << 23)  # as many bits as float32 holds, so that none becomes 1


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
        seeds: one a prompt, in [0, 2**63): its continuations follow from it, whatever else is in the batch.
        num_candidates: continuations of each prompt.
        is_done: (number of the prompt, its new token ids so far, the last one just written) -> is that all?

    Returns:
        For each prompt, `num_candidates` lists of new token ids, the end-of-text token included.

    Raises:
        ValueError: a prompt that is empty, longer than the context, or holds an id outside the vocabulary; or not as
            many seeds as prompts.
    """
    steps = write(model, prompts, max_new_tokens, sampling, seeds, num_candidates, is_done)
    return next(iter(deque(steps, maxlen=1)), [])  # as the last one has it


@torch.inference_mode()
def write(
    model: GPT2LMHeadModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    num_candidates: int = 1,
    is_done: Callable[[int, list[int]], bool] | None = None,
) -> Iterator[list[list[list[int]]]]:
    """As `generate`, for who wants to read along: yields what is written so far, the same lists each time, to begin
    with and after every token."""
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
    if not prompts:
        return
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
    written = [[text.tokens for text in texts if text.prompt == prompt] for prompt in range(len(prompts))]
    yield written
    live = texts
    if num_candidates > 1:
        places = torch.tensor([text.prompt for text in live], device=device)
        cache.select(places)
        state = state[places]  # (B, C), a row a text from here on
    seeds = torch.tensor(seeds, device=device).repeat_interleave(num_candidates)
    seeds = seeds + torch.arange(num_candidates, device=device).repeat(len(prompts)) * -0x2E3F5A0CB7D14E25
    for step in range(max_new_tokens):
        with torch.autocast(device.type, enabled=False):  # in 16 bits, many tokens would be equally likely
            logits = network.hidden_state_to_token(state.to(weight.dtype))
        drawn = sampling.draw(logits, seeds, step)
        for text, token in zip(live, drawn.tolist(), strict=True):
            if not text.done:
                text.tokens.append(token)
                text.done = token == end or len(text.tokens) == text.limit
                text.done = text.done or (is_done is not None and is_done(text.prompt, text.tokens))
        yield written
        running = [row for row, text in enumerate(live) if not text.done]
        if not running:
            break
        if len(live) - len(running) > IDLE_ROWS * len(live) or cache.width == capacity:
            live = [live[row] for row in running]
            kept = torch.tensor(running, device=device)
            cache.select(kept)
            drawn, seeds = drawn[kept], seeds[kept]
        state = network.encode(drawn, cache.grow(), cache=cache)


class _Text:
    """What is being written after a prompt."""

    def __init__(self, prompt: int, limit: int):
        self.prompt, self.limit = prompt, limit
        self.tokens: list[int] = []
        self.done = limit == 0
