"""A second real node of the test cluster: a containerd and a kubelet of its own in the cluster's network namespace.

It shows SGX (`sgx_on_node`). Its folder is NODE below that of the cluster, laid out alike.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kubectl import Kubectl
from sgx_on_node import sgx_on_node

NODE = "node2"
_ADDRESS = "10.240.0.2"
_HOLD = """
mount --make-rprivate / && mount --make-rshared /
for folder in /var/lib/kubelet /var/log/pods /var/log/containers /var/lib/confcom /run/aesmd /run/cdi /etc/cdi; do
  mkdir -p "$folder" "$0/data/node$folder" && mount --bind "$0/data/node$folder" "$folder"
done
mount -t tmpfs netns /run/netns && touch "$0/run/held" && exec sleep infinity
"""
_CERTIFICATE = """
openssl genrsa -out "$0.key" 2048
openssl req -new -key "$0.key" -subj "/O=system:nodes/CN=system:node:$1" -out "$0.csr"
printf '%s\\n' extendedKeyUsage=serverAuth,clientAuth keyUsage=critical,digitalSignature \\
  "subjectAltName=DNS:$1,IP:$2" authorityKeyIdentifier=keyid:always >"$0.ext"
openssl x509 -req -in "$0.csr" -CA "$3/ca.crt" -CAkey "$3/ca.key" -CAcreateserial -days 30 \\
  -extfile "$0.ext" -out "$0.crt"
"""
_TASKS_AWAY = """
for task in $("$@" tasks ls -q); do "$@" tasks kill -s KILL "$task"; done
sleep 1
for task in $("$@" tasks ls -q); do "$@" tasks delete -f "$task"; done
"""
_CGROUP = """
for folder in /sys/fs/cgroup/*; do
  mkdir -p "$folder/$0" 2>/dev/null || continue
  for file in cpuset.cpus cpuset.mems; do
    [ ! -e "$folder/$file" ] || cat "$folder/$file" >"$folder/$0/$file"
  done
done
"""
_CGROUP_AWAY = (
    'for folder in /sys/fs/cgroup/*/"$0"; do find "$folder" -depth -type d -exec rmdir {} +; done 2>/dev/null; true'
)


@contextmanager
def second_node(home: Path, cluster: Kubectl) -> Iterator[str]:
    """Start it beside the cluster in `home`, wait until it is ready, and take it away again; its name."""
    path = home / NODE
    space = f"/run/netns/{os.environ.get('KUBE_NAME', 'kube')}"
    _run("nsenter", f"--net={space}", "ip", "address", "replace", f"{_ADDRESS}/24", "dev", "node0")
    _lay_out(home, path)
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str, inside: bool = True) -> subprocess.Popen[bytes]:
        mounts = [f"--mount=/proc/{running[0].pid}/ns/mnt"] if inside else []
        environment = os.environ | {"PATH": f"{home / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"}
        with (path / f"{name}.log").open("wb") as log:
            words = ["nsenter", f"--net={space}", *mounts, "--", *command]
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        running.append(process)
        return process

    try:
        holder = start("holder", "unshare", "--mount", "sh", "-ec", _HOLD, str(path), inside=False)
        (path / "run" / "holder.pid").write_text(str(holder.pid))
        _until("the node's folders", (path / "run" / "held").exists)
        start("containerd", str(home / "bin" / "containerd"), "--config", str(path / "etc" / "containerd.toml"))
        ctr = [str(home / "bin" / "ctr"), "--address", str(path / "run/containerd/containerd.sock"), "-n", "k8s.io"]
        _until(
            "containerd", lambda: subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode == 0
        )
        for archive in ("pause.tar", "confcom.tar"):
            _run(*ctr, "images", "import", "--local", str(home / "images" / archive))
        with sgx_on_node(path):
            start(
                "kubelet", str(home / "bin" / "kubelet"), f"--config={path}/etc/kubelet.yaml",
                f"--kubeconfig={path}/etc/kubelet.kubeconfig", f"--hostname-override={NODE}", f"--node-ip={_ADDRESS}",
                "--root-dir=/var/lib/kubelet", f"--cgroup-root=/{NODE}", f"--tls-cert-file={path}/etc/{NODE}.crt",
                f"--tls-private-key-file={path}/etc/{NODE}.key", "--v=2",
            )  # fmt: skip
            cluster.wait("the second node to be ready", lambda: _ready(cluster))
            yield NODE
            # What still runs there has to end while its kubelet does.
            cluster("delete", "pods", "-A", "--field-selector", f"spec.nodeName={NODE}", "--grace-period=1")
    finally:
        cluster("delete", "node", NODE, "--ignore-not-found")
        if len(running) > 1:
            subprocess.run(["sh", "-c", _TASKS_AWAY, "sh", *ctr], capture_output=True, check=False)
        for process in reversed(running):
            process.terminate()
            process.wait(60)
        _run("nsenter", f"--net={space}", "ip", "address", "del", f"{_ADDRESS}/24", "dev", "node0")
        subprocess.run(["sh", "-c", _CGROUP_AWAY, NODE], check=False)
        shutil.rmtree(path, ignore_errors=True)


def _lay_out(home: Path, path: Path) -> None:
    """Configuration like that of the first node, with another address, port, range of pods and certificate."""
    for folder in ("etc/cni/net.d", "data/node", "data/volume-plugins", "run"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    for shared in ("bin", "pki"):
        (path / shared).unlink(missing_ok=True)
        (path / shared).symlink_to(home / shared)
    for name in ("kubelet.yaml", "resolv.conf", "containerd.toml", "cni/net.d/10-ptp.conflist"):
        text = (home / "etc" / name).read_text().replace(str(home), str(path))
        (path / "etc" / name).write_text(text.replace("10.244.0.0/22", "10.244.4.0/24"))
    with (path / "etc" / "kubelet.yaml").open("a") as settings:
        settings.write(f"address: {_ADDRESS}\nport: 10260\nhealthzPort: 0\n")
    _run("sh", "-ec", _CERTIFICATE, str(path / "etc" / NODE), NODE, _ADDRESS, str(home / "pki"))
    config = (home / "kubeconfig" / "kubelet.kubeconfig").read_text()
    for field, ending in (("client-certificate-data", "crt"), ("client-key-data", "key")):
        content = b64encode((path / "etc" / f"{NODE}.{ending}").read_bytes()).decode()
        config = re.sub(rf"({field}: )[A-Za-z0-9+/=]+", rf"\g<1>{content}", config)
    (path / "etc" / "kubelet.kubeconfig").write_text(config)
    _run("sh", "-c", _CGROUP, NODE)


def _ready(cluster: Kubectl) -> bool:
    found = cluster.find("node", NODE) or {"status": {}}
    return any(each["type"] == "Ready" and each["status"] == "True" for each in found["status"].get("conditions", []))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command[:3])}: {done.stderr}"


def _until(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)
