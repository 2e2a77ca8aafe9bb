"""An image of the unmodified servers for a test cluster: their programs with the libraries that they load, and busybox.

Made from the machine's own Debian and the packages of `attested_servers`, and given to the cluster's containerd.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import image
from imaging.layers import layer_of_tree
from imaging.oci import Settings, write_image

from attested_servers import environment, programs

NAME = "localhost/confcom-servers:e2e"
INSIDE = {"nginx": "usr/sbin/nginx", "stunnel": "usr/bin/stunnel4", "envoy": "usr/bin/envoy", "busybox": "bin/busybox"}
# The C library loads this one where a thread ends.
UNNAMED = Path("/lib/x86_64-linux-gnu/libgcc_s.so.1")
LINKS = ("cp", "kill", "sh", "sleep", "touch")


def provide(folder: Path) -> dict[str, str]:
    """Make the image and load it; the servers' programs in it, by name."""
    root, found = folder / "root", programs()
    for name, program in found.items():
        _copy(program, root / INSIDE[name])
        said = subprocess.run(["ldd", program], env=environment(), capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", said):
            # All where the loader looks first, whatever folder they come from here; the loader where programs name it.
            place = Path(library) if "ld-linux" in library else Path("/lib/x86_64-linux-gnu", Path(library).name)
            _copy(Path(library), root / place.relative_to("/"))
    _copy(UNNAMED, root / UNNAMED.relative_to("/"))
    for name in LINKS:
        (root / "bin" / name).symlink_to("busybox")
    archive = folder / "servers.tar"
    write_image(archive, NAME, [layer_of_tree(root, folder / "layer.tar")], Settings(entrypoint=("sh",)))
    image.load(archive)
    return {name: f"/{INSIDE[name]}" for name in found}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o755)
