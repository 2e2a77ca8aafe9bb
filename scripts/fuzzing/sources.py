"""What comes from collateral services and archives, and what clients ask of ours."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, quote

from confcom.collateral.archive import read_archive, write_archive
from confcom.collateral.documents import take_apart
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound, ConfcomError
from confcom.protocols.pcs import HttpResponse, describe
from confcom.protocols.pcs_service import (
    parse_pck_certificate,
    parse_pck_certificates,
    parse_request,
)
from fuzzing import seeds

_ANSWERS: tuple[Callable[[bytes], object], ...] = (
    lambda body: parse_pck_certificate(HttpResponse(200, (), body)),
    parse_pck_certificates,
)


def pcs_answer(data: bytes) -> None:
    """A body read as each JSON answer in turn; the last refusal is raised."""
    refusal: ConfcomError | None = None
    for parse in _ANSWERS:
        try:
            parse(data)
        except ConfcomError as error:
            refusal = error
        else:
            return
    if refusal:
        raise refusal


def pcs_answers() -> list[bytes]:
    """One of each."""
    chain = quote(seeds.chains()[0].decode())
    tcbm = "0b" * 16 + "0d00"
    bodies: tuple[object, ...] = (
        {"pckCert": chain, "sgx-Pck-Certificate-Issuer-Chain": chain, "sgx-Tcbm": tcbm, "cacheMaxAge": 86400},
        [{"tcbm": tcbm, "cert": chain}, {"tcbm": tcbm, "cert": "Not available"}],
        {
            "tcbEvaluationDataNumbers": {"tcbEvalNumbers": [{"tcbEvaluationDataNumber": 17, "tcbDate": "2026-01-01"}]},
            "signature": "00" * 64,
        },
        [{"fmspc": "00606a000000", "platform": "E3"}],
    )
    return [json.dumps(body).encode() for body in bodies]


def pcs_request(data: bytes) -> None:
    """A request target of HTTP; one that is not served is no error there."""
    path, _, query = data.decode("latin-1").partition("?")
    served = parse_request(path, dict(parse_qsl(query, keep_blank_values=True)))
    if served is None:
        raise CollateralNotFound("this path is not served")
    assert describe(served.request)


def pcs_requests() -> list[bytes]:
    """Targets of every kind of request."""
    pck = "pckcert?qeid=" + "ab" * 16 + "&cpusvn=" + "0b" * 16 + "&pcesvn=0d00&pceid=0000&encrypted_ppid=" + "cd" * 384
    names = (
        "tcb?fmspc=00606A000000&update=early", "tcb?fmspc=00606A000000&tcbEvaluationDataNumber=17", "qe/identity",
        "qve/identity?update=standard", "pckcrl?ca=platform&encoding=der", "rootcacrl", pck,
        "crl?uri=https%3A%2F%2Fcertificates.trustedservices.intel.com%2FIntelSGXRootCA.der",
        "tcbevaluationdatanumbers", "fmspcs?platform=all",
    )  # fmt: skip
    targets = [f"/{tee}/certification/{version}/{name}" for tee in ("sgx", "tdx") for version in ("v3", "v4")
               for name in names]  # fmt: skip
    return [target.encode() for target in targets]


@cache
def _store() -> CollateralStore:
    """A store with the simulated collateral in it; it goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="confcom-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = CollateralStore(folder / "store.sqlite", roots=seeds.world().trust_roots)
    atexit.register(store.close)
    machine = seeds.world().machine
    documents = take_apart(seeds.collateral(), fmspc=machine.fmspc, ca=machine.pck_ca.value, tee="sgx")
    store.add(documents, seen=seeds.NOW, source="fuzz")
    return store


@cache
def archives() -> list[bytes]:
    """An archive of that store."""
    file = io.BytesIO()
    write_archive(_store(), file)
    return [file.getvalue()]


def archive(data: bytes) -> None:
    """An archive read into the store that it came from: nothing in it can be new unless it is as genuine."""
    assert read_archive(_store(), io.BytesIO(data), now=seeds.NOW).new == 0
