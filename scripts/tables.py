#!/usr/bin/env python3
"""Write the tables of README.md and docs/ from results/.

python scripts/tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring.published import PUBLISHED, net

from llmzip.bench import summary
from llmzip.bench.report import DIRECTIONS, markdown_table, pair

ROOT = Path(__file__).parent.parent
Report = dict[str, Any]

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


def filled(form: str, rows: list[Report], texts: int = 1) -> list[str]:
    """A Markdown table. `form`: the heads, and below them the formats of a row's cells."""
    heads, cells = form.strip().split("\n")
    kinds = [cell.strip() for cell in cells.split("|")]
    return markdown_table(heads, ([kind.format(**row) for kind in kinds] for row in rows), texts)


def machine(report: Report) -> str:
    return f"{report['machine']['processor']}, {report['machine']['threads']} threads"


def noted(lines: list[str], report: Report, *more: str) -> str:
    """A table, further lines, and where its figures come from."""
    commit = (report["commit"] or "?")[:7]
    note = f"{machine(report)}, {report['date']}, commit {commit}."
    return "\n".join([*lines, "", *more, note])


def kept(report: Report) -> list[str]:
    """A line about results of models that were measured earlier, if there are any."""
    commits = report.get("kept", {})
    line = ", ".join(f"`{name}` at commit {commit[:7]}" for name, commit in commits.items())
    return [f"{line}; the others:"] if commits else []


def ordered(report: Report, key: str) -> list[Any]:
    """The values of a key in the results, each once."""
    return list(dict.fromkeys(r[key] for r in report["results"]))


# of results/benchmarks/, which has all files and codecs
SHOWN = ("alice29.txt", "book1", "en_wiki_xquad.txt", "zh_docs_tidb.txt", "code_c_curl.txt",
         "data_csv_elastic.txt", "logs_elastic.txt")  # fmt: skip
RIVALS = ("zpaq -m5, net", "xz -9e", "zstd -22 --long=27", "gzip -9")


@shown("README.md")
def bench() -> str:
    report = net(read("benchmarks/benchmarks.json"))
    own = f"llmzip {report['model']['name']}"
    means = {row["codec"]: row for row in summary(report) if row["category"] == "all"}
    lines = []
    for name in SHOWN:
        found = {r["codec"]: r for r in report["results"] if r["file"] == name}
        speeds = {f"{way}_kb_s": found[own]["bytes"] / 1000 / found[own][f"{way}_seconds"]
                  for way in DIRECTIONS}  # fmt: skip
        bits = (f"{found[codec]['bits_per_byte']:.3f}" for codec in (own, *RIVALS))
        lines.append([f"{name}, {found[own]['bytes']:,}", *bits, pair(speeds, "kb_s", ".0f")])
    all_files = means[own]
    speeds = {f"{way}_kb_s": 1000 * all_files[f"{way}_mb_s"] for way in DIRECTIONS}
    bits = (f"{means[codec]['mean_bits_per_byte']:.3f}" for codec in (own, *RIVALS))
    lines.append([f"mean of {all_files['files']} files", *bits, pair(speeds, "kb_s", ".0f")])
    heads = f"file, bytes | {' | '.join((own, *RIVALS))} | llmzip, KB/s: compressing / restoring"
    return noted(markdown_table(heads, lines), report)


@shown("docs/models.md")
def comparison() -> str:
    report = net(read("comparison.json"))
    lengths = {f"llmzip {m['name']}": f"{m['bytes'] / 1e6:.1f} MB" for m in report["models"]}
    lines: list[Any] = []
    for codec in sorted(ordered(report, "codec"), key=lambda name: name.split()[0] != "llmzip"):
        found = [r for r in report["results"] if r["codec"] == codec]
        assert all(r["restored"] for r in found)
        dev = [r["bits_per_byte"] for r in found if r["category"] == "dev"]
        whole = {r["file"]: r for r in found}
        texts = [whole[name] for name in ("alice29.txt", "book1") if name in whole]
        size = sum(r["bytes"] for r in texts)
        speeds = {f"{way}_kb_s": size / 1000 / sum(r[f"{way}_seconds"] for r in texts)
                  for way in DIRECTIONS}  # fmt: skip
        peak = max(r[f"{way}_peak_bytes"] for r in texts for way in DIRECTIONS) / 1e6
        bits = [r["bits_per_byte"] for r in texts] + ([sum(dev) / len(dev)] if dev else [])
        lines.append([codec, lengths.get(codec, ""), *(f"{b:.3f}" for b in bits),
                      *[""] * (3 - len(bits)),
                      pair(speeds, "kb_s", ",.1f"), f"{peak:,.0f} MB"])  # fmt: skip
    for p in PUBLISHED:
        speed = f"{p.slowest:g}" + (f" to {p.fastest:g}" if p.fastest > p.slowest else "")
        book1 = f"{p.book1:g}" if p.book1 else ""
        lines.append([f"*{p.name}*", "", f"{p.alice29:g}", book1, "", speed, ""])
    heads = "codec | its model | alice29 | book1"
    heads += f" | dev, first {report['limit']:,} bytes | KB/s | memory"
    return noted(markdown_table(heads, lines), report, *kept(report))


@shown("docs/models.md")
def recent() -> str:
    report = net(read("comparison.json"))
    report["results"] = [r for r in report["results"] if r["category"] == "recent"
                         and r["codec"].startswith(("llmzip", "xz", "zpaq"))]  # fmt: skip
    codecs = ordered(report, "codec")
    sizes: dict[str, list[int]] = {}
    for r in report["results"]:
        sizes.setdefault(r["file"], []).append(r["compressed_bytes"])
    sizes["*all*"] = [sum(column) for column in zip(*sizes.values(), strict=True)]
    lines = ([name, *(f"{size:,}" for size in row)] for name, row in sizes.items())
    heads = [f"first {report['limit']:,} bytes of", *codecs]
    return noted(markdown_table(" | ".join(heads), lines), report, *kept(report))


@shown("results/performance.md")
def speed() -> str:
    report = read("speed.json")
    own, lines = report["model"]["name"], []
    for name, run in report["processes"].items():
        peak = max(run[f"{way}_peak_bytes"] for way in DIRECTIONS) / 2**20
        lines.append({**run, "name": name, "peak": peak})
    processes = filled(f"""
whole processes, {report["bytes"] / 1e6:g} MB of prose | bits per byte | compress \
| decompress | memory
{{name}} | {{bits_per_byte:.3f}} | {{encode_seconds:.2f}} s | {{decode_seconds:.2f}} s \
| {{peak:.0f}} MiB
""", lines)  # fmt: skip
    lines = []
    for name, model in sorted(report["models"].items(), key=lambda item: item[0] != own):
        for p in model["streams"]:
            if name == own or p["streams"] == "default":
                label = str(p["streams"]) if name == own else f"default, `{name}`"
                kb_s = {way: 1000 * p[f"{way}_mb_s"] for way in DIRECTIONS}
                shares = pair(p, "roofline_share", ".0%")
                lines.append({**p, **kb_s, "name": label, "shares": shares})
    streams = filled("""
streams | bits per byte | KB/s | tokens/s, decoding | speed, relative to float32 products alone
{name} | {bits_per_byte:.3f} | {encode:.1f} / {decode:.1f} | {decode_tokens_s:,.0f} | {shares}
""", lines)  # fmt: skip
    note = f"{machine(report)}, model `{own}`, {report['date']}."
    note += " Two figures are of compressing / decompressing."
    return "\n".join([*processes, "", *streams, "", note])


@shown("docs/scaling.md")
def scaling() -> str:
    report = read("scaling.json")
    lines = [
        {**e, "name": name, "way": f"{'de' * (way == 'decode')}compress",
         **{f"cores_{n}": hours for n, hours in e["hours_by_cores"].items()}}
        for name, ways in report["models"].items()
        for way, e in ways.items()
    ]  # fmt: skip
    cores = lines[0]["hours_by_cores"]
    hours = " | ".join(f"hours, {int(n):,} cores" for n in cores)
    cells = " | ".join(f"{{cores_{n}:,.0f}}" for n in cores)
    found = filled(f"""
model | | KB/s a core | core-hours a TB | price | {hours} | cores that one run feeds
{{name}} | {{way}} | {{kb_s_a_core:.1f}} | {{core_hours_a_terabyte:,.0f}} \
| {{price_a_terabyte:,.0f}} | {cells} | {{cores_that_one_assembly_feeds:,.0f}}
""", lines, 2)  # fmt: skip
    measured = report["rates_from"]["machine"]
    assert measured["threads"] == 2
    note = (
        f"Half the rates of two cores of {measured['processor']}; the price assumes "
        f"{report['assumed_price_of_a_core_hour']:g} a core-hour; frames are put together at "
        f"{report['assembly_mb_s']:.0f} MB/s (measured); {report['date']}."
    )
    return "\n".join([*found, "", note])


@shown("docs/architectures.md")
def costs() -> str:
    reports = read("architectures.json")
    last = next(reversed(reports.values()))
    found = filled("""
model | float32, bits per byte | a8 | a16
{name} | {bits_per_byte[float32]:.3f} | {cost_percent[a8]:+.3f}% | {cost_percent[a16]:+.3f}%
""", [{**report["results"][0], "name": name} for name, report in reports.items()])  # fmt: skip
    note = f"{last['results'][0]['text']}, windows of {last['window']} tokens; {machine(last)}"
    return "\n".join([*found, "", f"{note}, {last['date']}."])


@shown("results/performance.md")
def engine() -> str:
    """Both kinds of instructions, side by side."""
    reports = {"VNNI": read("engine.json"), "AVX2": read("engine-avx2.json")}
    rates: dict[tuple[str, str], list[str]] = {}
    stages = []
    for kind, report in reports.items():
        for row in report["results"]:
            ways = {f"decoding, {rows} streams": (rows, row["decoding"][rows])
                    for rows in row["decoding"]}  # fmt: skip
            for way, (rows, spent) in {**ways, "encoding": ("64", row["encoding"])}.items():
                alone = row["products"][rows]
                rates.setdefault((row["name"], way), []).extend(
                    [f"{row['flops_a_token'] / alone / 1e9:.0f}",
                     f"{alone / spent:.0%} of {spent * 1e6:,.0f} us"]
                )  # fmt: skip
            taken = {"frequencies": row["frequencies"], **row["stages"]}
            shares = {part: t / sum(taken.values()) for part, t in taken.items()}
            stages.append({"name": f"{row['name']}, {kind}", **shares})
    heads = " | ".join(f"{kind}: products alone, GOP/s | they would take of a token"
                       for kind in reports)  # fmt: skip
    found = markdown_table(f"model | | {heads}", ([*key, *row] for key, row in rates.items()), 2)
    parts = filled("""
model, encoding | products of layers | head | attention | norms | gates | sums | frequencies
{name} | {products:.0%} | {head:.0%} | {attention:.0%} | {norms:.0%} | {gates:.0%} | {sums:.0%} \
| {frequencies:.0%}
""", stages)  # fmt: skip
    names = " and ".join(f"`{report['instruction']}`" for report in reports.values())
    return noted([*found, "", *parts], reports["VNNI"], f"Instructions: {names}, one machine.\n")


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


@shown("docs/exactness.md")
def portability() -> str:
    report = read("portability.json")
    lines = []
    for name, way in report["ways"].items():
        outcomes = list(way.get("archives", {}).values())
        others = sorted({outcome for outcome in outcomes if outcome != "same"})
        same = "; ".join([f"{outcomes.count('same')} of {len(outcomes)} the same", *others])
        if "failed" in way:
            empty = dict.fromkeys(("torch", "transformers", "numba", "constriction"), "")
            way |= {"machine": "", "capability": "", "versions": empty}
            same = f"failed: {way['failed']}"
        lines.append({**way, "name": name, "same": same})
    found = filled("""
where | machine | torch | transformers | numba | coder | archives
{name} | {machine}, {capability} | {versions[torch]} | {versions[transformers]} \
| {versions[numba]} | {versions[constriction]} | {same}
""", lines, 7)  # fmt: skip
    return "\n".join([*found, "", f"Archives: {', '.join(report['archives'])}; {report['date']}."])


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
def tokenizers() -> str:
    report = read("tokenizers.json")
    forms = {"archive_bits_per_byte": ".3f", "bytes": ",", "encode_mb_s": ".3f"}
    for r in report["results"]:  # models with a head of two stages have no archives
        r |= {key: format(r[key], form) if key in r else "" for key, form in forms.items()}
    found = filled("""
vocabulary | head | bytes a token | bits per byte, model alone | whole archives \
| bytes, packed | MB/s
{vocabulary:,} | {head} | {bytes_a_token:.2f} | {bits_per_byte:.3f} | {archive_bits_per_byte} \
| {bytes} | {encode_mb_s}
""", report["results"], 2)  # fmt: skip
    return noted(found, report, f"Each trained on {report['megabytes']:g} MB of text.")


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


@shown("docs/packed.md")
def pack() -> str:
    report = read("pack.json")
    codecs = {"pack": "packed", "deflate": "deflate -9 (a wheel)", "zstd": "zstd -19",
              "xz": "xz -9e"}  # fmt: skip
    for r in report["results"]:
        r |= {name: r[codec] / r["bytes"] for name, codec in codecs.items()}
    return noted(filled("""
weights | form | bytes | llmzip pack | deflate -9 | zstd -19 | xz -9e | packing, s | unpacking, s
{weights} | {form} | {bytes:,} | {pack:.1%} | {deflate:.1%} | {zstd:.1%} | {xz:.1%} \
| {pack_seconds:.2f} | {unpack_seconds:.2f}
""", report["results"], 2), report)  # fmt: skip


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


@shown("docs/models.md")
def proxies() -> str:
    report = read("training/proxies.json")
    kinds = {
        "books": ("en_book",),
        "other English": ("en_docs", "en_govblog", "en_meeting", "en_wiki"),
        "code": ("code",),
        "tables, logs, markup": ("data", "logs", "markup"),
        "other languages": ("multi", "zh"),
    }
    base = report["results"][0]

    def change(result: Report, starts: tuple[str, ...]) -> str:
        own, before = (
            sum(text["mixed"] for name, text in of["texts"].items() if name.startswith(starts))
            for of in (result, base)
        )
        return f"{100 * (own / before - 1):+.1f}%"

    names = {"base": "as it is", "seed": "another seed", "not-quantised": "no quantised steps",
             "ngrams": "hashed n-grams at the input"}  # fmt: skip
    rows = []
    for result in report["results"]:
        group = report["groups"].get(result["name"])
        name = f"twice the share of {result['name']} ({100 * group['share']:.0f}%)" if group else ""
        changes = [change(result, starts) for starts in (("",), *kinds.values())]
        rows.append([name or names[result["name"]], f"{result['mean']['mixed']:.4f}", *changes])
    heads = " | ".join(["recipe", "bits per byte", "all", *kinds])
    return noted(markdown_table(heads, rows), report)


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
            print(f"{name}: {mark} {'is stale' if check else 'renewed'}")
        if not check:
            path.write_text(fresh)
    return bool(stale) and check


if __name__ == "__main__":
    sys.exit(main())
