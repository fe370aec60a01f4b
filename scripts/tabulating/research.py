"""Tables of docs/research.md."""

from __future__ import annotations

from llmzip.bench import summary
from llmzip.bench.report import markdown_table
from tabulating import filled, noted, ordered, read, shown


@shown("docs/research.md")
def prime() -> str:
    report = read("prime.json")
    rows = []
    for name, found in report["results"].items():
        for codec, row in found.items():
            if isinstance(row, dict):
                rows.append({"text": name, "records": found["records"], "codec": codec,
                             "size": row["compressed_bytes"] / found["records"]})  # fmt: skip
    found = filled("""
records of | how many | codec | bytes a record
{text} | {records:,} | {codec} | {size:.1f}
""", rows, 2)  # fmt: skip
    return noted(found, report)


@shown("docs/research.md")
def models() -> str:
    report = read("models.json")
    for m in report["results"]:
        for rival in ("xz", "smaller"):
            count = m.get(f"pays_against_{rival}_from_bytes", "")
            if isinstance(count, float):
                m[rival] = f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
            else:
                m[rival] = "never" if count is None else ""
    found = filled("""
model | parameters | bytes | bits per byte | model counted | MB/s | pays against xz from \
| against the next smaller from
{name} | {parameters:,} | {bytes:,} | {bits_per_byte:.3f} | {bits_per_byte_with_model:.3f} \
| {encode_mb_s:.3f} / {decode_mb_s:.3f} | {xz} | {smaller}
""", report["results"])  # fmt: skip
    law = report["power_law"]
    fit = ", ".join(f"{name} {r:+.1f}%" for name, r in law["residuals_percent"].items())
    note = (
        f"bits = {law['a']:.2f} · parameters^{law['b']:.3f} (± {law['b_standard_error']:.3f}, "
        f"R² = {law['r_squared']:.2f}); residuals {fit}. xz -9e: "
        f"{report['xz_bits_per_byte']:.3f} bits per byte."
    )
    return noted(found, report, note, "")


@shown("docs/research.md")
def shrink() -> str:
    report = read("shrink.json")
    first = next(r for r in report["results"] if r["activations"] == "a8")
    for r in report["results"]:
        r["size"], r["bits"] = (r[key] / first[key] - 1 for key in ("bytes", "bits_per_byte"))
    found = filled("""
family | form | engine | bytes | size | bits per byte | bits
{family} | {name} | {engine} | {bytes:,} | {size:+.0%} | {bits_per_byte:.3f} | {bits:+.1%}
""", report["results"], 3)  # fmt: skip
    text = f"{report['text_bytes']:,} bytes of text, model `{report['model']['name']}`."
    return noted(found, report, text)


@shown("docs/research.md")
def settings() -> str:
    report = read("settings.json")
    return noted(filled("""
sweep | setting | bits per byte | MB/s | peak MB, encoding
{sweep} | {name} | {bits_per_byte:.3f} | {encode_mb_s:.3f} / {decode_mb_s:.3f} \
| {encode_peak_mb:,.0f}
""", report["results"], 2), report)  # fmt: skip


@shown("docs/research.md")
def unseen() -> str:
    report = read("unseen.json")
    bits: dict[tuple[str, str], list[float]] = {}
    for r in report["results"]:
        bits.setdefault((r["category"], r["file"]), []).append(r["bits_per_byte"])
    for r in summary(report):
        if r["category"] != "all":
            bits.setdefault((f"*{r['category']}*", "*mean*"), []).append(r["mean_bits_per_byte"])
    lines = ([*names, *(f"{b:.3f}" for b in row)] for names, row in bits.items())
    heads = " | ".join(["texts", "file", *ordered(report, "codec")])
    return noted(markdown_table(heads, lines, 2), report)


@shown("docs/research.md")
def domain() -> str:
    report = read("domain.json")
    found = filled("""
codec | bits per byte, later logs | MB/s
{codec} | {bits_per_byte:.3f} | {encode_mb_s:.3f} / {decode_mb_s:.3f}
""", summary(report))  # fmt: skip
    note = (
        "Held out in training: {bits_per_byte_before:.3f} bits per byte before, "
        "{bits_per_byte_after:.3f} after (model alone)."
    )
    return noted(found, report, note.format(**report["training"]))


@shown("docs/research.md")
def training() -> str:
    report = read("training/curve.json")
    for r in report["results"]:
        r["millions"] = r["tokens"] / 1e6
    trained = filled("""
trained | parameters | tokens | FLOPs | bits per byte of the training mix
{name} | {parameters:,} | {millions:.1f} M | {flops:.1e} | {bits_per_byte:.3f}
""", report["results"])  # fmt: skip
    sizes = dict.fromkeys(r["text_bytes"] for r in report["predicted"])
    lines: dict[str, list[str]] = {}
    for r in report["predicted"]:
        cell = f"{r['bits_per_byte']:.3f} ({r['flops']:.0e})"
        lines.setdefault(r["name"], [r["name"]]).append(cell)
    heads = " | ".join(["predicted", *(f"{size / 1e9:g} GB of text" for size in sizes)])
    note = (
        "Fit: {e:.3f} + {a:.3g} · parameters^−0.35 + {b:.3g} · bytes^−0.37, "
        "off by {residual_bits:.3f} bits; times {decay_factor:.3f} after the decay."
    )
    predicted = markdown_table(heads, lines.values())
    return noted([*trained, "", *predicted], report, note.format(**report["law"]), "")
