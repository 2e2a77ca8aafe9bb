"""The socket's directory: made by somebody else, writable by somebody else, or with somebody else's traps in it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from confcom.errors import ConfigError, PlatformUnavailable
from confcom.services.device_plugin.grpc import GrpcSocket
from confcom.services.runtime.http_server import Listener, serve_http
from confcom.services.runtime.listener import UnixListener


def test_a_symbolic_link_at_the_path_is_refused_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    path = tmp_path / "aesm.socket"
    path.symlink_to(victim)

    with pytest.raises(ConfigError, match="is not a socket"):
        UnixListener(path, backlog=128, replace=True)

    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert path.is_symlink()


def test_a_directory_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    """In a process that is not above permissions, as containers are not."""
    closed = tmp_path / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0)
    program = (
        "import sys; from pathlib import Path; from confcom.services.runtime.listener import UnixListener\n"
        "try: UnixListener(Path(sys.argv[1]), backlog=1)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    capabilities = "-dac_override,-dac_read_search"
    bound = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"] * (os.geteuid() == 0)
    command = [*bound, sys.executable, "-c", program, str(closed / "in" / "aesm.socket")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    finally:
        closed.chmod(0o700)
    assert done.stdout == f"PlatformUnavailable cannot listen at {closed}/in: Permission denied\n"


def test_a_link_put_in_place_of_the_new_socket_does_not_get_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write in the directory could swap the new socket for a link to a file of root's."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    monkeypatch.setattr("confcom.services.runtime.listener.secrets.token_hex", lambda size: "0" * 8)
    place = tmp_path / ".aesm.socket.00000000"
    real_open = os.open

    def swap(path: object, flags: int, *rest: int, **more: object) -> int:
        if Path(str(path)) == place:
            place.unlink()
            place.symlink_to(victim)
        return real_open(path, flags, *rest, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(PlatformUnavailable):
        UnixListener(tmp_path / "aesm.socket", backlog=128)

    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert not (tmp_path / "aesm.socket").exists()


def test_a_directory_that_everybody_may_write_in_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "aesmd"
    directory.mkdir()
    directory.chmod(0o777)

    with pytest.raises(ConfigError, match="every user may write in") as refused:
        UnixListener(directory / "aesm.socket", backlog=128)

    assert refused.value.advice() == f"Remove that right: chmod 0755 {directory}"
    directory.chmod(0o1777)  # as /tmp: nobody can rename what is not theirs
    UnixListener(directory / "aesm.socket", backlog=128).close()


def test_until_it_takes_the_path_the_old_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "aesm.socket"
    old = UnixListener(path, backlog=128)
    old.take_path()
    new = UnixListener(path, backlog=128, replace=True)
    assert old.owns_path
    assert not new.owns_path
    new.close()
    assert old.owns_path
    assert [entry.name for entry in tmp_path.iterdir()] == ["aesm.socket"]
    old.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_that_the_kubelet_made_is_explained_to_a_helper_that_is_not_root(tmp_path: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if stat.S_IMODE(folder.stat().st_mode) & 0o001 == 0:
            folder.chmod(0o711)
    directory = tmp_path / "aesmd"
    directory.mkdir(mode=0o755)
    program = f"""
import os
from pathlib import Path
from confcom.errors import PlatformUnavailable
from confcom.services.runtime.listener import UnixListener
os.setgroups([]), os.setgid(65532), os.setuid(65532)
try:
    UnixListener(Path({str(directory / "aesm.socket")!r}), backlog=128)
except PlatformUnavailable as error:
    print(error.message, error.advice())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert "Permission denied" in done.stdout, done.stderr
    assert "belongs to user 0, mode 0755; this process is user 65532" in done.stdout
    assert f"`chown 65532 {directory}`" in done.stdout


def refuses_descriptors(listener: socket.socket) -> bool:
    try:
        return listener.getsockopt(socket.SOL_SOCKET, 83) == 0
    except OSError:
        return False


def test_descriptors_that_a_client_passes_along_are_refused(tmp_path: Path) -> None:
    listener = UnixListener(tmp_path / "aesm.socket", backlog=128)
    if not refuses_descriptors(listener.socket):
        pytest.skip("this kernel (before 6.16) cannot refuse them")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(listener.place))
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"x"], [2])
        assert client.send(b"x") == 1
    listener.close()


async def open_helper(path: Path) -> None:
    listener = UnixListener(path, backlog=128)
    listener.take_path()
    assert path.is_socket()
    listener.close()


async def open_kubelet_service(path: Path) -> None:
    server = GrpcSocket(path, {})
    await server.start()
    assert path.is_socket()
    await server.close()


async def open_http(path: Path) -> None:
    stop = asyncio.Event()

    def started(_: str) -> None:
        assert path.is_socket()
        stop.set()

    async def nothing(*_: object) -> None:
        """No request comes."""

    await serve_http(nothing, Listener(address=path), stop=stop, started=started)


SERVICES = pytest.mark.parametrize("open_socket", [open_helper, open_kubelet_service, open_http])
OpenSocket = Callable[[Path], Awaitable[None]]


@SERVICES
@pytest.mark.complaint("linux-sgx #792", "moby #30348")
async def test_an_empty_folder_where_a_socket_belongs_is_replaced_and_nothing_is_left(
    tmp_path: Path, open_socket: OpenSocket
) -> None:
    path = tmp_path / "a.socket"
    path.mkdir()
    await open_socket(path)

    assert list(tmp_path.iterdir()) == []


@SERVICES
async def test_a_socket_that_a_killed_service_left_is_replaced(tmp_path: Path, open_socket: OpenSocket) -> None:
    path = tmp_path / "a.socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await open_socket(path)

    assert list(tmp_path.iterdir()) == []


@SERVICES
async def test_a_folder_with_something_in_it_is_left_and_explained(tmp_path: Path, open_socket: OpenSocket) -> None:
    path = tmp_path / "a.socket"
    (path / "precious").mkdir(parents=True)

    with pytest.raises(ConfigError, match="is a folder where the socket belongs") as refused:
        await open_socket(path)

    assert "A container engine makes such a folder" in refused.value.advice()
    assert (path / "precious").is_dir()


@SERVICES
async def test_a_file_where_a_socket_belongs_is_left(tmp_path: Path, open_socket: OpenSocket) -> None:
    path = tmp_path / "a.socket"
    path.write_text("precious")

    with pytest.raises(ConfigError, match="exists and is not a socket"):
        await open_socket(path)

    assert path.read_text() == "precious"
