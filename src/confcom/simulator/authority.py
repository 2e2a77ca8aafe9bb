"""The simulated authority: plays Intel for simulated machines. Certifies them, revokes them, judges their TCB.

All of it is state that a caller may change at any time (windows, levels, statuses, revocations); documents,
certificates and CRLs are made from the state when they are asked for, signed properly. Equal seeds, times and changes
give equal bytes. Verifiers trust its root only if it is given to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from confcom.appraisal.collateral import Collateral
from confcom.errors import CollateralNotFound, ConfigError
from confcom.formats.attestation_key_id import INTEL_TD_QE_MR_SIGNER
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckConfiguration, PckExtension, PckTcb, SgxType
from confcom.formats.tcb_info import TcbStatus
from confcom.protocols.pcs import Tee
from confcom.simulator.documents import (
    DISTRIBUTION,
    EnclaveTcbLevel,
    PlatformTcbLevel,
    RevocationList,
    SimulatedCa,
    SimulatedCertificate,
    SimulatedEvaluationDataNumbers,
    SimulatedQeIdentity,
    SimulatedTcbInfo,
    der,
    pem,
)
from confcom.simulator.enclaves import QE3_ISV_SVN, ProvisioningCertificationEnclave
from confcom.simulator.machine import (
    DEFAULT_TCB,
    FMSPC,
    YEARS,
    MachineTcb,
    PckCa,
    SimulatedMachine,
    check_seed,
    derive_p256_key,
)

SOURCE = "simulated authority"
QVE_ATTRIBUTES = b"\x01" + bytes(15)
"""INIT alone: the QvE, unlike a QE, has no use for provisioning keys."""
TDX_COMPONENTS = (5, 0, 3, *[0] * 13)
"""TDX module, its major version, late microcode update: where Intel's platforms with TDX 1.0 stand."""
_DAY = timedelta(days=1)
_YEAR = timedelta(days=365)
_TEES: tuple[Tee, ...] = ("sgx", "tdx")


def _whole_seconds(now: datetime) -> datetime:
    if now.year not in YEARS:
        message = f"a simulated world can be in the years {YEARS[0]} to {YEARS[-1]}, not in {now.year}"
        raise ConfigError(message, advice="Give another time.")
    return now.replace(microsecond=0)


class SimulatedAuthority:
    """Root, PCK CAs and TCB signing of one seed; `now` is the time at which it issues and revokes.

    Documents and CRLs are issued a day before `now`, so that verifiers whose clock is behind accept them, and are
    valid for 30 days from then (root CRL: a year), as Intel's.
    """

    def __init__(self, seed: bytes, now: datetime) -> None:
        check_seed(seed)
        self.now = _whole_seconds(now)
        self._created = self.now  # certificates begin here, whenever they are asked for: equal in every process
        self._seed = seed
        self.root = self._ca("Root CA", "rootcacrl", path_length=1, years=30)
        self.pck_cas = {
            PckCa.PLATFORM: self._ca("PCK Platform CA", "rootcacrl", path_length=0, years=15),
            PckCa.PROCESSOR: self._ca("PCK Processor CA", "rootcacrl", path_length=0, years=15),
        }
        self._tcb_signing_key = derive_p256_key(seed, "authority: TCB Signing")
        self.tcb_signing = self._subject("TCB Signing", self._tcb_signing_key.public_key(), "rootcacrl", years=7)
        self._tcb_infos: dict[tuple[Tee, bytes], SimulatedTcbInfo] = {}
        self.qe_identity = self._first_identity("QE", QE3_ISV_SVN)
        self.td_qe_identity = self._first_identity("TD_QE", 4)
        self.td_qe_identity.mr_signer, self.td_qe_identity.isv_prod_id = INTEL_TD_QE_MR_SIGNER, 2
        self.qve_identity = self._first_identity("QVE", 3)
        self.qve_identity.attributes, self.qve_identity.isv_prod_id = QVE_ATTRIBUTES, 2
        self._pck_certificates: dict[tuple[bytes, MachineTcb, PckCa], SimulatedCertificate] = {}
        self.add_tcb_info(FMSPC)
        self.renew(self.now)

    def root_certificate(self) -> x509.Certificate:
        """The self-signed root: what a verifier must be given to accept this world."""
        return self.root.issue(self.root.own)

    def pck_chain(self, machine: SimulatedMachine) -> bytes:
        """PEM of the machine's PCK certificate at its present TCB, its CA and the root."""
        ca = self.pck_cas[machine.pck_ca]
        leaf = ca.issue(self.pck_certificate(machine))
        return pem(leaf, self.root.issue(ca.own), self.root_certificate())

    def collateral_for(self, machine: SimulatedMachine) -> Collateral:
        """Everything a verifier needs for the machine's quotes, as it stands now."""
        return self.collateral(machine.fmspc, machine.pck_ca)

    def collateral(self, fmspc: bytes, ca: PckCa, tee: Tee = "sgx") -> Collateral:
        """Collateral for one FMSPC and CA; `CollateralNotFound` for a FMSPC that this authority does not know."""
        signing_chain = self.signing_chain()
        return Collateral(
            tcb_info_issuer_chain=signing_chain,
            tcb_info=self.signed(self.tcb_info(fmspc, tee)),
            qe_identity_issuer_chain=signing_chain,
            qe_identity=self.signed(self.td_qe_identity if tee == "tdx" else self.qe_identity),
            root_ca_crl=der(self.root.revocation_list()),
            pck_crl=der(self.pck_cas[ca].revocation_list()),
            pck_crl_issuer_chain=self.ca_chain(ca),
            source=SOURCE,
        )

    def signed(self, document: SimulatedTcbInfo | SimulatedQeIdentity | SimulatedEvaluationDataNumbers) -> bytes:
        """A document as the authority serves it."""
        return document.signed(self._tcb_signing_key)

    def signing_chain(self) -> bytes:
        """PEM of the TCB signing certificate and the root: the issuer chain of every signed JSON."""
        return pem(self.root.issue(self.tcb_signing), self.root_certificate())

    def evaluation_data_numbers(self, tee: Tee) -> SimulatedEvaluationDataNumbers:
        """The list of the one set that there is."""
        found = self.tcb_info(FMSPC, tee)
        return SimulatedEvaluationDataNumbers(
            found.issue_date, found.next_update, found.tcb_evaluation_data_number, tee, found.levels[0].date
        )

    def ca_chain(self, ca: PckCa) -> bytes:
        """PEM of a PCK CA and the root: the issuer chain of PCK certificates and their CRL."""
        return pem(self.root.issue(self.pck_cas[ca].own), self.root_certificate())

    def tcb_info(self, fmspc: bytes = FMSPC, tee: Tee = "sgx") -> SimulatedTcbInfo:
        """The TCB info of a FMSPC, to read and to change."""
        if (tee, fmspc) not in self._tcb_infos:
            raise CollateralNotFound(f"the simulated authority has no TCB info for FMSPC {fmspc.hex()}")
        return self._tcb_infos[tee, fmspc]

    def add_tcb_info(self, fmspc: bytes) -> SimulatedTcbInfo:
        """Start the TCB infos, SGX and TDX, of another FMSPC, with the same first levels; gives the one of SGX."""
        level, date = DEFAULT_TCB, self.now - _YEAR
        old = MachineTcb(tuple(max(0, svn - 1) for svn in level.sgx_components), level.pce_svn - 2)
        sgx, tdx = (SimulatedTcbInfo(*self._window(30 * _DAY), tee=tee, fmspc=fmspc) for tee in _TEES)
        for info in (sgx, tdx):
            info.levels = [
                PlatformTcbLevel(level, TcbStatus.UP_TO_DATE, date, tdx_components=TDX_COMPONENTS),
                PlatformTcbLevel(old, TcbStatus.OUT_OF_DATE, date - _YEAR, ("SIMULATED-SA-00001",)),
            ]
            self._tcb_infos[info.tee, fmspc] = info
        tdx.modules = {"TDX_03": self._enclave_levels(3), "TDX_01": self._enclave_levels(6)}
        return sgx

    def pck_certificate(self, machine: SimulatedMachine) -> SimulatedCertificate:
        """The PCK certificate of a machine at its present TCB, to read and to change."""
        key = (machine.ppid, machine.tcb, machine.pck_ca)
        if key not in self._pck_certificates:
            self._pck_certificates[key] = self._certify(machine)
        return self._pck_certificates[key]

    def set_status(
        self, status: str, advisory_ids: Sequence[str] = (), *, fmspc: bytes = FMSPC, level: int = 0
    ) -> None:
        """Give a level of the TCB info (0 is the highest) another status and other advisories."""
        found = self.tcb_info(fmspc).levels[level]
        found.status, found.advisory_ids = status, tuple(advisory_ids)

    def raise_tcb(self, tcb: MachineTcb, *, advisory_ids: Sequence[str], fmspc: bytes = FMSPC) -> None:
        """A TCB recovery: `tcb` becomes the only level that is up to date, those before it get the advisories."""
        for info in (self.tcb_info(fmspc, tee) for tee in _TEES):
            for level in info.levels:
                level.status = _lowered(level.status)
                level.advisory_ids = tuple(sorted({*level.advisory_ids, *advisory_ids}))
            best = PlatformTcbLevel(tcb, TcbStatus.UP_TO_DATE, self.now, tdx_components=info.levels[0].tdx_components)
            info.levels.insert(0, best)
            info.tcb_evaluation_data_number += 1
        for identity in self._identities:
            identity.tcb_evaluation_data_number += 1

    def revoke_pck(self, machine: SimulatedMachine) -> None:
        """Put the machine's PCK certificate on the CRL of its CA."""
        self.pck_cas[machine.pck_ca].crl.revoke(self.pck_certificate(machine), self.now)

    def revoke_pck_ca(self, ca: PckCa) -> None:
        """Put a PCK CA on the root CRL."""
        self.root.crl.revoke(self.pck_cas[ca].own, self.now)

    def revoke_tcb_signing(self) -> None:
        """Put the TCB signing certificate on the root CRL."""
        self.root.crl.revoke(self.tcb_signing, self.now)

    def renew(self, now: datetime) -> None:
        """Move to another time and issue every document and CRL again; certificates keep their validity."""
        self.now = _whole_seconds(now)
        month, year = self._window(30 * _DAY), self._window(_YEAR)
        for document in (*self._tcb_infos.values(), *self._identities):
            document.issue_date, document.next_update = month
        for ca in self.pck_cas.values():
            ca.crl.this_update, ca.crl.next_update = month
        self.root.crl.this_update, self.root.crl.next_update = year

    def _window(self, duration: timedelta) -> tuple[datetime, datetime]:
        start = self.now - _DAY
        return start, start + duration

    def _ca(self, role: str, distribution_point: str, *, path_length: int, years: int) -> SimulatedCa:
        key = derive_p256_key(self._seed, f"authority: {role}")
        own = self._subject(role, key.public_key(), distribution_point, years=years)
        own.path_length = path_length
        return SimulatedCa(key, own, RevocationList(*self._window(30 * _DAY)))

    def _subject(
        self, role: str, key: ec.EllipticCurvePublicKey, distribution_point: str, *, years: int
    ) -> SimulatedCertificate:
        return SimulatedCertificate(
            common_name=f"confcom Simulated SGX {role}",
            public_key=key,
            not_before=self._created - _DAY,
            not_after=self._created + years * _YEAR,
            distribution_point=f"{DISTRIBUTION}/{distribution_point}",
        )

    def _first_identity(self, id_: str, isv_svn: int) -> SimulatedQeIdentity:
        return SimulatedQeIdentity(*self._window(30 * _DAY), id=id_, levels=self._enclave_levels(isv_svn))

    def _enclave_levels(self, isv_svn: int) -> list[EnclaveTcbLevel]:
        date = self.now - _YEAR
        return [
            EnclaveTcbLevel(isv_svn, TcbStatus.UP_TO_DATE, date),
            EnclaveTcbLevel(isv_svn - 2, TcbStatus.OUT_OF_DATE, date - _YEAR),
        ]

    @property
    def _identities(self) -> tuple[SimulatedQeIdentity, ...]:
        return self.qe_identity, self.td_qe_identity, self.qve_identity

    def _certify(self, machine: SimulatedMachine) -> SimulatedCertificate:
        point = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + ProvisioningCertificationEnclave(machine).pck_public_key
        )
        location = f"pckcrl?ca={machine.pck_ca}&encoding=der"
        certificate = self._subject("PCK Certificate", point, location, years=7)
        content = bytes(_pck_extension(machine))
        certificate.extra = (x509.UnrecognizedExtension(x509.ObjectIdentifier(PCK_EXTENSION_OID), content),)
        return certificate


def _pck_extension(machine: SimulatedMachine) -> PckExtension:
    server = machine.pck_ca == PckCa.PLATFORM
    return PckExtension(
        ppid=machine.ppid,
        tcb=PckTcb(
            sgx_components=machine.tcb.sgx_components,
            pce_svn=machine.tcb.pce_svn,
            cpu_svn=machine.tcb.cpu_svn,
        ),
        pce_id=machine.pce_id.to_bytes(2, "little"),
        fmspc=machine.fmspc,
        sgx_type=SgxType.SCALABLE if server else SgxType.STANDARD,
        platform_instance_id=machine.platform_instance_id if server else None,
        configuration=PckConfiguration(dynamic_platform=False, cached_keys=False, smt_enabled=False)
        if server
        else None,
    )


def _lowered(status: str) -> str:
    """What a level becomes when a better one appears."""
    if status == TcbStatus.REVOKED:
        return status
    return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED if "Configuration" in status else TcbStatus.OUT_OF_DATE
