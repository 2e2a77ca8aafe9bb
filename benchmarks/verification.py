"""Verifications per second of one core, beside dcap-qvl on the same quotes in the same run.

- `new verifier`: nothing is known but certificates and documents that this process has read before;
- `first quote of a process`: nothing is known, imports apart; beside it the first one of dcap-qvl in a process;
- `new platform`: the collateral is known, the PCK certificate is not;
- `warm`: platform and QE are known by content.

Both sides take turns in blocks, in CPU time, and medians are compared: a busy machine slows both alike. Real quotes are
used where the folder of vectors is there, simulated ones elsewhere, and for what dcap-qvl refuses of the real ones: it
takes no TD that has a service TD, as all real quotes of version 5 do.

What is not timed: making the object of the collateral, of which dcap-qvl's has CRLs and signatures decoded from
hexadecimal and ours has the bytes as they came; reading the root, which dcap-qvl does in each call, and we when the
process says whom it trusts. No call of either side has read PEM, certificates or JSON of the quote and the collateral
before its first one. After a block of the other side the processor's caches are the other's: the first call of a block
takes ours twice, dcap-qvl 1.2 times as long as the later ones.

The limit of each is what OpenSSL takes, through `cryptography`, for the signatures that have to be verified and the
keys that have to be made of points, measured in the same run: no program over these libraries is faster.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import dcap_qvl  # type: ignore[import-untyped]  # the package carries no types
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.measure import Row, show
from benchmarks.simulated import NOW, SEED
from confcom.appraisal.collateral import Collateral
from confcom.appraisal.quote import QuoteVerifier
from confcom.collateral.bundle import load_bundle, to_json
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import td_report, td_report_1_5
from confcom.simulator.world import SimulatedWorld

REAL = {
    "SGX v3": ("real/sgx3-00A067110000-dcap_qvl-f8b81014-20250621", 1750503371),
    "TDX v4": ("negative/tdx4-f1c85033-baseline", None),
}
"""Kind → folder of the vectors, and the time to judge at (None: the one in its meta.json)."""

ROUNDS, CALLS = 20, 40
"""Blocks of each side, and calls in a block."""
PLATFORMS = 800
PROCESSES = 15
NEEDS = {"new verifier": (9, 1), "first quote of a process": (9, 4), "new platform": (3, 2), "warm": (1, 0)}
"""Signatures that each has to verify (PCK CA, PCK, two CRLs, TCB signing, TCB info, identity, QE report, quote), and
keys that are new (PCK CA, PCK, TCB signing, attestation key; the root's is known with the root)."""


@dataclass(frozen=True, slots=True)
class Input:
    """One quote with what it is judged by."""

    name: str
    quote: bytes
    collateral: Collateral
    root: bytes
    now: datetime

    @property
    def roots(self) -> TrustRoots:
        """The root that the quote leads to, alone."""
        return TrustRoots((TrustRoot.from_pem(self.root),))

    def peer(self) -> Callable[[], object]:
        """The verification of dcap-qvl; its object of the collateral is reused."""
        collateral = dcap_qvl.QuoteCollateralV3.from_json(to_json(self.collateral).decode())
        root, now = self.roots.roots[0].certificate_der, int(self.now.timestamp())
        return lambda: dcap_qvl.verify_with_root_ca(self.quote, collateral, root, now)


def rows() -> Iterator[Row]:
    known_key, new_key = _ecdsa()
    with_key, signature = _beside(known_key, new_key)
    limits = {what: count * signature + keys * (with_key - signature) for what, (count, keys) in NEEDS.items()}
    yield Row("one ECDSA P-256 verification (OpenSSL)", 1 / signature)
    yield Row("the same with a new key", 1 / with_key)
    for data in inputs():
        roots, peer = data.roots, data.peer()
        known = QuoteVerifier(roots)
        figures = {
            "new verifier": _beside(peer, _cold(data, roots)),
            "warm": _beside(
                peer,
                lambda data=data, known=known: known.verify(data.quote, data.collateral, now=data.now),  # type: ignore[misc]
            ),
        }
        for what, (ours, theirs) in figures.items():
            yield _row(f"{what}, {data.name}", ours, theirs, limits[what])
        what = "first quote of a process"
        ours, first, later = _first_quotes(data)
        yield _row(f"{what}, {data.name}", ours, first, limits[what], f"; {later / ours:.2f} of its later ones")
    yield _row("new platform, simulated SGX v3", *_new_platforms(), limits["new platform"])


def _row(name: str, ours: float, peer: float, limit: float, more: str = "") -> Row:
    note = f"limit of the ratio {peer / limit:.2f}, {limit / ours:.0%} of it reached{more}"
    return Row(name, 1 / ours, beside=1 / peer, peer="dcap-qvl", note=note)


def _cold(data: Input, roots: TrustRoots) -> Callable[[], object]:
    """The call of a new verifier with a new object of the collateral, so that nothing found for an earlier one helps.

    The objects are made before, as the peer's is.
    """
    new = [replace(data.collateral) for _ in range(ROUNDS * CALLS)]
    return lambda: QuoteVerifier(roots).verify(data.quote, new.pop(), now=data.now)


def _beside(peer: Callable[[], object], call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of one call of ours and one of the peer's: medians of blocks that take turns."""
    blocks = [(_block(call, CALLS), _block(peer, CALLS)) for _ in range(ROUNDS)]
    return median(ours for ours, _ in blocks), median(theirs for _, theirs in blocks)


def _block(call: Callable[[], object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


def _new_platforms() -> tuple[float, float]:
    """Each of many platforms once, under collateral that the first made known; blocks of the peer in between."""
    world = SimulatedWorld.from_seed(SEED, now=NOW, machines=PLATFORMS)
    root, collateral = world.trust_roots.roots[0].pem, world.publish()
    quotes = [enclave_quote(world, number) for number in range(PLATFORMS)]
    verifier = QuoteVerifier(world.trust_roots)
    verifier.verify(quotes[0], collateral, now=NOW)
    new = iter(quotes[1:])
    peer = Input("", quotes[0], collateral, root, NOW).peer()
    blocks = [
        (_block(lambda: verifier.verify(next(new), collateral, now=NOW), CALLS), _block(peer, CALLS))
        for _ in range(PLATFORMS // CALLS - 1)
    ]
    return median(ours for ours, _ in blocks), median(theirs for _, theirs in blocks)


# What imports leave to the garbage collector (`gc.freeze`) is theirs.
_FIRST = """
import gc, pickle, sys
from benchmarks.verification import Input, QuoteVerifier, _block
data = Input(*pickle.load(open(sys.argv[1], "rb")))
roots, peer = data.roots, data.peer()
calls = {"ours": lambda: QuoteVerifier(roots).verify(data.quote, data.collateral, now=data.now), "peer": peer}
gc.freeze()
print(_block(calls[sys.argv[2]], 1), sorted(_block(peer, 1) for _ in range(21))[10])
"""


def _first_quotes(data: Input) -> tuple[float, float, float]:
    """CPU seconds of our first call in a process, of the peer's in another, and of the peer's later ones."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickle.dumps((data.name, data.quote, data.collateral, data.root, data.now)))
        file.flush()
        taken: dict[str, list[list[float]]] = {"ours": [], "peer": []}
        for _ in range(PROCESSES):
            for side, figures in taken.items():
                command = [sys.executable, "-c", _FIRST, file.name, side]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                figures.append([*map(float, output.split())])
    ours, theirs = taken.values()
    return median(one[0] for one in ours), median(one[0] for one in theirs), median(one[1] for one in ours + theirs)


def inputs() -> Iterator[Input]:
    """One quote of each version."""
    named = os.environ.get("CONFCOM_VECTORS")
    vectors = Path(named) if named else Path(__file__).resolve().parent.parent.parent / "shared" / "vectors"
    world = SimulatedWorld.from_seed(SEED, now=NOW)
    root = world.trust_roots.roots[0].pem
    td_collateral = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, "tdx")
    if (vectors / "index.tsv").is_file():
        for kind, (name, at) in REAL.items():
            folder = vectors / name
            now = datetime.fromtimestamp(at or json.loads((folder / "meta.json").read_text())["time"], UTC)
            quote = (folder / "quote.bin").read_bytes()
            yield Input(f"real {kind}", quote, load_bundle(folder), TrustRoots.intel().roots[0].pem, now)
    else:
        yield Input("simulated SGX v3", enclave_quote(world, 0), world.publish(), root, NOW)
        td = world.platform.quote_td(td_report("bench", bytes(64)))
        yield Input("simulated TDX v4", td, td_collateral, root, NOW)
    td = world.platform.quote_td(td_report_1_5("bench", bytes(64)))
    yield Input("simulated TDX v5", td, td_collateral, root, NOW)


def enclave_quote(world: SimulatedWorld, number: int) -> bytes:
    """A quote of the machine of this number."""
    machine, platform = world.machines[number], world.platforms[number]
    enclave = machine.launch(EnclaveDeclaration.from_names("bench", "bench"))
    return platform.quote(enclave.create_report(platform.init_quote().target_info, bytes(64))).quote


def _ecdsa() -> tuple[Callable[[], object], Callable[[], object]]:
    """One verification of a signature over a digest: with a key that is known, and with one made of its point."""
    key = ec.generate_private_key(ec.SECP256R1())
    algorithm, curve = ec.ECDSA(Prehashed(SHA256())), ec.SECP256R1()
    digest, public = bytes(32), key.public_key()
    signature, point = key.sign(digest, algorithm), public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    new = ec.EllipticCurvePublicKey.from_encoded_point
    return (
        lambda: public.verify(signature, digest, algorithm),
        lambda: new(curve, point).verify(signature, digest, algorithm),
    )


if __name__ == "__main__":
    show(rows())
