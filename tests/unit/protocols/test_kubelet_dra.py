from __future__ import annotations

from confcom.protocols import kubelet_dra as dra


def test_health_as_the_kubelet_reads_it() -> None:
    """Bytes by hand from the interface's field numbers."""
    healthy = dra.device_health("p", "d", "", known=5, timeout=7)
    assert healthy.SerializeToString() == b"\x0a\x06\x0a\x01p\x12\x01d\x10\x01\x18\x05\x20\x07"
    ill = dra.device_health("p", "e", "x", known=5, timeout=7)
    assert ill.SerializeToString() == b"\x0a\x06\x0a\x01p\x12\x01e\x10\x02\x18\x05\x20\x07\x2a\x01x"


def test_a_long_reason_is_cut_as_the_interface_says() -> None:
    assert len(dra.device_health("p", "d", "x" * 5000, known=0, timeout=0).message) == 1024
