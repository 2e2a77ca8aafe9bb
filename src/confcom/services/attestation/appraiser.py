"""One attest call: from a request to a token, or to the error that says why there is none."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from msgspec.structs import replace

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.findings import Check
from confcom.appraisal.policy import Policy
from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote, verify_similar
from confcom.appraisal.result import (
    NOT_AUTHENTIC,
    AttestationResult,
    appraise,
    check_custom_claims,
    failed,
    judge,
    read_evidence,
    result_of,
)
from confcom.collateral.documents import DocumentKey, DocumentKind, EvaluationDataNumber, evaluation_data_numbers
from confcom.collateral.sources import PlatformKind, RememberedCollateral
from confcom.errors import CollateralError, ConfcomError, ConfigError
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.evidence import Encoding, EvidenceFile, EvidenceKind
from confcom.formats.quote import Quote, shared_part
from confcom.formats.sgx import ReportBody, TdReportBody10
from confcom.pki.proof import Memory
from confcom.protocols.pcs import Tee, Update, parse_update
from confcom.services.attestation.attestation_store import AttestationStore, AuditRecord, RecordFilter
from confcom.services.attestation.lockstep import Outcome, Steps
from confcom.services.attestation.signing_keys import SigningKeys
from confcom.tokens import azure, login
from confcom.tokens.azure import DEFAULT_POLICIES, AttestationType, AttestRequest, AzureError, type_of
from confcom.tokens.ear import NONCE_SIZES, ear_claims, trustworthiness_vector
from confcom.tokens.jws import joined, unsecured
from confcom.tokens.policy_evaluation import Decision, Decisions, Recorded, claims_of, configuration, dry_run
from confcom.tokens.policy_jws import certificate_jwk, read_policy
from confcom.tokens.policy_language import PolicyText, PolicyTextError, parse_policy

_PARSED = 8
"""Parsed policies that are kept: one of each type is in force, and the last ones may come back."""


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """The policy that judges a call: its text, the JWK of its signer if it is signed, and whether it is a draft."""

    text: str
    signer: dict[str, Any] | None = None
    draft: bool = False


POLICY_FOR = 1.0
"""Seconds that a policy of the store is used before it is read again."""
MISSING_FOR = 60.0
"""Seconds after which a further set of collateral that the source did not have is asked for again."""
MAX_MISSING = 1024
NUMBERS_FOR = 600.0
"""Seconds for which the list of TCB evaluation data numbers, or why there is none, is kept."""
DRY_RUN_FOR = 10.0
"""Seconds of a dry run, which holds one of the threads that appraise."""
TCB_IDENTIFIER = "x-ms-sgx-tcbidentifier"
"""The property of a policy that names the set of collateral."""
AZURE_DEFAULT = "azuredefault"
NONCE_BOUND = "confcom-nonce-bound"
"""The claim whether the quote vouches for the nonce; without it a nonce says that the token is fresh, and no more."""
KNOWN = 256
"""Appraisals of which `Known` is kept: each build of an enclave or TD on each platform is one."""
MAX_KNOWN = 16 << 10
"""Bytes of the evidence, and of the claims, of one that is kept."""
ONCE = frozenset({"advisory", "held-data", "report-data"})
"""Ids of findings that depend on the time or the report data."""
_SGX_REPORT_DATA, _TDX_REPORT_DATA = ReportBody.place("report_data"), TdReportBody10.place("report_data")


class WouldBlock(Exception):
    """The call has to go to a thread; never leaves the service."""


class Denied(AzureError):
    """The policy of the attestation type refused; `trace` says what each rule saw."""

    def __init__(self, decision: Decision, seen: Mapping[str, Any]) -> None:
        self.seen = seen
        super().__init__(
            f"a policy refused: {decision.reason}",
            "PolicyEvaluationError",
            advice="Compare the claims with the policy's rules; a dry run shows what every rule sees.",
        )
        self.trace = [each.as_dict() for each in decision.trace]


class Refused(AzureError):
    """The evidence was not accepted; `checks` are those of `confcom verify`."""

    def __init__(self, result: AttestationResult) -> None:
        error = result.error or ConfcomError("nothing was judged")
        super().__init__(error.message, "InvalidParameter", advice=error.advice())
        self.cause = error
        self.checks = result.as_dict()["checks"]


class Basis(NamedTuple):
    """What an appraisal judges, and by which policy."""

    verified: VerifiedQuote
    platform: PlatformKind
    collateral: Collateral
    rules: Decisions


class Known(msgspec.Struct, frozen=True):
    """What an appraisal established that depends neither on the report data nor on the time; bytes are JSON.

    Without the report data, `seen` are the claims that the policy saw, `evidence` those of evidence and appraisal,
    `issued` the policy's, `token` the last two. `hashes` are those of the collateral, `vector` is the one of AR4SI, and
    `under` the verdict beside those under further sets of collateral.
    """

    seen: bytes
    issued: dict[str, Any]
    evidence: bytes
    token: bytes
    hashes: bytes
    vector: dict[str, int]
    under: dict[str, Any]
    basis: Basis


class Judged(msgspec.Struct, frozen=True):
    """The outcome of an accepted appraisal."""

    request: AttestRequest
    verified: VerifiedQuote
    known: Known
    policy: PolicyInForce
    sets: tuple[dict[str, Any], ...]
    report_data: dict[str, str]
    """The claim with it."""


class Appraiser:
    """Judges evidence and signs what it found; thread-safe. It blocks where collateral has to be fetched."""

    def __init__(
        self,
        store: AttestationStore,
        verifier: QuoteVerifier,
        collateral: RememberedCollateral,
        policy: Policy,
        *,
        grace: timedelta,
        updates: Sequence[Update] = ("standard",),
        issuer: str,
        keys: Callable[[], SigningKeys],
        clock: Callable[[], datetime],
    ) -> None:
        """`policy` is that of `confcom verify`; `issuer` the URL of clients, without a slash at its end.

        Evidence is judged under each of `updates`; the first decides, unless the policy of the attestation type names
        another (`x-ms-sgx-tcbidentifier`).
        """
        self._store = store
        self._verifier = verifier
        self._collateral = collateral
        self._policy = policy
        self._grace = grace
        self._updates = updates
        self._listed: dict[Tee, tuple[float, tuple[EvaluationDataNumber, ...] | CollateralError]] = {}
        self._missing: dict[tuple[PlatformKind, Update], tuple[float, CollateralError]] = {}
        self._issuer = issuer
        self._header = {"typ": "JWT", "jku": f"{issuer}/certs"}
        self._keys = keys
        self._clock = clock
        self._nonce_secret = store.nonce_secret()
        self._parsed: dict[str, Decisions] = {}
        self._known: Memory[Known] = Memory(KNOWN)
        self._policies: dict[AttestationType, tuple[float, PolicyInForce]] = {}

    def appraise(self, body: bytes, kind: AttestationType, caller: str, *, ear: bool = False) -> Outcome:
        """All steps of an attest call, which may block."""
        steps = self.steps(body, kind, caller, ear=ear)
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                outcome: Outcome = ended.value
                return outcome

    def steps(
        self, body: bytes, kind: AttestationType, caller: str, *, ear: bool = False, may_block: bool = True
    ) -> Steps:
        """The record of an attest call, and its token or the reason why there is none, in steps (`Lockstep`).

        Raises:
            AzureError: the request cannot be read; there is nothing to record.
            WouldBlock: collateral has to be fetched, or a policy comes with the request, and this may not block.
        """
        now = self._clock()
        request = azure.read_request(body, kind)
        blocks = request.draft_policy is not None or request.bind_nonce or self._keys().elsewhere
        if blocks and not may_block:
            raise WouldBlock
        if ear and request.draft_policy is not None:
            raise AzureError("a draft policy is answered with an unsigned token, and EAR are signed")
        if ear and request.nonce is not None and (size := len(request.nonce.encode())) not in NONCE_SIZES:
            raise AzureError(f"the nonce of an EAR has 8 to 88 bytes (RFC 9711, section 4.1), found {size}")
        if request.login_for is not None:
            login.check_request(request)
        policy = self._policy_of(request, kind, may_block=may_block)
        entry = AuditRecord(
            at=now,
            kind=kind,
            caller=caller,
            verdict="accepted",
            reason="",
            policy_hash=azure.policy_hash(policy.text),
            evidence_hash=hashlib.sha256(request.evidence).hexdigest(),
            claims="",
        )
        try:
            judged = yield from self._judge(request, kind, policy, now, may_block=may_block)
            if request.bind_nonce and not policy.draft:
                self._use_nonce(request.nonce, now)
            token = self._token(judged, entry, ear=ear)
        except Denied as error:
            kept = b"" if policy.draft else msgspec.json.encode(error.seen)
            return replace(entry, verdict="denied", reason=error.message, claims=kept.decode()), error
        except ConfcomError as error:
            return replace(entry, verdict="refused", reason=error.message), error
        kept = b"" if policy.draft else joined(judged.known.seen, msgspec.json.encode(judged.report_data))
        return replace(entry, claims=kept.decode()), token

    def examine(
        self, given: EvidenceFile | AttestedCertificate, now: datetime
    ) -> tuple[AttestationResult, Sequence[dict[str, Any]], Decision | None]:
        """The verdict on evidence without a request, nothing of which is signed or recorded.

        Beside it those under each set of collateral, if there are several, and on what is accepted the decision of the
        policy in force.
        """
        certificate = given if isinstance(given, AttestedCertificate) else None
        evidence = given.evidence if isinstance(given, AttestedCertificate) else given
        rules = self._parse(self._in_force(type_of(evidence), may_block=True).text)
        decides = self._deciding(rules.policy)
        try:
            platform = self._collateral.platform(evidence.quote)
            collateral = self._collateral_of(evidence.quote, platform, decides, now, may_block=True)
        except ConfcomError as error:
            return failed(error, evidence=evidence, certificate=certificate), (), None
        result = self._result(given, collateral, now)
        sets = [self._under(evidence, update, now, may_block=True) for update in self._updates if update != decides]
        decision = rules.on(azure.policy_claims(azure.quote_claims(evidence.quote))) if result else None
        return result, [result.under(str(decides)), *sets] if sets else (), decision

    def dry_run(self, kind: AttestationType, text: str, *, limit: int) -> dict[str, Any]:
        """What a policy would decide on the newest recorded evidence, beside what was decided (`dry_run`).

        Raises:
            AzureError: the policy cannot be put into force, or takes over `DRY_RUN_FOR` seconds.
        """
        text = text or DEFAULT_POLICIES[kind]
        rules = self.checked(text)
        rows = [row for row in self._store.records(RecordFilter(kind=kind), limit=limit) if row["claims"]]
        until = time.monotonic() + DRY_RUN_FOR

        def recorded() -> Iterator[Recorded]:
            for done, row in enumerate(rows):
                if time.monotonic() > until:
                    raise AzureError(
                        f"the dry run was given up after {DRY_RUN_FOR:g} seconds and {done} of {len(rows)} records",
                        advice="Try the policy on fewer records (limit), or with confcom policy try.",
                    )
                at = f"{row['at']:%Y-%m-%dT%H:%M:%SZ}"
                label = {"id": row["id"], "at": at, "evidence_hash": row["evidence_hash"]}
                yield Recorded(label, row["verdict"], claims_of(row["claims"]))

        found = dry_run(rules, recorded())
        return {"policy_hash": azure.policy_hash(text)} | found

    def nonce(self) -> str:
        """A nonce that evidence can be bound to; nothing of it is kept until it is used."""
        return azure.make_nonce(self._nonce_secret, self._clock(), secrets.token_bytes(16))

    def _use_nonce(self, nonce: str | None, now: datetime) -> None:
        """A bound nonce gives one token: captured evidence gives no second one."""
        # Kept for twice its life: the clocks of the replicas that make, use and forget it may differ.
        if not self._store.use_nonce(
            azure.check_nonce(nonce, self._nonce_secret, now), now, now + 2 * azure.NONCE_LIFE
        ):
            raise AzureError("'nonce' was used before", advice="Get another one with POST /nonces, and quote over it.")

    def _policy_of(self, request: AttestRequest, kind: AttestationType, *, may_block: bool) -> PolicyInForce:
        if request.draft_policy is None:
            return self._in_force(kind, may_block=may_block)
        sent = read_policy(request.draft_policy)
        return _policy(sent.text or DEFAULT_POLICIES[kind], sent.signer, draft=True)

    def _in_force(self, kind: AttestationType, *, may_block: bool) -> PolicyInForce:
        """The policy of the store, which is read again every second: another replica may have set it."""
        policies = self._policies  # those from before a change, if there is one meanwhile
        read, policy = policies.get(kind, (-POLICY_FOR, PolicyInForce("")))
        seconds = time.monotonic()
        if seconds - read >= POLICY_FOR:
            if not may_block:
                raise WouldBlock
            stored = self._store.policy(kind)
            policy = _policy(stored.text, stored.signer) if stored else PolicyInForce(DEFAULT_POLICIES[kind])
            policies[kind] = seconds, policy
        return policy

    def policy_changed(self) -> None:
        """Read policies from the store at the next call."""
        self._policies = {}

    def _judge(
        self, request: AttestRequest, kind: AttestationType, policy: PolicyInForce, now: datetime, *, may_block: bool
    ) -> Generator[None, None, Judged]:
        rules = self._parse(policy.text, keep=not policy.draft)
        evidence, wrapping, known = self._read(request.evidence, kind, rules)
        if request.bind_nonce:
            azure.check_nonce(request.nonce, self._nonce_secret, now)
        azure.check_binding(evidence.quote, request)
        yield
        decides, quote = self._deciding(rules.policy), evidence.quote
        platform = self._collateral.platform(quote) if known is None else known.basis.platform
        collateral = self._collateral_of(quote, platform, decides, now, may_block=may_block)
        try:
            if known is not None and known.basis.collateral is collateral:
                verified = verify_similar(known.basis.verified, quote, roots=self._verifier.roots, now=now)
            else:
                known, verified = None, self._verifier.verify(quote, collateral, now=now, any_tcb=True)
            checks = check_custom_claims(evidence)
        except NOT_AUTHENTIC as error:
            raise Refused(failed(error, evidence=evidence, source=collateral.source)) from None
        if known is None or verified.stale:
            basis = Basis(verified, platform, collateral, rules)
            known = self._known_of(basis, evidence, checks, str(decides), wrapping, not policy.draft)
        further = [update for update in self._updates if update != decides]
        sets = [self._under(evidence, update, now, may_block=may_block) for update in further]
        yield
        claim = {azure.report_data_claim(quote): _report_data(quote).hex()}
        return Judged(request, verified, known, policy, (known.under, *sets) if sets else (), claim)

    def _read(self, data: bytes, kind: AttestationType, rules: Decisions) -> tuple[EvidenceFile, bytes, Known | None]:
        """The evidence, its `wrapping` in `_known`, and what is known there: then only two of its fields are read."""
        shared = shared_part(data)
        wrapping = b"".join((kind.encode(), _id(rules), shared)) if shared else b""
        known = self._known.get_wrapped(wrapping)
        if known is not None:
            quote = known.basis.verified.quote.similar(data)
            return EvidenceFile(EvidenceKind.QUOTE, Encoding.BINARY, data, quote), wrapping, known
        evidence = read_evidence(data)
        azure.check_kind(evidence, kind)
        return evidence, wrapping, None

    def _known_of(
        self, basis: Basis, evidence: EvidenceFile, checks: tuple[Check, ...], update: str, wrapping: bytes, keep: bool
    ) -> Known:
        """What is known of verified evidence; else what its appraisal establishes, which is kept where it can be."""
        verified, quote = basis.verified, evidence.quote
        # A key has ids of immutable objects. `Known` keeps them alive, so Python gives none of these ids again.
        ids = map(_id, (verified.chain, verified.tcb, basis.collateral, basis.rules))
        statement = b"".join((*ids, _without_report_data(quote)))
        known = None if verified.stale else self._known.get(statement)
        if known is not None:
            if wrapping:  # of another QE, or in another form: the next one is read beside this one
                self._known.add(statement, replace(known, basis=basis), wrapping=wrapping)
            return known
        appraisal = appraise(verified, self._policy, grace=self._grace)
        result = result_of(appraisal, evidence, checks, basis.collateral.source)
        if not result:
            raise Refused(result)
        known = _establish(result, basis, update)
        once = verified.stale or ONCE.intersection(check.id for check in appraisal.findings)
        read = basis.rules.reads(azure.report_data_claim(quote))
        if keep and not once and not read and max(len(known.token), len(evidence.content)) <= MAX_KNOWN:
            self._known.add(statement, known, wrapping=wrapping)
        return known

    def checked(self, text: str) -> PolicyText:
        """A policy that can be put into force: with the set of collateral that decides, and nothing else, configured.

        Raises:
            ConfcomError: it breaks the grammar, or its configuration cannot be evaluated or has no effect here.
        """
        rules = self._parse(text, keep=False).policy
        if unknown := sorted(configuration(rules).keys() - {TCB_IDENTIFIER}):
            message = f"the configuration rules of SGX and TDX issue {TCB_IDENTIFIER!r} alone, found {unknown[0]!r}"
            raise AzureError(message, "PolicyEvaluationError")
        self._deciding(rules)
        return rules

    def _deciding(self, rules: PolicyText) -> Update:
        """The set of collateral that decides."""
        named = configuration(rules).get(TCB_IDENTIFIER, AZURE_DEFAULT) if rules.configuration else AZURE_DEFAULT
        if named == AZURE_DEFAULT:
            return self._updates[0]
        try:
            return parse_update(str(named), setting=TCB_IDENTIFIER)
        except ConfigError as error:
            raise AzureError(f"the policy's {error.message}", "PolicyEvaluationError") from error

    def _collateral_of(
        self, quote: Quote, platform: PlatformKind, update: Update, now: datetime, *, may_block: bool
    ) -> Collateral:
        collateral = self._collateral.remembered(platform, now, update)
        if collateral is not None:
            return collateral
        if not may_block:
            raise WouldBlock
        return self._collateral.for_quote(quote, now, update)

    def _result(
        self, given: EvidenceFile | AttestedCertificate, collateral: Collateral, now: datetime
    ) -> AttestationResult:
        return judge(given, collateral, verifier=self._verifier, policy=self._policy, now=now, grace=self._grace)

    def _under(self, evidence: EvidenceFile, update: Update, now: datetime, *, may_block: bool) -> dict[str, Any]:
        """The verdict under a further set, which decides nothing. A set that is missing is asked for once a minute."""
        platform = self._collateral.platform(evidence.quote)
        key = platform, update
        asked, missing = self._missing.get(key, (-MISSING_FOR, CollateralError("not asked for yet")))
        if time.monotonic() - asked < MISSING_FOR:
            return failed(missing, evidence=evidence).under(str(update))
        try:
            collateral = self._collateral_of(evidence.quote, platform, update, now, may_block=may_block)
        except CollateralError as error:
            if len(self._missing) >= MAX_MISSING:
                self._missing.clear()
            self._missing[key] = time.monotonic(), error
            return failed(error, evidence=evidence).under(str(update))
        return self._result(evidence, collateral, now).under(str(update))

    def baselines(self, kind: AttestationType) -> dict[str, Any]:
        """The sets that a policy can name as `x-ms-sgx-tcbidentifier`, and which one the policy in force names.

        Raises:
            CollateralError: the source of the collateral has no list of sets.
        """
        tee: Tee = "tdx" if kind is AttestationType.TDX_VM else "sgx"
        rules = self._parse(self._in_force(kind, may_block=True).text).policy
        selected = str(configuration(rules).get(TCB_IDENTIFIER, AZURE_DEFAULT))
        named = [{"tcbIdentifier": name, "isSelectedTcb": name == selected} for name in (AZURE_DEFAULT, "early")]
        numbers = [
            {
                "tcbIdentifier": str(entry.number),
                "tcbEvaluationDataNumber": entry.number,
                "tcbReleaseDate": entry.recovery_event,
                "isSelectedTcb": str(entry.number) == selected,
            }
            | (azure.psw_versions(entry.number) if tee == "sgx" else {})
            for entry in self._numbers(tee)
        ]
        return {"tcbBaselines": [*named, *numbers]}

    def _numbers(self, tee: Tee) -> tuple[EvaluationDataNumber, ...]:
        """The numbers that the source lists; fetched once in ten minutes, because requests for them need no sign-in."""
        asked, found = self._listed.get(tee, (-NUMBERS_FOR, ()))
        if time.monotonic() - asked >= NUMBERS_FOR:
            key = DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee=tee)
            try:
                found = evaluation_data_numbers(self._collateral.document(key, self._clock()))
            except CollateralError as error:
                found = error
            self._listed[tee] = time.monotonic(), found
        if isinstance(found, CollateralError):
            raise found
        return found

    def _parse(self, text: str, *, keep: bool = True) -> Decisions:
        """A policy with its decisions.

        Drafts are not kept: they would displace the policies in force, which the event loop then had to parse.
        """
        found = self._parsed.get(text)
        if found is None:
            try:
                found = Decisions(parse_policy(text, in_force=keep))
            except PolicyTextError as error:
                raise AzureError(error.message, "PolicyParsingError", advice=error.advice()) from error
            if keep:
                if len(self._parsed) >= _PARSED:
                    self._parsed.clear()
                self._parsed[text] = found
        return found

    def _token(self, judged: Judged, entry: AuditRecord, *, ear: bool) -> str:
        if judged.request.login_for is not None:
            return self._login_token(judged, judged.request.login_for, entry.at)
        hashes = joined(judged.known.hashes, msgspec.json.encode({"quotehash": entry.evidence_hash}))
        beside = azure.request_claims(judged.request, judged.verified.tee, msgspec.Raw(hashes))
        claims = judged.report_data | beside
        if judged.sets:
            claims["confcom-tcb-sets"] = judged.sets
        if judged.request.nonce is not None:
            claims[NONCE_BOUND] = judged.request.bind_nonce
        return self._ear(judged, claims, entry) if ear else self._azure_token(judged, claims, entry)

    def _login_token(self, judged: Judged, audience: str, now: datetime) -> str:
        claims = login.login_claims(
            judged.verified, judged.known.issued, issuer=self._issuer, audience=audience, now=int(now.timestamp())
        )
        claims |= {"jti": secrets.token_hex(16), "policy-hash": azure.policy_hash(judged.policy.text)}
        return login.seal(self._keys().of("RS256").sign(claims, {"typ": "JWT"}), judged.request)

    def _azure_token(self, judged: Judged, claims: dict[str, Any], entry: AuditRecord) -> str:
        claims |= self._issuer_claims(entry.at)
        claims["x-ms-policy-hash"] = entry.policy_hash
        if judged.policy.signer is not None:
            claims["x-ms-policy-signer"] = judged.policy.signer
        if judged.request.nonce is not None:
            claims["nonce"] = judged.request.nonce
        written = msgspec.Raw(joined(judged.known.token, msgspec.json.encode(claims)))
        if judged.policy.draft:
            return unsecured(written, self._header)
        return self._keys().of("RS256").sign(written, self._header)

    def signed(self, claims: dict[str, Any]) -> str:
        """An answer of the policy API as a token."""
        return self._keys().of("RS256").sign(claims | self._issuer_claims(self._clock()), self._header)

    def _issuer_claims(self, now: datetime) -> dict[str, Any]:
        issued = int(now.timestamp())
        times = {"iat": issued, "nbf": issued, "exp": issued + azure.TOKEN_LIFE}
        return {"iss": self._issuer, "jti": secrets.token_hex(32), **times}

    def _ear(self, judged: Judged, evidence: dict[str, Any], entry: AuditRecord) -> str:
        issued = int(entry.at.timestamp())
        claims = ear_claims(
            judged.verified.tee,
            judged.known.vector,
            msgspec.Raw(joined(judged.known.evidence, msgspec.json.encode(evidence))),
            policy_id=entry.policy_hash,
            nonce=judged.request.nonce,
            issued=issued,
            expires=issued + azure.TOKEN_LIFE,
        )
        claims["iss"] = self._issuer
        return self._keys().of("ES256").sign(claims, {"typ": "eat+jwt"})


def _policy(text: str, signer: x509.Certificate | None, *, draft: bool = False) -> PolicyInForce:
    return PolicyInForce(text, None if signer is None else certificate_jwk(signer), draft)


def _establish(result: AttestationResult, basis: Basis, update: str) -> Known:
    """What is said of accepted evidence under the set `update`; `Denied` if the policy of its type refuses it."""
    verified = basis.verified
    named = azure.quote_claims(verified.quote)
    seen = azure.policy_claims(named)
    decision = basis.rules.on(seen)
    if not decision.permitted:
        raise Denied(decision, seen)
    evidence, issued = azure.evidence_claims(named) | azure.appraisal_claims(verified), decision.claims()
    for claims in (seen, evidence):
        del claims[azure.report_data_claim(verified.quote)]
    written = msgspec.json.encode(evidence)
    return Known(
        seen=msgspec.json.encode(seen),
        issued=issued,
        evidence=written,
        token=joined(msgspec.json.encode(issued), written),
        hashes=msgspec.json.encode(azure.collateral_hashes(basis.collateral)),
        vector=trustworthiness_vector(verified),
        under=result.under(update),
        basis=basis,
    )


def _without_report_data(quote: Quote) -> bytes:
    """What the attestation key signed, without the report data."""
    body, place = bytes(quote.body), _report_data_place(quote)
    return bytes(quote.header) + body[: place.start] + body[place.stop :]


def _report_data(quote: Quote) -> bytes:
    """64 bytes; the other fields stay unread."""
    return bytes(quote.body)[_report_data_place(quote)]


def _report_data_place(quote: Quote) -> slice:
    return _SGX_REPORT_DATA if isinstance(quote.body, ReportBody) else _TDX_REPORT_DATA


def _id(held: object) -> bytes:
    return id(held).to_bytes(8, "little")
