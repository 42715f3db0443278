"""AdamW for fine-tuning, and with Muon for the matrices of the blocks, to train a network from nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdamW(Optimizer):
    """Adam with the weight decay taken off the parameter itself rather than added to its gradient (Loshchilov & Hutter
    2019, "Decoupled Weight Decay Regularization", algorithm 2).

        m <- b1 m + (1 - b1) g                  p <- p - lr * weight_decay * p
        v <- b2 v + (1 - b2) g^2                p <- p - lr / c1 * m / (sqrt(v / c2) + eps)

    with c1 = 1 - b1^t and c2 = 1 - b2^t, or both 1 without `correct_bias`. The same update as `torch.optim.AdamW`,
    with the course's arguments; state dictionaries of the two load into one another, but for `amsgrad` and `maximize`.

    `update` spells the formula out; each of its lines is a pass over memory. Where torch has a kernel that makes all
    of them in one pass (`torch._fused_adamw_`), that one is called: a step over the 124M model is bound by memory, and
    takes a quarter of the time (`benchmarks/optimizer.py`). And a row of an embedding that never had a gradient has
    moments of zero, so that without weight decay its update is zero too: where few rows had one, only those are read
    and written, with the same result.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay of the two moments (Kingma & Ba 2015: 0.9, 0.999).
        eps: added to the root of the second moment; 1e-6 as in the course (torch: 1e-8).
        weight_decay: decay per step, as a share of lr.
        correct_bias: divide the moments by c1 and c2, which lifts their start from 0.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ):
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, not {lr}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas}")
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, not {eps}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
        settings = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias)
        super().__init__(params, settings)
        self._moved: dict[Tensor, Tensor | None] = {}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._moved = {}
        for group in self.param_groups:
            group.setdefault("correct_bias", True)  # the state of a `torch.optim.AdamW` says nothing of it
            if group.get("amsgrad") or group.get("maximize"):
                raise ValueError("the state is that of an AdamW with amsgrad or maximize, which this one does not know")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient.

        Args:
            closure: computes the loss anew, with gradients.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if any(parameter.grad.is_sparse for parameter in parameters):
                raise RuntimeError(f"{type(self).__name__} takes dense gradients only")
            self._step(parameters, group)
        return loss

    @torch.no_grad()
    def step_one(self, parameter: Tensor) -> None:
        """`step` for one parameter alone, which has no gradient afterwards. Other threads may do so with others."""
        (group,) = (group for group in self.param_groups if any(parameter is other for other in group["params"]))
        self._step([parameter], group)
        parameter.grad = None

    def _step(self, parameters: list[Tensor], group: dict) -> None:
        alike, gathered = defaultdict(list), []
        for parameter in parameters:
            m, v, step = self._state(parameter)
            step += 1
            tensors = (parameter, parameter.grad, m, v)
            rows = self._few_rows(*tensors, group)
            if rows is not None:
                copies = tuple(tensor[rows] for tensor in tensors)
                gathered.append((rows, tensors, copies))
                tensors = copies
            if all(t.is_contiguous() and t.device.type in ("cpu", "cuda") for t in tensors):
                alike[parameter.device, parameter.dtype].append((*tensors, step))
            else:
                update(*tensors, step, group)
        for arguments in alike.values():
            fused_update(arguments, group)
        for rows, tensors, copies in gathered:
            for index in (0, 2, 3):  # not the gradient
                tensors[index][rows] = copies[index]

    def _few_rows(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor, group: dict) -> Tensor | None:
        """The rows of p that an update can change, if they are few and p is on a CPU; None to update all of it.

        Rows are looked at until they are many, which a matrix's are at its first step. To gather and to scatter costs
        several updates of a row, so that few is a sixteenth.
        """
        exact = group["weight_decay"] == 0 and group["eps"] >= torch.finfo(p.dtype).tiny
        plain = type(g) is Tensor and g.device.type == "cpu"  # and no part of a tensor that several processes share
        if not exact or not plain or p.dim() < 2:
            self._moved.pop(p, None)
            return None
        if p not in self._moved:
            self._moved[p] = rows_not_zero(m) | rows_not_zero(v)
        moved = self._moved[p]
        if moved is not None:
            moved |= rows_not_zero(g)
            if 16 * moved.count_nonzero() > len(moved):
                moved = self._moved[p] = None
        return None if moved is None else moved.nonzero().squeeze(1)

    def _state(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state["exp_avg"], state["exp_avg_sq"], state["step"]


def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, group: dict) -> None:
    """The formula of `AdamW`, on one parameter p with gradient g and moments m and v, at step t = `step` >= 1."""
    beta1, beta2 = group["betas"]
    correction1 = 1 - beta1 ** step.item() if group["correct_bias"] else 1.0
    correction2 = 1 - beta2 ** step.item() if group["correct_bias"] else 1.0
    p.mul_(1 - group["lr"] * group["weight_decay"])
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    p.addcdiv_(m, v.sqrt().div_(math.sqrt(correction2)).add_(group["eps"]), value=-group["lr"] / correction1)


def fused_update(parameters: list[tuple[Tensor, ...]], group: dict) -> None:
    """`update` of several parameters of one type on one device, in one pass over memory."""
    p, g, m, v, steps = (list(column) for column in zip(*parameters, strict=True))
    # The kernel corrects always; late enough, the correction is 1.
    counts = [step.item() if group["correct_bias"] else torch.inf for step in steps]
    steps = {count: torch.full((), count, device=p[0].device) for count in set(counts)}  # a copy would wait for a GPU
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        p, g, m, v, [], [steps[count] for count in counts],
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False,
    )  # fmt: skip


def rows_not_zero(x: Tensor) -> Tensor:
    """(V, ...) -> (V,), whether a row has any bit that is set: exact, and four times as fast as to compare numbers."""
    return x.flatten(1).contiguous().view(torch.uint8).any(dim=1)


class Muon(AdamW):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the groups that name a `momentum`, AdamW for the
    others.

        m <- b m + (1 - b) g
        p <- p - lr * weight_decay * p - lr * sqrt(max(1, rows / columns)) * O(b m + (1 - b) g)

    where O makes a matrix nearly orthogonal: it keeps the singular vectors and brings the singular values near 1, so
    that directions the gradient rarely shows are learned as fast as the others. Embeddings, norms and biases are no
    maps between vectors, and stay with AdamW.

    Settings of such a group, besides `lr` and `weight_decay`:
        momentum: b, in [0, 1); 0.95 in the source.
        parts: how many matrices lie on top of one another in each parameter, 3 in GPT-2's `c_attn`; 1 if not named.

    Raises:
        ValueError: a momentum out of its range, or a parameter that is not `parts` matrices.
    """

    def add_param_group(self, group: dict) -> None:
        super().add_param_group(group)
        group = self.param_groups[-1]
        if "momentum" in group:
            group.setdefault("parts", 1)
            if not 0 <= group["momentum"] < 1:
                raise ValueError(f"momentum must lie in [0, 1), not {group['momentum']}")
            for parameter in group["params"]:
                if parameter.dim() != 2 or parameter.size(0) % group["parts"]:
                    raise ValueError(f"{tuple(parameter.shape)} is not {group['parts']} matrices on top of one another")

    def _step(self, parameters: list[Tensor], group: dict) -> None:
        if "momentum" not in group:
            super()._step(parameters, group)
            return
        alike = defaultdict(list)  # matrices of one shape are made orthogonal together
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            m = state["momentum_buffer"]
            m.lerp_(parameter.grad, 1 - group["momentum"])
            direction = parameter.grad.lerp(m, group["momentum"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            for p, d in zip(parameter.chunk(group["parts"]), direction.chunk(group["parts"]), strict=True):
                alike[p.device, p.dtype, p.shape].append((p, d))
        for matrices in alike.values():
            p, directions = zip(*matrices, strict=True)
            rows, columns = p[0].shape
            scale = group["lr"] * max(1, rows / columns) ** 0.5
            for matrix, direction in zip(p, orthogonal(torch.stack(directions)), strict=True):
                matrix.sub_(direction, alpha=scale)


def orthogonal(x: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of x (B, rows, columns), by five Newton-Schulz iterations.

    Each maps every singular value s to a s + b s^3 + c s^5; with the source's a, b, c those that were at least
    1/500 of the matrix's norm end between 0.68 and 1.21.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x if x.size(1) <= x.size(2) else x.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.size(1) <= x.size(2) else wide.mT
