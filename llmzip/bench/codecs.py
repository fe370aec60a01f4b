"""Compressors by name, each run in a fresh process that reports seconds, memory and energy.

Nothing heavy is imported here: a process should weigh what its compressor does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmzip.bench.energy import Meter

Way = Callable[[bytes], bytes]

# compress IN to OUT, and OUT to BACK, in an empty folder; the last word may name what takes stdout
_PROGRAMS = {
    "zpaq -m5": (["zpaq", "a", "OUT.zpaq", "IN", "-m5"],
                 ["zpaq", "x", "OUT.zpaq", "-to", "BACK"]),
    "7z -mx9": (["7z", "a", "-mx=9", "-bd", "-y", "OUT.7z", "IN"],
                ["7z", "e", "-so", "OUT.7z", ">BACK"]),
    "cmix": (["cmix", "-c", "IN", "OUT"], ["cmix", "-d", "OUT", "BACK"]),
}  # fmt: skip
_NAMES = {"7z": ("7z", "7zz", "7za")}  # what a program may be called
_LIBRARIES = {"brotli": "brotli", "ppmd": "pyppmd"}
LLMZIP = "llmzip"
CODECS = ("gzip -9", "bzip2 -9", "xz -9e", "zstd -19", "zstd -22 --long=27", "brotli -11 -w24",
          "ppmd -o16 -m256", *_PROGRAMS)  # fmt: skip


def installed() -> list[str]:
    """The names of those that can run here."""
    found = []
    for name in CODECS:
        word = name.split()[0]
        library = _LIBRARIES.get(word)
        if name in _PROGRAMS:
            if _program(word) is not None:
                found.append(name)
        elif library is None or importlib.util.find_spec(library) is not None:
            found.append(name)
    return found


def _program(word: str) -> str | None:
    return next((path for n in _NAMES.get(word, (word,)) if (path := shutil.which(n))), None)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One codec in one direction in a process of its own.

    `request`: codec, way ("encode", "decode"), source, target, repeat, options (llmzip's).
    → seconds (a list), peak_bytes, joules (of one run, or None), sha256; or error.
    """
    code = "from llmzip.bench.codecs import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(request).encode(), capture_output=True
    )
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with {done.returncode}"}


def main() -> None:
    """The process: a request from stdin, its answer as the last line of stdout."""
    request = json.load(sys.stdin)
    source, target = Path(request["source"]), Path(request["target"])
    encoding = request["way"] == "encode"
    if request["codec"] in _PROGRAMS:
        report = _run_program(request["codec"], encoding, source, target, request["repeat"])
    else:
        work = _ways(request["codec"], request["options"])[0 if encoding else 1]
        content, result, seconds = source.read_bytes(), b"", []
        meter = Meter(request["options"].get("device", "cpu"))
        meter.start()
        for _ in range(request["repeat"]):
            start = time.perf_counter()
            result = work(content)
            seconds.append(time.perf_counter() - start)
        joules = meter.joules()
        target.write_bytes(result)
        report = {"seconds": seconds, "joules": joules, "peak_bytes": _peak()}
    if report["joules"] is not None:
        report["joules"] /= request["repeat"]
    report["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    print("\n" + json.dumps(report))


def _peak() -> int | None:
    """The most memory that this process has held. (ru_maxrss would count its parent's, too.)"""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    except OSError:  # systems other than Linux
        pass
    return None


def _run_program(
    codec: str, encoding: bool, source: Path, target: Path, repeat: int
) -> dict[str, Any]:
    command = _PROGRAMS[codec][0 if encoding else 1]
    command = [_program(command[0]) or command[0], *command[1:]]
    made = next(word for word in _PROGRAMS[codec][0] if word.startswith("OUT"))
    into = None
    if command[-1].startswith(">"):
        into = command.pop()[1:]
    taken, given = ("IN", made) if encoding else (made, "BACK")
    seconds, joules, meter = [], 0.0, Meter("cpu")
    known = True
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            # an archiver puts a file where it was from: BACK may become a folder
            shutil.copyfile(source, Path(folder, taken))
            out = open(Path(folder, into), "wb") if into else subprocess.DEVNULL  # noqa: SIM115
            meter.start()
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.PIPE)
            seconds.append(time.perf_counter() - start)
            used = meter.joules()
            known, joules = known and used is not None, joules + (used or 0.0)
            if done.returncode:
                raise SystemExit(f"{codec} ended with {done.returncode}")
            result = Path(folder, given)
            shutil.copyfile(result / "IN" if result.is_dir() else result, target)
    return {"seconds": seconds, "joules": joules if known else None, "peak_bytes": _children()}


def _children() -> int | None:
    """Of the largest program that this process ran, itself included: some 20 MB at least."""
    try:
        import resource
    except ImportError:
        return None
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilo


def _ways(codec: str, options: dict[str, Any]) -> tuple[Way, Way]:
    """Compress and decompress, ready to be timed."""
    word = codec.split()[0]
    if word == LLMZIP:
        return _llmzip(options)
    if word == "gzip":
        import gzip

        return (lambda data: gzip.compress(data, 9, mtime=0)), gzip.decompress
    if word == "bzip2":
        import bz2

        return (lambda data: bz2.compress(data, 9)), bz2.decompress
    if word == "xz":
        import lzma

        preset = 9 | lzma.PRESET_EXTREME
        return (lambda data: lzma.compress(data, preset=preset)), lzma.decompress
    if word == "brotli":
        import brotli

        def pack(data: bytes) -> bytes:
            return bytes(brotli.compress(data, quality=11, lgwin=24))

        return pack, lambda data: bytes(brotli.decompress(data))
    if word == "ppmd":
        return _ppmd()
    import zstandard

    parameters = (
        zstandard.ZstdCompressionParameters.from_level(22, window_log=27, enable_ldm=True)
        if "--long" in codec
        else zstandard.ZstdCompressionParameters.from_level(19)
    )
    return (
        lambda data: zstandard.ZstdCompressor(compression_params=parameters).compress(data),
        lambda data: zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(data),
    )


def _ppmd() -> tuple[Way, Way]:
    import pyppmd

    order, memory = 16, 256 << 20

    def pack(data: bytes) -> bytes:
        encoder = pyppmd.Ppmd7Encoder(order, memory)
        return len(data).to_bytes(8, "little") + bytes(encoder.encode(data) + encoder.flush())

    def unpack(data: bytes) -> bytes:
        decoder, size = pyppmd.Ppmd7Decoder(order, memory), int.from_bytes(data[:8], "little")
        content = decoder.decode(data[8:], size)
        while len(content) < size:  # it wants more zeros than its encoder leaves at the end
            content += decoder.decode(b"\0", size - len(content))
        return bytes(content)

    return pack, unpack


def _llmzip(options: dict[str, Any]) -> tuple[Way, Way]:
    """With the model loaded; `options` are those of llmzip.Options."""
    import io

    import llmzip

    writing = llmzip.Options(**options)
    reading = llmzip.Options(model=options.get("model"), device=options.get("device", "cpu"))

    def pack(data: bytes) -> bytes:
        sink = io.BytesIO()
        writer = llmzip.ArchiveWriter(sink, writing)
        writer.write(data)
        writer.finish()
        return sink.getvalue()

    def unpack(data: bytes) -> bytes:
        return b"".join(llmzip.ArchiveReader(io.BytesIO(data), reading))

    unpack(pack(b"a text to load the model by"))
    return pack, unpack
