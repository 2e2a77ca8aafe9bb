"""Which addresses are enclaves, and how much of them counts."""

from __future__ import annotations

import pytest

from confcom.devices.processes import (
    NOBODY,
    CgroupOwner,
    EnclaveProcess,
    EnclaveUse,
    FileMapping,
    count_use,
    enclave_candidates,
    merge,
    parse_cgroup,
    parse_mapping,
    parse_stat,
    program_image,
    subtract,
)

POD = "3c9f6d2e-1b7a-4c55-9f0e-8d2a6b1c4e77"
ONE, TWO = "0123456789abcdef" * 4, "fedcba9876543210" * 4
MAPS = b"""\
55d814815000-55d814817000 r--p 00000000 fe:00 247278                     /usr/bin/app
7f0000000000-7f0000400000 rw-s 00000000 00:2b 7                          /dev/sgx_enclave
7f0000400000-7f0000600000 ---s 00000000 00:2b 7                          /dev/sgx_enclave
7f0000600000-7f0000700000 r-xs 00600000 00:2b 7                          /dev/sgx_enclave (deleted)
7f0000700000-7f0000800000 rw-p 00000000 00:00 0
7fb228615000-7fb228617000 r-xp 00000000 00:00 0                          [vdso]
7ffc8391e000-7ffc8393f000 rw-p 00000000 00:00 0                          [stack]
"""


def test_a_line_says_addresses_rights_file_and_path() -> None:
    line = b"7f0000000000-7f0000400000 rw-s 00000000 fe:0a 17   /dev/sgx/enclave"
    assert parse_mapping(line) == FileMapping(0x7F0000000000, 0x7F0000400000, True, (254, 10, 17), b"/dev/sgx/enclave")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"7f00-7f01 rw-p 00000000 00:00 0",  # no file
        b"7f01-7f00 rw-s 00000000 00:01 5 /x",  # ends before it starts
        b"7f00-7f00 rw-s 00000000 00:01 5 /x",
        b"7f00-7f01 rws 00000000 00:01 5 /x",
        b"zz-7f01 rw-s 00000000 00:01 5 /x",
        b"11112222333344445-7f01 rw-s 00000000 00:01 5 /x",
    ],
)
def test_what_maps_no_file_is_no_mapping(line: bytes) -> None:
    assert parse_mapping(line) is None


def test_what_is_called_like_the_device_or_known_as_it_is_a_candidate() -> None:
    assert [(one.end - one.start, one.usable) for one in enclave_candidates(MAPS, ())] == [
        (4 << 20, True),
        (2 << 20, False),
        (1 << 20, True),
    ]
    other = MAPS.replace(b"/dev/sgx_enclave", b"/somewhere/else")
    assert list(enclave_candidates(other, ())) == []
    assert len(list(enclave_candidates(other, {(0, 0x2B, 7)}))) == 3
    assert list(enclave_candidates(other, {(0, 0x2B, 77)})) == []
    # A library with the word in its name is none.
    assert list(enclave_candidates(MAPS.replace(b"/dev/sgx_enclave", b"/lib/libsgx_enclave_common.so.1"), ())) == []


def test_a_program_is_known_by_the_places_of_its_stack_and_vdso() -> None:
    assert program_image(MAPS) == (0x7FFC8393F000, 0x7FB228615000)
    grown = MAPS.replace(b"7ffc8391e000-", b"7ffc80000000-")
    assert program_image(grown) == program_image(MAPS)
    assert program_image(b"") == ()


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [
        ([], ()),
        ([(4, 8), (0, 4)], ((0, 8),)),
        ([(0, 6), (4, 8), (20, 21)], ((0, 8), (20, 21))),
        ([(0, 10), (2, 3)], ((0, 10),)),
    ],
)
def test_merging(ranges: list[tuple[int, int]], merged: tuple[tuple[int, int], ...]) -> None:
    assert merge(ranges) == merged


def test_subtracting() -> None:
    assert subtract([(0, 10), (20, 30)], [(2, 4), (8, 22), (29, 40)]) == ((0, 2), (4, 8), (22, 29))
    assert subtract([(0, 10)], []) == ((0, 10),)
    assert subtract([(0, 10)], [(0, 10)]) == ()


OWNER = CgroupOwner(POD, ONE)
SLICE = f"pod{POD.replace('-', '_')}.slice"
HOME = "/user.slice/user-1000.slice/user@1000.service"


def process(pid: int, parent: int = 1, *ranges: tuple[int, int], image: tuple[int, ...] = (1, 2)) -> EnclaveProcess:
    return EnclaveProcess(pid, parent, OWNER, image, ranges)


@pytest.mark.promise("M5")
def test_what_fork_handed_down_counts_once() -> None:
    uses = count_use([process(10, 1, (0, 100)), process(11, 10, (0, 100), (200, 250)), process(12, 11, (0, 100))])
    assert uses == {OWNER: EnclaveUse(150, 0, 3)}


def test_another_program_at_the_same_addresses_is_another_enclave() -> None:
    # Gramine puts its enclaves at fixed addresses, and starts its children anew.
    uses = count_use([process(10, 1, (0, 100)), process(11, 10, (0, 100), image=(3, 4))])
    assert uses == {OWNER: EnclaveUse(200, 0, 2)}


def test_workers_that_each_made_an_enclave_after_the_fork_count_each() -> None:
    uses = count_use([process(10, 9, (0, 100)), process(11, 9, (0, 100))])
    assert uses == {OWNER: EnclaveUse(200, 0, 2)}


def test_a_program_that_cannot_be_told_counts_in_full() -> None:
    uses = count_use([process(10, 1, (0, 100), image=()), process(11, 10, (0, 100), image=())])
    assert uses == {OWNER: EnclaveUse(200, 0, 2)}


def test_addresses_only_held_are_not_counted_as_use() -> None:
    one = EnclaveProcess(1, 0, OWNER, (), ((0, 100), (50, 120)), ((100, 400),))
    assert count_use([one]) == {OWNER: EnclaveUse(120, 280, 1)}


@pytest.mark.parametrize(
    ("cgroup", "owner"),
    [
        (f"0::/kubepods/besteffort/pod{POD}/{ONE}\n", CgroupOwner(POD, ONE)),
        (
            f"0::/kubepods.slice/kubepods-{SLICE}/cri-containerd-{ONE}.scope\n",
            CgroupOwner(POD, ONE),
        ),
        (f"0::/kubepods.slice/kubepods-{SLICE}/crio-{ONE}.scope/container\n",
         CgroupOwner(POD, ONE)),
        (f"11:pids:/x/kubepods-{SLICE}:cri-containerd:{ONE}\n", CgroupOwner(POD, ONE)),
        (f"0::/kubepods/pod{POD}/{ONE}/docker/{TWO}\n", CgroupOwner(POD, ONE)),  # Docker in the container
        (f"0::/kubepods/pod{POD}/{ONE}/init.scope\n", CgroupOwner(POD, ONE)),  # systemd in the container
        (f"5:memory:/\n4:pids:/kubepods/pod{POD}/{ONE}\n", CgroupOwner(POD, ONE)),
        (f"0::/kubepods/pod{POD}\n", CgroupOwner(POD, None)),
        (f"0::/kubepods/pod{POD.replace('-', '')}/{ONE}\n", CgroupOwner(POD.replace("-", ""), ONE)),  # a static pod
        (f"0::/system.slice/docker-{ONE}.scope\n", CgroupOwner(None, ONE)),
        (f"11:memory:/system.slice/docker-{ONE}.scope\n4:pids:/kubepods/pod{POD}/{ONE}\n", CgroupOwner(POD, ONE)),
        # As a reader in a cgroup namespace of its own sees others, with either driver.
        (f"0::/../../kubepods-burstable-{SLICE}/cri-containerd-{ONE}.scope\n",
         CgroupOwner(POD, ONE)),
        (f"0::/../../../besteffort/pod{POD}/{ONE}\n", CgroupOwner(POD, ONE)),
        (f"0::/../../pod{POD}/{ONE}\n", CgroupOwner(POD, ONE)),
        # Nodes that are containers, and kubelets with a root of their own.
        (f"0::/docker/{TWO}/kubelet/kubepods/burstable/pod{POD}/{ONE}\n", CgroupOwner(POD, ONE)),
        (f"0::/system.slice/docker-{TWO}.scope/kubelet.slice/kubelet-kubepods-{SLICE}/cri-containerd-{ONE}.scope\n",
         CgroupOwner(POD, ONE)),
        (f"0::/system.slice/containerd.service/kubepods-{SLICE}:cri-containerd:{ONE}\n",
         CgroupOwner(POD, ONE)),
        # Names that a user chose: below what systemd delegates, or nowhere near the kubelet.
        (f"0::{HOME}/app.slice/pod{POD}.scope\n", NOBODY),
        (f"0::{HOME}/kubepods.slice/kubepods-{SLICE}/cri-containerd-{ONE}.scope\n", NOBODY),
        (f"0::/../../..{HOME}/kubepods/pod{POD}/{ONE}\n", NOBODY),
        (f"1:name=systemd:{HOME}/kubepods/pod{POD}\n3:pids:/user.slice\n", NOBODY),
        (f"0::{HOME}/user.slice/libpod-{ONE}.scope\n", NOBODY),
        (f"0::/system.slice/web.service/kubepods/pod{POD}/{ONE}\n", NOBODY),
        (f"0::/system.slice/run-r1.scope/kubepods/pod{POD}/{ONE}\n", NOBODY),
        (f"0::/pod{POD}/x\n", NOBODY),
        (f"0::/system.slice/pod{POD}.slice\n", NOBODY),
        (f"0::/kubepods/pod{POD}x\n", NOBODY),
        ("0::/user.slice/session-2.scope\n", NOBODY),
        ("", NOBODY),
    ],
)  # fmt: skip
def test_owners(cgroup: str, owner: CgroupOwner) -> None:
    assert parse_cgroup(cgroup.encode()) == owner


def test_the_line_of_a_process_may_have_any_name() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    line = parse_stat(f"7 (a) b (c) S 3 {fields}".encode())
    assert line is not None
    assert (line.name, line.parent) == (b"a) b (c", 3)
    assert line.ticks == 13 + 14
    assert line.started == 21


@pytest.mark.parametrize("text", [b"", b"7 (x) S", b"7 x S " + b"1 " * 60, b"(x) " + b"z " * 60])
def test_what_is_no_such_line(text: bytes) -> None:
    assert parse_stat(text) is None
