"""An archive fetches a model only with consent; what `costs` tells is what coding takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import PROSE, TINY

import llmzip
from llmzip import models
from llmzip.archive import codecs
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.streams import Cut


def test_an_archive_fetches_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return TINY

    monkeypatch.setattr("llmzip.models.store._fetch", fetch)
    archive = llmzip.compress(PROSE.encode(), model="owner/tiny")
    codecs.codec_cache.clear()
    asked.clear()
    with pytest.raises(llmzip.WrongModel, match="--allow-download"):
        llmzip.decompress(archive)
    assert asked == []
    assert llmzip.decompress(archive, allow_download=True) == PROSE.encode()
    assert asked == ["owner/tiny"]
    other = Path(shutil.copytree(TINY, tmp_path / "other"))
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace("{", '{"x": 1,', 1)
    )
    monkeypatch.setattr("llmzip.models.store._fetch", lambda name: other)
    with pytest.raises(llmzip.WrongModel, match="digest"):
        llmzip.decompress(archive, allow_download=True)
    # a folder is never loaded because an archive says so
    folder_archive = llmzip.compress(PROSE.encode(), model=str(TINY))
    with pytest.raises(llmzip.WrongModel):
        llmzip.decompress(folder_archive, allow_download=True)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b/c", ".a/b", "~/b", "a/..", "a", ""])
def test_no_hub_id(name: str) -> None:
    assert not models.is_hub_id(name)


@pytest.mark.parametrize("streams", [1, 3])
def test_costs_are_what_coding_takes(table_codec: FrameCodec, streams: int) -> None:
    content = (PROSE * 3).encode()
    frame = table_codec.encode(content, Cut(streams), lambda *_: None)
    pieces, bits = table_codec.costs(content, Cut(streams), lambda *_: None)
    assert b"".join(pieces) == content
    assert len(bits) == len(pieces)
    assert (bits >= 0).all()
    assert float(np.sum(bits)) == pytest.approx(8 * len(frame.payload), rel=0.01, abs=128)
