"""The add-on's memory: what is written is read again, however a cluster spells the keys."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from confcom.errors import ConfigError
from confcom.manifests.addon import API_KEY, HELPER_KEY, AddonState, flat_settings, parse_state, state_object
from confcom.manifests.addon_config import AddonConfig

CONFIGS = some.builds(
    AddonConfig,
    image=some.sampled_from(["", "confcom/confcom:1", "registry:5000/x/y@sha256:ab"]),
    platform=some.sampled_from(["intel", "simulated"]),
    quote_helper=some.booleans(),
    webhook=some.booleans(),
    collateral=some.booleans(),
    collateral_fmspcs=some.sampled_from([(), ("00906ed50000",), ("00906ed50000", "tdx:b0c06f000000")]),
    collateral_tcb_sets=some.sampled_from([(), ("19",), ("standard", "canary=early")]),
    collateral_storage=some.sampled_from(["", "1Gi", "standard/1Gi"]),
    collateral_tls_secret=some.sampled_from(["", "given"]),
    collateral_database=some.sampled_from(["", "given"]),
    collateral_database_port=some.integers(1, 65535),
    collateral_replicas=some.integers(1, 16),
    collateral_url=some.sampled_from(["", "https://pccs.example:8081"]),
    attestation=some.booleans(),
    attestation_url=some.sampled_from(["", "https://attest.example:8443/a"]),
    attestation_storage=some.sampled_from(["", "2Gi", "standard/1Gi"]),
    attestation_tls_secret=some.sampled_from(["", "given"]),
    attestation_administrators=some.sampled_from(["", "ops"]),
    attestation_keys=some.sampled_from(["", "pkcs11:token=a%20b?module-path=/usr/lib/x.so"]),
    attestation_pin_secret=some.sampled_from(["", "hsm-pin"]),
    attestation_database=some.sampled_from(["", "given"]),
    attestation_database_port=some.integers(1, 65535),
    attestation_replicas=some.integers(1, 16),
    attested_certificates=some.booleans(),
    metrics=some.booleans(),
    autoscaling=some.booleans(),
    image_pull_secrets=some.sampled_from([(), ("a",), ("a", "b.c")]),
    publisher=some.sampled_from(["auto", "devices", "node-status", "dra"]),
    epc_reserve_mib=some.integers(0, 1 << 20),
    overcommit=some.floats(1, 100),
    quote_helper_epc_mib=some.integers(1, 4096),
    provision_grants=some.sampled_from([(), ("a/b",), ("a/b", "c/*")]),
    node_selector=some.sampled_from([(), ("pool=acc",), ("a.b/c=d", "e=")]),
    tolerations=some.sampled_from([(), ("*",), ("a", "b=c:NoExecute")]),
    webhook_replicas=some.integers(1, 16),
    quote_helper_groups=some.sampled_from([(), (0,), (105, 4242)]),
    quote_helper_seccomp=some.sampled_from(["runtime/default", "localhost/a/b.json"]),
    approve_for=some.sampled_from([(), ("clusterissuers.cert-manager.io/ca",)]),
    expected_signers=some.sampled_from([(), ("00" * 32,), ("00" * 32, "fE" * 32)]),
    api_ports=some.sampled_from([(), (443,), (1, 65535)]),
    api_addresses=some.sampled_from([(), ("10.240.0.1/32", "fd00::/64")]),
    webhook_client_ca=some.sampled_from(["", "kube-root-ca.crt"]),
)


@given(CONFIGS, some.booleans(), some.sampled_from([str, str.lower, str.upper]))
def test_what_is_written_is_read_again_in_any_case(config: AddonConfig, enabled: bool, spell: type[str]) -> None:
    data = state_object(AddonState(enabled, "1.2.3", config))["data"]
    assert all(isinstance(value, str) for value in data.values())
    assert parse_state({spell(key): value for key, value in data.items()}) == (enabled, "1.2.3", config)


def test_the_quote_helpers_key_is_that_of_aks() -> None:
    assert (API_KEY, HELPER_KEY) == ("ACCSGXDevicePlugin", "ACCSGXQuoteHelperEnabled")
    assert flat_settings(AddonConfig())[HELPER_KEY] == "false"
    assert flat_settings(AddonConfig(quote_helper=True))[HELPER_KEY] == "true"


@pytest.mark.parametrize("spelled", ["true", "True", "TRUE"])
def test_switches_may_be_spelled_as_people_do(spelled: str) -> None:
    state = parse_state({"enabled": spelled, HELPER_KEY: spelled})
    assert state.enabled
    assert state.config.quote_helper


def test_a_key_as_a_command_writes_it_counts_more_than_another_spelling() -> None:
    """Where somebody else wrote a key in another spelling, both stand in the ConfigMap after an update."""
    both = {"enabled": "true", "epcReserveMiB": "2", "epcreservemib": "3"}
    for data in (both, dict(reversed(both.items()))):
        assert parse_state(data).config.epc_reserve_mib == 2


def test_settings_of_a_later_version_do_not_stop_this_one() -> None:
    assert parse_state({"enabled": "true", "somethingNew": "7"}).config == AddonConfig()


@pytest.mark.parametrize(
    ("key", "text"),
    [("overcommit", "much"), (HELPER_KEY, "perhaps"), ("webhookReplicas", "0"), ("apiPorts", "0"), ("image", "a b"),
     ("attestationStorage", "1Gb"), ("epcReserveMiB", "-1")],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^ConfigMap confcom-system/confcom-addon: {key}(\\[0\\])?: "):
        parse_state({key.upper(): text})


def test_every_setting_has_a_key_of_its_own() -> None:
    keys = [key.lower() for key in flat_settings(AddonConfig())]
    assert len(set(keys)) == len(keys) == len(msgspec.structs.fields(AddonConfig))
    assert not {"name", "apikey", "enabled", "version"} & set(keys)
