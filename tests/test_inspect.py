"""inspect: bits of tokens as a page, in colours, as tables and JSON; hostile text does nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run

from llmzip.cli import inspection

MODEL = ("--model", TINY)
HOSTILE = "\x1b[31mred</b><script>alert(1)</script>\x00\x7f\u202eback\n\tTäb 道\n\nlast"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE + HOSTILE)
    return path


def test_json_tells_what_an_archive_takes(text: Path) -> None:
    assert run(text, *MODEL).returncode == 0
    packed = text.with_name("prose.txt.llmz")
    for file in (text, packed):
        report = json.loads(run("inspect", "--json", file, *MODEL).stdout)
        assert report["bytes"] == len((PROSE + HOSTILE).encode())
        assert sum(bits for _, bits in report["tokens"]) == pytest.approx(report["bits"])
        assert report["bits"] / 8 == pytest.approx(packed.stat().st_size, abs=40)
        assert "single man" in "".join(piece for piece, _ in report["tokens"])
    report = json.loads(run("inspect", "--json", packed, "--limit", "100", *MODEL).stdout)
    assert 100 <= report["bytes"] < 130


def test_the_page_is_whole_and_harmless(text: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("inspect", text, "--html", page, *MODEL).returncode == 0
    content = page.read_text()
    assert "<script" not in content
    assert "&lt;script&gt;" in re.sub(r"</?b[^>]*>", "", content)
    assert not re.search(r"https?://|src=|@import|url\(", content)
    assert "\x1b" not in content
    assert content.count("<div id=l") == len((PROSE + HOSTILE).split("\n"))
    assert run("inspect", text, "--html", page, *MODEL).returncode == 1  # exists already
    assert run("inspect", text, "--html", "-", *MODEL).stdout.decode() == content


def test_colours_and_their_absence(text: Path) -> None:
    painted = run("inspect", text, "--color", "always", *MODEL).stdout.decode()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", painted)
    assert "\x1b" not in plain
    assert plain.startswith(PROSE)
    assert "␛[31mred" in plain
    table = run("inspect", text, *MODEL).stdout.decode()
    assert "\x1b" not in table
    assert "The lines that cost most" in table
    assert run("inspect", text, "--json", "--html", "x", *MODEL).returncode == 2


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert inspection._coloured("auto")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not inspection._coloured("auto")
    assert inspection._coloured("always")


def test_characters_that_tokens_cut_are_joined() -> None:
    pieces = [("é".encode()[:1], 1.0), ("é".encode()[1:], 2.0), (b"\xff", 4.0), (b"a", 1.0)]
    assert list(inspection.readable(pieces)) == [("é", 3.0), ("\\xff", 4.0), ("a", 1.0)]


def test_bits_count_in_the_line_where_a_token_begins() -> None:
    lines = inspection.lines_of([("a", 1.0), ("b\nc", 2.0), ("\n", 4.0), ("\n\n", 8.0), ("d", 1.0)])
    assert [(line.number, line.bits, line.size) for line in lines] == [
        (1, 3.0, 3), (2, 4.0, 2), (3, 8.0, 1), (4, 0, 1), (5, 1.0, 1)]  # fmt: skip


def test_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert run("inspect", tmp_path / "empty", *MODEL).returncode == 0


def test_a_browser_shows_the_page(text: Path, tmp_path: Path) -> None:
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium")
    page = tmp_path / "page.html"
    run("inspect", text, "--html", page, *MODEL)
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True,
        timeout=120,
    )
    dom = done.stdout.decode()
    if not dom:
        pytest.skip("Chromium does not start here")
    assert dom.count('<div id="l') == page.read_text().count("<div id=l")
    assert 'title="' in dom
    assert "<script" not in dom
