"""The simulated authority as the upstream of a collateral service: fresh documents, PCK certificates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from confcom.collateral.documents import Document, DocumentKey
from confcom.errors import CollateralNotFound
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest, PckCertsRequest
from confcom.protocols.pcs_answers import PckCertificateEntry
from confcom.simulator.documents import pem
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.world import SimulatedWorld

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
