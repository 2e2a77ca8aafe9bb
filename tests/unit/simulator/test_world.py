from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from confcom.errors import ConfigError
from confcom.simulator.world import SimulatedWorld


def quote_of(world, declaration, index=0):
    platform, machine = world.platforms[index], world.machines[index]
    report = machine.launch(declaration).create_report(platform.init_quote().target_info, b"D" * 64)
    return platform.quote(report).quote


def test_processes_that_load_the_same_file_stand_on_the_same_machine(tmp_path, world, declaration):
    (path,) = world.write(tmp_path / "state")
    helper, application = SimulatedWorld.load(path), SimulatedWorld.load(path)
    target = helper.platform.init_quote().target_info
    report = application.machine.launch(declaration).create_report(target, b"D" * 64)
    assert helper.platform.quote(report).quote == quote_of(world, declaration)
    assert helper.root_pem() == application.root_pem() == world.root_pem()
    assert helper.publish() == world.publish()


def test_every_machine_has_a_file_of_its_own(tmp_path, seed, now, declaration):
    world = SimulatedWorld.from_seed(seed, now=now, machines=3)
    paths = world.write(tmp_path)
    assert [path.name for path in paths] == ["machine-0.json", "machine-1.json", "machine-2.json"]
    loaded = SimulatedWorld.load(paths[2])
    assert loaded.machine.ppid == world.machines[2].ppid
    assert quote_of(loaded, declaration) == quote_of(world, declaration, 2)
    assert len({machine.ppid for machine in world.machines}) == 3
    assert len({platform.init_quote().pub_key_id for platform in world.platforms}) == 3


def test_all_machines_have_one_root(seed, now):
    world = SimulatedWorld.from_seed(seed, now=now, machines=2)
    roots = {
        x509.load_pem_x509_certificates(world.authority.pck_chain(machine))[2].subject for machine in world.machines
    }
    assert len(roots) == 1


def test_other_seeds_have_other_roots(seed, now):
    assert (
        SimulatedWorld.from_seed(seed, now=now).root_der()
        != SimulatedWorld.from_seed(b"another seed of this test", now=now).root_der()
    )


def test_publishing_at_a_time_issues_everything_anew(world, now):
    later = now + timedelta(days=60)
    document = json.loads(world.publish(later).tcb_info)["tcbInfo"]
    assert document["issueDate"] == "2027-01-19T09:30:00Z"
    assert document["nextUpdate"] == "2027-02-18T09:30:00Z"
    crl = x509.load_der_x509_crl(world.publish().pck_crl)
    assert crl.last_update_utc < later < crl.next_update_utc


def test_a_world_needs_a_machine_and_a_time_zone(seed, now):
    with pytest.raises(ConfigError, match="machine"):
        SimulatedWorld.from_seed(seed, now=now, machines=0)
    with pytest.raises(ConfigError, match="time zone"):
        SimulatedWorld.from_seed(seed, now=datetime(2026, 1, 1))  # noqa: DTZ001 - the missing zone is the point


def test_collateral_is_exported_with_the_root_beside_it(tmp_path, world, now):
    later = now + timedelta(days=1)
    world.export_collateral(tmp_path, later)
    assert (tmp_path / "root_ca.pem").read_bytes() == world.root_pem()
    assert (tmp_path / "tcb_info.json").read_bytes() == world.publish().tcb_info
    assert (tmp_path / "pck_crl.der").read_bytes() == world.publish().pck_crl
