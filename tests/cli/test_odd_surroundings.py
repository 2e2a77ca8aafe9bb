"""What a person's surroundings do wrong gets a sentence: no home, closed streams, empty names, a proxy's page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from confcom.cli.root import run
from confcom.errors import ExitCode
from confcom.services.attestation.attestation_service import AttestationServiceConfig
from confcom.services.runtime.process import render

CONFCOM = [sys.executable, "-m", "confcom"]


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error text of a command line."""
    code = run(words)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["collateral", "status", "--store", ""],
        ["collateral", "status", "--store", ":memory:"],
        ["collateral", "status", "--store", "-"],
        ["attestation", "migrate", "--store", "-"],
        ["collateral", "import", ""],
        ["verify", ""],
        ["inspect", ""],
        ["verify", "q", "--policy", ""],
        ["quote", "--machine", "", "--report-data", "00"],
        ["simulate", "collateral", "m.json", "-o", ""],
        ["attestation", "audit", "--store", ""],
        ["attestation", "new-keys", ""],
        ["quote-helper", "--config", ""],
        ["quote-helper", "--socket", ""],
        ["quote-helper", "--socket", "/"],
    ],
    ids=" ".join,
)
def test_an_empty_name_is_no_place(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(words)
    assert code == ExitCode.USAGE
    assert "unexpected" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["collateral", "status", "--at", "9999-12-31T23:59:59-14:00"],
        ["collateral", "status", "--at", "0001-01-01T00:00:00+14:00"],
        ["collateral", "remove", "--not-seen-since", "999999w"],
    ],
)
def test_times_beyond_the_calendar(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.sqlite").touch()
    code, text = said([*words, "--store", str(tmp_path / "s.sqlite")], capsys)
    assert code == ExitCode.USAGE
    assert words[2] in text


@pytest.mark.parametrize("url", ["https://[::1", "https://x:99999", "https://me:secret@x:0", "https://x:y", "https://"])
def test_what_is_no_url(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["collateral", "fetch", "--fmspc", "000053494D00", "--store", str(tmp_path / "s"), "--source", url]
    code, text = said(words, capsys)
    assert code == ExitCode.USAGE
    assert "is not the URL of a collateral service" in text
    assert "secret" not in text


@pytest.mark.parametrize("proxy", ["http://[::1", "socks5://127.0.0.1:1080", "http://", "http://x:99999"])
@pytest.mark.parametrize("named", ["option", "variable"])
def test_what_is_no_proxy(
    proxy: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["collateral", "fetch", "--fmspc", "000053494D00", "--store", str(tmp_path / "s")]
    monkeypatch.setenv("https_proxy", proxy if named == "variable" else "")
    code, text = said(
        [*words, "--source", "https://x.invalid", *(["--proxy", proxy] if named == "option" else [])], capsys
    )
    assert (code, "is not the URL of a proxy" in text) == (ExitCode.USAGE, True)


def test_verify_asks_through_the_proxy_as_fetch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", "machine", "-o", "m.json"]) == run(["simulate", "collateral", "m.json", "-o", "col"]) == 0
    assert run(["quote", "--machine", "m.json", "--report-data", "00", "-o", "q.bin"]) == 0
    seen: list[tuple[str, str | None]] = []
    with answering(b"of the proxy", seen) as url:
        monkeypatch.setenv("https_proxy", url.removeprefix("http://"))  # without a scheme, as curl takes it
        words = ["verify", "q.bin", "--collateral", "http://pccs.invalid", "--trust-root", "col/root_ca.pem"]
        assert run(words) == ExitCode.COLLATERAL
    assert seen
    assert {path.partition("/sgx/")[0] for path, _ in seen} == {"http://pccs.invalid"}


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    monkeypatch.delenv("CONFCOM_COLLATERAL_STORE", raising=False)
    code, text = said(["collateral", "status"], capsys)
    assert code == ExitCode.USAGE
    assert "no home folder" in text
    assert "CONFCOM_COLLATERAL_STORE" in text


KUBECONFIG = """
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: CLUSTER}]
users: [{name: u, user: USER}]
"""


def kubeconfig(path: Path, cluster: str, user: str = "{token: x}") -> str:
    path.write_text(KUBECONFIG.replace("CLUSTER", cluster).replace("USER", user))
    return str(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"a: [", b"\xff\xfe\xa1", b"[]", b"a: !!python/object:x {}", b"{clusters: 1, contexts: 2}"],
)
def test_what_is_no_kubeconfig(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "k").write_bytes(content)
    code, text = said(["addon", "show", "--kubeconfig", str(tmp_path / "k")], capsys)
    assert code == ExitCode.USAGE
    assert "the kubeconfig cannot be used" in text


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ("{server: 'https://[::1'}", "{token: x}"),
        ("{server: 'https://localhost:99999'}", "{token: x}"),
        ("{server: 5}", "{token: x}"),
        ("{server: 'https://localhost:9'}", "{client-certificate-data: aGFsbG8=}"),
    ],
)
def test_a_kubeconfig_with_a_wrong_value(
    cluster: str, user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(["addon", "show", "--kubeconfig", kubeconfig(tmp_path / "k", cluster, user)], capsys)
    assert code == ExitCode.USAGE
    assert "unexpected" not in text


@contextmanager
def answering(body: bytes, seen: list[tuple[str, str | None]] | None = None) -> Iterator[str]:
    """A server that gives every request the same answer; its URL. `seen` gets each path and its credentials."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("words", "body"),
    [
        *((["top"], body) for body in (b"<html>log in</html>", b"null", b"5", b"", b"[" * 100_000, b'{"a": "\xff"}')),
        (["addon", "show"], b"<html>log in</html>"),
        (["why", "x"], b'"x"'),
    ],
)
def test_an_answer_that_is_not_the_apis(
    words: list[str], body: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(body) as url:
        file = kubeconfig(tmp_path / "k", f"{{server: '{url}'}}")
        code, text = said([*words, "--kubeconfig", file], capsys)
    assert code == ExitCode.PLATFORM
    assert "gave no usable answer" in text


@pytest.mark.parametrize("command", ["/nonexistent/plugin", "/bin/false", "echo"])
def test_a_credential_plugin_that_fails(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = f"{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}}}}}"
    file = kubeconfig(tmp_path / "k", "{server: 'http://127.0.0.1:9'}", plugin)
    assert said(["addon", "show", "--kubeconfig", file], capsys)[0] == ExitCode.PLATFORM


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_credential_plugin_logs_in(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "plugin"
    script.write_text(
        "#!/bin/sh\n"
        'printf \'{"status": {"token": "of-the-plugin"}}\'\n'
        f'printf "%s" "$KUBERNETES_EXEC_INFO" >{tmp_path}/told\n'
    )
    script.chmod(0o755)
    plugin = f"{{exec: {{apiVersion: client.authentication.k8s.io/{version}, command: {script}}}}}"
    seen: list[tuple[str, str | None]] = []
    with answering(b"{}", seen) as url:
        file = kubeconfig(tmp_path / "k", f"{{server: '{url}'}}", plugin)
        assert "is not enabled" in said(["addon", "show", "--kubeconfig", file], capsys)[1]
    assert {credentials for _, credentials in seen} == {"Bearer of-the-plugin"}
    if version == "v1":
        assert json.loads((tmp_path / "told").read_text())["apiVersion"] == "client.authentication.k8s.io/v1"


def test_a_list_of_kubeconfigs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = kubeconfig(tmp_path / "one", "{server: 'http://127.0.0.1:9'}")
    monkeypatch.setenv("KUBECONFIG", f":{tmp_path}/missing:{one}:")
    assert said(["addon", "show"], capsys)[0] == ExitCode.PLATFORM  # it was read: the cluster is asked
    monkeypatch.setenv("KUBECONFIG", f"{one}:{kubeconfig(tmp_path / 'two', '{}')}")
    code, text = said(["addon", "show"], capsys)
    assert (code, "lists 2 files" in text) == (ExitCode.USAGE, True)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing:{tmp_path}/gone")
    code, text = said(["addon", "show"], capsys)
    assert (code, f"{tmp_path}/missing, {tmp_path}/gone not found" in text) == (ExitCode.USAGE, True)


def test_a_store_in_a_place_that_cannot_be_looked_at_is_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the home of another user is, in a container: the file system refuses to say whether there is one."""
    assert run(["simulate", "machine", "-o", f"{tmp_path}/machine"]) == ExitCode.OK
    words = ["--machine", f"{tmp_path}/machine", "--report-data", "00", "-o", f"{tmp_path}/quote"]
    assert run(["quote", *words]) == ExitCode.OK
    monkeypatch.setenv("CONFCOM_COLLATERAL_STORE", str(tmp_path / ("n" * 300)))
    capsys.readouterr()
    code = run(["verify", f"{tmp_path}/quote"])
    assert code == ExitCode.COLLATERAL
    assert "no store of your own" in "".join(capsys.readouterr())


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_closed_streams_are_no_files_of_ours(closed: str, tmp_path: Path) -> None:
    """Descriptor 2 of a program that was started without one must not become its database."""
    program = (
        "import os, sys; from confcom.cli.options import check_output; check_output();"
        "print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)]); print(sys.stderr.write('x'))"
    )
    shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program]
    done = subprocess.run(shell, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert "/dev/null" in done.stdout
    assert done.stdout.splitlines()[1] == "1"


def test_a_daemon_starts_without_standard_error(tmp_path: Path) -> None:
    shell = [
        "/bin/sh",
        "-c",
        'exec "$@" 2>&-',
        "sh",
        *CONFCOM,
        "quote-helper",
        "--platform",
        "simulated",
        "--machine",
        "m",
    ]
    done = subprocess.run(shell, cwd=tmp_path, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == ExitCode.USAGE  # for the machine, that is: not 1


def test_settings_are_shown_whatever_bytes_a_name_has() -> None:
    config = AttestationServiceConfig(store=os.fsdecode(b"/tmp/\xff"))
    assert json.loads(render(config))["store"] == os.fsdecode(b"/tmp/\xff")
