"""A module of the transformers library → an exact module that computes the same.

Linear layers are recognised by their class; norms, activations and rotary embeddings by what they
compute on a probe, whatever their class is called, so that most architectures need no code here.

To add a norm, extend the candidates in `_match_norm`; an activation, `exact/activations.py`; a
rotary scaling, `exact/rotary.py`; anything else, write an `ExactModule` and a case in `match`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from llmzip.exact import hadamard, ops
from llmzip.exact.activations import GATES, gate_table
from llmzip.exact.convert.modules import (
    ExactActivation,
    ExactLinear,
    ExactModule,
    ExactNorm,
    ExactRotary,
)
from llmzip.exact.rotary import RotaryTable, rotary_frequencies

_TOLERANCE = 1e-3  # of a module and its exact form on a probe, relative to the largest value
_ACTIVATION_TOLERANCE = 1e-5  # at entries of the table; erf and tanh GELU differ by 5e-4


def match(
    module: nn.Module,
    config: PreTrainedConfig,
    device: torch.device,
    *,
    levels: float,
    rotated: bool,
    int8: bool | None,
) -> ExactModule | None:
    """The exact form of one module, on `device`; None if there is none.

    `levels`, `rotated` and `int8` are those of `ExactTransformer`. Raises UnsupportedModel for
    weights that are not finite.
    """
    name = type(module).__name__.lower()
    if isinstance(module, nn.Linear | Conv1D):
        return _linear(module, device, levels, rotated, int8)
    if next(module.children(), None) is not None:
        return None
    if "rotary" in name:
        return _match_rotary(module, config)
    if "norm" in name:
        return _match_norm(module, device)
    if not list(module.parameters()) and not list(module.buffers()) and "dropout" not in name:
        return _match_activation(module)
    return None


def _linear(
    module: Any, device: torch.device, levels: float, rotated: bool, int8: bool | None
) -> ExactLinear:
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    ops.require_finite(weight, type(module).__name__)
    block = hadamard.block_size(weight.shape[1]) if rotated else 1
    integers, scale = ops.quantise_weight(weight.to(device), block)
    bias = None if module.bias is None else module.bias.float().to(device)
    return ExactLinear(
        ops.Linear(integers.contiguous(), scale, levels=levels, bias=bias, block=block, int8=int8)
    )


def _match_norm(module: nn.Module, device: torch.device) -> ExactNorm | None:
    """LayerNorm or RMSNorm, with the stored weight or 1 plus the stored weight (as in Gemma)."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    shape = getattr(module, "normalized_shape", None) if weight is None else weight.shape
    epsilons = (getattr(module, n, None) for n in ("eps", "variance_epsilon", "epsilon"))
    epsilon = next((e for e in epsilons if isinstance(e, float)), 1e-5)
    if not shape:
        return None
    gain = torch.ones(tuple(shape)) if weight is None else weight.float()
    shift = None if bias is None else bias.float()
    ops.require_finite(gain, type(module).__name__)
    x = _probe(3, *shape)
    expected = _output(copy.deepcopy(module).float(), x)
    if expected is None:
        return None
    for centred in (False, True):
        for w in (gain, gain + 1):
            exact = ExactNorm(w, shift, epsilon, centred=centred)
            if (centred or shift is None) and _close(exact(x), expected):
                on_device = None if shift is None else shift.to(device)
                return ExactNorm(w.to(device), on_device, epsilon, centred=centred)
    return None


def _match_activation(module: nn.Module) -> ExactActivation | None:
    x = torch.arange(-8 * 1024, 8 * 1024 + 1).float() / 1024  # entries of the table
    expected = _output(module, x)
    if expected is None:
        return None
    for gate in GATES:
        error = (ops.gated_activation(x, gate_table(gate)) - expected).abs().max()
        if error < _ACTIVATION_TOLERANCE:
            return ExactActivation(gate)
    return None


def _match_rotary(module: nn.Module, config: PreTrainedConfig) -> ExactRotary | None:
    """Tables from the config's parameters, if they agree with the module's output."""
    suffix = "inv_freq"
    buffers = {
        name.removesuffix(suffix).removesuffix("_") or None: buffer
        for name, buffer in module.named_buffers()
        if name.endswith(suffix) and "original" not in name
    }
    parameters = getattr(getattr(module, "config", config), "rope_parameters", None)
    if not buffers or not isinstance(parameters, Mapping):
        return None
    position_ids = torch.tensor([[0, 1, 2, 3, 50, 300]])
    original = copy.deepcopy(module).float()
    for odd in (0, 1):  # a partial rotary embedding may have an odd number of dimensions
        tables = {
            layer: RotaryTable(
                rotary_frequencies(
                    parameters[layer] if layer else parameters, 2 * len(buffer) - odd
                )
            )
            for layer, buffer in buffers.items()
        }
        for interleaved in (False, True):
            exact = ExactRotary(tables, interleaved)
            exact.reserve(512)
            inputs = [(_probe(1), position_ids, *([layer] if layer else [])) for layer in buffers]
            if all(
                a.shape == b.shape and bool((a - b).abs().max() < _TOLERANCE)
                for args in inputs
                for a, b in zip(exact(*args), original(*args), strict=True)
            ):
                return exact
    return None


def _probe(*shape: int) -> Tensor:
    """Numbers of several magnitudes, not centred, from integer arithmetic."""
    values = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64) * 7919 % 2003 - 900
    rows = torch.tensor([1.0, 1e-3, 30.0])[: shape[0]]
    return values.float().view(shape) / 500 * rows.view(-1, *[1] * (len(shape) - 1))


def _output(module: nn.Module, x: Tensor) -> Tensor | None:
    """module(x) if the module maps one tensor to another of the same shape."""
    try:
        y = module(x)
    except Exception:
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape else None


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Row by row, relative to the largest value of a row."""
    error = (actual - expected).flatten(1).abs().amax(1)
    return bool((error <= _TOLERANCE * expected.flatten(1).abs().amax(1)).all())
