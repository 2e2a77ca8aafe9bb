from __future__ import annotations

import pytest

from aesm_wire import KEY_ID, frame, message, request
from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols import aesm as m
from confcom.protocols.aesm import CLOSED, MAX_REQUEST, NEED_DATA, ClientConnection, ServerConnection
from confcom.protocols.aesm_status import AesmStatus

NUM = m.GetSupportedAttKeyIdNumRequest(timeout=15000)
NUM_FRAME = bytes.fromhex("06000000aa01034898 75".replace(" ", ""))
NUM_ANSWER = m.GetSupportedAttKeyIdNumResponse(AesmStatus.SUCCESS, att_key_id_num=1)
NUM_ANSWER_FRAME = bytes.fromhex("07000000aa010408001001")


def served(data: bytes, max_request: int = MAX_REQUEST) -> ServerConnection:
    connection = ServerConnection(max_request)
    connection.receive_data(data)
    return connection


class TestServer:
    def test_one_exchange_is_these_bytes(self) -> None:
        connection = served(NUM_FRAME)

        assert connection.next_event() == NUM
        assert connection.send(NUM_ANSWER) == NUM_ANSWER_FRAME

    def test_a_frame_may_come_byte_by_byte(self) -> None:
        connection = ServerConnection()
        for at in range(len(NUM_FRAME)):
            assert connection.next_event() is NEED_DATA
            connection.receive_data(NUM_FRAME[at : at + 1])

        assert connection.next_event() == NUM

    def test_the_length_is_little_endian(self) -> None:
        connection = served((len(NUM_FRAME) - 4).to_bytes(4, "big") + NUM_FRAME[4:])

        with pytest.raises(RemoteProtocolError, match="100663296 bytes"):
            connection.next_event()

    def test_a_client_that_only_ends_its_sending_is_answered(self) -> None:
        connection = served(NUM_FRAME)
        connection.receive_data(b"")

        assert connection.next_event() == NUM
        assert connection.send(NUM_ANSWER) == NUM_ANSWER_FRAME

    def test_a_second_request_behind_the_first_is_dropped(self) -> None:
        connection = served(NUM_FRAME * 2)

        assert connection.next_event() == NUM
        assert connection.send(NUM_ANSWER) == NUM_ANSWER_FRAME
        with pytest.raises(LocalProtocolError):
            connection.next_event()

    def test_a_client_that_says_nothing_and_leaves_is_no_violation(self) -> None:
        connection = served(b"")

        assert connection.next_event() is CLOSED

    @pytest.mark.parametrize("size", range(1, len(NUM_FRAME)))
    def test_leaving_within_a_message_is_a_violation(self, size: int) -> None:
        connection = served(NUM_FRAME[:size])
        connection.receive_data(b"")

        with pytest.raises(RemoteProtocolError, match=f"after {size} bytes"):
            connection.next_event()

    @pytest.mark.parametrize("length", [MAX_REQUEST + 1, 1 << 30, (1 << 32) - 1])
    def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come(self, length: int) -> None:
        connection = served(length.to_bytes(4, "little"))

        with pytest.raises(RemoteProtocolError, match=str(length)):
            connection.next_event()

    def test_a_request_of_exactly_the_limit_is_served(self) -> None:
        wire = message(16, (1, bytes(500)))
        connection = served(frame(wire), max_request=len(wire))

        assert connection.next_event() == m.GetQuoteSizeExRequest(bytes(500))

    def test_what_comes_after_a_full_buffer_is_not_kept(self) -> None:
        connection = ServerConnection(max_request=100)
        connection.receive_data(frame(bytes(100)))
        for _ in range(1000):
            connection.receive_data(bytes(1000))

        assert len(connection._buffer) < 1200

    def test_an_empty_message_is_a_violation(self) -> None:
        with pytest.raises(RemoteProtocolError, match="no request"):
            served(bytes(4)).next_event()

    def test_after_a_violation_nothing_works_any_more(self) -> None:
        connection = served(bytes(4))
        with pytest.raises(RemoteProtocolError):
            connection.next_event()

        with pytest.raises(LocalProtocolError):
            connection.next_event()
        with pytest.raises(LocalProtocolError):
            connection.send(NUM_ANSWER)

    def test_an_answer_of_another_kind_is_our_mistake(self) -> None:
        connection = served(NUM_FRAME)
        connection.next_event()

        with pytest.raises(LocalProtocolError, match="does not answer GetSupportedAttKeyIdNum"):
            connection.send(m.GetQuoteSizeExResponse(AesmStatus.SUCCESS, 1))

    def test_an_answer_before_the_request_or_twice_is_our_mistake(self) -> None:
        connection = served(NUM_FRAME)
        with pytest.raises(LocalProtocolError):
            connection.send(NUM_ANSWER)
        connection.next_event()
        connection.send(NUM_ANSWER)
        with pytest.raises(LocalProtocolError):
            connection.send(NUM_ANSWER)

    def test_data_after_the_end_is_our_mistake(self) -> None:
        connection = served(b"")

        with pytest.raises(LocalProtocolError):
            connection.receive_data(b"more")


class TestClient:
    def test_one_exchange_is_these_bytes(self) -> None:
        connection = ClientConnection()

        assert connection.send(NUM) == NUM_FRAME
        assert connection.next_event() is NEED_DATA
        connection.receive_data(NUM_ANSWER_FRAME)
        assert connection.next_event() == NUM_ANSWER

    def test_success_is_on_the_wire_as_a_zero(self) -> None:
        connection = ClientConnection()
        connection.send(NUM)
        connection.receive_data(request(21, (2, 1)))

        assert connection.next_event() == m.GetSupportedAttKeyIdNumResponse(AesmStatus.UNEXPECTED_ERROR, 1)

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "without an answer"),
            (NUM_ANSWER_FRAME[:-1], "within a message"),
            (bytes(4), "no answer to"),
            (request(16, (1, 0), (2, 1)), "no answer to"),
            (frame(b"\xff\xff"), "not protobuf"),
            ((1 << 31).to_bytes(4, "little"), "2147483648 bytes"),
        ],
    )
    def test_answers_that_would_crash_intels_client_are_violations(self, data: bytes, why: str) -> None:
        connection = ClientConnection()
        connection.send(NUM)
        if data:
            connection.receive_data(data)
        connection.receive_data(b"")

        with pytest.raises(RemoteProtocolError, match=why):
            connection.next_event()

    def test_one_connection_carries_one_request(self) -> None:
        connection = ClientConnection()
        with pytest.raises(LocalProtocolError):
            connection.next_event()
        connection.send(NUM)
        with pytest.raises(LocalProtocolError):
            connection.send(NUM)

    def test_client_and_server_understand_each_other_in_every_chunking(self) -> None:
        client, server = ClientConnection(), ServerConnection()
        asked = m.GetQuoteExRequest(bytes(432), 8192, KEY_ID)
        answer = m.GetQuoteExResponse(AesmStatus.SUCCESS, quote=bytes(5000))
        for byte in client.send(asked):
            server.receive_data(bytes([byte]))
        assert server.next_event() == asked
        for byte in server.send(answer):
            client.receive_data(bytes([byte]))
        assert client.next_event() == answer
