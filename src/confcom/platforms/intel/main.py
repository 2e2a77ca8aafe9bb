"""The process that loads Intel's libraries: `python -m confcom.platforms.intel.main [FOLDER] FD`.

`FOLDER` is where the libraries are, by default where the dynamic linker finds them. `FD` is this process's end of a
SOCK_SEQPACKET pair (see `process`). It answers until the other end is closed, and ends then even in the middle of a
call.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from confcom.errors import ConfcomError, FormatError
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.intel import process as m
from confcom.platforms.intel.dcap import IntelDcapPlatform
from confcom.platforms.interface import Platform

_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Serve one parent."""
    # The parent decides when this ends: a signal to its whole group must not take quotes away while it drains.
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    *folder, fd = sys.argv[1:]
    with socket.socket(fileno=int(fd)) as channel, suppress(BrokenPipeError, ConnectionResetError):
        threading.Thread(target=_end_with_parent, args=(channel.fileno(),), daemon=True).start()
        try:
            platform = IntelDcapPlatform.load(Path(folder[0]) if folder else None)
        except ConfcomError as error:
            channel.send(m.pack(m.Failed.of(error)))
            return
        channel.send(m.pack(m.Ready()))
        serve(channel, platform)


def serve(channel: socket.socket, platform: Platform) -> None:
    """Answer requests with a platform until the other end is closed."""
    while data := channel.recv(m.MAX_MESSAGE):
        channel.send(m.pack(answer(platform, data)))


def answer(platform: Platform, data: bytes) -> m.WorkerAnswer:
    """A platform's answer to one request; every `ConfcomError` becomes `Failed`."""
    try:
        return _perform(platform, m.parse_request(data))
    except ConfcomError as error:
        return m.Failed.of(error)


def _perform(platform: Platform, request: m.WorkerRequest) -> m.WorkerAnswer:
    match request:
        case m.MakeQuote(report, key_id, qe_report_info):
            info = None if qe_report_info is None else QeReportInfo.parse(qe_report_info)
            result = platform.quote(Report.parse(report), _key_id(key_id), info)
            filled = None if result.qe_report_info is None else bytes(result.qe_report_info)
            return m.Quoted(result.quote, filled)
        case m.ListKeyIds():
            return m.KeyIds(tuple(bytes(key_id) for key_id in platform.key_ids()))
        case m.Initialize(key_id):
            initialized = platform.init_quote(_key_id(key_id))
            return m.Initialized(bytes(initialized.target_info), initialized.pub_key_id)
        case m.AskSize(key_id):
            return m.Size(platform.quote_size(_key_id(key_id)))
    raise FormatError("is no request", structure="WorkerRequest", field="")  # pragma: no cover - the match is complete


def _key_id(key_id: bytes | None) -> AttestationKeyId | None:
    return None if key_id is None else AttestationKeyId.parse(key_id)


def _end_with_parent(fd: int) -> None:
    watch = select.poll()
    watch.register(fd, 0)  # hang-up is always reported
    watch.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
