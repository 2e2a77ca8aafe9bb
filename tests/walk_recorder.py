"""Runs `confcom` and records which of its modules execute, from one word on standard input to the next.

    python tests/walk_recorder.py RECORD COMMAND…

"start" begins and "stop" ends the recording, and each is answered by a line in RECORD; a command that ends by itself
needs no "stop". What runs while a module is imported does not count, and neither do generated modules.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

GENERATED = "_pb/"


class Recorder:
    """Modules in the order of their first call, and how often a thread calls into another module than just before."""

    def __init__(self, source: Path, record: Path) -> None:
        self.source = f"{source}/"
        self.record = record
        self.active = False
        self.rooms: dict[str, None] = {}
        self.changes = 0
        self._last: dict[int, str] = {}
        self._names: dict[Any, str] = {}
        self._importing: dict[int, int] = {}

    def listen(self) -> None:
        for line in sys.stdin:
            self.active = line.strip() == "start"
            self.answer("started" if self.active else self.found())

    def found(self) -> str:
        return json.dumps({"rooms": list(self.rooms), "changes": self.changes})

    def answer(self, line: str) -> None:
        fresh = self.record.with_suffix(".new")
        fresh.write_text(line)
        fresh.rename(self.record)

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        code, thread = frame.f_code, threading.get_ident()
        if code.co_name == "_find_and_load" and code.co_filename.startswith("<frozen importlib"):
            depth = self._importing.get(thread, 0)
            self._importing[thread] = depth + (event == "call") - (event == "return")
        if event != "call" or not self.active or self._importing.get(thread):
            return
        name = self._names.get(code)
        if name is None:
            path = code.co_filename
            name = self._names[code] = path.removeprefix(self.source) if path.startswith(self.source) else ""
        if name and GENERATED not in name:
            self.rooms.setdefault(name)
            self.changes += self._last.setdefault(thread, name) != name
            self._last[thread] = name


def main(arguments: list[str]) -> None:
    record, *command = arguments
    import confcom
    from confcom.cli import main as confcom_main

    assert confcom.__file__
    recorder = Recorder(Path(confcom.__file__).parent, Path(record))
    threading.setprofile(recorder.profile)
    if os.environ.get("WALK_FROM_START"):
        recorder.active = True
    threading.Thread(target=recorder.listen, daemon=True).start()
    sys.argv = ["confcom", *command]
    sys.setprofile(recorder.profile)
    try:
        confcom_main()
    finally:
        sys.setprofile(None)
        recorder.active = False
        recorder.answer(recorder.found())


if __name__ == "__main__":
    main(sys.argv[1:])
