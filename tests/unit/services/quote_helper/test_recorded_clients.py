"""What old clients sent, and that an answer they could not use is noticed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from confcom.protocols.aesm import NEED_DATA, IncompleteRequest, ServerConnection
from confcom.services.quote_helper.broker import AesmBroker, PlatformCall
from confcom.services.quote_helper.self_test import RECORDED, Material, RecordedRequest, replay
from recording_platform import QUOTE_SIZE, TARGET_INFO, RecordingPlatform

MATERIAL = Material(report=bytes(432), target_info=bytes(TARGET_INFO), quote_size=QUOTE_SIZE, accepted=True)


def broker_exchange(platform: RecordingPlatform) -> Callable[[bytes], bytes]:
    broker = AesmBroker(platform)
    broker.warm_up()

    def exchange(frame: bytes) -> bytes:
        connection = ServerConnection()
        connection.receive_data(frame)
        request = connection.next_event()
        assert request is not NEED_DATA
        plan = broker.plan(request)  # type: ignore[arg-type]
        answer = broker.perform(plan) if isinstance(plan, PlatformCall) else plan
        return connection.send(answer.response)

    return exchange


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.client)
def test_our_answers_suit_every_client(recorded: RecordedRequest) -> None:
    assert replay(recorded, MATERIAL, broker_exchange(RecordingPlatform())) == ""


def test_every_client_of_the_page_is_there() -> None:
    clients = " ".join(recorded.client for recorded in RECORDED)
    for name in ("Intel libsgx_dcap_ql", "Intel libsgx_quote_ex", "Open Enclave", "Gramine", "Fortanix"):
        assert name in clients


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.client)
def test_the_frames_are_whole_requests_and_as_recorded(recorded: RecordedRequest) -> None:
    frame = recorded.frame(MATERIAL)
    connection = ServerConnection()
    connection.receive_data(frame)
    request = connection.next_event()

    assert not isinstance(request, IncompleteRequest)
    if recorded.client.startswith("Intel libsgx_dcap_ql"):
        assert frame.endswith(bytes.fromhex("489875"))  # timeout = 9: 15000


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.client)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda answer: b"", id="no answer"),
        pytest.param(lambda answer: answer[:-1], id="cut off"),
        pytest.param(lambda answer: answer + b"\0", id="too long"),
        pytest.param(lambda answer: b"\x04\0\0\0\xa2\x01\x00" + b"\0", id="another answer"),
        pytest.param(lambda answer: answer[:4] + b"\xff" * (len(answer) - 4), id="not protobuf"),
    ],
)
def test_an_answer_that_no_client_could_read_is_a_complaint(
    recorded: RecordedRequest, spoil: Callable[[bytes], bytes]
) -> None:
    exchange = broker_exchange(RecordingPlatform())

    assert replay(recorded, MATERIAL, lambda frame: spoil(exchange(frame))) != ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"quote_size": QUOTE_SIZE + 1}, "the size is not that of the quote"),
        ({"target_info": bytes(512)}, "step 2 needs the QE's target info"),
        ({"accepted": False}, "a report with a wrong MAC is answered with SUCCESS"),
    ],
)
def test_an_answer_that_does_not_suit_says_why(change: dict[str, object], complaint: str) -> None:
    material = Material(
        **{"report": bytes(432), "target_info": bytes(TARGET_INFO), "quote_size": QUOTE_SIZE, "accepted": True} | change  # type: ignore[arg-type]
    )
    exchange = broker_exchange(RecordingPlatform())

    assert any(complaint in replay(recorded, material, exchange) for recorded in RECORDED)


def test_a_platform_without_a_qe_report_is_noticed() -> None:
    exchange = broker_exchange(RecordingPlatform(can_report=False))
    complaints = {recorded.client: replay(recorded, MATERIAL, exchange) for recorded in RECORDED}

    assert complaints["Fortanix aesm-client"] != ""
    assert complaints["Gramine"] == ""
