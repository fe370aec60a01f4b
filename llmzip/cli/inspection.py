"""inspect: how many bits each part of a text costs, in the terminal, as HTML or as JSON."""

from __future__ import annotations

import argparse
import codecs
import html
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from llmzip.archive import header
from llmzip.cli.inputs import progress_bar, reading_only
from llmzip.cli.options import options_of
from llmzip.cli.usage import UsageError
from llmzip.output import writing

# bits a token; a token has the level of the number of thresholds that it reaches
_THRESHOLDS = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 11, 15)
# by level, of the terminal's 256 colours
_TERMINAL = (None, 17, 18, 24, 30, 36, 142, 178, 172, 166, 160)
_LIGHT = ("transparent", "#f4f8fb", "#e6f0f5", "#d3e7ea", "#c6e3d0", "#dceab5", "#f6eaa0",
          "#fbd180", "#f8ad6b", "#ef8264", "#dd5a62")  # fmt: skip
_DARK = ("transparent", "#1b2129", "#1c2b38", "#173a47", "#144a4a", "#2a5740", "#565a26",
         "#75591c", "#8a4b1b", "#96371f", "#a3243a")  # fmt: skip
_LISTED = 10  # most expensive lines and tokens


@dataclass
class Line:
    """A line of text: its tokens and their bits; None if a token begins in an earlier line."""

    number: int
    tokens: list[tuple[str, float | None]] = field(default_factory=list)
    size: int = 0  # bytes

    @property
    def bits(self) -> float:
        """Bits of the tokens that begin in this line."""
        return sum(bits for _, bits in self.tokens if bits is not None)


def inspect(arguments: argparse.Namespace) -> int:
    """The command `inspect`; returns the exit code."""
    if arguments.html and arguments.json:
        raise UsageError("--html and --json exclude each other")
    arguments.quiet, arguments.progress = False, False
    tokens = list(_limited(_costs(arguments), arguments.limit))
    name = "stdin" if arguments.file == "-" else Path(arguments.file).name
    segments = list(readable(tokens))
    size = sum(len(piece) for piece, _ in tokens)
    bits = sum(cost for _, cost in tokens)
    about = f"{size:,} bytes, {len(tokens):,} tokens, {bits / max(1, size):.3f} bits per byte"
    if arguments.json:
        report = {"file": name, "bytes": size, "bits": bits, "tokens": segments}
        print(json.dumps(report))
    elif arguments.html:
        text = "".join(page(name, about, lines_of(segments)))
        if arguments.html == "-":
            sys.stdout.write(text)
        else:
            with writing(arguments.html, overwrite=arguments.force) as sink:
                sink.write(text.encode())
    elif _coloured(arguments.color):
        sys.stdout.writelines(coloured(segments))
        print(f"\n{about}", file=sys.stderr)
    else:
        sys.stdout.writelines(table(about, lines_of(segments), segments))
    return 0


def _coloured(when: str) -> bool:
    """https://no-color.org"""
    if when != "auto":
        return when == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _costs(arguments: argparse.Namespace) -> Iterator[tuple[bytes, float]]:
    """Tokens and their bits: of an archive, or of a text as compress would code it."""
    from llmzip.archive.costs import archive_costs, costs

    options = options_of(arguments)
    with (
        reading_only(arguments.file) as source,
        progress_bar(arguments.file, source, arguments, True) as progress,
    ):
        start = header.read_magic(source)
        if start in header.MAGICS:
            rest = _Prepended(start, source)
            for pieces, bits in archive_costs(rest, options, progress):  # type: ignore[arg-type]
                yield from zip(pieces, bits.tolist(), strict=True)
        else:
            content = start + source.read(max(0, arguments.limit - len(start)))
            if content:
                pieces, bits = costs(content, options, progress)
                yield from zip(pieces, bits.tolist(), strict=True)


class _Prepended:
    """Bytes that were read already, then the rest of a stream."""

    def __init__(self, start: bytes, source: BinaryIO) -> None:
        self._start, self._source = start, source

    def read(self, size: int) -> bytes:
        if self._start:
            part, self._start = self._start[:size], self._start[size:]
            return part
        return self._source.read(size)


def _limited(tokens: Iterable[tuple[bytes, float]], limit: int) -> Iterator[tuple[bytes, float]]:
    for piece, bits in tokens:
        if limit <= 0:
            return
        yield piece, bits
        limit -= len(piece)


def readable(tokens: Iterable[tuple[bytes, float]]) -> Iterator[tuple[str, float]]:
    """Tokens as printable text; a token that ends within a character is joined to the next.

    Invalid UTF-8 becomes escapes such as \\xff.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    waiting = 0.0
    for piece, bits in tokens:
        text = decoder.decode(piece)
        waiting += bits
        if not decoder.getstate()[0]:
            yield visible(text), waiting
            waiting = 0.0
    if waiting or decoder.getstate()[0]:
        yield visible(decoder.decode(b"", True)), waiting


def visible(text: str) -> str:
    """Replace control characters by pictures or escapes, except line ends and tabs."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "␡"
    changes_direction = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    if 128 <= code < 160 or changes_direction or 0xD800 <= code < 0xE000:
        return f"\\u{code:04x}"
    return character


def lines_of(segments: Iterable[tuple[str, float]]) -> list[Line]:
    """Lines of the text; a token counts in the line that it begins in."""
    lines = [Line(1)]
    for text, bits in segments:
        cost: float | None = bits
        for i, part in enumerate(text.split("\n")):
            if i:
                lines[-1].size += 1
                lines.append(Line(len(lines) + 1))
            if part or (cost is not None and "\n" in text):
                lines[-1].tokens.append((part or "⏎", cost))
                lines[-1].size += len(part.encode())
                cost = None
    if not lines[-1].tokens and len(lines) > 1:
        lines.pop()
    return lines


def level(bits: float) -> int:
    """The number of thresholds that `bits` reaches."""
    return sum(bits >= threshold for threshold in _THRESHOLDS)


def coloured(segments: Iterable[tuple[str, float]]) -> Iterator[str]:
    """The text on a background of terminal colours, which ends with each line."""
    for text, bits in segments:
        colour = _TERMINAL[level(bits)]
        if colour is None:
            yield text
            continue
        ink = 231 if level(bits) < 5 else 16
        yield "\n".join(
            f"\x1b[48;5;{colour};38;5;{ink}m{part}\x1b[0m" if part else ""
            for part in text.split("\n")
        )


def most_expensive(lines: list[Line]) -> list[Line]:
    """The lines that cost most bits."""
    return sorted(lines, key=lambda line: -line.bits)[:_LISTED]


def table(about: str, lines: list[Line], segments: list[tuple[str, float]]) -> Iterator[str]:
    """The lines and tokens that cost most, as text."""
    yield f"{about}\n\nThe lines that cost most:\n{'bits':>9} {'bits/byte':>9} {'line':>7}\n"
    for line in most_expensive(lines):
        text = "".join(text for text, _ in line.tokens)
        rate = line.bits / max(1, line.size)
        yield f"{line.bits:9.1f} {rate:9.2f} {line.number:7}  {_shortened(text)}\n"
    yield f"\nThe tokens that cost most:\n{'bits':>9}\n"
    for text, bits in sorted(segments, key=lambda segment: -segment[1])[:_LISTED]:
        yield f"{bits:9.1f}  {_shortened(text)!r}\n"


def _shortened(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def page(name: str, about: str, lines: list[Line]) -> Iterator[str]:
    """A self-contained HTML page."""

    def colours(chosen: tuple[str, ...]) -> str:
        return "".join(f"--c{i}:{colour};" for i, colour in enumerate(chosen))

    backgrounds = "".join(f".c{i}{{background:var(--c{i})}}" for i in range(len(_LIGHT)))
    title = html.escape(name)
    yield (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: bits</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>:root{{{colours(_LIGHT)}{_LIGHT_STYLE}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{colours(_DARK)}{_DARK_STYLE}}}}}"
        f"{backgrounds}{_STYLE}</style>"
        f"<header><h1>{title}</h1><p>{html.escape(about)}</p><p class=legend>bits a token "
    )
    for i, (low, high) in enumerate(zip((0, *_THRESHOLDS), (*_THRESHOLDS, None), strict=True)):
        yield f"<span class=c{i}>{low:g}{f'–{high:g}' if high else ' and more'}</span>"
    yield "</p></header><section><h2>The lines that cost most</h2><table>"
    yield "<tr><th>bits<th>bits/byte<th>line<th>"
    for line in most_expensive(lines):
        text = html.escape(_shortened("".join(text for text, _ in line.tokens), 76))
        rate = line.bits / max(1, line.size)
        yield (
            f'<tr><td>{line.bits:.1f}<td>{rate:.2f}<td><a href="#l{line.number}">{line.number}</a>'
            f"<td class=t>{text}"
        )
    yield "</table></section><main>"
    for line in lines:
        rate = line.bits / max(1, line.size)
        label = f"{rate:.2f}" if line.tokens else ""
        yield (
            f"<div id=l{line.number}><i>{line.number}</i>"
            f'<u style="--w:{min(100, 100 * rate / 6):.0f}%">{label}</u><p>'
        )
        grade = 0
        for text, bits in line.tokens:
            grade = grade if bits is None else level(bits)
            title = "" if bits is None else f' title="{bits:.2f} bits"'
            yield f"<b class=c{grade}{title}>{html.escape(text)}</b>"
        yield "</p></div>"
    yield "</main></html>\n"


_LIGHT_STYLE = "--paper:#fff;--ink:#1c1f23;--faint:#6a7178;--line:#e4e7ea;--bar:#cfd8e3"
_DARK_STYLE = "--paper:#111417;--ink:#e3e6e9;--faint:#8b949c;--line:#24292e;--bar:#303b48"
_STYLE = (
    "body{margin:0 auto;max-width:110ch;padding:1.5rem;background:var(--paper);color:var(--ink);"
    "font:15px/1.5 system-ui,sans-serif}h1{font-size:1.3rem;margin:0}h2{font-size:1rem}"
    "header p{margin:.3rem 0;color:var(--faint)}.legend span{padding:.15rem .5rem;color:var(--ink)}"
    "table{border-collapse:collapse;font-size:.9rem}td,th{padding:.1rem .8rem .1rem 0;text-align:"
    "right;font-variant-numeric:tabular-nums}th{color:var(--faint);font-weight:400}"
    ".t{text-align:left;font-family:ui-monospace,monospace;white-space:pre-wrap;"
    "overflow-wrap:anywhere}a{color:inherit}"
    "main{margin-top:1.5rem;border-top:1px solid var(--line);padding-top:1rem}"
    "main div{display:grid;grid-template-columns:3.5rem 3.5rem 1fr;column-gap:.8rem}"
    "main div:target{outline:2px solid var(--bar)}"
    "main i{text-align:right;font-style:normal}main i,main u{color:var(--faint);font-size:.8rem;"
    "line-height:1.9;user-select:none;font-variant-numeric:tabular-nums}"
    "main u{text-decoration:none;padding-left:.2rem;align-self:start;"
    "background:linear-gradient(90deg,var(--bar) var(--w),transparent var(--w))}"
    "main p{margin:0;font:14px/1.7 ui-monospace,monospace;white-space:pre-wrap;"
    "overflow-wrap:anywhere;tab-size:4}main b{font-weight:400;border-radius:2px}"
    "main b:hover{outline:1px solid var(--faint)}"
)
