"""`confcom addon enable` on clusters that cannot do what it needs, by an API server's version on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from api_stand_in import ApiStandIn
from confcom.cli.root import run
from confcom.errors import ExitCode


class VersionApi(ApiStandIn):
    """Says what it is; knows no kind of object, and keeps a list of the writes that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.version: object = "v1.36.2"
        self.writes: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        kind = "application/json"
        if handler.path == "/version":
            code, body = 200, json.dumps({"major": "1", "gitVersion": self.version}).encode()
        elif handler.path.startswith("/api/"):
            absent = {"kind": "Status", "apiVersion": "v1", "code": 404, "message": "could not find it"}
            code, body = 404, json.dumps(absent).encode()
        else:  # as an API server answers about a group that it does not have
            code, kind, body = 404, "text/plain; charset=utf-8", b"404 page not found\n"
        if handler.command != "GET":
            self.writes.append(f"{handler.command} {handler.path}")
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def api() -> Iterator[VersionApi]:
    with VersionApi() as api:
        yield api


@pytest.mark.parametrize("asked", [[], ["--dry-run"]], ids=str)
def test_a_cluster_that_is_too_old_is_told_so_and_left_alone(
    api: VersionApi, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.version = "v1.29.6-eks-1234"
    assert run(["addon", "enable", "--kubeconfig", api.kubeconfig(tmp_path), *asked]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "this cluster is Kubernetes 1.29.6-eks-1234, and the add-on needs 1.30 or later" in said
    assert api.writes == []


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("v1.33.5-gke.10", "this cluster is Kubernetes 1.33.5-gke.10"),
        # It answers that it does not know the kind: the group is switched off.
        ("v1.36.2", "this cluster, Kubernetes 1.36.2, has it switched off"),
    ],
)
def test_claims_need_more(
    api: VersionApi, version: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.version = version
    words = ["addon", "enable", "--publisher", "dra", "--kubeconfig", api.kubeconfig(tmp_path)]
    assert run(words) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "Kubernetes has from 1.36 on" in said
    assert why in said
    assert "--publisher auto" in said
    assert all("dryRun=All" in write for write in api.writes)


@pytest.mark.parametrize("version", ["", None, 7, "v" + "9" * 1000], ids=str)
def test_a_server_that_does_not_say_what_it_is_gets_a_chance(
    api: VersionApi, version: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.version = version
    assert run(["addon", "enable", "--kubeconfig", api.kubeconfig(tmp_path)]) == ExitCode.PLATFORM
    assert "cannot apply Namespace confcom-system" in capsys.readouterr().err


def test_a_group_that_a_cluster_does_not_have_holds_nothing_to_delete(
    api: VersionApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["addon", "disable", "--yes", "--kubeconfig", api.kubeconfig(tmp_path)]) == ExitCode.OK
    assert "nothing to do" in capsys.readouterr().err
    assert api.writes == []
