"""Muon for the matrices, AdamW for the rest, and a schedule by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llmzip.train.config import Config

# Coefficients of five Newton-Schulz steps that bring singular values to about 1
# (You Jiacheng's, as used by speed runs of nanoGPT)
_STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def fast_bfloat16(cuda: bool) -> bool:
    """Are products of bfloat16 faster than those of float32? On CPUs that have instructions for
    them they were measured 2 to 3 times as fast, on others many times slower."""
    return cuda or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices [n, rows, columns] → the nearest with singular values of about 1.

    In bfloat16 where that is fast.
    """
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x.bfloat16() if fast_bfloat16(x.is_cuda) else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in _STEPS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (Jordan et al., 2024), of matrices.

    Updates are scaled by 0.2 · √(longer side), so that their size is that of AdamW's (Liu et al.,
    2025). Matrices of one shape are orthogonalised as one batch.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
        *,
        compiled: bool = False,
    ) -> None:
        """`compiled`: by torch.compile, for GPUs."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})
        self._orthogonalise = (
            torch.compile(orthogonalise, dynamic=False) if compiled else orthogonalise
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have gradients. A closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                for parameter in parameters:
                    if "momentum" not in self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                momenta = [self.state[parameter]["momentum"] for parameter in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
                updates = self._orthogonalise(torch.stack(directions))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                values: list[Tensor] = list(parameters)
                torch._foreach_mul_(values, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(values, list(updates.unbind()), alpha=-rate)


def optimisers(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """[Muon of the matrices inside, AdamW of embeddings, norms and a head of its own]."""
    inside: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        within = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inside if within else others).append(parameter)
    cuda = others[0].is_cuda
    return [
        Muon(inside, config.matrix_rate, compiled=cuda and config.compile),
        torch.optim.AdamW(
            others, config.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=cuda or None
        ),
    ]


def set_rates(optimisers: list[torch.optim.Optimizer], config: Config, share: float) -> None:
    """Set the learning rates of `optimisers()` to `share` (0 to 1) of the configuration's."""
    for optimiser, rate in zip(optimisers, (config.matrix_rate, config.other_rate), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate * share


def state(optimisers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All states as named tensors, for safetensors."""
    found: dict[str, Tensor] = {}
    for i, optimiser in enumerate(optimisers):
        for key, entry in optimiser.state_dict()["state"].items():
            for name, value in entry.items():
                found[f"{i}.{key}.{name}"] = torch.as_tensor(value).clone().contiguous()
    return found


def restore(optimisers: list[torch.optim.Optimizer], saved: dict[str, Tensor]) -> None:
    """Load what `state` returned into optimisers of the same model."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimisers]
    for full, value in saved.items():
        i, key, name = full.split(".", 2)
        states[int(i)].setdefault(int(key), {})[name] = value
    for optimiser, entry in zip(optimisers, states, strict=True):
        optimiser.load_state_dict({**optimiser.state_dict(), "state": entry})
