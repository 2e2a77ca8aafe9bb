"""kill -9 of the attestation service under load: no acknowledged write is lost, no token has an unpublished key.

Two kills by default. More: ATTESTATION_KILLS=100 ./dev run python -m pytest -s tests/service/test_attestation_kills.py
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from attestation_stage import Stage, now
from confcom.services.attestation.signing_keys import make_pair

KILLS = int(os.environ.get("ATTESTATION_KILLS", "2"))


def test_kills_lose_no_acknowledged_write_and_no_key(tmp_path: Path) -> None:
    stage, dice = Stage(tmp_path), random.Random(7)
    stage.start()
    stage.work()
    seen: set[str] = set()
    try:
        for number in range(KILLS):
            stage.wait_for_progress()
            make_pair(stage.keys, now(), simulated=True)
            time.sleep(dice.uniform(0, 0.5 if number % 4 else 6))
            stage.kill()
            stage.start()
            stage.check()
            seen |= stage.signers
    finally:
        stage.end()
    assert stage.failures == []
    stage.check_records()
    assert len(seen) >= 2, "no key was changed meanwhile"
    sys.stdout.write(
        f"{KILLS} kills: {len(stage.evidence)} tokens by {len(seen)} keys, {len(stage.policies)} of "
        f"{stage.attempted} policies acknowledged; all are kept\n"
    )
