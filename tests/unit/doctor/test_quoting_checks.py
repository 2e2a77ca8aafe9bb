"""Intel's libraries, enclave files and quote provider library on a host."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.doctor.checks import Finding, Level, Role, Subject
from confcom.doctor.quoting_checks import quoting_findings, service_findings
from sgx_host_folder import LIBRARIES, complete_host, write

CONFIG = "etc/sgx_default_qcnl.conf"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return complete_host(tmp_path)


def findings(root: Path, **environ: str) -> dict[str, Finding]:
    subject = Subject.of(Host(root), environ, Role.APPLICATION)
    return {finding.id: finding for finding in quoting_findings(subject)}


def test_a_complete_host(host: Path) -> None:
    found = findings(host)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert found["enclave.qe3"].found == f"/{LIBRARIES}/libsgx_qe3.signed.so.1"
    assert found["qpl.settings"].found.endswith("https://pccs.example/sgx/")


@pytest.mark.parametrize(
    ("identifier", "file", "package"),
    [
        ("library.dcap-ql", "libsgx_dcap_ql.so.1", "libsgx-dcap-ql"),
        ("library.qe3-logic", "libsgx_qe3_logic.so", "libsgx-qe3-logic"),
        ("library.pce-logic", "libsgx_pce_logic.so.1", "libsgx-pce-logic"),
        ("library.urts", "libsgx_urts.so.2", "libsgx-urts"),
        ("enclave.qe3", "libsgx_qe3.signed.so.1", "libsgx-ae-qe3"),
        ("enclave.id", "libsgx_id_enclave.signed.so.1", "libsgx-ae-id-enclave"),
        ("enclave.pce", "libsgx_pce.signed.so.1", "libsgx-ae-pce"),
    ],
)
def test_what_is_missing_is_named_with_its_package(host: Path, identifier: str, file: str, package: str) -> None:
    (host / LIBRARIES / file).unlink()
    finding = findings(host)[identifier]
    assert finding.level is Level.PROBLEM
    assert file in finding.found
    assert package in finding.advice
    assert findings(host, SGX_AESM_ADDR="")[identifier].level is Level.OK


def test_an_enclave_file_under_its_older_name(host: Path) -> None:
    (host / LIBRARIES / "libsgx_pce.signed.so.1").rename(host / LIBRARIES / "libsgx_pce.signed.so")
    assert findings(host)["enclave.pce"].level is Level.OK


def test_an_enclave_file_must_be_beside_its_library(host: Path) -> None:
    write(host, "usr/lib64/libsgx_qe3.signed.so.1", "")
    (host / LIBRARIES / "libsgx_qe3.signed.so.1").unlink()
    assert findings(host)["enclave.qe3"].level is Level.PROBLEM


def test_libraries_in_a_folder_of_their_own(host: Path) -> None:
    (host / LIBRARIES).rename(host / "opt")
    assert findings(host)["library.dcap-ql"].level is Level.PROBLEM
    found = findings(host, LD_LIBRARY_PATH="relative::/opt/")
    assert {found[key].level for key in found} == {Level.OK}
    assert found["enclave.id"].found == "/opt/libsgx_id_enclave.signed.so.1"


def test_without_a_provider_quotes_are_made_but_refused_by_verifiers(host: Path) -> None:
    (host / LIBRARIES / "libdcap_quoteprov.so.1").unlink()
    found = findings(host)
    assert found["qpl.library"].level is Level.WARNING
    assert "libsgx-dcap-default-qpl" in found["qpl.library"].advice
    assert "qpl.settings" not in found


def test_azures_provider_has_the_other_name(host: Path) -> None:
    (host / LIBRARIES / "libdcap_quoteprov.so.1").rename(host / LIBRARIES / "libdcap_quoteprov.so")
    assert findings(host)["qpl.library"].level is Level.OK


def test_settings_may_have_comments(host: Path) -> None:
    write(host, CONFIG, '{\n  // the service\n  "pccs_url": "https://p/*x*//", /* no more */ "retry_times": 0\n}\n')
    finding = findings(host)["qpl.settings"]
    assert finding.level is Level.OK
    assert finding.found.endswith(": pccs_url https://p/*x*//")


def test_settings_elsewhere(host: Path) -> None:
    write(host, "conf/q.json", json.dumps({"pccs_url": "https://other/", "retry_times": 0}))
    assert "https://other/" in findings(host, QCNL_CONF_PATH="/conf/q.json")["qpl.settings"].found
    assert findings(host, QCNL_CONF_PATH="/nowhere")["qpl.settings"].level is Level.WARNING


@pytest.mark.parametrize(
    ("settings", "level", "said"),
    [
        ('{"retry_times": 1}', Level.PROBLEM, "pccs_url is not set; so https://localhost:8081 is asked"),
        ('{"pccs_url": "https://u/"}', Level.WARNING, "retry_times is not set, so 6"),
        ('{"pccs_url": "https://u/",\n "retry_times": 9}', Level.WARNING, "line 2: retry_times is 9"),
        ('{"pccs_url": "https://u/", "retry_times": 0,\n\n"use_secure_cert": false}', Level.WARNING,
         "line 3: use_secure_cert is false"),
        ('{"pccs_url": "https://u/", "retry_times": "1"}', Level.WARNING, 'retry_times is text ("1"), so it is passed'),
        ('{"pccs_url": "https://u/", "retry_times": true}', Level.WARNING, "retry_times is true or false (true)"),
        ('{"pccs_url": ["https://u/"], "retry_times": 0}', Level.PROBLEM, 'line 1: pccs_url is a list (["https://u/"])'),
        ('{"retry_times": 1,\n"pccs_url": "https://u/",\n"retry_times": 0}', Level.WARNING,
         "line 3: retry_times is on line 1 too, and that one counts"),
        ('{"pccs_url": "https://u/", "retry_times": 1.5}', Level.WARNING, "is a number with a fraction (1.5)"),
        ('{"retry_times": 1, "PCCS_URL": "https://u/"}', Level.PROBLEM, "line 1: 'PCCS_URL' is passed over"),
        ('{"retry_times": 1, "pccs_url": "pccs.example:8081/sgx/certification/v4/"}', Level.PROBLEM, "no https://HOST"),
        ('{"retry_times": 1, "pccs_url": "https://pccs.example:8081/sgx/certification/v4"}', Level.PROBLEM, "slash"),
        ('{"retry_times": 1, "pccs_url": "https://u:x/"}', Level.PROBLEM, "is no URL"),
        ('{"pccs_url": ', Level.PROBLEM, "line 1, column 14: expected a value for 'pccs_url', found the end"),
        ('{"pccs_url": "https://u/",}', Level.PROBLEM, "expected a key in double quotes after the comma"),
        ('\ufeff{"pccs_url": "https://u/"}', Level.PROBLEM, "byte order mark"),
        ('{"pccs_url": "https://u/", "retry_times": 1\0}', Level.PROBLEM, "found a NUL byte"),
        ("[]", Level.PROBLEM, "expected an object in braces"),
        ("PCCS_URL=https://localhost:8081\nUSE_SECURE_CERT=TRUE\n", Level.WARNING, "form of DCAP before 1.10"),
    ],
)  # fmt: skip
def test_settings_that_will_not_do(host: Path, settings: str, level: Level, said: str) -> None:
    write(host, CONFIG, settings)
    finding = findings(host)["qpl.settings"]
    assert finding.level is level
    assert said in finding.found
    assert finding.advice


@pytest.mark.parametrize(
    ("key", "advice"), [("PCCS_URL", "write pccs_url."), ("retry_time", "write retry_times."), ("x", "no 'x'.")]
)
def test_an_unknown_key_is_named_with_what_may_be_meant(host: Path, key: str, advice: str) -> None:
    write(host, CONFIG, json.dumps({"pccs_url": "https://u/", "retry_times": 1, key: 1}))
    finding = findings(host)["qpl.settings"]
    assert finding.level is Level.WARNING
    assert advice in finding.advice


def test_other_line_ends_and_the_settings_of_intels_azure_example_are_right(host: Path) -> None:
    write(host, CONFIG, '{\r\n"pccs_url": "https://u/",\r\n"retry_times": 1, "pck_cache_expire_hours": 0.5,\r\n'
          '"custom_request_options": {"get_cert": {"headers": {"metadata": "true"}}}}\r\n')  # fmt: skip
    assert findings(host)["qpl.settings"].level is Level.OK


def test_why_the_settings_cannot_be_read_is_said(host: Path) -> None:
    (host / CONFIG).unlink()
    assert findings(host)["qpl.settings"].found.endswith("cannot be read: No such file or directory")
    (host / CONFIG).mkdir()
    assert findings(host)["qpl.settings"].found.endswith("cannot be read: Is a directory")


def test_the_cache_is_where_the_first_variable_says(host: Path) -> None:
    (host / "cache").mkdir()
    assert findings(host)["qpl.cache"].found == "/tmp (by default)"
    assert findings(host, AZDCAP_CACHE="/cache", HOME="/x")["qpl.cache"].found == "/cache (by AZDCAP_CACHE)"
    finding = findings(host, HOME="/nowhere")["qpl.cache"]
    assert finding.level is Level.WARNING
    assert "AZDCAP_CACHE" in finding.advice


class TestService:
    """Whether the collateral service can be reached: real connections."""

    def asked(self, root: Path, url: str, role: Role = Role.QUOTE_HELPER) -> list[Finding]:
        write(root, CONFIG, json.dumps({"pccs_url": url}))
        return list(service_findings(Subject.of(Host(root), {"SGX_AESM_ADDR": "1"}, role)))

    def test_one_that_listens(self, host: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            (finding,) = self.asked(host, f"https://127.0.0.1:{port}/sgx/certification/v4/")
        assert (finding.level, finding.found) == (Level.OK, f"127.0.0.1:{port} takes connections")

    def test_one_that_does_not(self, host: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        (finding,) = self.asked(host, f"http://127.0.0.1:{port}/")
        assert finding.level is Level.WARNING
        assert "refused" in finding.found
        assert "confcom collateral serve" in finding.advice

    @pytest.mark.parametrize("url", ["", "nonsense", "https://[::1", "https://host:99999999/"])
    def test_what_is_no_address_is_for_the_settings_to_say(self, host: Path, url: str) -> None:
        assert self.asked(host, url) == []

    def test_an_application_with_a_helper_does_not_ask_it(self, host: Path) -> None:
        assert self.asked(host, "https://127.0.0.1:1/", Role.APPLICATION) == []
