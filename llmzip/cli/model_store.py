"""models: list, install, remove, clean."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator

_NAME_WIDTH = 14


def show(arguments: argparse.Namespace) -> None:
    """The command `models`. Raises LlmzipError."""
    from llmzip.cli import catalogue
    from llmzip.models import conversion_cache as cache

    embedded, cached = catalogue.embedded(), catalogue.cached()
    installed, installable = catalogue.installed(), catalogue.installable()
    kept = cache.size()
    if arguments.json:
        found = {
            "embedded": embedded,
            "installed": installed,
            "installable": installable,
            "cached": cached,
            "converted_bytes": kept,
        }
        print(json.dumps(found, indent=2))
        return
    print("embedded:")
    for model in embedded:
        measured = ", ".join(f"{text} {bits:.3f}" for text, bits in model["bits_per_byte"].items())
        print(
            f"  {model['name']:<8}{model['bytes'] / 1e6:6.2f} MB"
            f", {model['parameters']:,} parameters"
            f"{'; bits per byte: ' + measured if measured else ''}"
            f"{'; the default' if model['default'] else ''}"
        )
    if installed:
        print("installed:")
    for model in installed:
        print(
            f"  {model['name']:<{_NAME_WIDTH}}{model['bytes'] / 1e6:6.1f} MB, "
            f"of {model['source']}, {model['licence']}"
        )
    if installable:
        print("to be installed by llmzip models install NAME:")
    for model in installable:
        print(
            f"  {model['name']:<{_NAME_WIDTH}}{model['bytes'] / 1e6:6.1f} MB to fetch, "
            f"{model['model']}, {model['licence']}"
        )
    print("in the local cache of the hub:" if cached else "no hub models in the local cache")
    for model in cached:
        verdict = "may work exactly" if model["exact"] else model["obstacle"]
        print(f"  {model['name']}  {model['bytes'] / 1e6:.1f} MB, {verdict}")
    if kept:
        print(f"{kept / 1e6:.1f} MB of converted models are kept; llmzip models clean removes them")


def install(arguments: argparse.Namespace) -> None:
    """The command `models install`. Raises LlmzipError."""
    from llmzip.cli import install

    new = install.install(arguments.name, arguments.source, None if arguments.quiet else _bar)
    if not arguments.quiet:
        status = "installed; --model takes it by this name" if new else "installed already"
        print(f"{arguments.name}: {status}", file=sys.stderr)


def remove(arguments: argparse.Namespace) -> None:
    """The command `models remove`. Raises WrongModel."""
    from llmzip.cli import install

    install.remove(arguments.name)


def clean(arguments: argparse.Namespace) -> None:
    """The command `models clean`: empty the cache of converted models."""
    from llmzip.models import conversion_cache

    conversion_cache.clean()


@contextlib.contextmanager
def _bar(step: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of one step, on a terminal."""
    from tqdm import tqdm

    large = total > 10_000  # bytes, not pieces
    with tqdm(
        total=total,
        desc=step,
        unit="B" if large else "",
        unit_scale=large,
        leave=False,
        dynamic_ncols=True,
        disable=None if total > 1 else True,  # None: where there is no terminal
    ) as bar:
        yield lambda done: bar.update(min(done, total - bar.n)) and None
