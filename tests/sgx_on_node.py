"""The test cluster's node with what a host with SGX shows: sysfs with EPC on two NUMA nodes, and the driver's devices.

Seen in the cluster's own mount namespace, by its kubelet, its container runtime and its pods. The devices are those
that other drivers of the kernel answer: they can be opened, mapped and named, and are no enclaves.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster_plugin import CLUSTER_SCRIPTS, forget_topology

MIB_PER_NUMA_NODE = 64
NUMBER = (1, 5)
"""That of /dev/zero, which can be mapped."""
GROUP = 4242
"""Whose the provisioning device is."""

_SYSFS = """
sysfs=$F/node; real=/sys/devices/system/node
rm -rf "$sysfs"; mkdir -p "$sysfs"
for file in online possible has_cpu has_memory has_normal_memory; do echo 0-1 >"$sysfs/$file"; done
cpus=$(nproc --all)
for node in 0 1; do
  mkdir -p "$sysfs/node$node/x86" && cp -r "$real/node0/hugepages" "$sysfs/node$node/" 2>/dev/null || true
  sed "s/^Node 0/Node $node/" "$real/node0/meminfo" >"$sysfs/node$node/meminfo"
  echo $((MIB << 20)) >"$sysfs/node$node/x86/sgx_total_bytes"
  [ $node = 0 ] && echo 10 20 >"$sysfs/node$node/distance" || echo 20 10 >"$sysfs/node$node/distance"
done
for cpu in $(seq 0 $((cpus - 1))); do
  ln -s "/sys/devices/system/cpu/cpu$cpu" "$sysfs/node$((cpu % 2))/cpu$cpu"
done
mount --bind "$sysfs" "$real"
"""
_DEVICES = """
dev=$F/dev; mkdir -p "$dev"
mount -t tmpfs -o mode=755 sgx-node "$dev"
for path in /dev/*; do
  name=${path##*/}
  if [ -d "$path" ] && [ ! -L "$path" ]; then mkdir "$dev/$name" && mount --rbind "$path" "$dev/$name"
  else cp -a "$path" "$dev/$name"; fi
done
mount --rbind "$dev" /dev
"""
_LOAD = """
cd /dev
mknod -m 666 sgx_enclave c $NUMBER
mknod -m 660 sgx_provision c $NUMBER && chown 0:$GROUP sgx_provision
mkdir sgx && ln -s ../sgx_enclave sgx/enclave && ln -s ../sgx_provision sgx/provision
"""
_UNLOAD = """
cd /dev && rm -rf sgx_enclave sgx_provision sgx
"""
_AWAY = """
while grep -q ' /dev tmpfs' /proc/self/mounts; do umount -l /dev || break; done
umount -l "$F/dev" 2>/dev/null || true
umount /sys/devices/system/node 2>/dev/null || true
"""


@contextmanager
def sgx_on_node(home: Path) -> Iterator[None]:
    """Show SGX on the node of the cluster in `home`; the kubelet must restart to see the NUMA nodes."""
    _in_node(home, _AWAY)
    _in_node(home, _SYSFS + _DEVICES + _LOAD)
    try:
        yield
    finally:
        _in_node(home, _AWAY)


def set_devices(home: Path, number: tuple[int, int] | None) -> None:
    """Give the node's devices another number, or take them away, as a driver does that is loaded or unloaded."""
    _in_node(home, _UNLOAD + (_LOAD if number else ""), number or NUMBER)


class RemovableDriver:
    """A driver of the kernel with devices that come and go: macvtap, in a network namespace of its own.

    A number is free once its interface is deleted, and opening it fails; the next interface gets the lowest free one.
    """

    _SPACE = "confcom-sgx-driver"

    def __enter__(self) -> RemovableDriver:
        self._run("ip", "netns", "add", self._SPACE)
        self._ip("link", "add", "below", "type", "veth", "peer", "name", "other")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("ip", "netns", "del", self._SPACE)

    def load(self, name: str) -> tuple[int, int]:
        """Make a device; its number."""
        self._ip("link", "add", "link", "below", "name", name, "type", "macvtap")
        script = f"cat /sys/class/net/{name}/tap*/dev"
        major, minor = self._run("ip", "netns", "exec", self._SPACE, "sh", "-c", script).split(":")
        return int(major), int(minor)

    def unload(self, name: str) -> None:
        """Delete a device, also while it is open."""
        self._ip("link", "del", name)

    def _ip(self, *words: str) -> None:
        self._run("ip", "-n", self._SPACE, *words)

    def _run(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def set_mode(home: Path, device: str, mode: str) -> None:
    """Change who may open a device of the node, by the name that the driver gives it."""
    _in_node(home, f"chmod {mode} /dev/{device}")


def start_kubelet_again(home: Path, *words: str) -> None:
    """End the kubelet in order, forget what it knew of devices, and start it with further words."""
    environment = os.environ | {"KUBE_HOME": str(home)}
    subprocess.run([str(CLUSTER_SCRIPTS / "down.sh"), "kubelet"], env=environment, check=True, capture_output=True)
    forget_topology(home)
    environment |= {"KUBELET_ARGS": " ".join(words)}
    subprocess.run([str(CLUSTER_SCRIPTS / "up.sh")], env=environment, check=True, capture_output=True, timeout=240)


def _in_node(home: Path, script: str, number: tuple[int, int] = NUMBER) -> None:
    holder = (home / "run" / "holder.pid").read_text().strip()
    values = {"F": home / "data" / "sgx-node", "MIB": MIB_PER_NUMA_NODE, "GROUP": GROUP}
    known = "".join(f"{name}='{value}'\n" for name, value in values.items()) + f"NUMBER='{number[0]} {number[1]}'\n"
    command = ["nsenter", f"--mount=/proc/{holder}/ns/mnt", "--", "sh", "-ec", known + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
