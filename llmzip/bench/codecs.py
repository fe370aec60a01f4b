"""Compressors by name, each run in a fresh process that reports seconds, memory and energy.

Nothing heavy is imported here, so that the memory of a process is that of its compressor.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmzip.bench.energy import Meter
from llmzip.coding import child

if TYPE_CHECKING:
    from llmzip.archive.options import Options

Function = Callable[[bytes], bytes]
Commands = Sequence[Sequence[str]]  # to compress IN to OUT, and to decompress OUT to BACK

# They run in an empty folder; the last word of a command may name the file that takes its stdout.
_PROGRAMS: dict[str, Commands] = {
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
    """The names of those that can run here, in the order of CODECS."""
    found = []
    for name in CODECS:
        word = name.split()[0]
        library = _LIBRARIES.get(word)
        if name in _PROGRAMS:
            if program(word) is not None:
                found.append(name)
        elif library is None or importlib.util.find_spec(library) is not None:
            found.append(name)
    return found


def program(word: str) -> str | None:
    """The path of a program, by any of its names; None if it is not installed."""
    return next((path for n in _NAMES.get(word, (word,)) if (path := shutil.which(n))), None)


def round_trip(
    codec: str,
    content: bytes,
    *,
    options: dict[str, Any] | None = None,
    commands: Commands | None = None,
    repeat: int = 1,
) -> dict[str, Any]:
    """Compress in one process and decompress in another, which has never seen the content.

    `options`: fields of llmzip.Options, for llmzip. `commands` runs these in place of a codec
    that is known by name. → compressed_bytes, bits_per_byte, decoded_sha256, and for each of
    encode and decode: the median of the seconds, all of them, peak_bytes and joules of a run
    (None if unknown); or an error.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        original, archive, back = (Path(folder, name) for name in ("original", "archive", "back"))
        original.write_bytes(content)
        for direction, source, target in (("encode", original, archive), ("decode", archive, back)):
            done = run(
                {
                    "codec": codec,
                    "direction": direction,
                    "source": str(source),
                    "target": str(target),
                    "repeat": repeat,
                    "options": options or {},
                    "commands": commands,
                }
            )
            if "error" in done:
                return {**found, "error": f"{codec}, {direction}: {done['error']}"}
            found[f"{direction}_seconds"] = statistics.median(done["seconds"])
            found[f"{direction}_seconds_all"] = done["seconds"]
            found[f"{direction}_peak_bytes"] = done["peak_bytes"]
            found[f"{direction}_joules"] = done["joules"]
        size = archive.stat().st_size
    return {
        **found,
        "compressed_bytes": size,
        "bits_per_byte": 8 * size / max(1, len(content)),
        "decoded_sha256": done["sha256"],
    }


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one codec in one direction in a process of its own.

    `request`: codec, direction ("encode", "decode"), source, target, repeat, options, commands.
    → seconds (a list), peak_bytes, joules (of one run, or None), sha256; or an error.
    """
    command = child.command("from llmzip.bench.codecs import main; main()")
    done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with {done.returncode}"}


def main() -> None:
    """Read a request from stdin, and print the answer as the last line of stdout."""
    request = json.load(sys.stdin)
    source, target = Path(request["source"]), Path(request["target"])
    encoding = request["direction"] == "encode"
    commands = request.get("commands") or _PROGRAMS.get(request["codec"])
    if commands:
        report = _run_program(commands, encoding, source, target, request["repeat"])
    else:
        work = _functions(request["codec"], request["options"])[0 if encoding else 1]
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
    """Peak resident bytes of this process. (ru_maxrss would count its parent's, too.)"""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    except OSError:  # systems other than Linux
        pass
    return None


def _run_program(
    commands: Commands, encoding: bool, source: Path, target: Path, repeat: int
) -> dict[str, Any]:
    command = list(commands[0 if encoding else 1])
    command[0] = program(command[0]) or command[0]
    into = command.pop()[1:] if command[-1].startswith(">") else None
    archive = next(word for word in commands[0] if word.strip(">").startswith("OUT")).strip(">")
    given, made = ("IN", archive) if encoding else (archive, "BACK")
    seconds, joules, meter = [], [], Meter("cpu")
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(source, Path(folder, given))
            out = open(Path(folder, into), "wb") if into else subprocess.DEVNULL  # noqa: SIM115
            meter.start()
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.PIPE)
            seconds.append(time.perf_counter() - start)
            joules.append(meter.joules())
            if done.returncode:
                raise SystemExit(f"{command[0]} ended with {done.returncode}")
            # an archiver restores a file by its name: BACK may become a folder
            result = Path(folder, made)
            shutil.copyfile(result / "IN" if result.is_dir() else result, target)
    known = [used for used in joules if used is not None]
    total = sum(known) if len(known) == repeat else None
    return {"seconds": seconds, "joules": total, "peak_bytes": _children()}


def _children() -> int | None:
    """Peak resident bytes of the largest program that this process ran, 20 MB at least."""
    try:
        import resource
    except ImportError:
        return None
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilo


def _functions(codec: str, options: dict[str, Any]) -> tuple[Function, Function]:
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


def _ppmd() -> tuple[Function, Function]:
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


def archive_of(content: bytes, options: Options) -> bytes:
    """The llmzip archive of `content`, in memory."""
    import llmzip

    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, options)
    writer.write(content)
    writer.finish()
    return sink.getvalue()


def _llmzip(given: dict[str, Any]) -> tuple[Function, Function]:
    """With the model loaded; `given` are fields of llmzip.Options."""
    import llmzip

    if isinstance(given.get("context"), list):  # JSON has no tuples
        given = {**given, "context": tuple(given["context"])}
    options = llmzip.Options(**given)
    reading = llmzip.Options(model=options.model, device=options.device)

    def pack(data: bytes) -> bytes:
        return archive_of(data, options)

    def unpack(data: bytes) -> bytes:
        return b"".join(llmzip.ArchiveReader(io.BytesIO(data), reading))

    unpack(pack(b"load the model before it is timed"))
    return pack, unpack
