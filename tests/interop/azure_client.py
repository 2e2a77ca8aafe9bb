"""Calls Azure's client library (az-dcap-client) as a program would, and prints what it got as JSON.

    python azure_client.py LIBRARY QE_ID CPUSVN PCESVN FMSPC CRL_URL [tdx]

Its AZDCAP_… variables say whom it asks.
"""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import POINTER, byref, c_char_p, c_uint8, c_uint16, c_uint32, c_void_p, string_at
from typing import Any


class PckCertId(ctypes.Structure):
    _pack_ = 1
    _fields_ = (
        ("qe_id", c_char_p),
        ("qe_id_size", c_uint32),
        ("cpu_svn", c_char_p),
        ("pce_svn", POINTER(c_uint16)),
        ("encrypted_ppid", c_char_p),
        ("encrypted_ppid_size", c_uint32),
        ("crypto_suite", c_uint8),
        ("pce_id", c_uint16),
    )


class QuoteConfig(ctypes.Structure):
    _pack_ = 1
    _fields_ = (
        ("version", c_uint32),
        ("cpu_svn", c_uint8 * 16),
        ("pce_svn", c_uint16),
        ("size", c_uint32),
        ("data", c_void_p),
    )


PARTS = ("crl_chain", "root_crl", "pck_crl", "tcb_info_chain", "tcb_info", "qe_identity_chain", "qe_identity")


class Collateral(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("tee_type", c_uint32),
        *(entry for name in PARTS for entry in ((name, c_void_p), (f"{name}_size", c_uint32))),
    )


class RevocationParameters(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("fmspc_size", c_uint32),
        ("fmspc", c_char_p),
        ("crl_url_count", c_uint32),
        ("crl_urls", POINTER(c_char_p)),
    )


class Crl(ctypes.Structure):
    _fields_ = (("size", c_uint32), ("data", c_void_p), ("chain_size", c_uint32), ("chain", c_void_p))


class RevocationInfo(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("tcb_info_size", c_uint32),
        ("tcb_info", c_void_p),
        ("tcb_info_chain_size", c_uint32),
        ("tcb_info_chain", c_void_p),
        ("crl_count", c_uint32),
        ("crls", POINTER(Crl)),
    )


def text(address: int | None, size: int) -> str:
    return string_at(address or 0, size).rstrip(b"\0").decode("latin-1")


def certificate(library: Any, qe_id: bytes, cpu_svn: bytes, pce_svn: int) -> dict[str, Any]:
    svn, found = c_uint16(pce_svn), POINTER(QuoteConfig)()
    wanted = PckCertId(qe_id, len(qe_id), cpu_svn, ctypes.pointer(svn), bytes(384), 384, 1, 0)
    code = library.sgx_ql_get_quote_config(byref(wanted), byref(found))
    if code:
        return {"code": code}
    config = found.contents
    return {
        "code": 0,
        "cpu_svn": bytes(config.cpu_svn).hex(),
        "pce_svn": config.pce_svn,
        "chain": text(config.data, config.size),
    }


def collateral(library: Any, call: str, fmspc: bytes) -> dict[str, Any]:
    found = POINTER(Collateral)()
    code = getattr(library, call)(fmspc, c_uint16(6), b"platform", byref(found))
    if code:
        return {"code": code}
    parts = {name: text(getattr(found.contents, name), getattr(found.contents, f"{name}_size")) for name in PARTS}
    return {"code": 0, "version": found.contents.version} | parts


def revocation(library: Any, fmspc: bytes, url: bytes) -> dict[str, Any]:
    found, urls = POINTER(RevocationInfo)(), (c_char_p * 1)(url)
    code = library.sgx_ql_get_revocation_info(byref(RevocationParameters(1, 6, fmspc, 1, urls)), byref(found))
    if code:
        return {"code": code}
    info, crl = found.contents, found.contents.crls[0]
    return {
        "code": 0,
        "tcb_info": text(info.tcb_info, info.tcb_info_size),
        "tcb_info_chain": text(info.tcb_info_chain, info.tcb_info_chain_size),
        "crl": string_at(crl.data or 0, crl.size).hex(),
        "crl_chain": text(crl.chain, crl.chain_size),
    }


def qve_identity(library: Any) -> dict[str, Any]:
    body, size, chain, chain_size = c_void_p(), c_uint32(), c_void_p(), c_uint32()
    code = library.sgx_ql_get_qve_identity(byref(body), byref(size), byref(chain), byref(chain_size))
    return {"code": code, "body": text(body.value, size.value), "chain": text(chain.value, chain_size.value)}


def main(arguments: list[str]) -> None:
    path, qe_id, cpu_svn, pce_svn, fmspc, url, *tdx = arguments
    library = ctypes.CDLL(path)
    family = bytes.fromhex(fmspc)
    answers = {
        "certificate": certificate(library, bytes.fromhex(qe_id), bytes.fromhex(cpu_svn), int(pce_svn)),
        "collateral": collateral(library, "sgx_ql_get_quote_verification_collateral", family),
        "revocation": revocation(library, family, url.encode()),
        "qve": qve_identity(library),
    }
    if tdx:
        answers["tdx"] = collateral(library, "tdx_ql_get_quote_verification_collateral", family)
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1:])
