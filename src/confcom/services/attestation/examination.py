"""What the page says of an input: evidence, certificates and tokens are judged, everything else is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec

from confcom.appraisal.findings import Check, Verdict
from confcom.appraisal.inspection.explain import inspect, other_than_evidence
from confcom.appraisal.inspection.items import Inspection, Item
from confcom.appraisal.peer import read_attested_certificate
from confcom.appraisal.result import failed, timestamp
from confcom.errors import ConfcomError, FormatError, PolicyError, UntrustedRootError
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.evidence import EvidenceFile, decode_text
from confcom.pki.chain import ChainKind, TrustRoots, VerifiedChain, Window, verify_chain
from confcom.report.html import Report, time_line
from confcom.report.summary import Summary
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.signing_keys import SigningKeys
from confcom.tokens.azure import type_of
from confcom.tokens.jws import token_in
from confcom.tokens.policy_evaluation import Decision
from confcom.tokens.verification import KeySet, TokenPolicy, VerifiedToken, verify_token

_CHAINS: tuple[ChainKind, ...] = ("pck", "tcb-signing", "ca")
_IDENTITY = ("x-ms-sgx-mrenclave", "x-ms-sgx-mrsigner", "x-ms-sgx-product-id", "x-ms-sgx-svn", "tdx_mrtd", "nonce")


@dataclass(frozen=True, slots=True)
class Examination:
    """The verdict on an input with all of its fields; `decision` is of the policy in force, on accepted evidence."""

    title: str
    report: Report
    items: Sequence[Item] = ()
    decision: Decision | None = None


class Examiner:
    """Examines an input of the page. Blocks while collateral is fetched; records nothing."""

    def __init__(
        self,
        appraiser: Appraiser,
        roots: TrustRoots,
        *,
        issuer: str,
        keys: Callable[[], SigningKeys],
        clock: Callable[[], datetime],
    ) -> None:
        self._appraiser = appraiser
        self._roots = roots
        self._issuer = issuer
        self._keys = keys
        self._clock = clock

    def examine(self, data: bytes) -> Examination:
        """The verdict on an input in any form that `confcom inspect` knows."""
        now = self._clock()
        if (answer := data.strip()).startswith(b"{"):
            data = (token_in(answer.decode("utf-8", "replace")) or "").encode() or data
        try:
            found = inspect(data)
        except ConfcomError as error:
            return Examination("unknown input", Report.of(failed(error), now, identity_expected=True))
        try:
            given: EvidenceFile | AttestedCertificate
            if found.kind == "attested-certificate":
                given = read_attested_certificate(data if b"-----BEGIN" in data else decode_text(data)[0])
                evidence = given.evidence
            else:
                given = evidence = EvidenceFile.parse(data)
        except FormatError as error:
            return self._other(data, found, error, now)
        result, sets, decision = self._appraiser.examine(given, now)
        report = Report.of(result, now, identity_expected=True, sets=sets)
        if decision is not None:
            report = _with_decision(report, f"the policy of {type_of(evidence)}", decision)
        return Examination(found.title, report, found.items, decision)

    def _other(self, data: bytes, found: Inspection, error: FormatError, now: datetime) -> Examination:
        if found.kind == "attestation-token":
            return Examination(found.title, self._token(data.decode("ascii", "replace").strip(), now), found.items)
        if found.kind in ("certificate", "certificate-chain"):
            return Examination(found.title, self._certificates(data, now), found.items)
        result = failed(other_than_evidence(data, error) or error)
        return Examination(found.title, Report.of(result, now, identity_expected=True), found.items)

    def _token(self, text: str, now: datetime) -> Report:
        """Whether it is a token of this instance that a relying party with the default policy takes."""
        published = msgspec.json.encode({"keys": self._keys().published})
        simulated = any(root.simulated for root in self._roots.roots)
        verified: VerifiedToken | None = None
        try:
            verified = verify_token(text, KeySet.parse(published, fetched=now), issuer=self._issuer, now=now)
            TokenPolicy(allow_simulated=simulated).check(verified)
        except PolicyError as error:
            return _token_report(verified, now, error, Verdict.REFUSED, "the token is authentic, but not acceptable")
        except ConfcomError as error:
            meaning = "this is no token of this service that is in force: trust nothing that it says"
            return _token_report(verified, now, error, Verdict.INVALID, meaning)
        return _token_report(verified, now, None, Verdict.ACCEPTED, "a token of this service, authentic and in force")

    def _certificates(self, data: bytes, now: datetime) -> Report:
        """Whether the certificates are of Intel's PKI under a trusted root, and valid now."""
        failures: list[ConfcomError] = []
        for kind in _CHAINS:
            try:
                return _chain_report(verify_chain(data, roots=self._roots, kind=kind, step="chain"), now)
            except ConfcomError as error:
                failures.append(error)
        # A sound chain to another root says more than that it is of another kind.
        cause = next((each for each in failures if isinstance(each, UntrustedRootError)), failures[0])
        meaning = "these certificates do not lead to a trusted root"
        return _plain_report(Verdict.INVALID, meaning, [("Judged", f"as of {timestamp(now)}")], cause)


def _plain_report(
    verdict: Verdict,
    meaning: str,
    rows: Sequence[tuple[str, str]],
    error: ConfcomError | None = None,
    *,
    problems: Sequence[Check] = (),
    note: str = "",
) -> Report:
    problem, advice = ("", "") if error is None else (error.message, error.advice())
    return Report(Summary(verdict, meaning, tuple(rows), problem, advice, tuple(problems), note), checks=problems)


def _with_decision(report: Report, name: str, decision: Decision) -> Report:
    """The report with what the policy decided as its last check."""
    advice = "" if decision.permitted else "Compare the claims with the rules of the policy, which are listed here."
    found = "permitted" if decision.permitted else decision.reason
    check = Check("policy", decision.permitted, f"{name} permits", found, advice)
    summary = report.summary
    if not decision.permitted:
        meaning = "the evidence is authentic, and a policy of this service refuses it"
        problems = (*summary.problems, check)
        summary = replace(summary, verdict=Verdict.REFUSED, meaning=meaning, problems=problems)
    return replace(report, summary=summary, checks=(*report.checks, check))


def _token_report(
    verified: VerifiedToken | None, now: datetime, error: ConfcomError | None, verdict: Verdict, meaning: str
) -> Report:
    rows: list[tuple[str, str]] = []
    windows: list[Window] = []
    if verified is not None:
        claims = verified.stated if error is None else dict(verified.claims)
        rows += [("Issuer", str(claims["iss"])), ("Key", verified.key.key_id)]
        rows += [(name.rpartition("-")[2], str(claims[name])) for name in _IDENTITY if name in claims]
        status = claims.get("confcom-tcb-status", claims.get("attester_tcb_status"))
        rows.append(("TCB", str(status or "not stated")))
        start, end = (datetime.fromtimestamp(claims[name], UTC) for name in ("iat", "exp"))
        windows.append(Window("token", start, end))
    rows.append(("Judged", f"as of {timestamp(now)}"))
    report = _plain_report(verdict, meaning, rows, error)
    simulated = verified is not None and verified.claims.get("confcom-simulated") is True
    return replace(report, simulated=simulated, line=time_line(windows, now) if windows else None)


def _chain_report(chain: VerifiedChain, now: datetime) -> Report:
    rows = [("Genuine", f"a chain of kind {chain.kind}: every signature leads to {chain.root.name}")]
    if chain.kind == "pck":
        pck = chain.extension
        svns = " ".join(map(str, pck.tcb.sgx_components))
        rows += [
            ("Platform", f"FMSPC {pck.fmspc.hex().upper()}, PCE-ID {pck.pce_id.hex()}, {chain.ca} CA"),
            ("", f"SVNs of its components {svns}; PCE SVN {pck.tcb.pce_svn}"),
        ]
    rows.append(("Judged", f"as of {timestamp(now)}"))
    stale = [window for window in chain.windows if not window.contains(now)]
    problems = [
        Check(
            "validity",
            False,
            f"{window.what} valid at {timestamp(now)}",
            f"valid from {timestamp(window.not_before)} to {timestamp(window.not_after) or 'no end'}",
            "Get a certificate that is valid now.",
        )
        for window in stale
    ]
    verdict = Verdict.REFUSED if stale else Verdict.ACCEPTED
    meaning = "the certificates lead to a trusted root" + (", but not all are valid now" if stale else "")
    note = "Revocation is judged with evidence of the platform, not for certificates alone."
    report = _plain_report(verdict, meaning, rows, problems=problems, note=note)
    return replace(report, simulated=chain.root.simulated, line=time_line(chain.windows, now))
