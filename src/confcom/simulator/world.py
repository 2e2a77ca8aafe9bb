"""A whole simulated world from one seed: an authority, machines that it certified, and a platform on each.

The authority plays Intel for simulated machines: certifies them, revokes them, judges their TCB. All of it is state
that a caller may change at any time (windows, levels, statuses, revocations); documents, certificates and CRLs are made
from the state when they are asked for, signed properly. Equal seeds, times and changes give equal bytes. Verifiers
trust its root only if it is given to them. It is also a source of collateral, and the upstream of a collateral service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import save_bundle
from confcom.collateral.documents import Document, DocumentKey, DocumentKind, missing_document, take_apart
from confcom.errors import CollateralNotFound, CollateralUnavailable, ConfigError, KeyNotInitialized, UnsupportedKeyId
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, INTEL_TD_QE_MR_SIGNER, AttestationKeyId
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckConfiguration, PckExtension, PckTcb, SgxType
from confcom.formats.sgx import QeReportInfo, Report, TdReportBody
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.platforms.interface import InitializedQuote, QuoteResult
from confcom.protocols.pcs import PckCaName, PckCertificateAnswer, PckCertRequest, PckCertsRequest, Tee, Update
from confcom.protocols.pcs_service import PckCertificateEntry
from confcom.simulator.declaration import EnclaveDeclaration
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
from confcom.simulator.enclaves import QE3, QE3_ISV_SVN, ProvisioningCertificationEnclave, QuotingEnclave, quote_td
from confcom.simulator.machine import (
    DEFAULT_TCB,
    FMSPC,
    YEARS,
    MachineFile,
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

    Documents and CRLs are issued a day before `now`: a verifier whose clock is slow by less accepts them. They are
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


class SimulatedPcs:
    """The simulated authority as a `CollateralSource`. Set `reachable` to False to play an outage.

    There is one set at a time: standard and early are the same, and so is its number.
    """

    def __init__(self, authority: SimulatedAuthority) -> None:
        self.authority = authority
        self.reachable = True

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        self._require_set(update, self.authority.tcb_info(fmspc, tee).tcb_evaluation_data_number)
        return self.authority.collateral(fmspc, PckCa(ca), tee)

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document as it stands now; there is no QAE."""
        update: Update = "standard" if key.update is None else key.update
        match key.kind:
            case DocumentKind.TCB_EVALUATION_DATA_NUMBERS:
                self._require_set(update)
                return self._signed(key, self.authority.evaluation_data_numbers(key.tee or "sgx"))
            case DocumentKind.QVE_IDENTITY:
                self._require_set(update, self.authority.qve_identity.tcb_evaluation_data_number)
                return self._signed(key, self.authority.qve_identity)
            case DocumentKind.QAE_IDENTITY:
                raise missing_document(key, SOURCE)
        fmspc, ca, tee = key.fmspc or FMSPC, key.ca or "platform", key.tee or "sgx"
        collateral = self.fetch(fmspc, ca, tee, update=update)
        documents = take_apart(collateral, fmspc=fmspc, ca=ca, tee=tee, update=update)
        return next(document for document in documents if document.key == key)

    def _signed(self, key: DocumentKey, document: SimulatedQeIdentity | SimulatedEvaluationDataNumbers) -> Document:
        return Document(key, self.authority.signed(document), self.authority.signing_chain())

    def _require_set(self, update: Update, number: int = 0) -> None:
        if not self.reachable:
            raise CollateralUnavailable("the simulated collateral service does not answer")
        if isinstance(update, int) and update != number:
            raise CollateralNotFound(f"the simulated authority has set {number} alone, not {update}")


class SimulatedPlatform:
    """A `Platform` (see `confcom.platforms.interface`) that quotes as Intel's does, below a root of its own.

    `qe` is the release of the QE: of the same signer and product, with a measurement of its own.
    """

    name = "simulated"
    simulated = True

    def __init__(self, machine: SimulatedMachine, authority: SimulatedAuthority, qe: EnclaveDeclaration = QE3) -> None:
        self.machine = machine
        self._declaration = qe
        self.authority = authority
        self._qe: QuotingEnclave | None = None
        self._certified = (machine.tcb, b"")

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        """Intel's production QE3: the id that clients hard-code."""
        return (ECDSA_P256_KEY_ID,)

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        """Launch the QE if need be: at first use, after a TCB change, and when the PCK certificate is another."""
        _check(key_id)
        certified = (self.machine.tcb, self.authority.pck_chain(self.machine))
        if self._qe is None or self._certified != certified:
            self._qe = QuotingEnclave(self.machine, certified[1], self._declaration)
            self._certified = certified
        return InitializedQuote(self._qe.target_info, self._qe.pub_key_id)

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        """Exact size of the next quote in bytes."""
        _check(key_id)
        return self._ready().quote_size

    def quote(
        self,
        report: Report,
        key_id: AttestationKeyId | None = None,
        qe_report_info: QeReportInfo | None = None,
    ) -> QuoteResult:
        """Check the report's MAC and sign it into a quote."""
        _check(key_id)
        qe = self._ready()
        quote = qe.quote(report)
        if qe_report_info is None:
            return QuoteResult(quote)
        return QuoteResult(quote, qe.report_on(quote, qe_report_info, report))

    def quote_td(self, body: TdReportBody) -> bytes:
        """A quote of a TD on this machine, by its TD QE (see `confcom.simulator.enclaves`)."""
        return quote_td(self.machine, self.authority.pck_chain(self.machine), body)

    def collateral(self) -> Collateral:
        """What verifies this platform's quotes, fresh from its authority."""
        return self.authority.collateral_for(self.machine)

    def _ready(self) -> QuotingEnclave:
        if self._qe is None:
            raise KeyNotInitialized("the attestation key has not been made yet")
        if self._certified[0] != self.machine.tcb:
            raise KeyNotInitialized("the machine's TCB changed since the attestation key was certified")
        return self._qe


def _check(key_id: AttestationKeyId | None) -> None:
    if key_id is not None and key_id is not ECDSA_P256_KEY_ID and not key_id.same_key(ECDSA_P256_KEY_ID):
        raise UnsupportedKeyId("this platform has Intel's ECDSA P-256 QE3 only")


ROOT_FILE = "root_ca.pem"


class SimulatedWorld:
    """Authority, machines and platforms of one seed. `machine` and `platform` are the first of them.

    Worlds of one seed and creation time are the same world, byte for byte, in whatever process; changes to the
    authority's state stay in the process that made them.
    """

    def __init__(self, files: tuple[MachineFile, ...]) -> None:
        self._files = files
        self.authority = SimulatedAuthority(files[0].seed, files[0].created)
        self.machines: tuple[SimulatedMachine, ...] = tuple(file.machine() for file in files)
        self.platforms = tuple(SimulatedPlatform(machine, self.authority) for machine in self.machines)
        self.pcs = SimulatedPcs(self.authority)

    @classmethod
    def from_seed(cls, seed: bytes, *, now: datetime, machines: int = 1, report_scheme: str = "hardware") -> Self:
        """A world created at `now`, with that many equal servers."""
        if machines < 1:
            raise ConfigError("a simulated world has at least one machine")
        if now.tzinfo is None:
            raise ConfigError("the time of a simulated world needs a time zone")
        created = now.astimezone(UTC).replace(microsecond=0)
        return cls(
            tuple(
                MachineFile(seed=seed, created=created, index=index, report_scheme=report_scheme)
                for index in range(machines)
            )
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """The world of one machine file, with that machine alone."""
        return cls((MachineFile.read(path),))

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write one machine file per machine, as it was created, into a folder (made if need be); give their paths."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
        paths = tuple(folder / f"machine-{file.index}.json" for file in self._files)
        for path, file in zip(paths, self._files, strict=True):
            file.write(path)
        return paths

    def write_first(self, path: Path) -> None:
        """Write the first machine, as it was created, to this very path."""
        self._files[0].write(path)

    @property
    def machine(self) -> SimulatedMachine:
        return self.machines[0]

    @property
    def platform(self) -> SimulatedPlatform:
        return self.platforms[0]

    @property
    def tcb_info(self) -> SimulatedTcbInfo:
        """The TCB info of the first machine, to read and to change."""
        return self.authority.tcb_info(self.machine.fmspc)

    @property
    def trust_roots(self) -> TrustRoots:
        """The root of this world alone: a verifier that is given it marks what it accepts as simulated."""
        return TrustRoots((TrustRoot.from_pem(self.root_pem(), name="simulated"),))

    def root_pem(self) -> bytes:
        return self.authority.root_certificate().public_bytes(Encoding.PEM)

    def root_der(self) -> bytes:
        return self.authority.root_certificate().public_bytes(Encoding.DER)

    def publish(self, now: datetime | None = None) -> Collateral:
        """Collateral for the first machine in its present state; with a time, all of it is issued again first."""
        if now is not None:
            self.authority.renew(now)
        return self.authority.collateral_for(self.machine)

    def export_collateral(self, folder: Path, now: datetime | None = None) -> None:
        """Write collateral as `publish` gives it, one file per part, and `root_ca.pem` beside it."""
        save_bundle(self.publish(now), folder, beside={ROOT_FILE: self.root_pem()})


RENEW_AFTER = timedelta(hours=1)
"""The authority issues everything again when its last issue is older than this, as Intel does every day."""


class SimulatedUpstream:
    """A source of documents and PCK certificates for the machine of one file. Safe to use from several threads."""

    def __init__(self, world: SimulatedWorld, clock: Callable[[], datetime]) -> None:
        self._world = world
        self._clock = clock
        self._lock = threading.Lock()
        self._renewed = clock()
        world.authority.renew(self._renewed)

    @classmethod
    def load(cls, path: Path, clock: Callable[[], datetime]) -> SimulatedUpstream:
        return cls(SimulatedWorld.load(path), clock)

    @property
    def trust_roots(self) -> TrustRoots:
        return self._world.trust_roots

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document, issued within the last hour."""
        with self._lock:
            now = self._clock()
            if now - self._renewed > RENEW_AFTER:
                self._world.authority.renew(now)
                self._renewed = now
            return self._world.pcs.fetch_document(key)

    def fetch_pck_certificate(self, request: PckCertRequest) -> PckCertificateAnswer:
        """The certificate of the machine that has this QE_ID, at its present TCB."""
        with self._lock:
            machine, authority = self._world.machine, self._world.authority
            chain = authority.pck_chain(machine)
            self._require_machine(request, QuotingEnclave(machine, chain).qe_id)
            ca = authority.pck_cas[machine.pck_ca]
            leaf = pem(ca.issue(authority.pck_certificate(machine)))
            tcbm = machine.tcb.cpu_svn + machine.tcb.pce_svn.to_bytes(2, "little")
            issuers = authority.ca_chain(machine.pck_ca)
            return PckCertificateAnswer(leaf, issuers, tcbm, machine.fmspc, machine.pck_ca.value)

    def fetch_pck_certificates(self, request: PckCertsRequest) -> tuple[tuple[PckCertificateEntry, ...], bytes]:
        """The certificates of the machine that has this QE_ID (one, at its present TCB), and their issuer chain."""
        tcb = self._world.machine.tcb
        answer = self.fetch_pck_certificate(PckCertRequest(tcb.cpu_svn, tcb.pce_svn, request.pce_id, request.qe_id))
        return (PckCertificateEntry(answer.tcbm, answer.certificate),), answer.issuer_chain

    def _require_machine(self, request: PckCertRequest, qe_id: bytes) -> None:
        machine = self._world.machine
        if request.qe_id != qe_id or request.pce_id != machine.pce_id.to_bytes(2, "little"):
            raise CollateralNotFound(
                "the simulated authority knows another machine than the one that asks",
                advice=f"Give the service the machine file of the platform; its QE_ID is {qe_id.hex()}.",
            )
        if not machine.tcb.reached_by(request.cpu_svn, request.pce_svn):
            raise CollateralNotFound(
                f"the simulated authority has no PCK certificate for CPUSVN {request.cpu_svn.hex()}",
                advice=f"The machine's CPUSVN is {machine.tcb.cpu_svn.hex()}, its PCESVN {machine.tcb.pce_svn}.",
            )
