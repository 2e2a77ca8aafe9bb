"""Inputs about the use of EPC: files of /proc and the cgroups, pods of the API, pages of metrics."""

from __future__ import annotations

import json
import math

from confcom.devices.processes import (
    NOBODY,
    EnclaveProcess,
    count_use,
    enclave_candidates,
    merge,
    parse_amounts,
    parse_cgroup,
    parse_stat,
    program_image,
    size,
    subtract,
)
from confcom.errors import FormatError
from confcom.protocols.custom_metrics import parse_samples
from confcom.protocols.epc import CANONICAL, DRA_DRIVER, claimed_epc, parse_node, parse_pod

_KNOWN = ((0, 0x2B, 7),)
_POD, _CONTAINER = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77", "0123456789abcdef" * 4


def maps(data: bytes) -> None:
    """Ranges of a process, and its fork's: each address counts once, whatever the file says."""
    found = list(enclave_candidates(data, _KNOWN))
    if not found:
        raise FormatError("no mapping of the device", structure="maps", field="")
    usable = tuple((one.start, one.end) for one in found if one.usable)
    reserved = tuple((one.start, one.end) for one in found if not one.usable)
    image = program_image(data)
    processes = [EnclaveProcess(pid, pid - 1, NOBODY, image, usable, reserved) for pid in (2, 3)]
    use = count_use(processes)[NOBODY]
    once = size(merge(usable))
    assert use.mapped == (once if image else 2 * once)
    assert 0 <= use.mapped + use.reserved <= 2 * size(merge((*usable, *reserved)))
    assert not subtract(usable, usable)


def map_files() -> list[bytes]:
    """Maps with the device, with another file, and with none."""
    lines = (
        b"7f0000000000-7f0000400000 rw-s 00000000 00:2b 7                          /dev/sgx_enclave\n"
        b"7f0000400000-7f0000600000 ---s 00000000 00:2b 7                          /dev/sgx_enclave (deleted)\n"
        b"7f0000500000-7f0000700000 r-xs 00000000 00:2b 7                          /elsewhere\n"
    )
    image = (
        b"7fb228615000-7fb228617000 r-xp 00000000 00:00 0 [vdso]\n7ffc8391e000-7ffc8393f000 rw-p 0 00:00 0 [stack]\n"
    )
    return [lines + image, lines, image.replace(b"[vdso]", b"/lib/sgx")]


def process_files(data: bytes) -> None:
    """/proc/PID/cgroup, /proc/PID/stat and misc.current."""
    owner, line, amounts = parse_cgroup(data), parse_stat(data), parse_amounts(data.decode("utf-8", "replace"))
    if owner == NOBODY and line is None and not amounts:
        raise FormatError("nothing of these", structure="proc", field="")
    assert owner.container is None or len(owner.container) == 64
    assert line is None or line.ticks >= 0
    assert all(amount is None or amount >= 0 for amount in amounts.values())


def process_file_seeds() -> list[bytes]:
    """One of each."""
    return [
        f"0::/kubepods.slice/kubepods-pod{_POD.replace('-', '_')}.slice/cri-containerd-{_CONTAINER}.scope\n".encode(),
        f"3:pids:/kubepods/burstable/pod{_POD}/{_CONTAINER}/docker/{_CONTAINER}\n".encode(),
        b"7 (a) b) S 1 " + b"0 " * 40,
        b"sgx_epc 1048576\nsev max\n",
        b"nothing",
    ]


_RESULT = {"driver": DRA_DRIVER, "request": "r", "pool": "n1", "device": "epc", "consumedCapacity": {"epc": "10Mi"}}


def api_objects(data: bytes) -> None:
    """A pod, a node or a claim."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(str(error), structure="JSON", field="") from None
    refusals = 0
    for parse in (parse_pod, parse_node, claimed_epc):
        try:
            parse(document)
        except FormatError:
            refusals += 1
    if refusals == 3:
        raise FormatError("none of these", structure="JSON", field="")


def api_object_seeds() -> list[bytes]:
    """One of each."""
    resources = {"limits": {CANONICAL: "10", "cpu": "1"}, "claims": [{"name": "c"}]}
    documents = [
        {
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "app", "resources": resources}],
                "initContainers": [{"name": "i", "restartPolicy": "Always", "resources": resources}],
                "resourceClaims": [{"name": "c", "resourceClaimName": "mine"}],
            },
            "status": {
                "phase": "Running",
                "containerStatuses": [{"name": "app", "containerID": f"containerd://{_CONTAINER}"}],
            },
        },
        {"metadata": {"name": "n1"}, "status": {"allocatable": {CANONICAL: "1k"}}},
        {
            "metadata": {"name": "c"},
            "status": {"allocation": {"devices": {"results": [_RESULT]}}},
        },
    ]
    return [json.dumps(document).encode() for document in documents]


def metrics_page(data: bytes) -> None:
    """A page from a pod."""
    samples = parse_samples(data.decode("utf-8", "replace"), {"confcom_epc_mapped_bytes"})
    if not samples:
        raise FormatError("no sample", structure="metrics", field="")
    assert all(isinstance(one.value, float) or math.isnan(one.value) for one in samples)


def metrics_pages() -> list[bytes]:
    """With labels, escapes, times."""
    return [
        b'# TYPE x gauge\nconfcom_epc_mapped_bytes{node="n1",pod="a\\"b\\\\c\\n"} 1.5e7 1700000000000\nother 1\n',
        b"confcom_epc_mapped_bytes NaN\nconfcom_epc_mapped_bytes +Inf\n",
        b"other 1\n",
    ]
