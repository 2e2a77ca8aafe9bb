"""Both sides of an AESM connection as parsers of what the other side sends."""

from __future__ import annotations

from confcom.errors import RemoteProtocolError
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.protocols.aesm import (
    CLOSED,
    NEED_DATA,
    ClientConnection,
    GetQuoteExRequest,
    GetQuoteExResponse,
    IncompleteRequest,
    InitQuoteExRequest,
    InitQuoteExResponse,
    Request,
    Response,
    SelectAttKeyIdRequest,
    ServerConnection,
    Signal,
    refusal,
)
from confcom.protocols.aesm_status import AesmStatus
from fuzzing import seeds


def pieces(data: bytes) -> list[bytes]:
    """The stream as it might arrive: in pieces, their sizes taken from its first byte."""
    size = (data[0] if data else 0) % 7 + 1
    return [data[:size], data[size : 2 * size], data[2 * size :]]


def aesm_server(data: bytes) -> None:
    """The service reads a request and refuses it, which reads whatever the refusal repeats."""
    connection = ServerConnection()
    for piece in (*filter(None, pieces(data)), b""):
        connection.receive_data(piece)
        event = connection.next_event()
        if not isinstance(event, Signal):
            connection.send(refusal(event, AesmStatus.UNEXPECTED_ERROR))
            return
    assert event is CLOSED


def aesm_client(data: bytes) -> None:
    """A client reads the same answer to each of its requests; it fits one of them at most."""
    answered = 0
    for request in CLIENT_REQUESTS:
        connection = ClientConnection()
        connection.send(request)
        try:
            answered += _is_answered(connection, data)
        except RemoteProtocolError:
            continue
    if not answered:
        raise RemoteProtocolError("no answer to any request")


def _is_answered(connection: ClientConnection, data: bytes) -> bool:
    for piece in (*filter(None, pieces(data)), b""):
        connection.receive_data(piece)
        if connection.next_event() is not NEED_DATA:
            return True
    raise AssertionError("the stream ended, and the client still waits")


CLIENT_REQUESTS = (
    InitQuoteExRequest(b_pub_key_id=True, buf_size=32),
    GetQuoteExRequest(report=bytes(432), buf_size=5000),
    SelectAttKeyIdRequest(att_key_id_list=bytes(8)),
)


def server_frames() -> list[bytes]:
    """Requests of modern clients."""
    key_id = bytes(ECDSA_P256_KEY_ID)
    requests = (
        *CLIENT_REQUESTS,
        InitQuoteExRequest(b_pub_key_id=False, att_key_id=key_id, timeout=15000),
        GetQuoteExRequest(seeds.report(), 5000, key_id, seeds.qe_report_info(), 15000),
    )
    return [ClientConnection().send(request) for request in requests]


def client_frames() -> list[bytes]:
    """Answers to them, good ones and refusals."""
    frames = []
    for frame in server_frames():
        for answer in (_good_answer, lambda request: refusal(request, AesmStatus.BUSY)):
            connection = ServerConnection()
            connection.receive_data(frame)
            event = connection.next_event()
            assert not isinstance(event, (Signal, IncompleteRequest))
            frames.append(connection.send(answer(event)))
    return frames


def _good_answer(request: Request) -> Response:
    match request:
        case InitQuoteExRequest():
            return InitQuoteExResponse(AesmStatus.SUCCESS, bytes(512), 32, bytes(32))
        case GetQuoteExRequest():
            return GetQuoteExResponse(AesmStatus.SUCCESS, seeds.simulated_quote(), seeds.qe_report_info())
        case _:
            return refusal(request, AesmStatus.SUCCESS)
