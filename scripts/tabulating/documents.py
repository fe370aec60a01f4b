"""Tables of README.md and of the documents that describe what is."""

from __future__ import annotations

from typing import Any

from measuring.published import PUBLISHED, net

from llmzip.bench import summary
from llmzip.bench.report import DIRECTIONS, markdown_table, pair
from tabulating import Report, filled, kept, machine, noted, ordered, read, shown

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


@shown("docs/exactness.md")
def quantisation() -> str:
    reports = read("exactness.json")
    forms = ("a8 direct", "a8", "a16 direct", "a16")
    names = {"small": "`small`, in int8", "base": "`base`, in int8"}
    lines = []
    for name, report in reports.items():
        results, speed = report["results"], report["tokens_per_cpu_second"]
        if ", parts" in name:
            continue
        # transforms belong to int8 weights, if these were made with them
        cells = [names.get(name, name)]
        for form in forms:
            cells.append(f"{_excess(results, form):.2f}% ({_divergence(results, form):.2f})"
                         if form in speed else "")  # fmt: skip
        lines.append([*cells, f"{speed['a8']:,.0f} / {speed['a16']:,.0f}"])
    heads = "checkpoint | a8, direct | a8 | a16, direct | a16 | tokens/s, a8 / a16"
    sources = {f"{machine(r)}, {r['date']}, commit {r['commit'][:7]}" for r in reports.values()}
    return "\n".join([*markdown_table(heads, lines), "", "; ".join(sorted(sources)) + "."])


@shown("docs/exactness.md")
def parts() -> str:
    report = read("exactness.json")["SmolLM2-135M-Instruct, parts"]
    names = {
        "qkv": "inputs of the query, key and value projections",
        "down": "inputs of the MLP's down projection",
        "head": "inputs of the head",
        "gate_up": "inputs of the MLP's gate and up projections",
        "keys": "queries, keys and values",
        "output": "inputs of the attention's output projection",
    }
    everywhere = _divergence(report["results"], "a16 direct")
    lines = [
        [label, f"{_divergence(report['results'], f'only {part} a8 direct') - everywhere:.2f}%"]
        for part, label in names.items()
    ]
    note = f"In 15 bits everywhere: {everywhere:.2f}%."
    return noted(markdown_table("part in 8 bits | divergence beyond that", lines), report, note)


def _excess(results: list[Report], form: str) -> float:
    """Bits of all texts beyond those in float32, in percent."""
    spent = {f: sum(r["bytes"] * r["bits_per_byte"][f] for r in results) for f in (form, "float32")}
    return float(100 * (spent[form] / spent["float32"] - 1))


def _divergence(results: list[Report], form: str) -> float:
    """Divergence over all texts, in percent of the bits in float32."""
    bits = [r["bytes"] * r["bits_per_byte"]["float32"] for r in results]
    shares = (r["kl_percent"][form] for r in results)
    return float(sum(b * share for b, share in zip(bits, shares, strict=True)) / sum(bits))
