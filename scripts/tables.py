#!/usr/bin/env python3
"""Write the tables of README.md and docs/ from results/.

python scripts/tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llmzip.bench import summary, table
from llmzip.bench.report import DIRECTIONS, markdown_table, pair

ROOT = Path(__file__).parent.parent
Report = dict[str, Any]
Rows = Iterable[list[str]]

# (document, mark) → what makes the text between <!-- mark --> and <!-- /mark -->
TABLES: dict[tuple[str, str], Callable[[], str]] = {}


def shown(*documents: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a table of these documents, marked there by the function's name."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES.update({(document, make.__name__): make for document in documents})
        return make

    return register


def read(name: str) -> Report:
    report: Report = json.loads((ROOT / "results" / name).read_text())
    return report


def machine(report: Report) -> str:
    return f"{report['machine']['processor']}, {report['machine']['threads']} threads"


def noted(lines: list[str], report: Report, *more: str) -> str:
    """A table, further lines, and where its figures come from."""
    commit = (report["commit"] or "?")[:7]
    note = f"{machine(report)}, {report['date']}, commit {commit}."
    return "\n".join([*lines, "", *more, note])


def ordered(report: Report, key: str) -> list[Any]:
    """The values of a key in the results, each once."""
    return list(dict.fromkeys(r[key] for r in report["results"]))


# of results/benchmarks/, which has all files and codecs
SHOWN = ("book1", "book2", "news", "paper1", "progc", "trans", "alice29.txt", "lcet10.txt",
         "plrabn12.txt", "cp.html", "xargs.1", "en_book_wells.txt", "en_wiki_xquad.txt",
         "multi_wiki_xquad.txt", "zh_docs_tidb.txt", "code_c_curl.txt", "data_csv_elastic.txt",
         "logs_elastic.txt")  # fmt: skip
LEFT_OUT = ("zstd -19", "ppmd -o16 -m256")


@shown("README.md")
def bench() -> str:
    report = read("benchmarks/benchmarks.json")
    report["results"] = [r for r in report["results"] if r["codec"] not in LEFT_OUT]
    lines = table(
        {**report, "results": [r for r in report["results"] if r["file"] in SHOWN]}
    ).splitlines()
    means = summary(report)
    codecs = list(dict.fromkeys(row["codec"] for row in means))
    for category in dict.fromkeys(row["category"] for row in means):
        rows = {row["codec"]: row for row in means if row["category"] == category}
        cells = [f"{rows[c]['mean_bits_per_byte']:.3f}" if c in rows else "" for c in codecs]
        own = rows[codecs[0]]
        name = f"*{category}, mean of {own['files']}*"
        cells = [name, f"{own['bytes']:,}", *cells, pair(own, "mb_s", ".3f")]
        lines.append(f"| {' | '.join(cells)} |")
    note = f"{machine(report)}, model `{report['model']['name']}`, {report['date']}."
    return "\n".join([*lines, "", note])


# bits per byte of alice29 and book1, as their authors publish them; nothing here ran them
PUBLISHED = {
    "ts_zip, RWKV-169M (closed)": ("1.142", "1.431"),
    "Nacrith, SmolLM2-135M in float": ("0.918", ""),
    "cmix v21": ("1.63", "1.82"),
}
ZPAQ_FIXED = 1015  # bytes that zpaq -m5 spends on any archive


@shown("README.md", "docs/models.md")
def comparison() -> str:
    report = read("comparison.json")
    lengths = {f"llmzip {m['name']}": m["bytes"] for m in report["models"]}
    lines = []
    for codec in ordered(report, "codec"):
        found = [r for r in report["results"] if r["codec"] == codec]
        assert all(r["restored"] for r in found)
        heads = [r["bits_per_byte"] for r in found if r["category"] == "dev"]
        whole = {r["file"]: r for r in found}
        texts = [whole[name] for name in ("alice29.txt", "book1")]
        size = sum(r["bytes"] for r in texts)
        speeds = {f"{way}_kb_s": size / 1000 / sum(r[f"{way}_seconds"] for r in texts)
                  for way in DIRECTIONS}  # fmt: skip
        peak = max(r[f"{way}_peak_bytes"] for r in texts for way in DIRECTIONS) / 1e6
        bits = (*(r["bits_per_byte"] for r in texts), sum(heads) / len(heads))
        length = f"{lengths[codec] / 1e6:.1f} MB" if codec in lengths else ""
        lines.append([codec, length, *(f"{b:.3f}" for b in bits), pair(speeds, "kb_s", ",.1f"),
                      f"{peak:,.0f} MB"])  # fmt: skip
    lines += [[f"*{name}*", "", *bits, "", "", ""] for name, bits in PUBLISHED.items()]
    heads = "codec | its model | alice29 | book1"
    heads += f" | dev, first {report['limit']:,} bytes | KB/s | memory"
    return noted(markdown_table(heads, lines), report)


@shown("docs/models.md")
def recent() -> str:
    report = read("comparison.json")
    report["results"] = [r for r in report["results"] if r["category"] == "recent"]
    codecs = ordered(report, "codec")
    sizes: dict[str, dict[str, int]] = {"*all*": dict.fromkeys(codecs, 0)}
    for r in report["results"]:
        net = r["compressed_bytes"] - ZPAQ_FIXED * r["codec"].startswith("zpaq")
        sizes.setdefault(r["file"], {})[r["codec"]] = net
        sizes["*all*"][r["codec"]] += net
    sizes["*all*"] = sizes.pop("*all*")  # to the end
    heads = " | ".join(codec + (", net" if codec.startswith("zpaq") else "") for codec in codecs)
    cells = ([name, *(f"{by_codec[c]:,}" for c in codecs)] for name, by_codec in sizes.items())
    heads = f"first {report['limit']:,} bytes of | {heads}"
    return noted(markdown_table(heads, cells), report)


@shown("README.md")
def speed() -> str:
    report = read("speed.json")
    processes = markdown_table(
        f"whole processes, {report['bytes'] / 1e6:g} MB of prose "
        "| bits per byte | compress | decompress | memory",
        (
            [name, f"{run['bits_per_byte']:.3f}",
             *(f"{run[f'{way}_seconds']:.2f} s" for way in DIRECTIONS),
             f"{max(run[f'{way}_peak_bytes'] for way in DIRECTIONS) / 2**20:.0f} MiB"]
            for name, run in report["processes"].items()
        ),
    )  # fmt: skip
    own, lines = report["model"]["name"], []
    for name, model in sorted(report["models"].items(), key=lambda item: item[0] != own):
        for p in model["streams"]:
            if name != own and p["streams"] != "default":
                continue
            rates = " / ".join(f"{1000 * p[f'{way}_mb_s']:.1f}" for way in DIRECTIONS)
            label = str(p["streams"]) if name == own else f"default, `{name}`"
            lines.append([label, f"{p['bits_per_byte']:.3f}", rates, f"{p['decode_tokens_s']:,.0f}",
                          pair(p, "roofline_share", ".0%")])  # fmt: skip
    heads = "streams | bits per byte | KB/s | tokens/s, decoding | share of the sgemm roofline"
    note = f"{machine(report)}, model `{own}`, {report['date']}."
    note += " Two figures are of compressing / decompressing."
    return "\n".join([*processes, "", *markdown_table(heads, lines), "", note])


@shown("docs/scaling.md")
def scaling() -> str:
    report = read("scaling.json")
    cores = next(iter(report["models"].values()))["encode"]["hours_by_cores"]
    heads = "model | | KB/s a core | core-hours a TB | price | "
    heads += " | ".join(f"hours, {int(n):,} cores" for n in cores)
    lines = (
        [name, f"{'de' * (way == 'decode')}compress", f"{e['kb_s_a_core']:.1f}",
         *(f"{e[key]:,.0f}" for key in ("core_hours_a_terabyte", "price_a_terabyte")),
         *(f"{hours:,.0f}" for hours in e["hours_by_cores"].values()),
         f"{e['cores_that_one_assembly_feeds']:,.0f}"]
        for name, ways in report["models"].items()
        for way, e in ways.items()
    )  # fmt: skip
    note = (
        f"Rates of one core of {machine(report)}; the price assumes "
        f"{report['assumed_price_of_a_core_hour']:g} a core-hour; frames are put together at "
        f"{report['assembly_mb_s']:.0f} MB/s (measured); {report['date']}."
    )
    return "\n".join([*markdown_table(f"{heads} | cores that one run feeds", lines, 2), "", note])


@shown("docs/architectures.md")
def costs() -> str:
    reports = read("architectures.json")
    found = {name: report["results"][0] for name, report in reports.items()}
    lines = markdown_table(
        "model | float32, bits per byte | a8 | a16",
        (
            [name, f"{entry['bits_per_byte']['float32']:.3f}",
             *(f"{entry['cost_percent'][kind]:+.3f}%" for kind in ("a8", "a16"))]
            for name, entry in found.items()
        ),
    )  # fmt: skip
    last = next(reversed(reports.values()))
    note = f"{last['results'][0]['text']}, windows of {last['window']} tokens; {machine(last)}"
    return "\n".join([*lines, "", f"{note}, {last['date']}."])


@shown("README.md")
def portability() -> str:
    report = read("portability.json")
    lines = []
    for name, way in report["ways"].items():
        if "failed" in way:
            lines.append([name, *[""] * 5, f"failed: {way['failed']}"])
            continue
        outcomes = list(way["archives"].values())
        others = sorted({outcome for outcome in outcomes if outcome != "same"})
        same = f"{outcomes.count('same')} of {len(outcomes)} the same"
        packages = ("torch", "transformers", "numba", "constriction")
        lines.append([name, f"{way['machine']}, {way['capability']}",
                      *(way["versions"][key] for key in packages),
                      "; ".join([same, *others])])  # fmt: skip
    heads = "where | machine | torch | transformers | numba | coder | archives"
    note = f"Archives: {', '.join(report['archives'])}; {report['date']}."
    return "\n".join([*markdown_table(heads, lines, 7), "", note])


@shown("docs/research.md")
def models() -> str:
    report = read("models.json")

    def amount(m: Report, rival: str) -> str:
        count = m.get(f"pays_against_{rival}_from_bytes", 0)
        if not count:
            return "never" if count is None else ""
        return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"

    lines = markdown_table(
        "model | parameters | bytes | bits per byte | model counted | MB/s | pays against xz from "
        "| against the next smaller from",
        (
            [m["name"], *(f"{m[key]:,}" for key in ("parameters", "bytes")),
             *(f"{m[key]:.3f}" for key in ("bits_per_byte", "bits_per_byte_with_model")),
             pair(m, "mb_s", ".3f"), amount(m, "xz"), amount(m, "smaller")]
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


@shown("docs/research.md")
def shrink() -> str:
    report = read("shrink.json")
    first = next(r for r in report["results"] if r["activations"] == "a8")
    lines = markdown_table(
        "family | form | engine | bytes | size | bits per byte | bits",
        (
            [*(r[key] for key in ("family", "name", "engine")), f"{r['bytes']:,}",
             f"{100 * (r['bytes'] / first['bytes'] - 1):+.0f}%", f"{r['bits_per_byte']:.3f}",
             f"{100 * (r['bits_per_byte'] / first['bits_per_byte'] - 1):+.1f}%"]
            for r in report["results"]
        ),
        3,
    )  # fmt: skip
    text = f"{report['text_bytes']:,} bytes of text, model `{report['model']['name']}`."
    return noted(lines, report, text)


@shown("docs/research.md")
def settings() -> str:
    report = read("settings.json")
    lines = markdown_table(
        "sweep | setting | bits per byte | MB/s | peak MB, encoding",
        (
            [r["sweep"], r["name"], f"{r['bits_per_byte']:.3f}", pair(r, "mb_s", ".3f"),
             f"{r['encode_peak_mb']:,.0f}"]
            for r in report["results"]
        ),
        2,
    )  # fmt: skip
    return noted(lines, report)


@shown("docs/research.md")
def tokenizers() -> str:
    report = read("tokenizers.json")

    def known(r: Report, key: str, form: str) -> str:
        return format(r[key], form) if key in r else ""

    lines = markdown_table(
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


@shown("docs/research.md")
def unseen() -> str:
    report = read("unseen.json")
    codecs = ordered(report, "codec")
    files: dict[tuple[str, str], list[str]] = {}
    for r in report["results"]:
        names = r["category"], r["file"]
        files.setdefault(names, [*names]).append(f"{r['bits_per_byte']:.3f}")
    lines = list(files.values())
    means = {(r["category"], r["codec"]): r["mean_bits_per_byte"] for r in summary(report)}
    for category in ordered(report, "category"):
        cells = (f"{means[category, codec]:.3f}" for codec in codecs)
        lines.append([f"*{category}*", "*mean*", *cells])
    return noted(markdown_table(f"texts | file | {' | '.join(codecs)}", lines, 2), report)


@shown("docs/research.md")
def domain() -> str:
    report = read("domain.json")
    lines = markdown_table(
        "codec | bits per byte, later logs | MB/s",
        ([r["codec"], f"{r['bits_per_byte']:.3f}", pair(r, "mb_s", ".3f")]
         for r in summary(report)),
    )  # fmt: skip
    own = report["training"]
    held_out = (
        f"Held out in training: {own['bits_per_byte_before']:.3f} bits per byte before, "
        f"{own['bits_per_byte_after']:.3f} after (model alone)."
    )
    return noted(lines, report, held_out)


@shown("docs/packed.md")
def pack() -> str:
    report = read("pack.json")
    codecs = ("packed", "deflate -9 (a wheel)", "zstd -19", "xz -9e")
    lines = markdown_table(
        "weights | form | bytes | llmzip pack | deflate -9 | zstd -19 | xz -9e | packing, s "
        "| unpacking, s",
        (
            [r["weights"], r["form"], f"{r['bytes']:,}",
             *(f"{100 * r[codec] / r['bytes']:.1f}%" for codec in codecs),
             *(f"{r[key]:.2f}" for key in ("pack_seconds", "unpack_seconds"))]
            for r in report["results"]
        ),
        2,
    )  # fmt: skip
    return noted(lines, report)


@shown("docs/research.md")
def training() -> str:
    report = read("training/curve.json")
    law = report["law"]
    trained = markdown_table(
        "trained | parameters | tokens | FLOPs | bits per byte of the training mix",
        (
            [r["name"], f"{r['parameters']:,}", f"{r['tokens'] / 1e6:.1f} M", f"{r['flops']:.1e}",
             f"{r['bits_per_byte']:.3f}"]
            for r in report["results"]
        ),
    )  # fmt: skip
    sizes = list(dict.fromkeys(r["text_bytes"] for r in report["predicted"]))
    by_name: dict[str, list[str]] = {}
    for r in report["predicted"]:
        by_name.setdefault(r["name"], [r["name"]]).append(
            f"{r['bits_per_byte']:.3f} ({r['flops']:.0e})"
        )
    predicted = markdown_table(
        "predicted | " + " | ".join(f"{size / 1e9:g} GB of text" for size in sizes),
        by_name.values(),
    )
    return noted(
        [*trained, "", *predicted], report,
        f"Fit: {law['e']:.3f} + {law['a']:.3g} · parameters^−0.35 + {law['b']:.3g} · bytes^−0.37, "
        f"off by {law['residual_bits']:.3f} bits; times {law['decay_factor']:.3f} after the decay.",
        "",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    check, stale = parser.parse_args().check, 0
    for (name, mark), make in TABLES.items():
        path = ROOT / name
        text = path.read_text()
        start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        before, rest = text.split(start)
        _, after = rest.split(end)
        fresh = f"{before}{start}\n{make()}\n\n{end}{after}"
        if fresh != text:
            stale += 1
            print(f"{name}: {mark} is stale" if check else f"{name}: {mark} is renewed")
        if not check:
            path.write_text(fresh)
    return bool(stale) and check


if __name__ == "__main__":
    sys.exit(main())
