"""Every row of what the AESM service answers, request by request, with the exact fields."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from aesm_wire import KEY_ID, message
from confcom import errors
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyIdList
from confcom.formats.sgx import Report
from confcom.protocols import aesm as m
from confcom.protocols.aesm import IncompleteRequest, Response, parse_request
from confcom.protocols.aesm_status import AesmStatus
from confcom.services.quote_helper.broker import PAD_LIMIT, AesmBroker, Answer, PlatformCall
from recording_platform import PUB_KEY_ID, QUOTE_SIZE, TARGET_INFO, RecordingPlatform, quote_over

OK = AesmStatus.SUCCESS
UNEXPECTED = AesmStatus.UNEXPECTED_ERROR
PARAMETER = AesmStatus.PARAMETER_ERROR
UNAVAILABLE = AesmStatus.SERVICE_UNAVAILABLE
UNSUPPORTED = AesmStatus.UNSUPPORTED_ATT_KEY_ID
NOT_INITIALIZED = AesmStatus.ATT_KEY_NOT_INITIALIZED

OTHER_KEY = ECDSA_P256_KEY_ID.with_algorithm(3)
# Differs behind the 158 bytes that count: SPID, type and reserved are the caller's own.
DRESSED_KEY = KEY_ID[:158] + b"\x77" * 98
REPORT = bytes(range(216)) * 2
QUOTE = quote_over(Report.parse(REPORT))
INFO = b"NONCE-OF-16-BYTE" + bytes(512) + b"\xee" * 432


@pytest.fixture
def platform() -> RecordingPlatform:
    return RecordingPlatform()


@pytest.fixture
def broker(platform: RecordingPlatform) -> AesmBroker:
    return AesmBroker(platform)


@pytest.fixture
def ready(platform: RecordingPlatform, broker: AesmBroker) -> AesmBroker:
    broker.warm_up()
    platform.asked.clear()
    return broker


def answer(broker: AesmBroker, request: m.Request | IncompleteRequest) -> Response:
    plan = broker.plan(request)
    return (broker.perform(plan) if isinstance(plan, PlatformCall) else plan).response


def id_list(*ids: bytes) -> bytes:
    return bytes(4) + len(ids).to_bytes(4, "little") + b"".join(ids)


class TestGetSupportedAttKeyIdNum:
    def test_counts_the_platforms_keys(self, ready: AesmBroker) -> None:
        assert answer(ready, m.GetSupportedAttKeyIdNumRequest(15000)) == m.GetSupportedAttKeyIdNumResponse(OK, 1)

    def test_without_any_key_says_unavailable_and_zero(self) -> None:
        broker = AesmBroker(RecordingPlatform(ids=()))

        assert answer(broker, m.GetSupportedAttKeyIdNumRequest()) == m.GetSupportedAttKeyIdNumResponse(UNAVAILABLE, 0)

    def test_a_platform_that_comes_to_life_is_noticed(self) -> None:
        platform = RecordingPlatform(ids=())
        broker = AesmBroker(platform)
        answer(broker, m.GetSupportedAttKeyIdNumRequest())
        platform.ids = (ECDSA_P256_KEY_ID, OTHER_KEY)

        assert answer(broker, m.GetSupportedAttKeyIdNumRequest()) == m.GetSupportedAttKeyIdNumResponse(OK, 2)


class TestGetSupportedAttKeyIds:
    def test_gives_every_id_into_a_buffer_of_the_exact_size(self) -> None:
        broker = AesmBroker(RecordingPlatform(ids=(ECDSA_P256_KEY_ID, OTHER_KEY)))

        response = answer(broker, m.GetSupportedAttKeyIdsRequest(512))

        assert response == m.GetSupportedAttKeyIdsResponse(OK, KEY_ID + bytes(OTHER_KEY))

    def test_the_one_id_is_the_one_that_clients_hard_code(self, ready: AesmBroker) -> None:
        response = answer(ready, m.GetSupportedAttKeyIdsRequest(256))

        assert isinstance(response, m.GetSupportedAttKeyIdsResponse)
        assert response.att_key_ids == bytes.fromhex(
            "000000002000" "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff" + "00" * 16
            + "01000000" + "00" * 96 + "02000000" + "00" * 98
        )  # fmt: skip

    @pytest.mark.parametrize("buf_size", [0, 255, 257, 512, 0xFFFFFFFF])
    def test_any_other_size_is_a_parameter_error_without_ids(self, ready: AesmBroker, buf_size: int) -> None:
        response = answer(ready, m.GetSupportedAttKeyIdsRequest(buf_size))

        assert response == m.GetSupportedAttKeyIdsResponse(PARAMETER)

    def test_without_any_key_256_is_the_wrong_size(self) -> None:
        broker = AesmBroker(RecordingPlatform(ids=()))

        assert answer(broker, m.GetSupportedAttKeyIdsRequest(256)) == m.GetSupportedAttKeyIdsResponse(PARAMETER)

    def test_without_buf_size_is_an_unexpected_error(self, ready: AesmBroker) -> None:
        assert answer(ready, parse_request(bytes.fromhex("b20100"))) == m.GetSupportedAttKeyIdsResponse(UNEXPECTED)


class TestSelectAttKeyId:
    def select(self, broker: AesmBroker, listed: bytes | None) -> Response:
        return answer(broker, m.SelectAttKeyIdRequest(listed))

    def test_without_a_list_gives_the_platforms_own(self, ready: AesmBroker) -> None:
        assert self.select(ready, None) == m.SelectAttKeyIdResponse(OK, KEY_ID)

    def test_returns_the_callers_own_entry_byte_for_byte(self, ready: AesmBroker) -> None:
        assert self.select(ready, id_list(DRESSED_KEY)) == m.SelectAttKeyIdResponse(OK, DRESSED_KEY)

    def test_skips_entries_that_name_no_key_here(self, ready: AesmBroker) -> None:
        listed = id_list(bytes(OTHER_KEY), bytes(256), DRESSED_KEY)

        assert self.select(ready, listed) == m.SelectAttKeyIdResponse(OK, DRESSED_KEY)

    def test_of_several_prefers_ecdsa_p256(self) -> None:
        broker = AesmBroker(RecordingPlatform(ids=(OTHER_KEY, ECDSA_P256_KEY_ID)))

        assert self.select(broker, id_list(bytes(OTHER_KEY), DRESSED_KEY)) == m.SelectAttKeyIdResponse(OK, DRESSED_KEY)
        assert self.select(broker, None) == m.SelectAttKeyIdResponse(OK, KEY_ID)

    def test_of_several_others_takes_the_first_of_the_list(self) -> None:
        third = ECDSA_P256_KEY_ID.with_algorithm(4)
        broker = AesmBroker(RecordingPlatform(ids=(OTHER_KEY, third)))

        response = self.select(broker, id_list(bytes(third), bytes(OTHER_KEY)))

        assert response == m.SelectAttKeyIdResponse(OK, bytes(third))

    def test_no_match_is_unsupported(self, ready: AesmBroker) -> None:
        assert self.select(ready, id_list(bytes(OTHER_KEY))) == m.SelectAttKeyIdResponse(UNSUPPORTED)

    def test_without_any_key_all_is_unsupported(self) -> None:
        broker = AesmBroker(RecordingPlatform(ids=()))

        assert self.select(broker, None) == m.SelectAttKeyIdResponse(UNSUPPORTED)

    def test_ten_entries_are_allowed(self, ready: AesmBroker) -> None:
        assert self.select(ready, id_list(*[bytes(OTHER_KEY)] * 9, KEY_ID)) == m.SelectAttKeyIdResponse(OK, KEY_ID)

    @pytest.mark.parametrize(
        "listed",
        [
            pytest.param(b"", id="present but empty"),
            pytest.param(id_list(KEY_ID)[:263], id="shorter than one entry"),
            pytest.param(b"\x01" + id_list(KEY_ID)[1:], id="header id"),
            pytest.param(b"\0\0\x01" + id_list(KEY_ID)[3:], id="header version"),
            pytest.param(id_list(*[KEY_ID] * 11), id="eleven entries"),
            pytest.param(id_list(KEY_ID) + b"\0", id="longer than its count"),
            pytest.param(bytes(264), id="count of zero"),
        ],
    )
    def test_a_malformed_list_is_a_parameter_error(self, ready: AesmBroker, listed: bytes) -> None:
        assert self.select(ready, listed) == m.SelectAttKeyIdResponse(PARAMETER)


GARBAGE_BUF_SIZE = 140104990781472
"""Seen on the wire from Intel's library: an uninitialised size_t."""


class TestInitQuoteEx:
    STEP_1 = m.InitQuoteExResponse(OK, bytes(512), 32)
    STEP_2 = m.InitQuoteExResponse(OK, bytes(TARGET_INFO), 32, PUB_KEY_ID)

    @pytest.mark.parametrize("buf_size", [None, 0, 32, GARBAGE_BUF_SIZE, (1 << 64) - 1])
    def test_step_1_ignores_buf_size_and_has_no_key_id(
        self, ready: AesmBroker, platform: RecordingPlatform, buf_size: int | None
    ) -> None:
        assert answer(ready, m.InitQuoteExRequest(False, KEY_ID, buf_size)) == self.STEP_1
        assert platform.asked == []

    def test_step_2_makes_the_key_and_gives_its_id(self, ready: AesmBroker) -> None:
        assert answer(ready, m.InitQuoteExRequest(True, KEY_ID, 32)) == self.STEP_2

    def test_step_2_needs_no_step_1(self, broker: AesmBroker, platform: RecordingPlatform) -> None:
        assert answer(broker, m.InitQuoteExRequest(True, KEY_ID, 32)) == self.STEP_2
        assert platform.initialized

    @pytest.mark.parametrize("buf_size", [None, 0, 31, 33, GARBAGE_BUF_SIZE])
    def test_step_2_with_another_buf_size_echoes_it(
        self, ready: AesmBroker, platform: RecordingPlatform, buf_size: int | None
    ) -> None:
        response = answer(ready, m.InitQuoteExRequest(True, KEY_ID, buf_size))

        assert response == m.InitQuoteExResponse(PARAMETER, pub_key_id_size=buf_size or 0)
        assert platform.asked == []

    @pytest.mark.parametrize("key_id", [None, b"", KEY_ID[:158], KEY_ID[:255]])
    @pytest.mark.parametrize("step_2", [False, True])
    def test_a_missing_or_short_key_id_is_a_parameter_error(
        self, ready: AesmBroker, key_id: bytes | None, step_2: bool
    ) -> None:
        response = answer(ready, m.InitQuoteExRequest(step_2, key_id, 32))

        assert response == m.InitQuoteExResponse(PARAMETER, pub_key_id_size=32)

    @pytest.mark.parametrize("step_2", [False, True])
    def test_an_unknown_key_id_is_unsupported_even_with_a_wrong_buf_size(self, ready: AesmBroker, step_2: bool) -> None:
        response = answer(ready, m.InitQuoteExRequest(step_2, bytes(OTHER_KEY), 77))

        assert response == m.InitQuoteExResponse(UNSUPPORTED, pub_key_id_size=77)

    @pytest.mark.parametrize("at", [0, 2, 4, 6, 54, 58, 74, 138, 154, 157])
    def test_each_of_the_158_bytes_counts(self, ready: AesmBroker, at: int) -> None:
        changed = KEY_ID[:at] + bytes([KEY_ID[at] ^ 0x80]) + KEY_ID[at + 1 :]

        response = answer(ready, m.InitQuoteExRequest(False, changed))

        assert response == m.InitQuoteExResponse(UNSUPPORTED, pub_key_id_size=0)

    @pytest.mark.parametrize("key_id", [DRESSED_KEY, KEY_ID + bytes(44)])
    def test_what_follows_the_158_bytes_does_not(self, ready: AesmBroker, key_id: bytes) -> None:
        assert answer(ready, m.InitQuoteExRequest(True, key_id, 32)) == self.STEP_2

    def test_without_b_pub_key_id_is_an_unexpected_error(self, ready: AesmBroker) -> None:
        incomplete = parse_request(bytes.fromhex("7a02204d"))

        assert answer(ready, incomplete) == m.InitQuoteExResponse(UNEXPECTED, pub_key_id_size=77)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (errors.PlatformUnavailable("no device"), 30),
            (errors.PlatformBusy("later"), 18),
            (errors.NativeError("PCCS", native_code=0xE019), 12),
            (errors.CollateralUnavailable("PCCS"), 12),
            (errors.CollateralNotFound("no PCK certificate"), 44),
            (errors.NativeError("certification", native_code=0xE018), 50),
        ],
    )
    def test_a_failing_platform_is_told_by_its_code(
        self, ready: AesmBroker, platform: RecordingPlatform, error: errors.ConfcomError, status: int
    ) -> None:
        platform.before = raising(error)

        response = answer(ready, m.InitQuoteExRequest(True, KEY_ID, 32))

        assert response == m.InitQuoteExResponse(AesmStatus(status), pub_key_id_size=32)


def raising(error: Exception):
    def raise_it(_: str) -> None:
        raise error

    return raise_it


class TestGetQuoteSizeEx:
    def test_is_the_exact_size_of_the_quote(self, ready: AesmBroker) -> None:
        assert answer(ready, m.GetQuoteSizeExRequest(KEY_ID)) == m.GetQuoteSizeExResponse(OK, QUOTE_SIZE)
        quote = answer(ready, m.GetQuoteExRequest(REPORT, QUOTE_SIZE, KEY_ID))
        assert quote == m.GetQuoteExResponse(OK, QUOTE)

    @pytest.mark.parametrize("key_id", [None, KEY_ID[:255]])
    def test_a_missing_or_short_key_id_is_a_parameter_error(self, ready: AesmBroker, key_id: bytes | None) -> None:
        assert answer(ready, m.GetQuoteSizeExRequest(key_id)) == m.GetQuoteSizeExResponse(PARAMETER, 0)

    def test_an_unknown_key_id_is_unsupported(self, ready: AesmBroker) -> None:
        assert answer(ready, m.GetQuoteSizeExRequest(bytes(256))) == m.GetQuoteSizeExResponse(UNSUPPORTED, 0)

    def test_before_the_key_is_made_is_not_initialized(self, broker: AesmBroker) -> None:
        assert answer(broker, m.GetQuoteSizeExRequest(KEY_ID)) == m.GetQuoteSizeExResponse(NOT_INITIALIZED, 0)


class TestGetQuoteEx:
    def test_a_buffer_of_the_exact_size_gets_the_quote_alone(self, ready: AesmBroker) -> None:
        assert answer(ready, m.GetQuoteExRequest(REPORT, QUOTE_SIZE, KEY_ID)) == m.GetQuoteExResponse(OK, QUOTE)

    @pytest.mark.parametrize("buf_size", [QUOTE_SIZE + 1, 8192, PAD_LIMIT])
    def test_a_larger_buffer_is_filled_with_zeros(self, ready: AesmBroker, buf_size: int) -> None:
        response = answer(ready, m.GetQuoteExRequest(REPORT, buf_size, KEY_ID))

        assert response == m.GetQuoteExResponse(OK, QUOTE + bytes(buf_size - QUOTE_SIZE))

    @pytest.mark.parametrize("buf_size", [PAD_LIMIT + 1, 0x10000000, 0xFFFFFFFF])
    def test_but_never_beyond_64_kib(self, ready: AesmBroker, buf_size: int) -> None:
        response = answer(ready, m.GetQuoteExRequest(REPORT, buf_size, KEY_ID))

        assert response == m.GetQuoteExResponse(OK, QUOTE + bytes(PAD_LIMIT - QUOTE_SIZE))

    @pytest.mark.parametrize("buf_size", [0, 1, QUOTE_SIZE - 1])
    def test_a_smaller_buffer_is_a_parameter_error(
        self, ready: AesmBroker, platform: RecordingPlatform, buf_size: int
    ) -> None:
        assert answer(ready, m.GetQuoteExRequest(REPORT, buf_size, KEY_ID)) == m.GetQuoteExResponse(PARAMETER)
        assert "quote" not in platform.asked

    @pytest.mark.parametrize("size", [0, 431, 433, 512])
    def test_a_report_is_exactly_432_bytes(self, ready: AesmBroker, size: int) -> None:
        assert answer(ready, m.GetQuoteExRequest(bytes(size), 8192, KEY_ID)) == m.GetQuoteExResponse(PARAMETER)

    @pytest.mark.parametrize("size", [1, 959, 961])
    def test_a_qe_report_info_is_exactly_960_bytes(self, ready: AesmBroker, size: int) -> None:
        response = answer(ready, m.GetQuoteExRequest(REPORT, 8192, KEY_ID, b"i" * size))

        assert response == m.GetQuoteExResponse(PARAMETER, qe_report_info=b"i" * size)

    def test_an_empty_qe_report_info_counts_as_none(self, ready: AesmBroker) -> None:
        response = answer(ready, m.GetQuoteExRequest(REPORT, QUOTE_SIZE, KEY_ID, b""))

        assert response == m.GetQuoteExResponse(OK, QUOTE)

    @pytest.mark.parametrize("buf_size", [QUOTE_SIZE, 8192])
    def test_the_qe_report_is_over_nonce_and_quote_without_padding(self, ready: AesmBroker, buf_size: int) -> None:
        response = answer(ready, m.GetQuoteExRequest(REPORT, buf_size, KEY_ID, INFO))

        assert isinstance(response, m.GetQuoteExResponse)
        assert response.status == OK
        filled = response.qe_report_info
        assert filled is not None
        assert (len(filled), filled[:528]) == (960, INFO[:528])
        report_data = filled[528 + 320 : 528 + 384]
        assert report_data == hashlib.sha256(INFO[:16] + QUOTE).digest() + bytes(32)

    def test_a_platform_without_qe_reports_says_so_and_gives_no_fake(self) -> None:
        broker = AesmBroker(RecordingPlatform(initialized=True, can_report=False))

        response = answer(broker, m.GetQuoteExRequest(REPORT, 8192, KEY_ID, INFO))

        assert response == m.GetQuoteExResponse(AesmStatus.UNABLE_TO_GENERATE_QE_REPORT, qe_report_info=INFO)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (errors.ReportRejected("MAC"), 47),
            (errors.KeyNotInitialized("TCB changed"), 42),
            (errors.NativeError("EREPORT", native_code=0xE017), 49),
            (errors.NativeError("enclave lost", native_code=0xE014), 46),
            (errors.PlatformUnavailable("gone"), 30),
        ],
    )
    @pytest.mark.parametrize("info", [None, INFO])
    def test_errors_of_the_platform_echo_the_qe_report_info(
        self,
        ready: AesmBroker,
        platform: RecordingPlatform,
        error: errors.ConfcomError,
        status: int,
        info: bytes | None,
    ) -> None:
        platform.before = raising(error)

        response = answer(ready, m.GetQuoteExRequest(REPORT, 8192, KEY_ID, info))

        assert response == m.GetQuoteExResponse(AesmStatus(status), qe_report_info=info)

    def test_the_checks_come_in_intels_order(self, broker: AesmBroker, platform: RecordingPlatform) -> None:
        """Each request fails every later check too: what is told is the first."""
        short_report, rejected = bytes(431), errors.ReportRejected("MAC")

        def status(request: m.Request) -> int:
            return answer(broker, request).status

        assert status(m.GetQuoteExRequest(short_report, 0, KEY_ID[:255])) == 3
        assert status(m.GetQuoteExRequest(short_report, 0, bytes(256))) == 38
        assert status(m.GetQuoteExRequest(short_report, 0, KEY_ID)) == 3
        assert status(m.GetQuoteExRequest(REPORT, 0, KEY_ID)) == 42
        platform.initialized = True
        platform.before = lambda what: raising(rejected)(what) if what == "quote" else None
        assert status(m.GetQuoteExRequest(REPORT, 0, KEY_ID)) == 3
        assert status(m.GetQuoteExRequest(REPORT, 8192, KEY_ID)) == 47

    @pytest.mark.parametrize("wire", ["8a010408011001", "8a0100", "8a01030a0141"])
    def test_without_report_or_buf_size_is_an_unexpected_error(self, ready: AesmBroker, wire: str) -> None:
        incomplete = parse_request(bytes.fromhex(wire))

        assert answer(ready, incomplete) == m.GetQuoteExResponse(UNEXPECTED)

    def test_asks_for_the_size_only_where_the_last_quote_would_not_fit(
        self, ready: AesmBroker, platform: RecordingPlatform
    ) -> None:
        """Intel's library asks for the certificate each time."""
        sizes = (8192, QUOTE_SIZE, QUOTE_SIZE - 1)
        answers = [answer(ready, m.GetQuoteExRequest(REPORT, size, KEY_ID)).status for size in sizes]

        assert answers == [OK, OK, PARAMETER]
        assert platform.asked == ["quote_size", "quote", "quote", "quote_size"]


class TestLegacy:
    """What Intel's service answers with neither EPID nor launch plugin."""

    @pytest.mark.parametrize(
        ("number", "fields", "status", "further"),
        [
            (1, [], UNAVAILABLE, {}),
            (2, [(1, REPORT), (2, 0), (3, bytes(16)), (6, 900)], UNAVAILABLE, {}),
            (3, [(1, bytes(32)), (2, bytes(384)), (3, bytes(16))], UNAVAILABLE, {}),
            (4, [(1, b"p"), (2, 1), (3, 1)], UNAVAILABLE, {}),
            (10, [], UNAVAILABLE, {"white_list_size": 0}),
            (11, [(1, 10)], UNAVAILABLE, {}),
            (12, [], UNAVAILABLE, {"x_group_id": 0}),
            (13, [(1, 1)], UNAVAILABLE, {}),
            (18, [(2, 0), (3, 0)], UNAVAILABLE, {"status": 0}),
            (14, [(1, b"list"), (2, 0)], UNAVAILABLE, {}),
            (14, [(1, b"list"), (2, 1)], PARAMETER, {}),
        ],
    )
    def test_is_answered_without_the_platform(
        self,
        broker: AesmBroker,
        platform: RecordingPlatform,
        number: int,
        fields: list[tuple[int, int | bytes]],
        status: AesmStatus,
        further: dict[str, int],
    ) -> None:
        assert answer(broker, parse_request(message(number, *fields))) == m.LegacyResponse(status, further)
        assert platform.asked == []


class TestPlan:
    def test_once_the_keys_are_known_only_keys_and_quotes_take_the_platform(self, ready: AesmBroker) -> None:
        at_once = [
            m.GetSupportedAttKeyIdNumRequest(),
            m.GetSupportedAttKeyIdsRequest(256),
            m.SelectAttKeyIdRequest(),
            m.InitQuoteExRequest(False, KEY_ID),
            m.GetQuoteExRequest(b"", 0, KEY_ID),
            parse_request(message(1)),
        ]
        blocking = [
            m.InitQuoteExRequest(True, KEY_ID, 32),
            m.GetQuoteSizeExRequest(KEY_ID),
            m.GetQuoteExRequest(REPORT, 8192, KEY_ID),
        ]

        assert {type(ready.plan(request)) for request in at_once} == {Answer}
        assert {type(ready.plan(request)) for request in blocking} == {PlatformCall}

    def test_planning_never_touches_the_platform(self, broker: AesmBroker, platform: RecordingPlatform) -> None:
        broker.plan(m.GetSupportedAttKeyIdNumRequest())
        broker.plan(m.GetQuoteExRequest(REPORT, 8192, KEY_ID))

        assert platform.asked == []

    def test_an_answer_that_refuses_says_why(self, ready: AesmBroker) -> None:
        refused = ready.plan(m.GetSupportedAttKeyIdsRequest(257))

        assert isinstance(refused, Answer)
        assert refused.error is not None
        assert str(refused.error) == "GetSupportedAttKeyIds.buf_size: must be exactly 256, is 257"
        answered = ready.plan(m.GetSupportedAttKeyIdsRequest(256))
        assert isinstance(answered, Answer)
        assert answered.error is None

    def test_a_platform_that_cannot_list_its_keys_is_unavailable_for_all(self, platform: RecordingPlatform) -> None:
        platform.before = raising(errors.PlatformUnavailable("no /dev/sgx_enclave"))
        broker = AesmBroker(platform)

        assert answer(broker, m.GetSupportedAttKeyIdNumRequest()) == m.GetSupportedAttKeyIdNumResponse(UNAVAILABLE, 0)
        assert answer(broker, m.GetQuoteSizeExRequest(b"")) == m.GetQuoteSizeExResponse(UNAVAILABLE, 0)

    def test_the_platform_is_asked_for_its_own_id_not_the_callers(self) -> None:
        asked = []

        class Remembering(RecordingPlatform):
            def init_quote(self, key_id=None):
                asked.append(key_id)
                return super().init_quote(key_id)

        answer(AesmBroker(Remembering()), m.InitQuoteExRequest(True, DRESSED_KEY, 32))

        assert asked == [ECDSA_P256_KEY_ID]


class TestWarmUp:
    def test_makes_the_key_that_clients_will_ask_for(self, broker: AesmBroker, platform: RecordingPlatform) -> None:
        broker.warm_up()

        assert platform.initialized

    def test_fails_without_any_key(self) -> None:
        with pytest.raises(errors.PlatformUnavailable, match="lists no attestation key"):
            AesmBroker(RecordingPlatform(ids=())).warm_up()


def test_the_longest_list_fits_a_request() -> None:
    longest = AttestationKeyIdList(tuple(replace(ECDSA_P256_KEY_ID, att_key_type=n) for n in range(10)))

    assert len(bytes(longest)) == 2568
