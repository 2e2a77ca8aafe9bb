"""Uploads into a store: certificates of a machine before its keys were made again are not chosen for it."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from confcom.collateral.documents import keys_for
from confcom.collateral.pck_rules import CertificatesUnavailable
from confcom.collateral.platform_collateral import PlatformCollateral, Taken, take_platform_collateral
from confcom.collateral.store.platforms import PlatformTcb
from confcom.errors import MismatchError
from confcom.simulator.machine import MachineTcb
from confcom.simulator.world import SimulatedWorld

QE_ID = b"\xab" * 16


@pytest.fixture
def world(now) -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the upload tests", now=now, machines=2)


def pck(world: SimulatedWorld, machine: int, lower: int = 0) -> tuple[str, str, bytes]:
    """PEM, issuer chain and TCBm of a machine's certificate, for a TCB whose first component is that much lower."""
    found = world.machines[machine]
    own = found.tcb
    svns = (own.sgx_components[0] - lower, *own.sgx_components[1:])
    found.tcb = MachineTcb(svns, own.pce_svn)
    leaf, mark, chain = world.authority.pck_chain(found).decode().partition("-----END CERTIFICATE-----\n")
    found.tcb = own
    return leaf + mark, chain, bytes(svns) + own.pce_svn.to_bytes(2, "little")


def uploaded(world: SimulatedWorld, *certificates: tuple[str, str, bytes]) -> PlatformCollateral:
    tcb, identity, crl, root = (
        world.pcs.fetch_document(key) for key in keys_for(world.machine.fmspc, "platform", "sgx")
    )
    raw = world.machine.tcb
    identity_ = {"qe_id": QE_ID.hex(), "pce_id": "0000"}
    svns = {"cpu_svn": bytes(raw.sgx_components).hex(), "pce_svn": raw.pce_svn.to_bytes(2, "little").hex()}
    collaterals = {
        "pck_certs": [
            identity_ | {"certs": [{"tcbm": tcbm.hex(), "cert": quote(pem)} for pem, _, tcbm in certificates]}
        ],
        "tcbinfos": [{"fmspc": world.machine.fmspc.hex(), "sgx_tcbinfo": json.loads(tcb.body)}],
        "pckcacrl": {"platformCrl": crl.body.hex()},
        "qeidentity": identity.body.decode(),
        "rootcacrl": root.body.hex(),
        "certificates": {
            "SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": quote(certificates[0][1] if certificates else "")},
            "TCB-Info-Issuer-Chain": quote(tcb.issuer_chain),
            "SGX-Enclave-Identity-Issuer-Chain": quote(identity.issuer_chain),
        },
    }
    return PlatformCollateral(json.dumps({"platforms": [identity_ | svns], "collaterals": collaterals}).encode())


def take(store, world, now, *certificates) -> Taken:
    return take_platform_collateral(store, uploaded(world, *certificates), now=now)


def chosen(store, world) -> str:
    raw = PlatformTcb(QE_ID, bytes(2), bytes(world.machine.tcb.sgx_components), world.machine.tcb.pce_svn)
    found = store.platforms.pck_certificate(raw)
    return "" if found is None else found.certificate.decode()


def test_a_lower_certificate_does_not_take_the_place_of_a_kept_one(store, world, now):
    high, low = pck(world, 0), pck(world, 0, lower=1)
    assert take(store, world, now, high).refused == 0
    assert take(store, world, now, low).refused == 0
    assert chosen(store, world) == high[0]


def test_what_a_machine_had_before_its_keys_were_made_again_is_not_chosen(store, world, now):
    old, new = pck(world, 0), pck(world, 1, lower=1)
    assert take(store, world, now, old).refused == 0
    assert chosen(store, world) == old[0]
    assert take(store, world, now, new).refused == 0
    assert chosen(store, world) == new[0]


def test_a_platform_of_two_processors_or_of_none_is_refused_whole(store, world, now):
    taken = take(store, world, now, pck(world, 0), pck(world, 1))
    ((qe_id, error),) = taken.refused_platforms
    assert (qe_id, type(error)) == (QE_ID.hex(), MismatchError)
    ((_, error),) = take(store, world, now).refused_platforms
    assert type(error) is CertificatesUnavailable
    assert (store.platforms.groups(), store.registrations.count_all()) == ((), 0)
    assert taken.documents == 4
