#!/usr/bin/env python3
"""Write the tables of README.md and docs/ from results/.

python scripts/readme_table.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import research_tables as research

from llmzip.bench import summary, table

ROOT = Path(__file__).parent.parent


def machine(report: dict[str, Any]) -> str:
    return f"{report['machine']['processor']}, {report['machine']['threads']} threads"


# of results/benchmarks/, where all files are
SHOWN = ("book1", "book2", "news", "paper1", "progc", "trans", "alice29.txt", "lcet10.txt",
         "plrabn12.txt", "cp.html", "xargs.1", "en_book_wells.txt", "en_wiki_xquad.txt",
         "multi_wiki_xquad.txt", "zh_docs_tidb.txt", "code_c_curl.txt", "data_csv_elastic.txt",
         "logs_elastic.txt")  # fmt: skip


LEFT_OUT = ("zstd -19", "ppmd -o16 -m256")


def bench() -> str:
    report = json.loads((ROOT / "results" / "benchmarks" / "benchmarks.json").read_text())
    report["results"] = [r for r in report["results"] if r["codec"] not in LEFT_OUT]
    shown = [result for result in report["results"] if result["file"] in SHOWN]
    means = summary(report)
    codecs = list(dict.fromkeys(row["codec"] for row in means))
    lines = table({**report, "results": shown}).splitlines()
    for category in dict.fromkeys(row["category"] for row in means):
        rows = {row["codec"]: row for row in means if row["category"] == category}
        cells = [f"{rows[c]['mean_bits_per_byte']:.3f}" if c in rows else "" for c in codecs]
        own = rows[codecs[0]]
        speed = f"{own['encode_mb_s']:.3f} / {own['decode_mb_s']:.3f}"
        name = f"*{category}, mean of {own['files']}*"
        lines.append(f"| {name} | {own['bytes']:,} | {' | '.join(cells)} | {speed} |")
    note = f"{machine(report)}, model `{report['model']['name']}`, {report['date']}."
    return "\n".join([*lines, "", note])


def speed() -> str:
    report = json.loads((ROOT / "results" / "speed.json").read_text())
    size = report["bytes"] / 1e6
    lines = [
        f"| whole processes, {size:g} MB of prose "
        "| bits per byte | compress | decompress | memory |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, run in report["processes"].items():
        peak = max(run["encode_peak_bytes"], run["decode_peak_bytes"]) / 2**20
        seconds = (f"{run[f'{way}_seconds']:.2f} s" for way in ("encode", "decode"))
        lines.append(
            f"| {name} | {run['bits_per_byte']:.3f} | {' | '.join(seconds)} | {peak:.0f} MiB |"
        )
    lines += [
        "",
        "| streams | bits per byte | KB/s | tokens/s, decoding | share of the sgemm roofline |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    own = report["model"]["name"]
    for name, model in sorted(report["models"].items(), key=lambda item: item[0] != own):
        for p in model["streams"]:
            if name != own and p["streams"] != "default":
                continue
            ways = ("encode", "decode")
            rates = " / ".join(f"{1000 * p[f'{way}_mb_s']:.1f}" for way in ways)
            shares = " / ".join(f"{p[f'{way}_roofline_share']:.0%}" for way in ways)
            label = f"{p['streams']}" if name == own else f"default, `{name}`"
            lines.append(
                f"| {label} | {p['bits_per_byte']:.3f} | {rates} | {p['decode_tokens_s']:,.0f} "
                f"| {shares} |"
            )
    note = f"{machine(report)}, model `{report['model']['name']}`, {report['date']}."
    return "\n".join([*lines, "", f"{note} Two figures are of compressing / decompressing."])


def scaling() -> str:
    report = json.loads((ROOT / "results" / "scaling.json").read_text())
    cores = list(next(iter(report["models"].values()))["encode"]["hours_by_cores"])
    lines = [
        "| model | | KB/s a core | core-hours a TB | price | "
        + " | ".join(f"hours, {int(n):,} cores" for n in cores)
        + " | cores that one run feeds |",
        "| --- | --- |" + " ---: |" * (4 + len(cores)),
    ]
    for name, ways in report["models"].items():
        for way, e in ways.items():
            verb = {"encode": "compress", "decode": "decompress"}[way]
            hours = " | ".join(f"{hours:,.0f}" for hours in e["hours_by_cores"].values())
            lines.append(
                f"| {name} | {verb} | {e['kb_s_a_core']:.1f} | {e['core_hours_a_terabyte']:,.0f} "
                f"| {e['price_a_terabyte']:,.0f} | {hours} "
                f"| {e['cores_that_one_assembly_feeds']:,.0f} |"
            )
    note = (
        f"Rates of one core of {machine(report)}; the price assumes "
        f"{report['assumed_price_of_a_core_hour']:g} a core-hour; frames are put together at "
        f"{report['assembly_mb_s']:.0f} MB/s (measured); {report['date']}."
    )
    return "\n".join([*lines, "", note])


def costs() -> str:
    reports = json.loads((ROOT / "results" / "architectures.json").read_text())
    lines = ["| model | float32, bits per byte | a8 | a16 |", "| --- | ---: | ---: | ---: |"]
    for name, report in reports.items():
        (entry,) = report["results"]
        bits, cost = entry["bits_per_byte"]["float32"], entry["cost_percent"]
        lines.append(f"| {name} | {bits:.3f} | {cost['a8']:+.3f}% | {cost['a16']:+.3f}% |")
    last = next(reversed(reports.values()))
    note = f"{last['results'][0]['text']}, windows of {last['window']} tokens; {machine(last)}"
    return "\n".join([*lines, "", f"{note}, {last['date']}."])


def portability() -> str:
    report = json.loads((ROOT / "results" / "portability.json").read_text())
    lines = [
        "| where | machine | torch | transformers | numba | coder | archives |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, way in report["ways"].items():
        if "failed" in way:
            lines.append(f"| {name} | {' |' * 5} failed: {way['failed']} |")
            continue
        versions = way["versions"]
        cells = [name, f"{way['machine']}, {way['capability']}"]
        cells += [versions[key] for key in ("torch", "transformers", "numba", "constriction")]
        outcomes = list(way["archives"].values())
        others = sorted({outcome for outcome in outcomes if outcome != "same"})
        cells.append("; ".join([f"{outcomes.count('same')} of {len(outcomes)} the same", *others]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Archives: {', '.join(report['archives'])}; {report['date']}."])


RESEARCH = (
    research.models,
    research.training,
    research.tokenizers,
    research.shrink,
    research.settings,
    research.unseen,
    research.domain,
)
TABLES = [
    ("README.md", "bench", bench),
    ("README.md", "comparison", research.comparison),
    ("README.md", "speed", speed),
    ("README.md", "portability", portability),
    ("docs/scaling.md", "scaling", scaling),
    ("docs/architectures.md", "costs", costs),
    *(("docs/research.md", make.__name__, make) for make in RESEARCH),
    ("docs/models.md", "comparison", research.comparison),
    ("docs/models.md", "recent", research.recent),
    ("docs/packed.md", "pack", research.pack),
]


def main() -> int:
    stale = 0
    for name, mark, make in TABLES:
        path = ROOT / name
        text = path.read_text()
        start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        before, rest = text.split(start)
        _, after = rest.split(end)
        fresh = f"{before}{start}\n{make()}\n\n{end}{after}"
        if "--check" in sys.argv:
            stale += fresh != text
        else:
            path.write_text(fresh)
    return stale


if __name__ == "__main__":
    sys.exit(main())
