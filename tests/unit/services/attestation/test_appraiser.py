"""Which policy an attest call is judged by while another call changes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from confcom.appraisal.policy import AllOf, NoDebug
from confcom.appraisal.quote import QuoteVerifier
from confcom.collateral.sources import RememberedCollateral, SourceOptions
from confcom.pki.chain import TrustRoots
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.attestation.signing_keys import SigningKeys
from confcom.tokens.azure import AttestationType, SentPolicy, policy_hash

NOW = datetime(2026, 11, 30, tzinfo=UTC)
SGX = AttestationType.SGX_ENCLAVE
OLD, NEW = (f"version= 1.0;authorizationrules {{ => {verb}(); }};" for verb in ("permit", "deny"))
BODY = b'{"quote":"AAAA"}'


class ChangedWhileRead(AttestationStore):
    """A store in which the policy changes right after it was first read, before the reader has it."""

    appraiser: Appraiser | None = None

    def policy(self, kind: AttestationType) -> SentPolicy | None:
        found = super().policy(kind)
        if self.appraiser is not None:
            changed, self.appraiser = self.appraiser, None
            self.set_policy(kind, SentPolicy("", NEW, None), NOW)
            changed.policy_changed()
        return found


def test_a_policy_that_was_changed_while_it_was_read_is_read_again(tmp_path: Path) -> None:
    store, roots = ChangedWhileRead.open(tmp_path / "store.sqlite"), TrustRoots.intel()
    assert isinstance(store, ChangedWhileRead)
    store.set_policy(SGX, SentPolicy("", OLD, None), NOW)
    appraiser = Appraiser(
        store,
        QuoteVerifier(roots),
        RememberedCollateral("none", SourceOptions(roots=roots, at=NOW)),
        AllOf(NoDebug()),
        grace=timedelta(),
        issuer="https://service.example",
        keys=lambda: SigningKeys({}, (), elsewhere=False),
        clock=lambda: NOW,
    )
    store.appraiser = appraiser
    # What is no quote is refused, and recorded with the policy that was in force.
    used = [appraiser.appraise(BODY, SGX, "")[0].policy_hash for _ in range(2)]
    store.close()
    assert used == [policy_hash(OLD), policy_hash(NEW)]
