"""Shared by all tests: a tiny trained model, tokenizers of every kind, a predictor without
weights. HYPOTHESIS_PROFILE=ci or long runs more examples."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import ForkServer
from hypothesis import settings
from table_predictor import TablePredictor
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmzip.coding.frame_codec import FrameCodec
from llmzip.tokenizer import Tokens

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny"  # a Llama of 100,000 parameters, trained for three minutes on old books

settings.register_profile("default", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Small tensors gain nothing from threads, and threads that wait for each other crawl on a busy
# machine; tests of equal bits set more where they mean to.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# without a GPU Triton's kernels are interpreted, which has to be said before Triton is imported
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# what a user has installed, or converted before, is no matter of tests
_HOME = tempfile.mkdtemp(prefix="llmzip-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["LLMZIP_HOME"], os.environ["LLMZIP_CACHE"] = f"{_HOME}/home", f"{_HOME}/cache"

PROSE = (
    "It is a truth universally acknowledged, that a single man in possession of a good "
    "fortune, must be in want of a wife. However little known the feelings or views of such "
    "a man may be on his first entering a neighbourhood, this truth is so well fixed in the "
    "minds of the surrounding families, that he is considered the rightful property of some "
    "one or other of their daughters. “My dear Mr. Bennet,” said his lady to him one day, "
    "“have you heard that Netherfield Park is let at last?” Mr. Bennet replied that he had "
    "not. “But it is,” returned she; “for Mrs. Long has just been here, and she told me all "
    "about it.” Mr. Bennet made no answer. “Do you not want to know who has taken it?” cried "
    "his wife impatiently. “You want to tell me, and I have no objection to hearing it.” "
    "This was invitation enough.\n"
)

AWKWARD = {
    "empty": b"",
    "one byte": b"a",
    "nul": b"\0\0a\0",
    "invalid UTF-8": b"abc\xff\xfe def \xc3( \xe2\x82",
    "lone surrogate": b"x\xed\xa0\x80y\xed\xbf\xbf",
    "line ends": b"a\r\nb\rc\n\n\r\n  \t d",
    "special tokens": b"<|endoftext|><s></s><unk>[UNK]<0x41>##ing<|bos|>",
    "normalised away": "Ⅳ ﬁ e\u0301 é \u00a0\u3000 ① İi ſ ％".encode(),
    "spaces of other trades": "▁▁ a▁b Ġ Ċ _".encode(),
    "scripts": "漢字かな交じり文 한국어 текст עברית 🤷🏽‍♀️ ﷺ".encode(),
    "cut inside of a character": "日本語".encode()[1:-1],
    "all bytes": bytes(range(256)) * 2,
    "prose": PROSE.encode(),
}


def _train(tokenizer: Tokenizer, trainer: object, text: str = PROSE) -> bytes:
    tokenizer.train_from_iterator([text] * 3, trainer)  # type: ignore[arg-type]
    return tokenizer.to_str().encode()


def _byte_level() -> bytes:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )


def _sentencepiece() -> bytes:
    """Like Llama's: a space is prepended, spaces are U+2581, unknown bytes are <0xXX>."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    return _train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )


def _characters() -> bytes:
    """Knows the letters of PROSE and nothing else."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    return _train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False),
    )


def _lowercasing() -> bytes:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _train(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=350,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )


def _wordpiece() -> bytes:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _train(
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
    )


def _unigram() -> bytes:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _train(
        tokenizer,
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )


TOKENIZERS = {
    "byte-level": _byte_level,
    "sentencepiece": _sentencepiece,
    "characters": _characters,
    "lowercasing": _lowercasing,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}


# two halves of the code that is compiled after a change of the sources
_KERNELS = (
    "from llmzip.exact import fused; assert fused.agrees(32, True)",
    "from llmzip.coding import first_run; first_run.compile_mixing()",
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile once, on two cores, what all test processes would compile at the same time."""
    several = getattr(session.config.option, "numprocesses", None)
    if hasattr(session.config, "workerinput") or not several or _is_compiled():
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    halves = [subprocess.Popen([sys.executable, "-c", c], env=environment) for c in _KERNELS]
    for half in halves:  # one that fails has said why; tests will, too
        half.wait()


def _is_compiled() -> bool:
    """Whether numba's caches beside the sources are at least as new as these."""
    root = Path(__file__).parent.parent / "llmzip"
    for package in ("exact", "mixing"):
        cached = [path.stat().st_mtime for path in (root / package).rglob("*.nbi")]
        if max(cached, default=0) < max(p.stat().st_mtime for p in (root / package).glob("*.py")):
            return False
    return True


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """What a test leaves in the environment, as `--threads` does, is not for the next one."""
    before = dict(os.environ)
    yield
    for name in {*before, *os.environ} - {"PYTEST_CURRENT_TEST"}:
        if before.get(name) is None:
            del os.environ[name]
        else:
            os.environ[name] = before[name]


@pytest.fixture(scope="session", params=TOKENIZERS)
def tokens(request: pytest.FixtureRequest) -> Tokens:
    """A lossless code of each kind of tokenizer."""
    content = TOKENIZERS[request.param]()
    return Tokens(content, Tokenizer.from_str(content.decode()).get_vocab_size())


def table_frames() -> FrameCodec:
    """A codec whose model is a table of random logits."""
    content = _byte_level()
    vocabulary = Tokenizer.from_str(content.decode()).get_vocab_size()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(vocabulary + 1, vocabulary, generator=generator) * 4
    return FrameCodec(Tokens(content, vocabulary), TablePredictor(logits[:-1], logits[-1]))


@pytest.fixture(scope="session")
def table_codec() -> FrameCodec:
    return table_frames()


@functools.cache
def _fork_server() -> ForkServer | None:
    """One for each test process. After a change its first run compiles, which would be logged."""
    first = ["-q", "-c", "--model", str(TINY)]
    if sys.platform != "linux":
        command = [sys.executable, "-m", "llmzip.cli", *first]
        subprocess.run(command, input=PROSE.encode(), capture_output=True, check=True)
        return None
    server = ForkServer(first, PROSE.encode())
    atexit.register(server.close)
    return server


def run(
    *arguments: str | Path,
    environment: dict[str, str] | None = None,
    cwd: str | Path | None = None,
    **options: object,
) -> subprocess.CompletedProcess[bytes]:
    """`llmzip …` as a process of its own, forked (`fork_server`) if that makes no difference."""
    server, words = _fork_server(), list(map(str, arguments))
    whole = {**os.environ, **(environment or {})}
    if server and options.keys() <= {"input", "timeout"} and server.accepts(words, whole):
        given: Any = options
        place = str(cwd or Path.cwd())
        return server.run(words, whole, place, given.get("input"), given.get("timeout"))
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "llmzip.cli", *words],
        capture_output=True,
        env=whole,
        cwd=cwd,
        **options,
    )
