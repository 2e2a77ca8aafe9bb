"""The base of the image: Debian with Python and nothing that a container does not use, made once and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from imaging.layers import TIMESTAMP, Layer, digest_of, layer_of_tree

SUITE = "trixie"
PACKAGES = ("python3", "ca-certificates")
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
"""Debian's keys: what is not signed by one of them is not taken, however the mirror is reached."""
USER = 65532
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_UNUSED = (
    "boot/*", "dev/*", "etc/hostname", "etc/resolv.conf", "etc/machine-id", "media/*", "run/*", "tmp/*",
    "usr/share/doc/*", "usr/share/info/*", "usr/share/lintian/*", "usr/share/locale/*", "usr/share/man/*",
    "usr/share/bash-completion", "usr/lib/python3*/idlelib", "usr/lib/python3*/lib2to3", "usr/lib/python3*/pydoc_data",
    "var/cache/*/*", "var/lib/apt/lists/*", "var/log/*", "var/tmp/*", "root/.*",
)  # fmt: skip
UNUSED_PACKAGES = (
    (
        "apt", "bash", "bsdutils", "debian-archive-keyring", "init-system-helpers", "libapt-pkg7.0", "libaudit-common",
        "libaudit1", "libblkid1", "libcap-ng0", "liblastlog2-2", "libmount1", "libpam-modules",
        "libpam-modules-bin", "libpam-runtime", "libpam0g", "libsemanage-common", "libsemanage2", "libsepol2",
        "libsmartcols1", "libudev1", "login", "login.defs", "mount", "openssl", "passwd", "sqv", "sysvinit-utils",
        "util-linux",
    ),
    ("debconf", "libdebconfclient0", "perl-base"),
    ("diffutils", "dpkg"),
)  # fmt: skip
"""What installs, changes accounts or mounts: nothing here calls it, and much of it is what scanners report.

In groups, as each is removed with the help of the next; Debian's list of what is installed stays true.
"""
_PURGE = ("dpkg", "--purge", "--force-depends", "--force-remove-essential", "--force-remove-protected")
_ACCOUNT = f"confcom:x:{USER}:{USER}:confcom:/nonexistent:/usr/sbin/nologin\n"
_GROUP = f"confcom:x:{USER}:\n"


@dataclass(frozen=True)
class Base:
    """The root file system, to run its Python in, and the layer made of it."""

    root: Path
    layer: Layer

    @property
    def python(self) -> str:
        """Version of its Python: `3.13`."""
        found = next((self.root / "usr" / "bin").glob("python3.[0-9]*"))
        return found.name.removeprefix("python")

    def compile(self, folder: Path, name: str) -> None:
        """Byte-compile a folder of the root with the root's own Python, for a place called `name` in the image.

        The result carries the source's hash and is never checked: a read-only container starts as fast as it can, and
        the times of files, which a layer does not keep, do not matter.
        """
        inside = "/" + str(folder.relative_to(self.root))
        command = ["chroot", str(self.root), f"/usr/bin/python{self.python}", "-m", "compileall", "-q", "-f"]
        options = ["--invalidation-mode", "unchecked-hash", "-s", inside, "-p", name, inside]
        subprocess.run([*command, *options], check=True, env={"PATH": "/usr/sbin:/usr/bin", "PYTHONHASHSEED": "0"})


def provide_base(folder: Path) -> Base:
    """The base from the cache, made first if need be (about two minutes)."""
    home = folder / f"base-{_key()}"
    layer = home / "layer.tar"
    if not layer.exists():
        for old in folder.glob("base-*"):
            shutil.rmtree(old)
        _make(home)
    return Base(home / "root", Layer(layer, digest_of(layer), layer.stat().st_size))


def _key() -> str:
    # Whatever decides how the base is made stands in this file.
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _make(home: Path) -> None:
    if not Path(KEYRING).is_file():
        raise SystemExit(f"image: Debian's keys are not at {KEYRING}: install the package debian-archive-keyring")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="making-") as name:
        root = Path(name) / "root"
        signed = ["--force-check-gpg", f"--keyring={KEYRING}"]
        wanted = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        command = ["debootstrap", *signed, *wanted, SUITE, str(root), MIRROR]
        environment = os.environ | {"PATH": PATH}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        _purge(root)
        _trust(root)
        _strip(root)
        _date_accounts(root)
        with (root / "etc" / "passwd").open("a") as accounts, (root / "etc" / "group").open("a") as groups:
            accounts.write(_ACCOUNT)
            groups.write(_GROUP)
        (root / "tmp").chmod(0o1777)
        library = next(path for path in (root / "usr" / "lib").glob("python3.*") if path.is_dir())
        Base(root, Layer(root, "", 0)).compile(library, f"/usr/lib/{library.name}")
        layer = layer_of_tree(root, Path(name) / "layer.tar", keep_owners=True)
        home.mkdir()
        root.rename(home / "root")
        # Last: its presence says that the base is whole.
        layer.path.rename(home / "layer.tar")


def _purge(root: Path) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    for packages in UNUSED_PACKAGES:
        command = ["chroot", str(root), *_PURGE, *packages]
        subprocess.run(command, check=True, env=environment, capture_output=True)


def _trust(root: Path) -> None:
    """Say where the authorities of TLS are: programs over OpenSSL look in its folder, which its own program brought."""
    folder = root / "usr" / "lib" / "ssl"
    folder.mkdir(exist_ok=True)
    for name, target in {"certs": "/etc/ssl/certs", "cert.pem": "/etc/ssl/certs/ca-certificates.crt"}.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)


def _date_accounts(root: Path) -> None:
    """The day on which each password was set is that of the layer, and not that of the build."""
    path, day = root / "etc" / "shadow", str(TIMESTAMP // 86400)
    rows = [line.split(":") for line in path.read_text().splitlines()]
    path.write_text("".join(":".join([*row[:2], day, *row[3:]]) + "\n" for row in rows))


def _strip(root: Path) -> None:
    for pattern in _UNUSED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
