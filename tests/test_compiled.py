"""Compiled loops compute as interpreted Python does, wherever their code can be cached."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmzip.compiled as compiled_module
from llmzip import folders
from llmzip.coding import first_run
from llmzip.compiled import compiled, compiled_for_integers
from llmzip.inference import base


def _sum(values: np.ndarray) -> float:
    total = np.float32(0)
    for value in values:
        total += value * value
    return total


def _integer_sum(values: np.ndarray) -> float:  # cached by name, whatever the options
    total = np.float32(0)
    for value in values:
        total += value * value
    return total


def test_sums_are_neither_reordered_nor_contracted() -> None:
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    assert compiled(_sum)(values) == _sum(values)


def test_sums_of_integers_are_the_same_in_any_order() -> None:
    values = np.random.default_rng(1).integers(-127, 128, 1000).astype(np.float32)
    assert compiled_for_integers(_integer_sum)(values) == _sum(values)


# Where compiled code is cached

LOOPS = """
from llmzip.compiled import compiled

@compiled
def double(values):
    total = 0 * values[0]
    for value in values:
        total += value + value
    return total
"""
USE = """
import logging, sys
import numpy
from llmzip import compiled
logging.basicConfig(level=logging.INFO, format="%(message)s")
compiled._SILENCE = 0.0
import loops
known = compiled.is_cached(loops.double)
for kind in sys.argv[1:]:
    assert loops.double(numpy.arange(9, dtype=kind)) == 72, kind
print(sum(loops.double.stats.cache_hits.values()), int(known))
"""


class Site:
    """A folder of installed modules that cannot be written to, and a process that uses it."""

    def __init__(self, root: Path) -> None:
        self.folder, self.home = root / "site", root / "home"
        self.temporary = root / "temporary"
        for folder in (self.folder, self.home, self.temporary):
            folder.mkdir()
        (self.folder / "loops.py").write_text(LOOPS)
        self.folder.chmod(0o555)
        self.path = os.pathsep.join([str(self.folder), str(Path(__file__).parent.parent)])

    def run(self, *kinds: str, **environment: str) -> tuple[int, str]:
        """Loads from the cache, and what was said."""
        process = self.start(*kinds, **environment)
        out, said = process.communicate()
        assert process.returncode == 0, said.decode()
        hits, known = map(int, out.split())
        self.known = bool(known)  # whether the code was cached before
        return hits, said.decode()

    def start(self, *kinds: str, **environment: str) -> subprocess.Popen[bytes]:
        drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
        inherited = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": self.path,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            [*(drop if os.geteuid() == 0 else []), sys.executable, "-c", USE, *kinds],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**inherited, "HOME": str(self.home), "TMPDIR": str(self.temporary), **environment},
            cwd=self.temporary,
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    if not hasattr(os, "geteuid") or (os.geteuid() == 0 and not shutil.which("setpriv")):
        pytest.skip("no way to be forbidden to write")
    return Site(tmp_path)


def test_installed_read_only(site: Site, tmp_path: Path) -> None:
    hits, said = site.run("f4")
    assert (hits, said.count("\n")) == (0, 1)
    assert said.startswith("compiling for this processor")
    assert not site.known
    assert list(site.home.glob(".cache/llmzip/numba/**/*.nbc"))
    assert site.run("f4") == (1, "")
    assert site.known
    chosen = tmp_path / "chosen"
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        folder = chosen / name
        folder.mkdir(parents=True)
        assert site.run("f4", **{name: str(folder)})[0] == 0
        assert list(folder.rglob("*.nbc"))
        assert site.run("f4", **{name: str(folder)}) == (1, "")
    site.home.chmod(0o555)
    home = str(site.home / "none")
    assert site.run("f4", HOME=home)[0] == 0
    (own,) = site.temporary.iterdir()
    assert own.name == f"llmzip-{os.geteuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    assert site.run("f4", HOME=home) == (1, "")
    own.chmod(0o777)  # where others may have put code, none is run
    assert site.run("f4", HOME=home)[0] == 0


def test_a_user_whom_the_system_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLMZIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = folders.writable_cache("numba")
    assert found == tmp_path / f"llmzip-{os.geteuid()}" / "numba"
    assert [path.name for path in tmp_path.iterdir()] == [f"llmzip-{os.geteuid()}"]


def test_several_processes_begin_at_once(site: Site) -> None:
    kinds = ["i4", "i8", "f4", "f8"]
    processes = [site.start(*kinds[i:], *kinds[:i]) for i in range(4)]
    for process in processes:
        said = process.communicate()[1]
        assert process.returncode == 0, said.decode()
    site.run(*kinds)  # whatever was cached


def test_damaged_files(site: Site) -> None:
    site.run("f4")
    for suffix in ("nbi", "nbc"):
        for path in site.home.rglob(f"*.{suffix}"):
            path.write_bytes(path.read_bytes()[:-20] if suffix == "nbc" else b"")
        assert site.run("f4")[0] == 0
        assert site.known == (suffix == "nbc")  # an index that cannot be read tells nothing
        assert site.run("f4")[0] == 1  # it was made anew


def test_code_of_changed_sources_is_compiled_again(site: Site) -> None:
    site.run("f4")
    assert site.run("f4")[0] == 1
    site.folder.chmod(0o755)
    (site.folder / "another.py").write_text("")  # whose functions may be inlined
    site.folder.chmod(0o555)
    assert site.run("f4")[0] == 0
    assert not site.known
    assert site.run("f4")[0] == 1


INLINED = """
from llmzip.compiled import inlined

@inlined
def again(value):
    return FACTOR * value
"""
LOOPS_OF_SEVERAL = """
from llmzip.compiled import compiled
from llmzip.archive.added import again

@compiled
def double(values):
    total = 0 * values[0]
    for value in values:
        total += again(value)
    return total
"""


def test_code_of_another_folder_of_the_package_has_changed(site: Site) -> None:
    """What is inlined comes from where the function itself is not."""
    site.folder.chmod(0o755)
    package = Path(compiled_module.__file__).parent
    copy = site.folder / "llmzip"
    for source in package.rglob("*.py"):
        target = copy / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (site.folder / "loops.py").write_text(LOOPS_OF_SEVERAL)
    added = copy / "archive" / "added.py"
    added.write_text(INLINED.replace("FACTOR", "value // value * 2"))
    site.run("i4")
    assert site.run("i4")[0] == 1
    added.write_text(INLINED.replace("FACTOR", "3"))
    with pytest.raises(AssertionError, match="i4"):  # three times as much, not twice
        site.run("i4")


SAME = """
from conftest import PROSE, table_frames
from llmzip.coding import first_run
from llmzip.coding.progress import silent
from llmzip.coding.streams import Cut
from llmzip.mixing.questions import _answer, _list
from llmzip.mixing.walk import code_rows
first_run.compile_mixing()
codec = table_frames()
assert codec.decode(codec.encode(PROSE.encode(), Cut(), silent), silent) == PROSE.encode()
assert [len(function.signatures) for function in (code_rows, _list, _answer)] == [1, 1, 1]
"""


def test_the_second_process_compiles_all_that_coding_needs() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", SAME], env=environment, check=True)


def test_the_first_run_compiles_in_two_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If asked by the command line; no module comes from the current folder."""
    monkeypatch.setattr(compiled_module, "is_cached", lambda function: False)
    monkeypatch.setattr(base, "cores", lambda: 2)
    (tmp_path / "numba.py").write_text("import pathlib; pathlib.Path('ran').write_text('')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(first_run, "_WORK", "import numba; open('done', 'w').close()")
    with first_run.second_process():  # not enabled
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["numba.py"]
    monkeypatch.setattr(first_run, "enabled", True)
    with first_run.second_process():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done", "numba.py"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_process_never_stays(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Neither if it takes too long, nor after an error."""
    monkeypatch.setattr(first_run, "enabled", True)
    monkeypatch.setattr(compiled_module, "is_cached", lambda function: False)
    monkeypatch.setattr(base, "cores", lambda: 2)
    monkeypatch.setattr(first_run, "_WORK", "import time; time.sleep(600)")
    monkeypatch.setattr(first_run, "_PATIENCE", 600 if fails else 0.01)
    started: list[subprocess.Popen[bytes]] = []
    start = first_run._start

    def noted() -> subprocess.Popen[bytes] | None:
        process = start()
        assert process
        started.append(process)
        return process

    monkeypatch.setattr(first_run, "_start", noted)
    with contextlib.suppress(KeyError), first_run.second_process():
        if fails:
            raise KeyError
    assert started[0].returncode


def test_a_full_disk(site: Site) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        assert site.run("f4")[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
