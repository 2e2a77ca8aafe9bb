"""What a process costs before it does its work: imports, `--help`, `confcom verify`, the helper's first quote.

Processes of each kind take turns, in CPU time (user and system), and medians are compared. What an import costs is
counted above Python itself, what verifying costs above importing its two libraries, `cryptography` and `msgspec`.
All of it runs from bytecode, as pip and the container image leave it, and not from sources that are compiled at every
start: a first process of each kind writes it, and is not measured.

`tests/contract/test_process_start.py` counts the modules that each imports.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.helper_load import Stage, stop
from benchmarks.measure import Row, show, spread
from benchmarks.simulated import NOW, simulated_world
from benchmarks.verification import enclave_quote
from confcom.cli.root import COMMANDS
from confcom.collateral.bundle import save_bundle

ROUNDS = 9
LIMITS = {"import": 0.1, "verify": 0.1, "help": 0.15, "first quote": 1.0}
"""Seconds."""

_LIBRARIES = "import cryptography.x509, cryptography.hazmat.primitives.asymmetric.ec, msgspec, msgspec.json"
_TO_VERIFY = "accept_quote QuoteVerifier load_bundle safe_defaults MrSigner TrustRoots"
_NAMES = "import confcom\nfor name in {}: getattr(confcom, name)"


def rows(rounds: int = ROUNDS) -> Iterator[Row]:
    with _bytecode_written(), tempfile.TemporaryDirectory() as name:
        commands = {
            "python": ["-c", ""],
            "libraries": ["-c", _LIBRARIES],
            "import": ["-c", "import confcom"],
            "names to verify": ["-c", _NAMES.format(f"{_TO_VERIFY!r}.split()")],
            "all names": ["-c", _NAMES.format("confcom.__all__")],
            "verify": _verify(Path(name)),
        }
        taken = _in_turns(list(commands.values()), rounds)
        cost = dict(zip(commands, taken, strict=True))
        yield Row("Python itself", cost["python"], "s")
        yield Row("importing cryptography and msgspec", cost["libraries"] - cost["python"], "s")
        yield _limited("import confcom", cost["import"] - cost["python"], "import")
        names = cost["names to verify"] - cost["libraries"]
        yield _limited("the public names that verify, above its libraries", names, "import")
        note = "with protobuf, SQLite and the simulated platform"
        yield Row("all public names, above the libraries", cost["all names"] - cost["libraries"], "s", note=note)
        yield _limited("confcom verify, above its libraries", cost["verify"] - cost["libraries"], "verify")
        yield _help(rounds)
        yield _first_quote(rounds)


@contextmanager
def _bytecode_written() -> Iterator[None]:
    """Within the block, processes that are started write bytecode and find what earlier ones wrote."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _limited(name: str, seconds: float, limit: str, note: str = "") -> Row:
    return Row(name, seconds, "s", LIMITS[limit], "limit", note)


def _in_turns(commands: Sequence[Sequence[str]], rounds: int) -> list[float]:
    """CPU seconds of Python with these arguments, each the median of processes that take turns."""
    for command in commands:
        _cpu_seconds(command)
    taken = [[_cpu_seconds(command) for command in commands] for _ in range(rounds)]
    return [median(of_one) for of_one in zip(*taken, strict=True)]


def _cpu_seconds(arguments: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _verify(folder: Path) -> list[str]:
    """Arguments of a `confcom verify` that accepts."""
    world = simulated_world()
    quote, root, collateral = folder / "quote.bin", folder / "root.pem", folder / "collateral"
    quote.write_bytes(enclave_quote(world, 0))
    root.write_bytes(world.trust_roots.roots[0].pem)
    save_bundle(world.publish(), collateral)
    files = [str(quote), "--collateral", str(collateral), "--trust-root", str(root)]
    return ["-m", "confcom", "verify", *files, "--at", f"{NOW:%Y-%m-%dT%H:%M:%SZ}"]


def _help(rounds: int) -> Row:
    """The command with the most costly `--help`."""
    words = [[name] for name in COMMANDS]
    for name, (module, attribute, _) in COMMANDS.items():
        children = getattr(getattr(importlib.import_module(module), attribute), "commands", ())
        words += [[name, child] for child in children]
    taken = _in_turns([["-m", "confcom", *one, "--help"] for one in words], max(3, rounds // 3))
    worst = max(range(len(words)), key=taken.__getitem__)
    note = f"confcom {' '.join(words[worst])}; median of all {len(words)}: {median(taken):.3f} s"
    return _limited("--help of a command, the worst", taken[worst], "help", note)


def _first_quote(rounds: int) -> Row:
    """Seconds from starting the quote helper's process to its first answer; the clock on the wall."""
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name))
        asked = stage.requests()["quotes"]
        stop(stage.start())
        for _ in range(rounds):
            begin = time.perf_counter()
            helper = stage.start()
            answered = stage.is_answered(asked)
            seconds.append(time.perf_counter() - begin)
            stop(helper)
            if not answered:
                sys.exit("bench: the quote helper did not answer its first request")
    return _limited("quote helper, from its start to the first quote", median(seconds), "first quote", spread(seconds))


if __name__ == "__main__":
    show(rows())
