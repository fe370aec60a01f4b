"""Modules of exact arithmetic: linear layer, norm, activation, rotary embedding.

All activations are float32.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmzip.exact import ops
from llmzip.exact.activations import gate_table
from llmzip.exact.rotary import RotaryTable

_state = threading.local()


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """Operations inside this block belong to llmzip; `verify` does not audit them."""
    _state.depth = getattr(_state, "depth", 0) + 1
    try:
        yield
    finally:
        _state.depth -= 1


def is_trusted() -> bool:
    """Whether the caller runs inside `trusted`."""
    return getattr(_state, "depth", 0) > 0


class ExactModule(nn.Module):
    """A module whose forward follows the rules of docs/exactness.md."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with trusted():
            return super().__call__(*args, **kwargs)


class ExactLinear(ExactModule):
    """A linear layer, [rows, K] → [rows, N]."""

    def __init__(self, linear: ops.Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, K] → [rows, N]."""
        return self._linear(x)


class ExactNorm(ExactModule):
    """LayerNorm if `centred`, else RMSNorm, with a weight [K] and for LayerNorm a bias [K]."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, epsilon: float, *, centred: bool
    ) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias
        self._epsilon, self._centred = epsilon, centred

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, K] → [rows, K]."""
        if self._centred:
            return ops.layer_norm(x, self._weight, self._bias, self._epsilon)
        return ops.rms_norm(x, self._weight, self._epsilon)


class ExactActivation(ExactModule):
    """x · gate(x), elementwise; `gate` is one of `activations.GATES`."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self._gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape → the same shape."""
        return ops.gated_activation(x, gate_table(self._gate))


class ExactRotary(ExactModule):
    """cos and sin of position ids [1 or S, T], each [1 or S, T, rotated dimensions], by tables.

    `interleaved`: the two numbers of a pair are neighbours, instead of half a head apart.
    """

    def __init__(self, tables: Mapping[str | None, RotaryTable], interleaved: bool) -> None:
        """`tables`: one for each layer type, or one for None."""
        super().__init__()
        self._tables, self._interleaved = tables, interleaved
        self._by_device: dict[tuple[str | None, torch.device], tuple[Tensor, Tensor]] = {}
        self._positions = 0

    def reserve(self, positions: int) -> None:
        """Prepare for position ids below `positions`."""
        if positions > self._positions:
            self._by_device, self._positions = {}, max(2048, positions)

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """(cos, sin) for `position_ids` below the reserved number, on the device of `x`."""
        key = (layer_type, x.device)
        if key not in self._by_device:
            cos, sin = self._tables[layer_type].cos_sin(0, self._positions)
            self._by_device[key] = self._expand(cos).to(x.device), self._expand(sin).to(x.device)
        cos, sin = self._by_device[key]
        return cos[position_ids], sin[position_ids]

    def _expand(self, half: Tensor) -> Tensor:
        return half.repeat_interleave(2, -1) if self._interleaved else torch.cat([half, half], -1)
