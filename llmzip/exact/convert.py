"""A model of the transformers library → the same model in exact arithmetic, module by module.

Linear layers, norms, activations, rotary embeddings, attention and the cache of keys and values
are replaced; what is left of the model's own forward must be elementwise IEEE operations,
reshapes and look-ups, which `certify` verifies. Norms, activations and rotary embeddings are
known by what they compute, not by the names of their classes, so that most architectures need
no code of their own (docs/architectures.md).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from llmzip.errors import UnsupportedModel
from llmzip.exact import Outline, hadamard, ops, tables
from llmzip.exact.attention import (
    MAX_CONTEXT,
    KeyValueCache,
    RingCache,
    attend,
    held_in,
    quantise_heads,
)
from llmzip.exact.llama import rotary_frequencies
from llmzip.exact.prepare import floating

ATTENTION = "llmzip_exact"
# what attention may be told besides, as it changes nothing: we know positions, and do not train
_NEUTRAL = {"position_ids", "cache_position", "position_embeddings", "use_cache", "layer_idx",
            "cache", "past_key_values", "num_items_in_batch", "deterministic"}  # fmt: skip
_TOLERANCE = 1e-3  # between a module and its exact form on a probe, relative to the largest value
_ACTIVATION_TOLERANCE = 1e-5  # at entries of the table; erf and tanh GELU differ by 5e-4

_state = threading.local()


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """Within, operations are ours, which need no audit."""
    _state.depth = getattr(_state, "depth", 0) + 1
    try:
        yield
    finally:
        _state.depth -= 1


def is_trusted() -> bool:
    return getattr(_state, "depth", 0) > 0


class Exact(nn.Module):
    """A module whose forward follows the rules of docs/exactness.md."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with trusted():
            return super().__call__(*args, **kwargs)


class ExactLinear(Exact):
    def __init__(self, linear: ops.Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self._linear(x)


class ExactNorm(Exact):
    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        epsilon: float,
        *,
        centred: bool,
    ) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias
        self._epsilon, self._centred = epsilon, centred

    def forward(self, x: Tensor) -> Tensor:
        if self._centred:
            return ops.layer_norm(x, self._weight, self._bias, self._epsilon)
        return ops.rms_norm(x, self._weight, self._epsilon)


class ExactActivation(Exact):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return ops.gated(x, tables.gate_table(self._kind))


class ExactRotary(Exact):
    """cos and sin of positions, [1 or S, T, rotated dimensions], by tables.

    `interleaved`: pairs stand side by side, otherwise in two halves.
    """

    def __init__(self, rotary: Mapping[str | None, tables.RotaryTable], interleaved: bool) -> None:
        super().__init__()
        self._rotary, self._interleaved = rotary, interleaved
        self._placed: dict[tuple[str | None, torch.device], tuple[Tensor, Tensor]] = {}
        self.positions = 0

    def reserve(self, positions: int) -> None:
        """Have tables for so many positions."""
        if positions > self.positions:
            self._placed, self.positions = {}, max(2048, positions)

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        key = (layer_type, x.device)
        placed = self._placed
        if key not in placed:
            halves = self._rotary[layer_type].at(0, self.positions)
            placed[key] = tuple(self._spread(half).to(x.device) for half in halves)  # type: ignore
        cos, sin = (table[position_ids] for table in placed[key])
        return cos, sin

    def _spread(self, half: Tensor) -> Tensor:
        return half.repeat_interleave(2, -1) if self._interleaved else torch.cat([half, half], -1)


class _Given(nn.Module):
    """A body whose last hidden states are what it is given."""

    def forward(
        self, *_: Any, inputs_embeds: Tensor, **__: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> _Given:
        """Some heads ask the body for it."""
        return self


class _Layer(CacheLayerMixin):
    """The integers of one layer's keys and values, behind the interface of transformers."""

    def __init__(self, context: int, window: int | None, levels: float, rotated: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._context, self._window, self._levels = context, window, levels
        self._rotated = rotated
        self.cache: KeyValueCache | RingCache | None = None
        self._seen = 0
        self.is_sliding = window is not None
        self.sliding_window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        streams, heads, _, head_dim = key_states.shape
        if value_states.shape != key_states.shape:
            raise UnsupportedModel("values of another shape than keys have no exact form")
        self.cache = KeyValueCache(
            streams,
            heads,
            head_dim,
            context=self._context,
            window=self._window,
            levels=self._levels,
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        with trusted():
            if self.cache is None:
                self.lazy_initialization(key_states, value_states)
            assert self.cache is not None
            self._seen += key_states.shape[2]
            block = hadamard.block_of(key_states.shape[3]) if self._rotated else 1
            key_states = hadamard.transform(key_states, block)
            keys, key_scale, values, value_scale = self.cache.append(key_states, value_states)
        # a model hands these on to the attention as they are; if not, the mark is lost, and
        # the attention refuses them
        how = (self._window, self._levels, self.cache.hidden, block)
        kept = (key_scale, values, value_scale, *how)
        keys.llmzip = kept  # type: ignore[attr-defined]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._seen + query_length, 0

    def get_seq_length(self) -> int:
        return self._seen

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # as older versions of transformers call it


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Exact attention behind the interface of transformers: query [S, H, T, D], the key and
    value that the cache gave → [S, T, H, D]."""
    kept = getattr(key, "llmzip", None)
    window = kwargs.pop("sliding_window", None)
    causal = kwargs.pop("is_causal", None)
    strange = [
        name
        for name, given in kwargs.items()
        if name not in _NEUTRAL and given is not None and given is not False
    ]
    reason = None
    if kept is None:
        reason = "it changes keys after the cache"
    elif attention_mask is not None or causal is False or not getattr(module, "is_causal", True):
        reason = "its attention is not just causal"
    elif window is not None and window != kept[3]:
        reason = f"a sliding window of {window} where the cache has {kept[3]}"
    elif strange:
        reason = f"its attention knows of {', '.join(strange)}"
    if kept is None or reason is not None:
        raise UnsupportedModel(f"{type(module).__name__} has no exact form: {reason}")
    key_scale, values, value_scale, window, levels, hidden, block = kept
    with trusted():
        integers, scale = quantise_heads(hadamard.transform(query, block), levels)
        # products of transformed rows are `block` times those of the rows
        scaling = (query.shape[3] ** -0.5 if scaling is None else scaling) / block
        mixed = attend(
            integers, scale, key, key_scale, values, value_scale, window, scaling, hidden
        )
        return mixed.transpose(1, 2), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Exact attention knows by itself what a token sees."""


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def read_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """config.json → what transformers makes of it. Code in model folders is never run.

    Raises UnsupportedModel.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"model type {kind!r} is not known to the transformers library here "
            "(code that comes with a model is never run)"
        )
    try:
        parsed = CONFIG_MAPPING[kind].from_dict(dict(config))
        parsed.get_text_config(decoder=True)
    except Exception as error:  # whatever the class of the config makes of bad values
        raise UnsupportedModel(f"config.json is incomplete or malformed: {error!r}") from None
    if type(parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"a model of type {kind!r} is no causal language model")
    return parsed


def outline(config: PreTrainedConfig) -> Outline:
    """What a predictor must know; raises UnsupportedModel if the config does not say it."""
    try:
        text = config.get_text_config(decoder=True)
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        head_dim = int(getattr(text, "head_dim", None) or hidden // heads)
        wide = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None)
        return Outline(
            vocabulary=int(text.vocab_size),
            hidden_size=hidden,
            widest=hidden + int(wide or 4 * hidden),
            context=int(getattr(text, "max_position_embeddings", None) or 2048),
            windows=tuple(
                getattr(layer, "sliding_window", None)
                if getattr(layer, "is_sliding", False)
                else None
                for layer in DynamicCache(config=config).layers
            ),
            key_values=int(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
        )
    except AttributeError as error:  # recurrent models and others speak of other things
        raise UnsupportedModel(
            f"models of type {config.model_type!r} have no exact form ({error})"
        ) from None
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UnsupportedModel(f"config.json is incomplete or malformed: {error!r}") from None


def build_network(
    config: PreTrainedConfig, tensors: Mapping[str, Tensor], attention: str
) -> PreTrainedModel:
    """The model of transformers with these weights, which it shares where it can."""
    kinds = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if not kinds:
        raise UnsupportedModel("the model's files hold no floating-point weights")
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    log: Any = logging  # it has no types
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        network, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except KeyError as error:
        if error.args != (attention,):
            raise UnsupportedModel(f"config.json makes no model: {error!r}") from None
        raise UnsupportedModel(
            f"{kind.__name__} has no exact form: its attention cannot be exchanged"
        ) from None
    except Exception as error:  # shapes that do not fit, configs that make no sense
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UnsupportedModel(f"weights and config.json do not fit together: {reason}") from None
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        raise UnsupportedModel(f"the model's files lack the tensor {missing[0]}")
    ready: PreTrainedModel = network.eval().requires_grad_(False)
    return ready


class ExactTransformer:
    """An exact form of a causal language model of the transformers library.

    `forward` and `logits` are those of `ExactLlama`; for Llama models the bits are the same.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        levels: float = ops.A16_LEVELS,
        key_levels: float = ops.WIDE_KEY_LEVELS,
        rotated: bool = False,
        int8: bool | None = None,
        device: str = "cpu",
    ) -> None:
        """Raises UnsupportedModel, with the reason, for what has no exact form. `rotated`: as of
        `ExactLlama`, but for int8 weights, which are taken as if they were floating-point."""
        parsed = read_config(config)
        self.outline = outline(parsed)
        self.device = torch.device(device)
        self._key_levels, self.key_bytes = key_levels, held_in(key_levels).itemsize
        self._rotated = rotated
        self.network = build_network(parsed, floating(config, tensors), ATTENTION)
        exactify(self.network, levels=levels, rotated=rotated, int8=int8, device=self.device)
        self._rotary = [m for m in self.network.modules() if isinstance(m, ExactRotary)]
        prefix = self.network.base_model_prefix
        if prefix not in self.network._modules:
            raise UnsupportedModel(f"{type(self.network).__name__} has no {prefix!r} and a head")
        self._body: nn.Module = self.network.base_model
        known = inspect.signature(self._body.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # before 5.24
        # the network once more, with the same head, but what comes before it left out
        self._head = copy.copy(self.network)
        self._head._modules = {**self.network._modules, prefix: _Given()}

    def new_cache(self, streams: int, context: int) -> Cache:
        """Empty caches for `streams` streams of at most `context` tokens."""
        if context > MAX_CONTEXT:
            raise UnsupportedModel(f"a context of {context} tokens; the limit is {MAX_CONTEXT}")
        for rotary in self._rotary:
            rotary.reserve(context)
        return Cache(
            layers=[
                _Layer(context, window, self._key_levels, self._rotated)
                for window in self.outline.windows
            ]
        )

    def new_ring(self, cache: Cache, capacity: int, position: Tensor) -> Cache:
        """As `ExactLlama.new_ring`."""
        layers: list[Any] = []
        olds: list[Any] = cache.layers
        for old, window in zip(olds, self.outline.windows, strict=True):
            layer = _Layer(capacity, window, self._key_levels, self._rotated)
            layer.cache = RingCache(old.cache, min(capacity, window or capacity), position)
            layers.append(layer)
        return Cache(layers=layers)

    def load_ring(self, ring: Cache, cache: Cache, position: int) -> None:
        """As `ExactLlama.load_ring`."""
        pairs: Any = zip(ring.layers, cache.layers, strict=True)
        for new, old in pairs:
            new.cache.load(old.cache, position)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: Cache, position: int | Tensor) -> Tensor:
        """The next T tokens of S streams, ids int64 [S, T], the first of them at `position`
        → hidden states [S, T, hidden_size], ready for `logits`; as `ExactLlama.forward`."""
        hidden: Tensor = self._body(**self._inputs(ids, cache, position))[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [rows, hidden_size] → logits [rows, vocabulary]."""
        logits: Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def whole(self, ids: Tensor, cache: Cache, position: int) -> Tensor:
        """As `forward` and `logits`, by the model's own forward: [S, T, vocabulary]."""
        logits: Tensor = self.network(**self._inputs(ids, cache, position)).logits
        return logits

    def _inputs(self, ids: Tensor, cache: Cache, position: int | Tensor) -> dict[str, Any]:
        if isinstance(position, Tensor):
            positions = position
        else:
            positions = torch.arange(position, position + ids.shape[1], device=ids.device)
        return {
            "input_ids": ids,
            "position_ids": positions.expand(ids.shape[0], -1),
            self._cache_name: cache,
            "use_cache": True,
        }


def exactify(
    network: PreTrainedModel,
    *,
    levels: float,
    rotated: bool = False,
    int8: bool | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Replace what computes, in place, one module at a time, so that memory holds the weights
    once. What has no exact form is left as it is, for `certify` to name."""
    device = torch.device(device)

    def convert(parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            exact = _exact_form(child, network.config, levels, rotated, int8, device)
            if exact is None:
                convert(child)
            else:
                setattr(parent, name, exact)

    with torch.inference_mode():
        convert(network)
        for tensor in [*network.parameters(), *network.buffers()]:
            _require_finite(tensor, "the model")
        nn.Module.float(network)
        nn.Module.to(network, device)


def _exact_form(
    module: nn.Module,
    config: PreTrainedConfig,
    levels: float,
    rotated: bool,
    int8: bool | None,
    device: torch.device,
) -> Exact | None:
    kind = type(module).__name__.lower()
    if isinstance(module, nn.Linear | Conv1D):
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        _require_finite(weight, type(module).__name__)
        block = hadamard.block_of(weight.shape[1]) if rotated else 1
        integers, scale = ops.quantise_weight(weight.to(device), block)
        bias = None if module.bias is None else module.bias.float().to(device)
        return ExactLinear(
            ops.Linear(
                integers.contiguous(), scale, levels=levels, bias=bias, block=block, int8=int8
            )
        )
    if next(module.children(), None) is not None:
        return None
    if "rotary" in kind:
        return _exact_rotary(module, config)
    if "norm" in kind:
        return _exact_norm(module, device)
    if not list(module.parameters()) and not list(module.buffers()) and "dropout" not in kind:
        return _exact_activation(module)
    return None


def _require_finite(tensor: Tensor, where: str) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UnsupportedModel(f"{where} has weights that are not finite")


def _probe(*shape: int) -> Tensor:
    """Numbers of many sizes, off centre, by integer arithmetic."""
    count = 1
    for size in shape:
        count *= size
    values = torch.arange(1, count + 1, dtype=torch.int64) * 7919 % 2003 - 900
    rows = torch.tensor([1.0, 1e-3, 30.0])[: shape[0]]
    return values.float().view(shape) / 500 * rows.view(-1, *[1] * (len(shape) - 1))


def _exact_norm(module: nn.Module, device: torch.device) -> Exact | None:
    """LayerNorm or RMSNorm, its weight as it is or with 1 added: whichever the module computes."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    shape = getattr(module, "normalized_shape", None) if weight is None else weight.shape
    epsilons = (getattr(module, n, None) for n in ("eps", "variance_epsilon", "epsilon"))
    epsilon = next((e for e in epsilons if isinstance(e, float)), 1e-5)
    if not shape:
        return None
    gain = torch.ones(tuple(shape)) if weight is None else weight.float()
    shift = None if bias is None else bias.float()
    _require_finite(gain, type(module).__name__)
    x = _probe(3, *shape)
    try:
        expected = copy.deepcopy(module).float()(x)
    except Exception:  # no function of one tensor
        return None
    if not isinstance(expected, Tensor) or expected.shape != x.shape:
        return None
    for centred in (False, True):
        for w in (gain, gain + 1):
            exact = ExactNorm(w, shift, epsilon, centred=centred)
            if (centred or shift is None) and _close(exact(x), expected):
                moved = None if shift is None else shift.to(device)
                return ExactNorm(w.to(device), moved, epsilon, centred=centred)
    return None


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Row by row, relative to the largest value of a row."""
    error = (actual - expected).flatten(1).abs().amax(1)
    return bool((error <= _TOLERANCE * expected.flatten(1).abs().amax(1)).all())


def _exact_activation(module: nn.Module) -> Exact | None:
    x = torch.arange(-8 * 1024, 8 * 1024 + 1).float() / 1024
    try:
        expected = module(x)
    except Exception:  # no function of one tensor
        return None
    if not isinstance(expected, Tensor) or expected.shape != x.shape:
        return None
    for kind in tables.GATES:
        if (ops.gated(x, tables.gate_table(kind)) - expected).abs().max() < _ACTIVATION_TOLERANCE:
            return ExactActivation(kind)
    return None


def _exact_rotary(module: nn.Module, config: PreTrainedConfig) -> Exact | None:
    """Tables from the config's parameters, if they agree with what the module computes."""
    suffix = "inv_freq"
    buffers = {
        name.removesuffix(suffix).removesuffix("_") or None: buffer
        for name, buffer in module.named_buffers()
        if name.endswith(suffix) and "original" not in name
    }
    parameters = getattr(getattr(module, "config", config), "rope_parameters", None)
    if not buffers or not isinstance(parameters, Mapping):
        return None
    positions = torch.tensor([[0, 1, 2, 3, 50, 300]])
    original = copy.deepcopy(module).float()
    for odd in (0, 1):  # a third of a head may be an odd number of dimensions
        rotary = {
            layer: tables.RotaryTable(
                rotary_frequencies(
                    parameters[layer] if layer else parameters, 2 * len(buffer) - odd
                )
            )
            for layer, buffer in buffers.items()
        }
        for interleaved in (False, True):
            exact = ExactRotary(rotary, interleaved)
            exact.reserve(512)
            agree = True
            for layer in buffers:
                given = (_probe(1), positions, *([layer] if layer else []))
                agree &= all(
                    a.shape == b.shape and bool((a - b).abs().max() < _TOLERANCE)
                    for a, b in zip(exact(*given), original(*given), strict=True)
                )
            if agree:
                return exact
    return None
