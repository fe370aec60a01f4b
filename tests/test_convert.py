"""Models of the transformers library, exactly: many families, refusals by name, what it costs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PROSE
from families import FAMILIES, UNKNOWN, VOCABULARY, build, save, tokenise, train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import llmzip
from llmzip import inference, models
from llmzip.errors import UnsupportedModel, WrongModel
from llmzip.exact import ops
from llmzip.exact.activations import GATES, gate_table
from llmzip.exact.convert import verify
from llmzip.exact.convert.config import load_network, parse_config
from llmzip.exact.convert.model import ExactTransformer, make_exact
from llmzip.inference import Context, exact_predictor

# all of them are compared in every way; these, which every mechanism is in, on other settings too
CORE = ("gpt2", "llama3", "qwen2-sliding", "qwen3", "gpt-neox", "gemma3", "opt-projected")
CONTEXT = Context(128, 64)
IDS = torch.randint(0, VOCABULARY, (4, 70), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's name → a folder with its briefly trained model."""
    root = tmp_path_factory.mktemp("families")
    ids = tokenise(PROSE.encode() * 3)

    def make(name: str) -> Path:
        if not (root / name).exists():
            network = build(*FAMILIES[name])
            train(network, ids, steps=40)
            save(network, root / name)
        return root / name

    return make


def _predictor(
    folder: Path, activations: str = "a16", context: Context = CONTEXT
) -> exact_predictor.ExactPredictor:
    files = models.load(str(folder))
    return inference.build(files, activations=activations, context=context)


def _scored(model: exact_predictor.ExactPredictor, ids: Tensor) -> Tensor:
    """[S, T, V], the logits of each id by one parallel pass."""
    return torch.cat([chunk.clone() for chunk in model.run(*ids.shape).score(ids)]).transpose(0, 1)


def _stepped(model: exact_predictor.ExactPredictor, ids: Tensor) -> Tensor:
    run = model.run(*ids.shape)
    logits = [run.first(), *(run.step(ids[:, t]).clone() for t in range(ids.shape[1] - 1))]
    return torch.stack(logits, 1)


def _float_logits(folder: Path, ids: Tensor) -> Tensor:
    """By transformers in float32, BOS first: [S, T, V]."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return network(torch.nn.functional.pad(ids, (1, 0))[:, :-1]).logits


def _nats(logits: Tensor, ids: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))


@pytest.mark.parametrize("name", FAMILIES)
def test_one_pass_equals_single_steps_equals_any_batch(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    for activations, context in (("a16", Context(24, 12)), ("a8", Context(128, 64))):
        model = _predictor(folder_of(name), activations, context)
        whole = _scored(model, IDS)
        assert torch.equal(whole, _stepped(model, IDS))
        assert torch.equal(whole[1:3], _stepped(model, IDS[1:3]))
        assert torch.equal(whole[:, :40], _scored(model, IDS[:, :40]))


@pytest.mark.parametrize("name", ["mistral", *CORE])
def test_steps_in_fixed_shapes_are_the_same(name: str, folder_of: Callable[[str], Path]) -> None:
    """As they are recorded and replayed on a GPU; here they are computed each time."""
    for context in (Context(24, 12), Context(128, 64)):
        model = _predictor(folder_of(name), "a16", context)
        expected = _stepped(model, IDS)
        model.replays = True
        assert torch.equal(_stepped(model, IDS), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_exactness_costs_at_most_half_a_percent(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    ids = tokenise(PROSE.encode())[:250].view(2, 125)
    expected = _nats(_float_logits(folder_of(name), ids), ids)
    for activations in ("a8", "a16"):
        actual = _nats(_scored(_predictor(folder_of(name), activations), ids), ids)
        assert actual < expected * 1.005


@pytest.mark.parametrize("name", FAMILIES)
def test_archives(name: str, folder_of: Callable[[str], Path]) -> None:
    folder = str(folder_of(name))
    archive = llmzip.compress(PROSE.encode(), model=folder, streams=3)
    assert len(archive) < len(PROSE) / 2
    assert llmzip.decompress(archive, model=folder) == PROSE.encode()


def _digests(names: list[str], folders: list[str]) -> dict[str, str]:
    """Runs in other processes, too."""
    found = {}
    for name, folder in zip(names, folders, strict=True):
        for activations in ("a8", "a16"):
            logits = _scored(_predictor(Path(folder), activations), IDS)
            data = logits.contiguous().numpy().tobytes()
            found[f"{name} {activations}"] = hashlib.sha256(data).hexdigest()
    return found


def test_threads_and_instruction_sets_agree(folder_of: Callable[[str], Path]) -> None:
    names, folders = list(CORE), [str(folder_of(name)) for name in CORE]
    expected = _digests(names, folders)
    code = f"import json, test_convert as t; print(json.dumps(t._digests({names}, {folders})))"
    for capability, threads in (("default", "1"), ("avx2", "2")):
        environment = {
            **os.environ,
            "ATEN_CPU_CAPABILITY": capability,
            "OMP_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
        assert json.loads(done.stdout.splitlines()[-1]) == expected, done.stderr.decode()[-500:]


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_float_and_int8_products_agree(name: str, folder_of: Callable[[str], Path]) -> None:
    files = models.load(str(folder_of(name)))
    results = []
    for int8 in (False, True):
        model = ExactTransformer(files.config, files.tensors, int8=int8)
        results.append(model.full_forward(IDS, model.new_cache(*IDS.shape), 0))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["llama", "llama3", "smollm2", "mistral"])
def test_a_converted_llama_is_the_llama_of_our_own(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    files = models.load(str(folder_of(name)))
    own = _predictor(folder_of(name))
    form = ExactTransformer(files.config, files.tensors, rotated=True)
    converted = exact_predictor.ExactPredictor(form, files.bos, own.context)
    assert torch.equal(_scored(own, IDS), _scored(converted, IDS))


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_exact_form_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, given, named = UNKNOWN[name]
    save(build(kind, given), tmp_path)
    with pytest.raises(UnsupportedModel, match=f"{named}.* (has|have) no exact form") as caught:
        llmzip.compress(PROSE.encode(), model=str(tmp_path))
    assert "\n" not in str(caught.value)


_MATRIX = torch.ones(64, 64)


class _Sneaky(nn.Module):
    """A floating-point computation where nobody looks for it."""

    def __init__(self, inside: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inside, self.change = inside, change

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.change(self.inside(x))
        return result


@pytest.mark.parametrize(
    ("operation", "change"),
    [
        ("exp", lambda x: x + 0 * x.exp()),
        ("mean", lambda x: x - x.mean(-1, keepdim=True)),
        ("cumsum", lambda x: x + 1e-9 * x.cumsum(1)),
        ("(mat|b|)mm|matmul", lambda x: x @ _MATRIX),
        ("div", lambda x: x / 3.0),
        ("tanh", lambda x: x.tanh()),
        ("pow", lambda x: x**3),
        ("add", lambda x: torch.add(x, x, alpha=0.3)),
        ("addcmul", lambda x: torch.addcmul(x, x, x)),
        ("rand_like", lambda x: x + torch.rand_like(x)),
    ],
)
def test_verify_finds_what_hides_in_a_forward(
    operation: str, change: Callable[[Tensor], Tensor], folder_of: Callable[[str], Path]
) -> None:
    files = models.load(str(folder_of("qwen2")))
    model = ExactTransformer(files.config, files.tensors)
    verify.verify(model)
    layer = model.network.model.layers[1]
    layer.mlp = _Sneaky(layer.mlp, change)
    with pytest.raises(UnsupportedModel, match=f"_Sneaky has no exact form: .*'({operation})"):
        verify.verify(model)


def test_verify_finds_what_depends_on_the_batch(folder_of: Callable[[str], Path]) -> None:
    """Only IEEE operations, and yet another result for another batch, or for padding."""
    files = models.load(str(folder_of("qwen2")))
    for way, change in (
        ("another batch", lambda x: x + x[:1]),
        ("fewer tokens", lambda x: x + x[:, -1:]),
    ):
        model = ExactTransformer(files.config, files.tensors)
        layer = model.network.model.layers[1]
        layer.mlp = _Sneaky(layer.mlp, change)
        with pytest.raises(UnsupportedModel, match="other logits") as e:
            verify.verify(model)
        assert way in str(e.value) or "steps" in str(e.value) or "blocks" in str(e.value)


def test_the_fingerprint_is_the_same_everywhere(folder_of: Callable[[str], Path]) -> None:
    assert _predictor(folder_of("gpt2")).fingerprint == _predictor(folder_of("gpt2")).fingerprint
    assert len(_predictor(folder_of("gpt2")).fingerprint) == 4
    assert _predictor(folder_of("llama")).fingerprint == b""


def test_another_version_of_the_models_code_is_told_apart(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmzip.archive import codecs

    folder = str(folder_of("gpt2"))
    archive = llmzip.compress(PROSE.encode(), model=folder)
    codecs.codec_cache.clear()
    monkeypatch.setattr(verify, "verify", lambda model: b"else")
    with pytest.raises(WrongModel, match=r"transformers .* computes .* differently"):
        llmzip.decompress(archive, model=folder)
    codecs.codec_cache.clear()


def test_other_weights_are_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    archive = llmzip.compress(PROSE.encode(), model=str(folder_of("gpt2")))
    network = build(*FAMILIES["gpt2"])
    save(network, tmp_path)
    with pytest.raises(WrongModel, match="written with a model of digest"):
        llmzip.decompress(archive, model=str(tmp_path))


def test_keys_with_huge_biases_cost_little(tmp_path: Path) -> None:
    """As in some Qwen2 checkpoints: 8 bits for keys would be too few, so a16 takes 15."""
    ids = tokenise(PROSE.encode())
    network = build(*FAMILIES["qwen2"])
    train(network, ids.repeat(3), steps=40)
    with torch.no_grad():  # constant along the text, so it hardly changes what is attended to
        network.model.layers[0].self_attn.k_proj.bias[7::16] += 300
        network.model.layers[1].self_attn.k_proj.bias[15::16] += 500
    train(network, ids.repeat(3), steps=30)
    save(network, tmp_path)
    ids = ids[:250].view(2, 125)
    expected = _nats(_float_logits(tmp_path, ids), ids)
    assert _nats(_scored(_predictor(tmp_path, "a16"), ids), ids) < expected * 1.005


def test_half_precision_checkpoints_are_not_copied(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder_of("gpt2"), dtype=torch.bfloat16)
    save(network, tmp_path)
    files = models.load(str(tmp_path))
    assert {t.dtype for t in files.tensors.values()} == {torch.bfloat16}
    built = load_network(parse_config(files.config), files.tensors, "eager")
    shared = {t.data_ptr() for t in files.tensors.values()}
    assert all(p.data_ptr() in shared for p in built.parameters())
    archive = llmzip.compress(PROSE.encode(), model=str(tmp_path))
    assert llmzip.decompress(archive, model=str(tmp_path)) == PROSE.encode()


def test_old_names_of_tensors_load(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """As in the checkpoint named gpt2: no prefix, and masks among the weights."""
    tensors = load_file(folder_of("gpt2") / "model.safetensors")
    old = {name.removeprefix("transformer."): t.contiguous() for name, t in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 256, 256)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder_of("gpt2") / name).read_bytes())
    expected = _scored(_predictor(folder_of("gpt2")), IDS)
    assert torch.equal(_scored(_predictor(tmp_path), IDS), expected)


def _changed_folder(
    source: Path, target: Path, change: Callable[[dict[str, Tensor], dict[str, object]], None]
) -> str:
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return str(target)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, c: t.pop("transformer.h.1.ln_1.weight"), "lack the tensor .*h.1.ln_1.weight"),
        (lambda t, c: t["transformer.wpe.weight"].fill_(float("nan")), "not finite"),
        (lambda t, c: t["transformer.h.0.mlp.c_fc.weight"].fill_(float("inf")), "not finite"),
        (lambda t, c: c.update(n_embd=32), "do not fit together|malformed"),
        (lambda t, c: c.update(n_head=0), "malformed|do not fit"),
        (lambda t, c: c.update(n_layer="many"), "malformed|do not fit"),
        (lambda t, c: c.update(activation_function="nonsense"), "do not fit together|makes no"),
        (lambda t, c: c.update(model_type="t5"), "no causal language model"),
        (lambda t, c: c.update(model_type="unheard-of"), "not known to the transformers library"),
        (lambda t, c: c.update(model_type=["gpt2"]), "not known to the transformers library"),
    ],
)
def test_broken_and_hostile_folders_are_refused(
    change: Callable[[dict[str, Tensor], dict[str, object]], None],
    reason: str,
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = _changed_folder(folder_of("gpt2"), tmp_path, change)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        llmzip.compress(PROSE.encode(), model=folder)
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_is_not_run(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], config: dict[str, object]) -> None:
        config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}

    folder = _changed_folder(folder_of("gpt2"), tmp_path, change)
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    archive = llmzip.compress(PROSE.encode(), model=folder)
    assert llmzip.decompress(archive, model=folder) == PROSE.encode()
    assert not mark.exists()


def test_a_model_larger_than_memory(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmzip.inference import base

    monkeypatch.setattr(base, "_free_memory", lambda device: 100_000)
    with pytest.raises(UnsupportedModel, match=r"needs about 0\.0 GiB of memory on cpu, 0\.0 GiB"):
        _predictor(folder_of("gpt2"))


def test_gates_are_correctly_rounded() -> None:
    import math

    x = [i / 1024 for i in range(-16383, 16384, 37)]
    at = torch.arange(1, 32768, 37)
    floor = 2.0**-64
    for kind, gate in (
        ("gelu", lambda v: math.erfc(-v / math.sqrt(2)) / 2),
        ("quick_gelu", lambda v: 1 / (1 + math.exp(-1.702 * v))),
    ):
        expected = torch.tensor([g if (g := gate(v)) > floor else 0.0 for v in x])
        assert torch.equal(gate_table(kind)[at], expected)
    digest = hashlib.sha256()
    for kind in GATES:
        digest.update(gate_table(kind).numpy().tobytes())
    assert digest.hexdigest()[:16] == "7d645cf85d65b2f0"


def test_layer_norm_is_near_to_torch() -> None:
    x = torch.randn(20, 300) * 3 + 1
    x[3, 7] = 3000  # as some models have it
    weight, bias = torch.randn(300), torch.randn(300)
    expected = torch.nn.functional.layer_norm(x, (300,), weight, bias, 1e-5)
    assert (ops.layer_norm(x, weight, bias, 1e-5) - expected).abs().max() < 2e-3


def test_a_model_may_be_converted_in_place() -> None:
    """`make_exact` is all that an architecture of one's own needs."""
    network: PreTrainedModel = build(*FAMILIES["olmo2"])
    make_exact(network, levels=ops.A16_LEVELS)
    names = {type(module).__name__ for module in network.modules()}
    assert {"ExactLinear", "ExactNorm", "ExactActivation", "ExactRotary"} <= names
    assert "Linear" not in names
