"""Processes that are killed, and processes that work on the same file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import run

import llmzip

# Loads llmzip once, then forks: each child compresses as the command line does, and is killed
# at a moment of its life. Prints what was found after each death.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from llmzip.cli import main
import llmzip.io.file, zstandard

folder, count = Path(sys.argv[1]), int(sys.argv[2])
source, target = folder / "text", folder / "text.llmz"
content = source.read_bytes()
chance = random.Random(1)

def start(*more):
    child = os.fork()
    if not child:
        os._exit(main(["compress", "-f", *more, str(source)]))
    return child

begin = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]) == 0
lifetime = time.monotonic() - begin
new = target.read_bytes()
for i in range(count):
    source.write_bytes(content)
    target.write_bytes(b"old")
    child = start(*(["--rm"] if i % 2 else []))
    time.sleep(chance.uniform(0, 1.3 * lifetime))
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    there = target.read_bytes()
    state = "old" if there == b"old" else "new" if there == new else "neither"
    if not (source.read_bytes() == content if source.exists() else i % 2 and state == "new"):
        state = "source lost"
    rest = [p.name for p in folder.iterdir() if p not in (source, target)]
    for name in rest:
        (folder / name).unlink()
    print(json.dumps({"killed": killed, "state": state, "rest": rest}))
"""


def test_killed_at_50_moments_the_old_state_stays_or_the_new_is_complete(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"again and again, " * 20_000)
    command = [sys.executable, "-c", KILLER, str(tmp_path), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) == 50
    assert {death["state"] for death in deaths} <= {"old", "new"}
    # it was killed at work, too, and not always before or after
    assert sum(death["killed"] for death in deaths) >= 10
    assert {death["state"] for death in deaths} == {"old", "new"}
    for death in deaths:  # beside a hidden temporary file, as no one is left to remove it
        assert len(death["rest"]) <= 1
        assert all(name.startswith(".text.llmz.") for name in death["rest"])


def test_two_processes_at_the_same_file_do_no_harm(tmp_path: Path) -> None:
    content = b"again and again, " * 20_000
    source, target = tmp_path / "text", tmp_path / "text.llmz"
    source.write_bytes(content)
    command = [sys.executable, "-m", "llmzip.cli", "compress"]
    for force in ([], ["-f"]):
        target.unlink(missing_ok=True)
        both = [
            subprocess.Popen([*command, *force, str(source)], stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        messages = [process.communicate(timeout=100)[1].decode() for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes == ([0, 0] if force else [0, 1])
        assert force or any("exists already" in message for message in messages)
        assert llmzip.decompress(target.read_bytes()) == content
        assert sorted(tmp_path.iterdir()) == [source, target]
    assert run("decompress", "-c", target).stdout == content
