"""Every codec that is installed restores; failures are shown, and nothing is guessed."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from conftest import PROSE

import llmzip
from llmzip.bench import codecs, energy, provenance, report

ENTRY = {"file": "f", "category": "c", "sha256": "", "bytes": 1_000_000, "restored": True}


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_each_codec_restores_in_another_process(codec: str) -> None:
    if codec not in codecs.installed():
        pytest.skip(f"{codec} is not installed")
    done = codecs.round_trip(codec, PROSE.encode())
    assert "error" not in done
    assert len(done["encode_seconds_all"]) == 1
    assert done["decoded_sha256"] == hashlib.sha256(PROSE.encode()).hexdigest()
    assert codec.startswith("zpaq") or done["compressed_bytes"] < len(PROSE)


def test_a_codec_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not an archive")
    request = {"codec": "xz -9e", "direction": "decode", "source": str(tmp_path / "text")}
    done = codecs.run({**request, "target": str(tmp_path / "x"), "repeat": 1, "options": {}})
    assert "LZMAError" in done["error"]


def test_codecs_do_not_import_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert "error" not in codecs.round_trip("xz -9e", PROSE.encode())
    assert not (tmp_path / "ran").exists()


def test_the_model_counts_once_and_failures_stay() -> None:
    good = {"compressed_bytes": 250_000, "bits_per_byte": 2.0, "model_bytes": 500_000,
            "encode_seconds": 2.0, "decode_seconds": 4.0}  # fmt: skip
    results = [
        {**ENTRY, "codec": "llmzip m", **good},
        {**ENTRY, "codec": "llmzip m", **good, "file": "g"},
        {**ENTRY, "codec": "xz", "error": "no memory", "restored": False},
    ]
    (row,) = report.summary({"results": results})
    assert row["bits_per_byte_with_model"] == pytest.approx(8 * 1_000_000 / 2_000_000)
    assert (row["encode_mb_s"], row["decode_mb_s"]) == (0.5, 0.25)
    assert row["encode_j_mb"] is None
    assert "failed" in report.table({"results": results})


def test_a_report_names_the_compilers_of_what_it_measured() -> None:
    assert {"numba", "llvmlite"} <= set(provenance(llmzip.Options())["versions"])


def test_energy_by_the_counters_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    meter = energy.Meter("cpu")
    meter.start()
    assert meter.joules() is None  # no counter, no figure
    for package, part in (("0", "intel-rapl:0"), ("1", "intel-rapl:1"), ("x", "intel-rapl:0:0")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "energy_uj").write_text("9000000\n" if package != "x" else "1")
        (tmp_path / part / "max_energy_range_uj").write_text("10000000000\n")
    meter = energy.Meter("cpu")
    meter.start()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("12000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000")  # went round
    assert meter.joules() == pytest.approx(3 + 9992)
    monkeypatch.setattr(energy, "_MOST_WATTS", 1e18)
    assert meter.joules() is None  # it may have gone round twice
    meter = energy.Meter("cuda")
    meter.start()
    assert meter.joules() is None  # no GPU here, or only a part would be counted
