"""A folder that looks like the root of a host with SGX and Intel's software, of which tests take things away."""

from __future__ import annotations

import json
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
FILES = {
    "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu sgx sgx_lc aes\n",
    "proc/self/mounts": "overlay / overlay rw 0 0\ntmpfs /dev tmpfs rw,nosuid 0 0\n",
    "proc/net/unix": "Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 10000 1 1 23 /run/dbus/socket\n",
    "sys/devices/system/node/node0/x86/sgx_total_bytes": f"{64 << 20}\n",
    "sys/devices/system/node/node1/x86/sgx_total_bytes": f"{64 << 20}\n",
    "dev/sgx_enclave": "",
    "dev/sgx_provision": "",
    "etc/group": "root:x:0:\nsgx_prv:x:1234:aesmd\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/sgx_default_qcnl.conf": json.dumps({"pccs_url": "https://pccs.example/sgx/", "retry_times": 1}),
    **{
        f"{LIBRARIES}/{name}": ""
        for name in (
            "libsgx_dcap_ql.so.1",
            "libsgx_qe3_logic.so",
            "libsgx_pce_logic.so.1",
            "libsgx_urts.so.2",
            "libsgx_qe3.signed.so.1",
            "libsgx_id_enclave.signed.so.1",
            "libsgx_pce.signed.so.1",
            "libdcap_quoteprov.so.1",
        )
    },
}


def write(root: Path, name: str, content: str) -> Path:
    """A file of the host, its folders made."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def complete_host(root: Path) -> Path:
    """Everything is there."""
    for name, content in FILES.items():
        write(root, name, content)
    (root / "tmp").mkdir()
    (root / "run").mkdir()
    # As on most hosts: an absolute link, which must not lead out of the folder.
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    return root
