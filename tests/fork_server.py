"""`llmzip …` in processes that are forked from one that has imported and checked everything.

A process of its own, with its own memory, environment, folder, streams and exit, but without the
seconds that imports, the self-test and the loading of compiled code take. The server makes sure
that it has a single thread, as others would be lost in a fork. What a fork cannot show (workers,
signals, limits, other settings of libraries) runs as `python -m llmzip`, as do all tests with
shells.

A request is a datagram: arguments, folder, environment and umask as JSON, with the descriptors of
stdin, stdout and stderr. The answers are the child's number and its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

# variables that llmzip and Python look up whenever they need them. Libraries read others when they
# are imported: if one of these differs from the server's, the process is not forked
_FREE = ("LLMZIP_", "PYTEST_", "XDG_", "HF_", "HOME", "COLUMNS", "NO_COLOR", "TMPDIR")
_LATER = ("huggingface_hub", "transformers")  # not imported by the server: they read HF_…
_LIMIT = 1 << 17  # bytes of a request
_READY = b"ready"
_PATIENCE = 60  # seconds that threads have to end


def _fixed(environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_FREE)}


class ForkServer:
    """The tests' side."""

    def __init__(self, warm_up: list[str], data: bytes) -> None:
        """First, the server itself runs `llmzip` with the arguments `warm_up` and the input `data`,
        so that forks find compiled code loaded."""
        self._environment = _fixed(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *warm_up],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        assert self._process.stdin is not None
        with self._process.stdin as sink:
            sink.write(data)
        assert self._socket.recv(64) == _READY, "the server did not start"

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()

    def accepts(self, arguments: list[str], environment: dict[str, str]) -> bool:
        """Whether a fork does what a new process would."""
        return "--workers" not in arguments and _fixed(environment) == self._environment

    def run(
        self,
        arguments: list[str],
        environment: dict[str, str],
        folder: str,
        data: bytes | None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """As `subprocess.run` with captured output; the input `data` comes through a pipe."""
        os.umask(umask := os.umask(0))
        request = json.dumps([arguments, folder, environment, umask]).encode()
        output, errors = os.pipe(), os.pipe()
        source = os.pipe() if data is not None else (os.open(os.devnull, os.O_RDONLY), None)
        theirs = [source[0], output[1], errors[1]]
        try:
            socket.send_fds(self._socket, [request], theirs)
        except OSError as error:
            raise RuntimeError(f"the server ended with {self._process.wait()}") from error
        for descriptor in theirs:
            os.close(descriptor)
        found: dict[int, bytes] = {}

        def collect(descriptor: int) -> None:
            with open(descriptor, "rb") as pipe:
                found[descriptor] = pipe.read()

        def feed(descriptor: int, content: bytes) -> None:
            with contextlib.suppress(BrokenPipeError), open(descriptor, "wb", 0) as pipe:
                left = memoryview(content)
                while left:
                    left = left[pipe.write(left) :]

        threads = [threading.Thread(target=collect, args=(pipe[0],)) for pipe in (output, errors)]
        if source[1] is not None:
            threads.append(threading.Thread(target=feed, args=(source[1], data)))
        for thread in threads:
            thread.start()
        child = int(self._socket.recv(64))
        timer = threading.Timer(timeout or 0, os.kill, (child, signal.SIGKILL))
        if timeout is not None:
            timer.start()
        code = int(self._socket.recv(64))
        timer.cancel()
        for thread in threads:
            thread.join()
        if timeout is not None and code == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, code, found[output[0]], found[errors[0]])


def _prepare(arguments: list[str]) -> None:
    """Run the command line, then forget its model."""
    from llmzip.archive.codecs import codec_cache
    from llmzip.cli import main

    assert main(arguments) == 0
    sys.stdout.flush()
    codec_cache.clear()
    assert not sys.modules.keys() & set(_LATER)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # or else collections in the children would copy all of the memory


def _wait_for_threads() -> None:
    """Until no thread is left but this one: one that was joined may still be about to end."""
    until = time.monotonic() + _PATIENCE
    while (names := os.listdir("/proc/self/task"))[1:]:
        assert time.monotonic() < until, f"{len(names)} threads: {threading.enumerate()}"
        time.sleep(0.01)


def _serve(connection: socket.socket) -> None:
    """Answer requests; returns in each child, with the command line to run in sys.argv."""
    connection.send(_READY)
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, 3)
        if not request:
            os._exit(0)
        _wait_for_threads()
        child = os.fork()
        if not child:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(child).encode())
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    connection.close()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    arguments, folder, environment, umask = json.loads(request)
    os.chdir(folder)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["llmzip", *arguments]


def _run() -> int:
    """The command line, in a child: its exit code, after all that Python does at an exit but for
    freeing the server's memory, which takes half a second."""
    from llmzip.cli import main

    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    return code


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)
    code = 1
    try:
        _prepare(sys.argv[2:])
        _serve(socket.socket(fileno=int(sys.argv[1])))
        code = _run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
