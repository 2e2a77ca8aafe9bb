"""The Jobs of the source pages: unchanged but for their errors, and the errors as a person meets them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import EPC, attesting, job, limits, one_container, with_aesmd
from cluster_plugin import own_cluster
from confcom.formats.quote import Quote
from derived_image import derive
from kubectl import Kubectl
from relying_party import RelyingParty, quote_in

pytestmark = pytest.mark.usefixtures("enabled")


@pytest.mark.promise("M11")
@pytest.mark.promise("M9")
@pytest.mark.promise("M6")
def test_the_sample_job_attests_through_the_helper_and_the_quote_verifies(
    run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    log = run(job("sgx-test", "e2e", with_aesmd(attesting(image, "c0ffee"))))
    assert "quotes out-of-proc" in log
    quote = quote_in(log)
    verdict = relying_party.verify(quote, "c0ffee")
    assert (verdict["exit_code"], verdict["simulated"]) == (0, True), verdict
    assert relying_party.verify(quote, "c0fffe")["exit_code"] == 5
    assert relying_party.verify(quote, "c0ffee", trust=False)["exit_code"] == 4


@pytest.mark.promise("M3")
@pytest.mark.promise("M4")
@pytest.mark.complaint("intel-device-plugins #1526", "intel-device-plugins #1565")
def test_an_epc_limit_alone_brings_node_and_device(run: Callable[..., str], image: str) -> None:
    listing = "ls -l /dev/sgx_enclave /dev/sgx/enclave; ls /dev/sgx_provision /dev/sgx/provision || true"
    log = run(job("device", "e2e", one_container(image, "sh", "-c", listing, resources=limits(10))))
    assert "/dev/sgx_enclave" in log
    assert "/dev/sgx/enclave" in log
    assert "cannot access '/dev/sgx_provision'" in log


@pytest.mark.promise("M11")
def test_the_pages_value_1_is_refused_with_the_reason(cluster: Kubectl, image: str) -> None:
    sample = job("value-1", "e2e", with_aesmd(attesting(image, "00")))
    sample["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "SGX_AESM_ADDR", "value": 1}]
    refused = cluster.attempt("create", "-f", "-", given=json.dumps(sample))
    assert refused.code != 0
    assert "unmarshal number into Go struct field EnvVar" in refused.err
    assert ".value of type string" in refused.err


@pytest.mark.promise("M11")
def test_the_pages_blank_in_the_image_reference_is_named(
    cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    made(job("blank", "e2e", with_aesmd(attesting("oeciteam/sgx-test: 1.0", "00"))))
    event = cluster.wait("the reason why no pod came", lambda: _refusal(cluster, "blank"))
    assert "oeciteam/sgx-test: 1.0" in event
    assert "blank" in event


def _refusal(cluster: Kubectl, name: str) -> str | None:
    words = ("events", "-n", "e2e", "--field-selector", f"involvedObject.name={name},reason=FailedCreate")
    return next((event["message"] for event in cluster.items(*words)), None)


@pytest.mark.promise("M2")
@pytest.mark.parametrize("resource", ["sgx.intel.com/sgx_epc_mem_in_MiB", "alibabacloud.com/sgx_epc_MiB"])
def test_the_faqs_name_and_other_vendors_mean_the_same(
    run: Callable[..., str], relying_party: RelyingParty, image: str, resource: str
) -> None:
    spec = with_aesmd(attesting(image, "01"))
    spec["containers"][0]["resources"] = {"limits": {resource: 10}}
    quote = quote_in(run(job("dialect", "e2e", spec)))
    assert relying_party.verify(quote, "01")["exit_code"] == 0


@pytest.mark.promise("M2")
def test_bytes_become_the_canonical_resource(
    cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    spec = with_aesmd(attesting(image, "02"))
    spec["containers"][0]["resources"] = {"limits": {"sgx.intel.com/epc": "10Mi"}}
    quote = quote_in(run(job("bytes", "e2e", spec)))
    assert relying_party.verify(quote, "02")["exit_code"] == 0
    made = cluster.items("pods", "-n", "e2e", "-l", "app=bytes")[0]
    assert made["spec"]["containers"][0]["resources"]["limits"] == {EPC: "10", "sgx.intel.com/enclave": "1"}


@pytest.mark.promise("M9")
@pytest.mark.parametrize(
    "annotations",
    [{"confcom.dev/quote-mode": "out-of-proc"}, {"sgx.intel.com/quote-provider": "aesmd"}],
    ids=["ours", "intel"],
)
def test_an_annotation_wires_the_pod(
    run: Callable[..., str], relying_party: RelyingParty, image: str, annotations: dict[str, str]
) -> None:
    log = run(job("annotated", "e2e", attesting(image, "03"), annotations=annotations))
    assert "SGX_AESM_ADDR" in log
    assert relying_party.verify(quote_in(log), "03")["exit_code"] == 0


@pytest.mark.promise("M9")
def test_the_variable_alone_wires_the_pod(run: Callable[..., str], relying_party: RelyingParty, image: str) -> None:
    variable = [{"name": "SGX_AESM_ADDR", "value": "1"}]
    log = run(job("variable", "e2e", attesting(image, "04", env=variable)))
    assert relying_party.verify(quote_in(log), "04")["exit_code"] == 0


@pytest.mark.promise("M9")
@pytest.mark.promise("M11")
def test_the_variable_in_the_image_and_the_volume_in_the_yaml(
    cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty
) -> None:
    """As the pages' sample: its Dockerfile has `ENV SGX_AESM_ADDR=1`, its YAML only mounts /var/run/aesmd."""
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("images of this cluster are not ours to make")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tree" / "srv").mkdir(parents=True)
        derive(home, Path(name), "localhost/sample:e2e", Path(name) / "tree", ["SGX_AESM_ADDR=1"])
    spec = with_aesmd(attesting("localhost/sample:e2e", "05"))
    del spec["containers"][0]["env"]
    log = run(job("sample", "e2e", spec))
    assert "quotes out-of-proc" in log
    assert relying_party.verify(quote_in(log), "05")["exit_code"] == 0


FORKS = """
import base64, os
from pathlib import Path
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.wiring import declare_enclave, open_machine

enclave = open_machine(Path("/dev/sgx_enclave")).launch(declare_enclave("forks", "us"))
source = EnclaveQuoteSource(AesmPlatform(Path("/var/run/aesmd/aesm.socket"), simulated=True), enclave)
source.quote(bytes(64))
children = []
for number in range(1, 4):
    child = os.fork()
    if not child:
        quote = source.quote(bytes([number]) * 64).quote
        os.write(1, base64.b64encode(quote) + b"\\n")
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
os.write(1, base64.b64encode(source.quote(bytes([4]) * 64).quote) + b"\\n")
"""


@pytest.mark.promise("M9")
def test_a_program_that_forks_attests_in_every_process(
    run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    log = run(job("forks", "e2e", with_aesmd(one_container(image, "python3", "-c", FORKS, resources=limits(10)))))
    quotes = {Quote.parse(quote).report_data: quote for quote in map(quote_in, log.splitlines())}
    assert set(quotes) == {bytes([number]) * 64 for number in range(1, 5)}
    for data, quote in quotes.items():
        assert relying_party.verify(quote, data.hex())["exit_code"] == 0


def test_the_usual_settings_are_in_force(enabled: Addon) -> None:
    assert enabled.allocatable() == 168
