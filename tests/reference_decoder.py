"""A second decoder, written from docs/format.md, docs/exactness.md and docs/mixing.md: slow, plain,
and of numpy alone.

python tests/reference_decoder.py ARCHIVE MODEL_FOLDER… > CONTENT

It reads archives of models of the Llama family with int8 weights, as the embedded ones are. Zstd
frames need `zstandard`, primes need `tokenizers`. Nothing of llmzip is imported.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from collections.abc import Sequence
from decimal import Decimal, getcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from reference_mixing import ReferenceMixer, initial_state

getcontext().prec = 60
F = np.float32
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
PACKAGE = Path(__file__).parent.parent / "llmzip"
EMBEDDED = [PACKAGE / "models" / name for name in ("nano", "small", "base")]
LEVELS = {1: PACKAGE / "mixing" / "initial.xz", 2: PACKAGE / "mixing" / "initial-fast.xz"}


def blake(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


# --- The model: docs/exactness.md -----------------------------------------------------------------


class Model:
    """A folder with config.json, tokenizer.json and model.safetensors."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        self.tokenizer = (folder / "tokenizer.json").read_text("utf-8")
        self.tensors, kinds = _tensors((folder / "model.safetensors").read_bytes())
        ignored = ("_name_or_path", "architectures", "dtype", "torch_dtype",
                   "transformers_version", "use_cache")  # fmt: skip
        parts = [_canonical({k: v for k, v in config.items() if k not in ignored}),
                 _canonical(json.loads(self.tokenizer))]  # fmt: skip
        for name in sorted(self.tensors):
            x = self.tensors[name]
            shape = "[" + ", ".join(map(str, x.shape)) + "]"
            parts += [f"{name} {kinds[name]} {shape}".encode(), x.tobytes()]
        self.digest = blake(b"".join(len(p).to_bytes(8, "little") + p for p in parts), 32)
        self.vocabulary, self.hidden = config["vocab_size"], config["hidden_size"]
        self.heads, self.layers = config["num_attention_heads"], config["num_hidden_layers"]
        self.groups = config.get("num_key_value_heads") or self.heads
        self.dim = config.get("head_dim") or self.hidden // self.heads
        self.window, self.bos = config.get("sliding_window"), config["bos_token_id"]
        self.epsilon, self.rotated = F(config["rms_norm_eps"]), bool(config.get("llmzip_rotated"))
        theta = Decimal(config["rope_parameters"]["rope_theta"]).ln()
        pairs = range(self.dim // 2)
        self.frequencies = [(-(Decimal(2 * i) / self.dim) * theta).exp() for i in pairs]
        self.spellings = spellings(json.loads(self.tokenizer), self.vocabulary)

        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def weight(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Integers float64 [N, K] and their scales float32 [N]."""
        if name not in self.weights:
            scale = self.tensors[name + ".weight_scale"].reshape(-1)
            integers = self.tensors[name + ".weight"].astype(np.float64)
            self.weights[name] = integers, np.maximum(scale, F(2.0**-40))
        return self.weights[name]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _tensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Safetensors: the length of a JSON header, the header, the data."""
    start = 8 + int.from_bytes(data[:8], "little")
    header, found, kinds = json.loads(data[8:start]), {}, {}
    types = {"I8": ("i1", "int8"), "F32": ("<f4", "float32")}
    for name, entry in header.items():
        if name != "__metadata__":
            low, high = entry["data_offsets"]
            kind, kinds[name] = types[entry["dtype"]]
            found[name] = np.frombuffer(data[start + low : start + high], kind)
            found[name] = found[name].reshape(entry["shape"])
    return found, kinds


class Run:
    """One stream: a context that grows token by token. `levels` is L of the activations."""

    def __init__(self, model: Model, levels: int, window: int, overlap: int, prefix: list[int]):
        self.m, self.levels, self.limit, self.overlap = model, levels, window, overlap
        self.recent = list(prefix)
        self.begin()

    def begin(self) -> None:
        self.position = 0
        m = self.m
        heads, scales = np.zeros((0, m.groups, m.dim), np.int64), np.zeros((0, m.groups), F)
        self.cache = [[heads, scales, heads, scales] for _ in range(m.layers)]
        for id in [self.m.bos, *self.recent]:
            self.logits = self.feed(id)

    def step(self, id: int) -> None:
        self.recent.append(id)
        if self.position == self.limit:
            self.recent = self.recent[max(0, len(self.recent) - self.overlap) :]
            self.begin()
        else:
            self.logits = self.feed(id)

    def feed(self, id: int) -> np.ndarray:
        """One token through all layers → the logits of the next."""
        m, block = self.m, self.block
        table, scale = m.weight("model.embed_tokens")
        x = hadamard(table[id].astype(F) * scale[id], block(m.hidden))
        for layer, kept in enumerate(self.cache):
            name = f"model.layers.{layer}."
            y = self.norm(x, name + "input_layernorm")
            out = self.attention(y, name + "self_attn.", kept)
            x = x + self.linear(out, name + "self_attn.o_proj")
            y = self.norm(x, name + "post_attention_layernorm")
            gate, up = (self.linear(y, f"{name}mlp.{part}_proj") for part in ("gate", "up"))
            step = np.rint(np.clip(gate * F(1024), F(-16384), F(16384))).astype(int)
            x = x + self.linear(sigmoids()[step + 16384] * gate * up, name + "mlp.down_proj")
        self.position += 1
        head = "lm_head" if "lm_head.weight" in m.tensors else "model.embed_tokens"
        return self.linear(self.norm(x, "model.norm"), head)

    def attention(self, y: np.ndarray, name: str, seen: list[np.ndarray]) -> np.ndarray:
        m, block = self.m, self.block(self.m.dim)
        cos, sin = rotations(tuple(m.frequencies), self.position)
        q, k, v = (self.linear(y, f"{name}{part}_proj").reshape(-1, m.dim) for part in "qkv")
        out = np.empty(q.shape, F)
        constant = score_scale(m.dim, block)
        keys = [quantise(hadamard(rotate(row, cos, sin), block), self.levels) for row in k]
        values = [quantise(row, self.levels) for row in v]
        new = (
            np.array([integers for integers, _ in keys]),
            np.array([scale * constant for _, scale in keys]),
            np.array([integers for integers, _ in values]),
            np.array([scale for _, scale in values]),
        )
        for i in range(4):
            seen[i] = np.concatenate([seen[i], new[i][None]])[-(m.window or self.limit) :]
        for h, row in enumerate(q):
            g = h // (m.heads // m.groups)
            query, scale = quantise(hadamard(rotate(row, cos, sin), block), self.levels)
            z = (seen[0][:, g] @ query).astype(F) * seen[1][:, g]
            steps = np.minimum(np.rint((z.max() - z) * scale), F(16384)).astype(int)
            w = np.append(exp2_table(10, 16, 16), 0)[steps]
            top = seen[3][:, g].max()
            factor = F(65536) * (F(1) / (F(w.sum()) * top))
            p = np.rint(w.astype(F) * seen[3][:, g] * factor).astype(np.int64)
            out[h] = (p @ seen[2][:, g]).astype(F) * (top * F(2.0**-16))
        return out.reshape(-1)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        weight, scale = self.m.weight(name)
        q, row = quantise(hadamard(x, self.block(len(x))), self.levels)
        # sums of integers below 2^53, exact in any order
        return (weight @ q.astype(np.float64)).astype(F) * row * scale

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        top = max(np.abs(x).max(), F(2.0**-64))
        grid = np.rint(x * (F(32768) / top))
        unit = top * F(2.0**-15)
        mean = F(float((grid * grid).astype(np.int64).sum()) * (1 / len(x))) * unit * unit
        inverse = F(1) / F(np.sqrt(np.float64(mean + self.m.epsilon)))
        return x * inverse * self.m.tensors[name + ".weight"]

    def block(self, size: int) -> int:
        return min(64, size & -size) if self.m.rotated else 1


def quantise(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.floating[Any]]:
    scale = max(np.abs(x).max(), F(2.0**-64)) * F(1 / levels)
    return np.rint(x / scale).astype(np.int64), scale


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    distance = len(x) // block
    while distance < len(x):
        pairs = x.reshape(-1, 2, distance)
        a, b = pairs[:, 0], pairs[:, 1]
        x = np.stack([a + b, a - b], 1).reshape(-1)
        distance *= 2
    return x


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    a, b = np.split(x, 2)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


@cache
def rotations(frequencies: tuple[Decimal, ...], position: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin: unit complex numbers of 30 bits of the position's last 6 bits, of the next 6,
    and of the rest, multiplied in this order."""
    result = []
    for frequency in frequencies:
        angle = int(frequency * (1 << 160))
        c, s = _power(angle, position % 64)
        for part, stride in ((position // 64 % 64, 64), (position // 4096, 4096)):
            c2, s2 = _power(angle, part, stride)
            c, s = (c * c2 - s * s2) >> 30, (s * c2 + c * s2) >> 30
        result.append((c, s))
    both = np.array(result, dtype=np.int64).astype(F) * F(2.0**-30)
    return both[:, 0], both[:, 1]


@cache
def _power(angle: int, count: int, stride: int = 1) -> tuple[int, int]:
    """e^(i · angle · stride · count), 160 bits, of which the first 30 are kept."""
    cos, sin, term, k = 0, 0, 1 << 160, 0
    while term:
        cos, sin = cos + (1, 0, -1, 0)[k % 4] * term, sin + (0, 1, 0, -1)[k % 4] * term
        k += 1
        term = (term * angle >> 160) // k
    while stride > 1:
        cos, sin, stride = (cos * cos - sin * sin) >> 160, (2 * cos * sin) >> 160, stride // 2
    c, s = 1 << 160, 0
    for _ in range(count):
        c, s = (c * cos - s * sin) >> 160, (s * cos + c * sin) >> 160
    return c >> 130, s >> 130


@cache
def score_scale(dim: int, block: int) -> np.floating[Any]:
    """Of products of queries and keys, in 1/1024 octaves."""
    return F(float(1024 / (Decimal(dim).sqrt() * block * Decimal(2).ln())))


@cache
def sigmoids() -> np.ndarray:
    """float32 [32769]: 1 / (1 + e^-x) at x = i / 1024, i = -16384 … 16384; 0 and 1 at the ends."""
    decay, power, upper, lower = (Decimal(-1) / 1024).exp(), Decimal(1), [], []
    for _ in range(16384):
        upper.append(float(1 / (1 + power)))
        lower.append(float(power / (1 + power)))
        power *= decay
    return np.array([0.0, *lower[:0:-1], *upper, 1.0]).astype(F)


@cache
def exp2_table(step_bits: int, unit_bits: int, octaves: int) -> np.ndarray:
    """round(2^unit · 2^(-i / 2^steps)), halved per octave."""
    size = 1 << step_bits
    exponents = ((unit_bits - Decimal(i) / size) * Decimal(2).ln() for i in range(size))
    first = np.array([int(e.exp().to_integral_value()) for e in exponents], dtype=np.int64)
    return np.concatenate([first >> octave for octave in range(octaves)])


def frequencies(logits: np.ndarray) -> np.ndarray:
    factor = F(369.3299255371094)  # 256 / ln 2
    steps = np.minimum(np.rint((logits.max() - logits) * factor), F(7680)).astype(int)
    return np.append(exp2_table(8, 30, 30), 1)[steps]


def spellings(tokenizer: dict[str, Any], vocabulary: int) -> list[bytes | None]:
    """Section 7 of docs/format.md, for byte-level tokenizers, and escapes if a byte is missing."""
    found: list[bytes | None] = [None] * vocabulary
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    for token, id in tokenizer["model"]["vocab"].items():
        if id < vocabulary:
            known = all(c in byte_of for c in token)
            found[id] = bytes(byte_of[c] for c in token) if known else token.encode()
    for added in tokenizer.get("added_tokens") or ():
        if added["id"] < vocabulary:
            found[added["id"]] = added["content"].encode()
    if {bytes([b]) for b in range(256)} - set(found):
        found += [bytes([b]) for b in range(256)]
    return found


# --- The payload of a frame: docs/format.md, section 5 --------------------------------------------


class RangeDecoder:
    """64-bit state, 32-bit words, 24 bits of precision."""

    def __init__(self, payload: bytes) -> None:
        self.payload, self.at = payload, 8
        self.lower, self.range = 0, (1 << 64) - 1
        self.point = int.from_bytes(payload[:8].ljust(8, b"\0"), "big")

    def bit(self, probability: int) -> int:
        """The next decision; `probability` / 2^16 is that of a one."""
        zero = 1 + ((65536 - probability) * ((1 << 24) - 2) >> 16)
        scale = self.range >> 24
        bit = int((self.point - self.lower) % (1 << 64) >= scale * zero)
        if bit:
            self.lower, self.range = self.lower + scale * zero, scale * ((1 << 24) - zero)
        else:
            self.range = scale * zero
        if self.range < 1 << 32:
            word = self.payload[self.at : self.at + 4].ljust(4, b"\0")
            self.point = (self.point << 32 | int.from_bytes(word, "big")) % (1 << 64)
            self.lower, self.range, self.at = self.lower << 32, self.range << 32, self.at + 4
        self.lower %= 1 << 64
        return bit


class Coding:
    """What the fields of a header say: model, arithmetic, window, mixing and prime."""

    def __init__(self, model: Model, profile: int, window: int, overlap: int, prime: bytes) -> None:
        self.model, self.prime = model, prime
        self.levels = {1: 127, 2: 16256}[profile & 15]
        self.window, self.overlap, self.level = window, overlap, profile >> 4
        unique: dict[bytes, int] = {}
        for id, text in enumerate(model.spellings):
            if text:
                unique.setdefault(text, id)
        self.texts = sorted(unique)
        self.ids = np.array([unique[text] for text in self.texts])
        self.ranks = {unique[text]: rank for rank, text in enumerate(self.texts)}

    def decode(self, payload: bytes, length: int, tokens: int, streams: int) -> bytes:
        start = initial_state(LEVELS[self.level].read_bytes()) if self.level else None
        mixer = ReferenceMixer(self.texts, streams, length, start, len(self.prime))
        prefix = self.prime_ids()
        if prefix and start is not None:
            run = self.run([])
            for id in prefix:
                mixer.code(0, self.weights(run), self.ranks[id])
                run.step(self.fed(id))
            mixer.end_prime()
        kept = [self.fed(id) for id in prefix[max(0, len(prefix) - self.overlap) :]]
        runs = [self.run(kept) for _ in range(streams)]
        coder = RangeDecoder(payload)
        found: list[list[int]] = [[] for _ in runs]
        size = made = 0
        while made < (tokens or length) and size < length:
            for s in range(min(streams, (tokens or length) - made)):
                if found[s]:
                    runs[s].step(self.fed(found[s][-1]))
                rank, _ = mixer.code(s, self.weights(runs[s]), -1, coder.bit)
                found[s].append(int(self.ids[rank]))
                size += len(self.texts[rank])
                made += 1
        text = b"".join(self.model.spellings[id] or b"" for ids in found for id in ids)
        assert len(text) == length, "the tokens spell another length"
        return text

    def run(self, prefix: list[int]) -> Run:
        return Run(self.model, self.levels, self.window, self.overlap, prefix)

    def fed(self, id: int) -> int:
        """What the model sees of an id."""
        return id if id < self.model.vocabulary else 0

    def weights(self, run: Run) -> np.ndarray:
        """Of all ranks."""
        escapes = len(self.model.spellings) - self.model.vocabulary
        return np.append(frequencies(run.logits), np.full(escapes, 1 << 14))[self.ids]

    def prime_ids(self) -> list[int]:
        """Only of primes whose plain segmentation is that of section 5: one part, in UTF-8, whose
        tokens spell it."""
        if not self.prime:
            return []
        if len(self.prime) > 65536:
            raise NotImplementedError("a prime of over 65,536 bytes, which is cut into parts first")
        try:
            text = self.prime.decode()
        except UnicodeDecodeError:
            raise NotImplementedError("a prime that is not UTF-8") from None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.model.tokenizer)
        tokenizer.encode_special_tokens = True
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
        if b"".join(self.texts[self.ranks[id]] for id in ids if id in self.ranks) != self.prime:
            raise NotImplementedError("a prime that its tokens do not spell")
        return ids


# --- The container: docs/format.md, sections 2 to 4 and 10 ----------------------------------------


def decode(archive: bytes, models: Sequence[Model], prime: bytes = b"") -> bytes:
    """The content of an archive. Fails by AssertionError if anything does not match."""
    if archive[:4] in (b"LLMz", b"LLMp"):
        return _decode_short(archive, models, prime)
    assert archive[:5] == b"LLMZ\x01"
    flags, at, coding = archive[5], 6, None
    assert flags < 32
    if flags & 1:
        profile, digest = archive[6], archive[7:13]
        window, overlap = _short_length(archive[13]), _short_length(archive[14])
        at = 15
        if flags & 16:
            assert archive[at : at + 8] == blake(prime, 8)
            at += 8
        if flags & 2:
            at += 1 + archive[at]
        assert not flags & 12, "a converted model, or floating point"
        model = _find(models, digest)
        coding = Coding(model, profile, window, overlap, prime if flags & 16 else b"")
    header, content, frames, last = archive[:at], b"", 0, False
    while not last:
        start = at
        kind, last = archive[at] & 3, archive[at] > 127
        assert not archive[at] & 124
        length, at = _varint(archive, at + 1)
        tokens = streams = 0
        if kind == 2:
            tokens, at = _varint(archive, at)
            streams, at = _varint(archive, at)
            assert 1 <= streams <= tokens <= length
        size, at = (length, at) if kind == 0 else _varint(archive, at)
        fields, payload = archive[start:at], archive[at : at + size]
        at += size
        if length > 65536:
            assert archive[at : at + 4] == blake(payload, 4)
            at += 4
        part = payload
        if kind == 1:
            import zstandard

            part = zstandard.ZstdDecompressor().decompress(payload)
        elif kind == 2:
            assert coding
            part = coding.decode(payload, length, tokens, streams)
        elif kind == 3:
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}]
            part = lzma.decompress(payload, lzma.FORMAT_RAW, filters=filters)
        signed = header + len(content).to_bytes(8, "little") + fields + part
        assert archive[at : at + 4] == blake(signed, 4)
        at, content, frames = at + 4, content + part, frames + 1
    if len(content) > 65536 or frames > 1:
        assert archive[at : at + 24] == len(content).to_bytes(8, "little") + blake(content, 16)
        at += 24
    assert at == len(archive)
    return content


def _decode_short(archive: bytes, models: Sequence[Model], prime: bytes) -> bytes:
    start, primed = 5, archive[:4] == b"LLMp"
    model = _find(models, archive[4:5])
    if primed:
        assert archive[5:7] == blake(prime, 8)[:2]
        start = 7
    length, at = _varint(archive, start)
    size, at = _varint(archive, at)
    overlap = min(2 * (model.window or 0), 16384)
    coding = Coding(model, 0x11, 32768, overlap, prime if primed else b"")
    content = coding.decode(archive[at : at + size], length, 0, 1)
    signed = archive[:start] + bytes(8) + archive[start:at] + content
    assert archive[at + size :] == blake(signed, 4)
    return content


def _find(models: Sequence[Model], digest: bytes) -> Model:
    return next(model for model in models if model.digest.startswith(digest))


def _short_length(byte: int) -> int:
    return (8 + byte % 8) << (byte // 8 - 1) if byte >= 8 else 0


def _varint(archive: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (archive[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if archive[at - 1] < 128:
            return value, at


if __name__ == "__main__":
    folders = [*map(Path, sys.argv[2:]), *EMBEDDED]
    sys.stdout.buffer.write(decode(Path(sys.argv[1]).read_bytes(), [Model(f) for f in folders]))
