"""Hidden states, head and labels → nats a token, in blocks of rows: the logits of a whole batch
never exist."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# rows of logits that are computed together; on CPUs they stay in the cache of a core
_ROWS = {"cpu": 128}
_ROWS_ELSEWHERE = 1024


class Targets(NamedTuple):
    """The likeliest tokens of a teacher for each position."""

    ids: Tensor  # int64 [..., K]
    logp: Tensor  # float32 [..., K], natural logarithms of their probabilities


def next_token(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """hidden [N, D], weight of the head [V, D], labels int64 [N] → mean nats a token."""
    loss: Tensor = _NextTokenLoss.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
    return loss


def distilled(
    hidden: Tensor, weight: Tensor, labels: Tensor, targets: Targets, share: float
) -> tuple[Tensor, Tensor]:
    """(what is minimised, mean nats a token of the labels): `share` of the divergence from the
    teacher's distribution to the student's, the rest of the labels' cross entropy.

    hidden [N, D], weight [V, D], labels int64 [N], targets [N, K]. All tokens but the teacher's K
    likeliest count as one, so that the divergence is one of distributions: never negative, and
    without the bias of a truncated one.
    """
    losses: tuple[Tensor, Tensor] = _DistilledLoss.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, *targets, share
    )
    return losses


@torch.no_grad()
def token_nats(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """hidden [N, D], weight [V, D], labels int64 [N] → nats of each label, float32 [N]."""
    rows = _rows(hidden)
    parts = []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        logits = (hidden[part].to(weight.dtype) @ weight.T).float()
        parts.append(cross_entropy(logits, labels[part], reduction="none"))
    return torch.cat(parts)


def _rows(x: Tensor) -> int:
    return _ROWS.get(x.device.type, _ROWS_ELSEWHERE)


def _product_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _NextTokenLoss(torch.autograd.Function):
    """hidden [N, D], weight [V, D], labels [N] → mean nats a token, never all logits at once.

    Its gradients are computed with it. With bfloat16 products, the gradient of the label's own
    logit is minus the mass of all the others, so that it does not vanish as that comes near 0.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        kind = _product_dtype(hidden)
        x, w = hidden.to(kind), weight.to(kind)
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        total = torch.zeros((), device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(x)
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                label = labels[part, None]
                p = (x[part] @ w.T).softmax(-1)
                own = p.gather(1, label).float()[:, 0]
                p.scatter_(1, label, 0.0)
                others = p.sum(1, dtype=torch.float32)
                nats = torch.where(others < 0.5, -torch.log1p(-others), -own.clamp_min(1e-30).log())
                total += nats.sum()
                p.scatter_(1, label, -others[:, None].to(kind))
                dx[part] = p @ w
                dw += p.T @ x[part]
        ctx.save_for_backward(dx, dw)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        share = gradients[0] / len(dx)
        return dx.float() * share, dw * share, None


class _DistilledLoss(torch.autograd.Function):
    """As `_NextTokenLoss`, of two losses; the second has no gradient.

    With p and q the probabilities of teacher and student, and P and Q those of all tokens that are
    not among the teacher's, the divergence's gradient is q − p for the teacher's tokens and
    q · (1 − P / Q) for all others; that of the labels' cross entropy is q, less 1 for the label.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        ids: Tensor,
        logp: Tensor,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        kind = _product_dtype(hidden)
        x, w = hidden.to(kind), weight.to(kind)
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        divergence = torch.zeros((), device=x.device)
        nats = torch.zeros((), device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(x)
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                label, top, top_logp = labels[part, None], ids[part], logp[part]
                logq = (x[part] @ w.T).float().log_softmax(-1)
                nats -= logq.gather(1, label).sum()
                p, own = top_logp.exp(), logq.gather(1, top)
                rest_p = (1 - p.sum(1)).clamp_min(1e-6)
                rest_q = (1 - own.exp().sum(1)).clamp_min(1e-6)
                divergence += (p * (top_logp - own)).sum() + (
                    rest_p * (rest_p / rest_q).log()
                ).sum()
                q = logq.exp_()
                gradient = q * (1 - share * rest_p / rest_q)[:, None]
                gradient.scatter_(1, top, q.gather(1, top) - share * p)
                gradient.scatter_add_(1, label, torch.full_like(label, share - 1, dtype=q.dtype))
                scaled = gradient.to(kind)
                dx[part] = scaled @ w
                dw += scaled.T @ x[part]
        ctx.save_for_backward(dx, dw)
        ctx.mark_non_differentiable(nats)
        count = len(x)
        return (share * divergence + (1 - share) * nats) / count, nats / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        share = gradients[0] / len(dx)
        return dx.float() * share, dw * share, None, None, None, None
