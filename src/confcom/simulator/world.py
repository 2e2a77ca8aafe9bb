"""A whole simulated world from one seed: an authority, machines that it certified, and a platform on each.

The authority is also a source of collateral, and the upstream of a collateral service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from confcom.appraisal.collateral import Collateral
from confcom.collateral.bundle import save_bundle
from confcom.collateral.documents import Document, DocumentKey, DocumentKind, missing_document, take_apart
from confcom.errors import CollateralNotFound, CollateralUnavailable, ConfigError, KeyNotInitialized, UnsupportedKeyId
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report, TdReportBody
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.platforms.interface import InitializedQuote, QuoteResult
from confcom.protocols.pcs import PckCaName, PckCertificateAnswer, PckCertRequest, PckCertsRequest, Tee, Update
from confcom.protocols.pcs_service import PckCertificateEntry
from confcom.simulator.authority import SOURCE, SimulatedAuthority
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.documents import SimulatedEvaluationDataNumbers, SimulatedQeIdentity, SimulatedTcbInfo, pem
from confcom.simulator.enclaves import QE3, QuotingEnclave, quote_td
from confcom.simulator.machine import FMSPC, MachineFile, PckCa, SimulatedMachine


class SimulatedPcs:
    """The simulated authority as a `CollateralSource`. Set `reachable` to False to play an outage.

    There is one set at a time: standard and early are the same, and so is its number.
    """

    def __init__(self, authority: SimulatedAuthority) -> None:
        self.authority = authority
        self.reachable = True

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The authority's collateral as it stands now."""
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
        """The first machine."""
        return self.machines[0]

    @property
    def platform(self) -> SimulatedPlatform:
        """The platform of the first machine."""
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
        """The root certificate in PEM."""
        return self.authority.root_certificate().public_bytes(Encoding.PEM)

    def root_der(self) -> bytes:
        """The root certificate in DER."""
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
        """The authority behind a machine file."""
        return cls(SimulatedWorld.load(path), clock)

    @property
    def trust_roots(self) -> TrustRoots:
        """The simulated root alone."""
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
