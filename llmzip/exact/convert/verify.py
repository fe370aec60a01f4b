"""Verification of a converted model: it has a fingerprint, or a module without exact form.

Every operation of the model's own forward is audited: on floats only elementwise IEEE-754
operations, reshapes and look-ups may occur. Then the logits must be bit-identical however the
tokens are fed. Nothing here depends on the architecture.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from llmzip.errors import UnsupportedModel
from llmzip.exact.convert.model import ExactTransformer
from llmzip.exact.convert.modules import ExactModule, is_trusted

FINGERPRINT_BYTES = 4
_TOKENS = 18  # of each stream of the probe; longer than some sliding windows
_STEPS = 6  # of them are decode steps

# operations of PyTorch that round at most once, and identically everywhere
_ELEMENTWISE = {
    "add", "sub", "rsub", "mul", "neg", "abs", "relu", "maximum", "minimum", "where", "clamp",
    "clamp_min", "clamp_max", "masked_fill", "sign", "eq", "ne", "lt", "le", "gt", "ge",
    "isnan", "square", "amax", "amin", "add_", "sub_", "mul_", "neg_", "relu_", "masked_fill_",
}  # fmt: skip
_COPIES = {
    "_to_copy", "alias", "arange", "as_strided", "cat", "clone", "constant_pad_nd", "contiguous",
    "copy_", "detach", "empty", "empty_like", "expand", "fill_", "flatten", "full", "full_like",
    "gather", "index", "index_select", "embedding", "lift_fresh", "narrow", "new_empty",
    "new_ones", "new_zeros", "ones", "ones_like", "permute", "repeat", "repeat_interleave",
    "reshape", "resolve_conj", "scalar_tensor", "select", "slice", "split", "split_with_sizes",
    "squeeze", "stack", "t", "to", "transpose", "unbind", "unflatten", "unsafe_view", "unsqueeze",
    "view", "view_as", "_unsafe_view", "zeros", "zeros_like", "chunk", "expand_as", "movedim",
    "dropout",
}  # fmt: skip


def verify(model: ExactTransformer) -> bytes:
    """The fingerprint of a model: BLAKE2b of the logits of a probe, FINGERPRINT_BYTES long.

    It differs between versions of transformers that compute the model differently. Raises
    UnsupportedModel by the name of the module that has no exact form.
    """
    _require_no_computed_tables(model.network)
    spec = model.spec
    count = min(_TOKENS, spec.context)
    ids = torch.arange(1, 2 * count + 1) * 7919 % min(spec.vocabulary, 9973)
    ids = ids.view(2, count).to(model.device)
    with _Audit() as audit:
        try:
            expected = model.full_forward(ids, model.new_cache(2, count), 0)
        except UnsupportedModel:
            raise
        except Exception as error:  # a model that cannot work with this cache
            raise UnsupportedModel(
                f"{audit.innermost} has no exact form: it uses the mask or the cache in a way that "
                f"the conversion does not know ({error}); --same-environment takes it as it is"
            ) from None
    name = type(model.network).__name__
    if not torch.isfinite(expected).all():
        raise UnsupportedModel(f"the logits of {name} are not finite")
    feeds = {
        "body and head by themselves": _fed(model, ids, [count]),
        "single steps": _fed(model, ids, [count - _STEPS] + [1] * _STEPS),
        "other blocks": _fed(model, ids, [5, count - 5]),
        "another batch": _fed(model, ids[1:], [count]),
        "fewer tokens": _fed(model, ids[:, : count - 3], [count - 3]),
    }
    for feed, logits in feeds.items():
        if not torch.equal(logits, expected[2 - len(logits) :, : logits.shape[1]]):
            raise UnsupportedModel(f"{name} has no exact form: {feed} give other logits")
    data = expected.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=FINGERPRINT_BYTES).digest()


def environment(device: torch.device) -> bytes:
    """What a fingerprint depends on besides the model: versions of the libraries and of this
    package, device, instruction set."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    versions = [
        torch.__version__,
        transformers.__version__,
        platform.machine(),
        torch.cuda.get_device_name(device) if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        [(f.name, status.st_size, status.st_mtime_ns) for f in files for status in [f.stat()]],
    ]  # fmt: skip
    return repr(versions).encode()


def _fed(model: ExactTransformer, ids: Tensor, blocks: list[int]) -> Tensor:
    """Logits [S, T, V] of ids [S, T], fed in blocks of these lengths."""
    cache, parts, position = model.new_cache(*ids.shape), [], 0
    for block in torch.split(ids, blocks, 1):
        hidden = model.forward(block, cache, position)
        parts.append(model.logits(hidden.flatten(0, 1)).view(*block.shape, -1))
        position += block.shape[1]
    return torch.cat(parts, 1)


def _require_no_computed_tables(network: nn.Module) -> None:
    """Refuse buffers that a module computed at construction, by functions of the C library."""
    exact = {part for m in network.modules() if isinstance(m, ExactModule) for part in m.modules()}
    for module in network.modules():
        for name in () if module in exact else module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_floating_point() and buffer.numel() > 1:
                raise UnsupportedModel(
                    f"{type(module).__name__} has no exact form (its {name} is computed by "
                    "functions that machines differ in)"
                )


class _Audit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on floats that are not known to be bit-identical everywhere."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._running: list[nn.Module] = []

    @property
    def innermost(self) -> str:
        """The class name of the running module."""
        return type(self._running[-1]).__name__ if self._running else "the model"

    def __enter__(self) -> _Audit:
        self._hooks = [
            torch_module.register_module_forward_pre_hook(self._begin),
            torch_module.register_module_forward_hook(self._end),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if not isinstance(module, ExactModule):
            self._running.append(module)

    def _end(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not isinstance(module, ExactModule):
            self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not is_trusted() and (_has_floats(args) or _has_floats(result)):
            name = func.overloadpacket.__name__
            if not _is_safe(name, args, kwargs):
                raise UnsupportedModel(
                    f"{self.innermost} has no exact form: it computes {name!r} in floating point"
                )
        return result


def _is_safe(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name == "pow":
        return bool(args[1] == 2)
    if name in ("div", "div_"):  # some devices multiply by the reciprocal of a constant instead
        by_tensor = isinstance(args[1], Tensor) and args[1].ndim > 0
        return by_tensor or _is_power_of_two(args[1])
    if name in ("add", "sub", "rsub", "add_", "sub_") and kwargs.get("alpha", 1) != 1:
        return False
    if name == "dropout" and args[2]:
        return False
    return name in _ELEMENTWISE or name in _COPIES


def _is_power_of_two(number: Any) -> bool:
    value = float(number)
    return value > 0 and value.hex().split("p")[0] == "0x1.0000000000000"


def _has_floats(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    if isinstance(value, list | tuple):
        return any(_has_floats(entry) for entry in value)
    return False
