"""Stand-ins for Intel's DCAP libraries: built from `tests/native/dcap_stub.c`, and a simulated QE that answers them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from confcom.errors import ConfcomError, KeyNotInitialized, ReportRejected
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.interface import Platform

SOURCE = Path(__file__).parent / "native" / "dcap_stub.c"
COMPILER = shutil.which("cc")
PARTS = {
    "libsgx_pce_logic.so.1": ("-DPART_PCE",),
    "libsgx_qe3_logic.so": ("-DPART_QE3", "-Wl,-z,now"),
    "libsgx_dcap_ql.so.1": (
        "-DPART_QL", "-Wl,--no-as-needed", "-L.", "-l:libsgx_qe3_logic.so", "-l:libsgx_pce_logic.so.1",
        "-Wl,-rpath,$ORIGIN",
    ),
}  # fmt: skip


def build_libraries(folder: Path) -> Path:
    """Compile the three libraries into a folder."""
    assert COMPILER is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name, flags in PARTS.items():
        command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{name}"]
        subprocess.run([*command, "-o", name, str(SOURCE), *flags], cwd=folder, check=True)
    return folder


class Stub:
    """The folder in which a test says what the libraries do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def always(self, call: str, what: str) -> None:
        """Every such call from now on."""
        (self.folder / call).write_text(what)

    def once(self, call: str, what: str) -> None:
        """The next such call of whatever process."""
        (self.folder / f"{call}.once").write_text(what)

    def pending(self, call: str) -> bool:
        """Whether an instruction for once has not been followed yet."""
        return (self.folder / f"{call}.once").exists()

    def relent(self) -> None:
        """Work as usual again."""
        for path in self.folder.iterdir():
            if not path.is_socket():
                path.unlink()


@contextmanager
def software_qe(platform: Platform, stub: Stub) -> Iterator[None]:
    """Let the libraries of a stub give the target info and quotes of a (simulated) platform."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(stub.folder / "qe"))
    listener.listen(16)
    thread = threading.Thread(target=_serve, args=(listener, platform), daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
        listener.close()


def _serve(listener: socket.socket, platform: Platform) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        # A worker may be killed while it asks.
        with suppress(OSError), client, client.makefile("rb") as requests:
            try:
                answer = bytes(4) + _answer(platform, requests.read())
            except ConfcomError as error:
                answer = _NUMBERS.get(type(error), 0xE001).to_bytes(4, "little")
            client.sendall(answer)


_NUMBERS: dict[type[ConfcomError], int] = {KeyNotInitialized: 0xE00F, ReportRejected: 0xE015}


def _answer(platform: Platform, request: bytes) -> bytes:
    match request[:1]:
        case b"I":
            initialized = platform.init_quote()
            return bytes(initialized.target_info) + initialized.pub_key_id
        case b"S":
            return platform.quote_size().to_bytes(4, "little")
        case _:
            info = QeReportInfo.parse(request[433:]) if len(request) > 433 else None
            result = platform.quote(Report.parse(request[1:433]), qe_report_info=info)
            return result.quote + (b"" if result.qe_report_info is None else bytes(result.qe_report_info))
