"""Texts → tokenizer.json and packed tokens, unsigned integers with BOS before each document.

BOS is id 0 in any tokenizer. In one from elsewhere that may be an ordinary token: the model then
learns both of its uses.

A corpus is a folder of `<category>.txt.zst` files, documents each followed by a NUL byte, or of
plain text files, each a document of the category that its stem names.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from llmzip import output
from llmzip.errors import LlmzipError
from llmzip.train.config import Config

BOS = "<|bos|>"
# words with a leading space or mark, digits in pairs, runs of marks, line ends with indentation
_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LONG_WINDOW = 1 << 27
_LONG_LINE = 32  # bytes by which lines are compared between documents
_TOKENIZER_EXCERPT = 20_000  # characters of a document that the tokenizer is trained on


def manifest_digest(corpus: Path) -> str:
    """BLAKE2b of names and sizes of the corpus's files, and of its MANIFEST.tsv if there is one."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(corpus.iterdir()):
        hasher.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.name == "MANIFEST.tsv":
            hasher.update(path.read_bytes())
    return hasher.hexdigest()


def documents(path: Path) -> list[bytes]:
    """The documents of one file of a corpus. Raises OSError, zstandard.ZstdError."""
    if path.suffix == ".zst":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LONG_WINDOW)
        with path.open("rb") as file:
            content = decompressor.stream_reader(file).read()
        return [document for document in content.split(b"\0") if document]
    return [path.read_bytes()]


def categories(corpus: Path) -> dict[str, list[Path]]:
    """Category → its files, in order of their names. Raises OSError."""
    files: dict[str, list[Path]] = {}
    for path in sorted(corpus.iterdir()):
        files.setdefault(path.name.split(".")[0], []).append(path)
    return files


def without_near_duplicates(documents: Iterable[bytes]) -> Iterator[bytes]:
    """Leave out documents more than half of which, by bytes, are long lines of earlier ones:
    copies, and pages that a template made."""
    seen: set[bytes] = set()
    for document in documents:
        lines = [line for line in document.split(b"\n") if len(line) >= _LONG_LINE]
        digests = [hashlib.blake2b(line, digest_size=8).digest() for line in lines]
        known = sum(
            len(line) for line, digest in zip(lines, digests, strict=True) if digest in seen
        )
        if 2 * known <= len(document):
            seen.update(digests)
            yield document


def sample(corpus: Path, config: Config) -> list[str]:
    """Documents in random order, categories in the shares of the mix, the same for a seed. Near
    duplicates within a category are left out.

    Raises LlmzipError if the corpus lacks a category.
    """
    chance = random.Random(config.seed)
    total = sum(config.mix.values())
    files = categories(corpus)
    chosen: list[str] = []
    for category, share in config.mix.items():
        if not share:
            continue
        if category not in files:
            raise LlmzipError(f"{corpus} has no file of the category {category!r}")
        found = [*without_near_duplicates(d for path in files[category] for d in documents(path))]
        chance.shuffle(found)
        wanted = config.corpus_bytes * share / total
        for document in found:
            if wanted <= 0:
                break
            if len(document) > config.longest_excerpt:
                start = chance.randrange(len(document) - config.longest_excerpt)
                document = document[start : start + config.longest_excerpt]
            chosen.append(document.decode("utf-8", "ignore"))
            wanted -= len(document)
    chance.shuffle(chosen)
    return chosen


def train_tokenizer(documents: list[str], config: Config) -> Tokenizer:
    """Byte-level BPE without normaliser: every byte string has a spelling."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()

    def excerpts() -> Iterator[str]:
        left = config.tokenizer_bytes
        for document in documents:
            if left <= 0:
                return
            yield document[:_TOKENIZER_EXCERPT]
            left -= len(document[:_TOKENIZER_EXCERPT].encode())

    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        max_token_length=16,
    )
    tokenizer.train_from_iterator(excerpts(), trainer)
    return tokenizer


def pack(documents: list[str], tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """(tokens of all documents, BOS before each, uint16 if ids fit; bytes of text in them)."""
    parts, size = [], 0
    fits = max(tokenizer.get_vocab().values()) < 1 << 16
    dtype = np.uint16 if fits else np.uint32
    for start in tqdm(range(0, len(documents), 256), desc="packing", unit="batch", disable=None):
        batch = documents[start : start + 256]
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(np.array([0, *encoding.ids], dtype=dtype))
        size += sum(len(document.encode()) for document in batch)
    return np.concatenate(parts), size


def prepare(corpus: Path, work: Path, config: Config, ready: Path | None = None) -> None:
    """Write tokenizer.json, tokens.npy and bytes.txt to `work`, unless they are there.

    `ready`: a tokenizer.json to take instead of training one. Raises LlmzipError, OSError.
    """
    if (work / "bytes.txt").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    documents = sample(corpus, config)
    if ready is None:
        tokenizer = train_tokenizer(documents, config)
    else:
        tokenizer = Tokenizer.from_file(str(ready))
    tokens, size = pack(documents, tokenizer)
    output.write(work / "tokenizer.json", tokenizer.to_str(pretty=False))
    with output.writing(work / "tokens.npy", overwrite=True) as sink:
        np.save(sink, tokens)
    output.write(work / "bytes.txt", f"{size}\n")


def batches(work: Path, config: Config, step: int, rank: int, ranks: int) -> np.ndarray:
    """The sequences of one step and process, int64 [batch, sequence]; a function of the seed and
    the step alone, so that a resumed run sees what an uninterrupted one would. Raises
    LlmzipError if there are fewer tokens than one sequence."""
    tokens = np.load(work / "tokens.npy", mmap_mode="r")
    count = len(tokens) // config.sequence
    if count < 1:
        raise LlmzipError(f"{len(tokens)} tokens are less than a sequence of {config.sequence}")
    first = (step * ranks + rank) * config.batch
    rows = []
    for i in range(first, first + config.batch):
        start = int(_order(config.seed, i // count, count)[i % count]) * config.sequence
        rows.append(tokens[start : start + config.sequence].astype(np.int64))
    return np.stack(rows)


@lru_cache(maxsize=2)  # a batch may span two epochs
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
