"""Tables of docs/research.md, each from one file of results/; written by readme_table.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmzip.bench import summary

WAYS = ("encode", "decode")
RESULTS = Path(__file__).parent.parent / "results"


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return report


def rows(heads: str, cells: Iterable[Iterable[str]], texts: int = 1) -> list[str]:
    """Lines of a Markdown table, the first `texts` columns to the left."""
    names = [name.strip() for name in heads.split("|")]
    rule = [" --- |"] * texts + [" ---: |"] * (len(names) - texts)
    return [
        f"| {' | '.join(names)} |",
        "|" + "".join(rule),
        *(f"| {' | '.join(c)} |" for c in cells),
    ]


def noted(lines: list[str], report: dict[str, Any], *more: str) -> str:
    machine = report["machine"]
    note = f"{machine['processor']}, {machine['threads']} threads, {report['date']}, commit "
    return "\n".join([*lines, "", *more, f"{note}{(report['commit'] or '?')[:7]}."])


def amount(count: float | None) -> str:
    if count is None:
        return "never"
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


# bits per byte of alice29 and book1, as their authors publish them; nothing here ran them
PUBLISHED = {
    "ts_zip, RWKV-169M (closed)": ("1.142", "1.431"),
    "Nacrith, SmolLM2-135M in float": ("0.918", ""),
    "cmix v21": ("1.63", "1.82"),
}
_WHOLE = ("alice29.txt", "book1")
_ZPAQ_FIXED = 1015  # bytes that zpaq -m5 spends on any archive


def comparison() -> str:
    """Models beside each other, and beside what others reach."""
    report = read("comparison.json")
    lengths = {f"llmzip {m['name']}": m["bytes"] for m in report["models"]}
    lines = []
    for codec in dict.fromkeys(r["codec"] for r in report["results"]):
        found = [r for r in report["results"] if r["codec"] == codec]
        assert all(r["restored"] for r in found)
        whole = {r["file"]: r for r in found}
        heads = [r["bits_per_byte"] for r in found if r["category"] == "dev"]
        texts = [whole[name] for name in _WHOLE]
        size = sum(r["bytes"] for r in texts)
        speeds = [size / 1000 / sum(r[f"{way}_seconds"] for r in texts) for way in WAYS]
        peak = max(r[f"{way}_peak_bytes"] for r in texts for way in WAYS) / 1e6
        lines.append(
            [
                codec, f"{lengths[codec] / 1e6:.1f} MB" if codec in lengths else "",
                *(f"{whole[name]['bits_per_byte']:.3f}" for name in _WHOLE),
                f"{sum(heads) / len(heads):.3f}",
                " / ".join(f"{speed:,.1f}" for speed in speeds), f"{peak:,.0f} MB",
            ]
        )  # fmt: skip
    lines += [[f"*{name}*", "", *bits, "", "", ""] for name, bits in PUBLISHED.items()]
    head = "codec | its model | alice29 | book1"
    head += f" | dev, first {report['limit']:,} bytes | KB/s | memory"
    return noted(rows(head, lines), report)


def recent() -> str:
    """The same models on texts that none of them has seen, in bytes of archives."""
    report = read("comparison.json")
    found = [r for r in report["results"] if r["category"] == "recent"]
    codecs = list(dict.fromkeys(r["codec"] for r in found))
    by_file: dict[str, dict[str, int]] = {}
    for r in found:
        net = _ZPAQ_FIXED if r["codec"].startswith("zpaq") else 0
        by_file.setdefault(r["file"], {})[r["codec"]] = r["compressed_bytes"] - net
    heads = " | ".join(codec + (", net" if codec.startswith("zpaq") else "") for codec in codecs)
    cells = [[name, *(f"{sizes[c]:,}" for c in codecs)] for name, sizes in by_file.items()]
    total = {c: sum(sizes[c] for sizes in by_file.values()) for c in codecs}
    cells.append(["*all*", *(f"{total[c]:,}" for c in codecs)])
    return noted(rows(f"first {report['limit']:,} bytes of | {heads}", cells), report)


def models() -> str:
    report = read("models.json")
    lines = rows(
        "model | parameters | bytes | bits per byte | model counted | MB/s | pays against xz from "
        "| against the next smaller from",
        (
            [
                m["name"], f"{m['parameters']:,}", f"{m['bytes']:,}", f"{m['bits_per_byte']:.3f}",
                f"{m['bits_per_byte_with_model']:.3f}",
                f"{m['encode_mb_s']:.3f} / {m['decode_mb_s']:.3f}",
                amount(m["pays_against_xz_from_bytes"]),
                amount(m["pays_against_smaller_from_bytes"])
                if "pays_against_smaller_from_bytes" in m else "",
            ]
            for m in report["results"]
        ),
    )  # fmt: skip
    law = report["power_law"]
    fit = ", ".join(f"{name} {r:+.1f}%" for name, r in law["residuals_percent"].items())
    return noted(
        lines, report,
        f"bits = {law['a']:.2f} · parameters^{law['b']:.3f} (± {law['b_standard_error']:.3f}, "
        f"R² = {law['r_squared']:.2f}); residuals {fit}. xz -9e: "
        f"{report['xz_bits_per_byte']:.3f} bits per byte.", "",
    )  # fmt: skip


def shrink() -> str:
    report = read("shrink.json")
    first = next(r for r in report["results"] if r["activations"] == "a8")
    lines = rows(
        "family | form | engine | bytes | size | bits per byte | bits",
        (
            [
                r["family"], r["name"], r["engine"], f"{r['bytes']:,}",
                f"{100 * (r['bytes'] / first['bytes'] - 1):+.0f}%", f"{r['bits_per_byte']:.3f}",
                f"{100 * (r['bits_per_byte'] / first['bits_per_byte'] - 1):+.1f}%",
            ]
            for r in report["results"]
        ),
        3,
    )  # fmt: skip
    return noted(lines, report, f"{report['text_bytes']:,} bytes of text, model "
                 f"`{report['model']['name']}`.")  # fmt: skip


def settings() -> str:
    report = read("settings.json")
    lines = rows(
        "sweep | setting | bits per byte | MB/s | peak MB, encoding",
        (
            [r["sweep"], r["name"], f"{r['bits_per_byte']:.3f}",
             f"{r['encode_mb_s']:.3f} / {r['decode_mb_s']:.3f}", f"{r['encode_peak_mb']:,.0f}"]
            for r in report["results"]
        ),
        2,
    )  # fmt: skip
    return noted(lines, report)


def tokenizers() -> str:
    report = read("tokenizers.json")

    def known(r: dict[str, Any], key: str, form: str) -> str:
        return format(r[key], form) if key in r else ""

    lines = rows(
        "vocabulary | head | bytes a token | bits per byte, model alone | whole archives "
        "| bytes, packed | MB/s",
        (
            [f"{r['vocabulary']:,}", r["head"], f"{r['bytes_a_token']:.2f}",
             f"{r['bits_per_byte']:.3f}", known(r, "archive_bits_per_byte", ".3f"),
             known(r, "bytes", ","), known(r, "encode_mb_s", ".3f")]
            for r in report["results"]
        ),
        2,
    )  # fmt: skip
    return noted(lines, report, f"Each trained on {report['megabytes']:g} MB of text.")


def unseen() -> str:
    report = read("unseen.json")
    codecs = list(dict.fromkeys(result["codec"] for result in report["results"]))
    bits = {(r["category"], r["file"], r["codec"]): r["bits_per_byte"] for r in report["results"]}
    files = dict.fromkeys((category, file) for category, file, _ in bits)
    lines = rows(
        "texts | file | " + " | ".join(codecs),
        (
            [category, file, *(f"{bits[category, file, codec]:.3f}" for codec in codecs)]
            for category, file in files
        ),
        texts=2,
    )
    means = {(r["category"], r["codec"]): r["mean_bits_per_byte"] for r in summary(report)}
    for category in dict.fromkeys(category for category, _ in files):
        cells = " | ".join(f"{means[category, codec]:.3f}" for codec in codecs)
        lines.append(f"| *{category}* | *mean* | {cells} |")
    return noted(lines, report)


def domain() -> str:
    report = read("domain.json")
    own = report["training"]
    lines = rows(
        "codec | bits per byte, later logs | MB/s",
        (
            [row["codec"], f"{row['bits_per_byte']:.3f}",
             f"{row['encode_mb_s']:.3f} / {row['decode_mb_s']:.3f}"]
            for row in summary(report)
        ),
    )  # fmt: skip
    held_out = (
        f"Held out in training: {own['bits_per_byte_before']:.3f} bits per byte before, "
        f"{own['bits_per_byte_after']:.3f} after (model alone)."
    )
    return noted(lines, report, held_out)


def pack() -> str:
    report = read("pack.json")
    ways = ("packed", "deflate -9 (a wheel)", "zstd -19", "xz -9e")
    lines = rows(
        "weights | form | bytes | llmzip pack | deflate -9 | zstd -19 | xz -9e | packing, s "
        "| unpacking, s",
        (
            [r["weights"], r["form"], f"{r['bytes']:,}",
             *(f"{100 * r[way] / r['bytes']:.1f}%" for way in ways),
             f"{r['pack_seconds']:.2f}", f"{r['unpack_seconds']:.2f}"]
            for r in report["results"]
        ),
        2,
    )  # fmt: skip
    return noted(lines, report)


def training() -> str:
    report = read("training/curve.json")
    law = report["law"]
    trained = rows(
        "trained | parameters | tokens | FLOPs | bits per byte of the training mix",
        (
            [r["name"], f"{r['parameters']:,}", f"{r['tokens'] / 1e6:.1f} M", f"{r['flops']:.1e}",
             f"{r['bits_per_byte']:.3f}"]
            for r in report["results"]
        ),
    )  # fmt: skip
    sizes = list(dict.fromkeys(r["text_bytes"] for r in report["predicted"]))
    names = list(dict.fromkeys(r["name"] for r in report["predicted"]))
    by = {(r["name"], r["text_bytes"]): r for r in report["predicted"]}
    foretold = rows(
        "foretold | " + " | ".join(f"{size / 1e9:g} GB of text" for size in sizes),
        (
            [name, *(f"{by[name, size]['bits_per_byte']:.3f} ({by[name, size]['flops']:.0e})"
                     for size in sizes)]
            for name in names
        ),
    )  # fmt: skip
    return noted(
        [*trained, "", *foretold], report,
        f"Fit: {law['e']:.3f} + {law['a']:.3g} · parameters^−0.35 + {law['b']:.3g} · bytes^−0.37, "
        f"off by {law['residual_bits']:.3f} bits; times {law['decay_factor']:.3f} after the decay.",
        "",
    )  # fmt: skip
