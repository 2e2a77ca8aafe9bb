"""TCB infos, enclave identities and TCB evaluation data numbers of the simulated authority.

They are state that tests change; the signed JSON is made from it.

The JSON is compact, as Intel's; the signature is over the exact bytes of the inner object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from confcom.errors import ConfigError
from confcom.formats.attestation_key_id import INTEL_QE3_MR_SIGNER
from confcom.protocols.pcs import Tee
from confcom.simulator.keys import sign_raw
from confcom.simulator.machine import MachineTcb

ATTRIBUTES = bytes([0x11]) + bytes(15)
"""INIT and PROVISIONKEY must be set in a QE; everything else under the mask must not be."""
ATTRIBUTES_MASK = bytes.fromhex("fbffffffffffffff0000000000000000")

TDX_MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
"""Intel's modules: MRSIGNERSEAM and SEAMATTRIBUTES are zero."""

_SECOND = timedelta(seconds=1)


@dataclass(slots=True)
class PlatformTcbLevel:
    """One level of a TCB info: machines at least this good have this status. `tdx_components` are of TDX alone."""

    tcb: MachineTcb
    status: str
    date: datetime
    advisory_ids: tuple[str, ...] = ()
    tdx_components: tuple[int, ...] = (0,) * 16


@dataclass(slots=True)
class EnclaveTcbLevel:
    """One level of an enclave identity, or of a TDX module of major version 1 or later."""

    isv_svn: int
    status: str
    date: datetime
    advisory_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class _Document:
    """What every document has: window and TCB evaluation data number."""

    issue_date: datetime
    next_update: datetime
    tcb_evaluation_data_number: int = 17

    def expire(self, at: datetime) -> None:
        """End the window one second before `at`."""
        self.next_update = at - _SECOND


@dataclass(slots=True)
class SimulatedTcbInfo(_Document):
    """TCB info for one FMSPC, version 3 or, if set so, 2 (SGX alone). `modules` are levels of TDX modules by id."""

    tee: Tee = "sgx"
    fmspc: bytes = bytes(6)
    pce_id: int = 0
    version: int = 3
    levels: list[PlatformTcbLevel] = field(default_factory=list)
    modules: dict[str, list[EnclaveTcbLevel]] = field(default_factory=dict)

    def inner(self) -> bytes:
        """The inner object, the bytes that are signed."""
        if self.version not in ({3} if self.tee == "tdx" else {2, 3}):
            raise ConfigError(f"there is no TCB info version {self.version}", advice="Set version to 3 or 2.")
        return _compact(
            ({"id": self.tee.upper()} if self.version == 3 else {})
            | {
                "version": self.version,
                "issueDate": _date(self.issue_date),
                "nextUpdate": _date(self.next_update),
                "fmspc": self.fmspc.hex().upper(),
                "pceId": self.pce_id.to_bytes(2, "little").hex().upper(),
                "tcbType": 0,
                "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
            }
            | (self._tdx_modules() if self.tee == "tdx" else {})
            | {
                "tcbLevels": [
                    {"tcb": self._tcb(level)} | _verdict(level.date, level.status, level.advisory_ids)
                    for level in self.levels
                ],
            }
        )

    def signed(self, key: EllipticCurvePrivateKey) -> bytes:
        """The document as the authority serves it."""
        return _sign("tcbInfo", self.inner(), key)

    def _tcb(self, level: PlatformTcbLevel) -> dict[str, Any]:
        tcb = level.tcb
        if self.version == 2:
            names = (f"sgxtcbcomp{number:02}svn" for number in range(1, 17))
            return dict(zip(names, tcb.sgx_components, strict=True)) | {"pcesvn": tcb.pce_svn}
        tdx = {"tdxtcbcomponents": [{"svn": svn} for svn in level.tdx_components]} if self.tee == "tdx" else {}
        return {"sgxtcbcomponents": [{"svn": svn} for svn in tcb.sgx_components], "pcesvn": tcb.pce_svn} | tdx

    def _tdx_modules(self) -> dict[str, Any]:
        return {
            "tdxModule": TDX_MODULE,
            "tdxModuleIdentities": [
                {"id": name} | TDX_MODULE | {"tcbLevels": _enclave_levels(levels)}
                for name, levels in self.modules.items()
            ],
        }


@dataclass(slots=True)
class SimulatedQeIdentity(_Document):
    """Identity of the QE, the TD QE or the QvE (`id`), version 2."""

    id: str = "QE"
    misc_select: bytes = bytes(4)
    misc_select_mask: bytes = b"\xff" * 4
    attributes: bytes = ATTRIBUTES
    attributes_mask: bytes = ATTRIBUTES_MASK
    mr_signer: bytes = INTEL_QE3_MR_SIGNER
    isv_prod_id: int = 1
    levels: list[EnclaveTcbLevel] = field(default_factory=list)

    def inner(self) -> bytes:
        """The inner object, the bytes that are signed."""
        return _compact(
            {
                "id": self.id,
                "version": 2,
                "issueDate": _date(self.issue_date),
                "nextUpdate": _date(self.next_update),
                "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
                "miscselect": self.misc_select.hex().upper(),
                "miscselectMask": self.misc_select_mask.hex().upper(),
                "attributes": self.attributes.hex().upper(),
                "attributesMask": self.attributes_mask.hex().upper(),
                "mrsigner": self.mr_signer.hex().upper(),
                "isvprodid": self.isv_prod_id,
                "tcbLevels": _enclave_levels(self.levels),
            }
        )

    def signed(self, key: EllipticCurvePrivateKey) -> bytes:
        """The document as the authority serves it."""
        return _sign("enclaveIdentity", self.inner(), key)


@dataclass(slots=True)
class SimulatedEvaluationDataNumbers(_Document):
    """The one set that the authority has: its number, and when the TCB recovery behind it happened."""

    tee: Tee = "sgx"
    recovery_event: datetime = datetime(2025, 1, 1, tzinfo=UTC)

    def signed(self, key: EllipticCurvePrivateKey) -> bytes:
        """The document as the authority serves it."""
        date = _date(self.recovery_event)
        entry = {
            "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
            "tcbRecoveryEventDate": date,
            "tcbDate": date,
        }
        inner = {
            "id": self.tee.upper(),
            "version": 1,
            "issueDate": _date(self.issue_date),
            "nextUpdate": _date(self.next_update),
            "tcbEvalNumbers": [entry],
        }
        return _sign("tcbEvaluationDataNumbers", _compact(inner), key)


def _enclave_levels(levels: list[EnclaveTcbLevel]) -> list[dict[str, Any]]:
    return [
        {"tcb": {"isvsvn": level.isv_svn}} | _verdict(level.date, level.status, level.advisory_ids) for level in levels
    ]


def _verdict(date: datetime, status: str, advisory_ids: tuple[str, ...]) -> dict[str, Any]:
    advisories = {"advisoryIDs": list(advisory_ids)} if advisory_ids else {}
    return {"tcbDate": _date(date), "tcbStatus": str(status)} | advisories


def _sign(name: str, inner: bytes, key: EllipticCurvePrivateKey) -> bytes:
    return b'{"%s":%s,"signature":"%s"}' % (name.encode(), inner, sign_raw(key, inner).hex().encode())


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
