"""What each AESM request means: argument checks, key ids, padding, and which platform call it comes down to.

Owns the semantics and no socket, thread or clock. `plan` answers what needs no platform and is quick enough for an
event loop; what it returns as a `PlatformCall` is for `perform`, which blocks. The answers are those of Intel's
service with only the ECDSA plugin, down to the fields that it sends along with errors; where Intel's answers with
what a client announced (padding), ours has a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import msgspec

from confcom.errors import ConfcomError, FormatError, NativeError, PlatformUnavailable, UnsupportedKeyId
from confcom.formats.attestation_key_id import (
    ALGORITHM_ECDSA_P256,
    AttestationKeyId,
    AttestationKeyIdList,
    QlAttestationKeyId,
)
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.interface import Platform, QuoteResult, QuotesAhead
from confcom.protocols import aesm as m
from confcom.protocols.aesm import IncompleteRequest, LegacyRequest, Request, Response, exchange_of, refusal
from confcom.protocols.aesm_status import QUOTE3_QE_REPORT, AesmStatus, status_of

PUB_KEY_ID_SIZE = 32
PAD_LIMIT = 64 * 1024
"""A quote is padded with zeros to the client's buf_size, as by Intel's service, but never beyond this."""

_KEY_ID_SIZE = AttestationKeyId.size()
_COMPARED_SIZE = QlAttestationKeyId.size()
_OK = AesmStatus.SUCCESS


class Answer(msgspec.Struct, frozen=True):
    """A response and, when it refuses, why: for the log, a client only sees the status."""

    response: Response
    error: ConfcomError | None = None


class PlatformCall(msgspec.Struct, frozen=True):
    """A request whose arguments are in order and that only the platform can answer.

    Without `key_id` the broker did not know the platform's keys yet, and nothing has been checked.
    """

    request: Request
    key_id: AttestationKeyId | None = None


class AesmBroker:
    """Answers AESM requests for one platform."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._ahead = platform if isinstance(platform, QuotesAhead) else None
        self._keys: dict[bytes, AttestationKeyId] = {}
        self._last_size = 0

    def plan(self, request: Request | IncompleteRequest) -> Answer | PlatformCall:
        """Check a request and answer it, unless that takes the platform. Never blocks."""
        if isinstance(request, IncompleteRequest):
            reason = FormatError("is required", structure=exchange_of(request).name, field=request.missing[0])
            return Answer(refusal(request, AesmStatus.UNEXPECTED_ERROR), reason)
        if type(request) in self._PLANS and not self._keys:
            return PlatformCall(request)
        return self._plan(request)

    def perform(self, call: PlatformCall) -> Answer:
        """Make a platform call and answer with what came of it. Blocks; one call at a time."""
        try:
            if call.key_id is None:
                self._learn_keys()
                plan = self._plan(call.request)
                if isinstance(plan, Answer):
                    return plan
                call = plan
            return Answer(self._perform(call))
        except ConfcomError as error:
            return self.refuse(call.request, error)

    def may_begin(self, call: PlatformCall) -> bool:
        """Whether `begin` would ask the platform."""
        request = call.request
        if self._ahead is None or call.key_id is None or not isinstance(request, m.GetQuoteExRequest):
            return False
        return 0 < self._last_size <= request.buf_size

    def begin(self, call: PlatformCall) -> int:
        """Begin a platform call without blocking, as `QuotesAhead.begin_quote`; -1 where only `perform` makes it."""
        if not self.may_begin(call) or self._ahead is None:
            return -1
        request = cast("m.GetQuoteExRequest", call.request)
        return self._ahead.begin_quote(request.report, bytes(call.key_id or b""), request.qe_report_info or None)

    def end(self, call: PlatformCall) -> Answer | None:
        """The answer to the first call that was begun; None when it must be performed after all."""
        try:
            result = None if self._ahead is None else self._ahead.end_quote()
            return None if result is None else Answer(self._quoted(cast("m.GetQuoteExRequest", call.request), result))
        except ConfcomError as error:
            return self.refuse(call.request, error)

    def refuse(self, request: Request | IncompleteRequest, error: ConfcomError) -> Answer:
        return Answer(refusal(request, status_of(error)), error)

    def warm_up(self) -> None:
        """Make and certify the attestation key before a client asks. Blocks; raises what the platform raises."""
        self._learn_keys()
        self._require_keys()
        self._platform.init_quote(_preferred(tuple(self._keys.values())))

    def _learn_keys(self) -> None:
        # An empty list is asked for again next time: a platform may come to life.
        if not self._keys:
            self._keys = {bytes(key_id.base): key_id for key_id in self._platform.key_ids()}

    def _require_keys(self) -> None:
        if not self._keys:
            raise PlatformUnavailable("the platform lists no attestation key")

    def _plan(self, request: Request) -> Answer | PlatformCall:
        try:
            plan = self._PLANS.get(type(request), AesmBroker._plan_legacy)(self, request)
        except ConfcomError as error:
            return self.refuse(request, error)
        return plan if isinstance(plan, PlatformCall) else Answer(plan)

    def _plan_legacy(self, request: Request) -> Response:
        if isinstance(request, LegacyRequest) and (kind := request.values.get("data_type")):
            raise _argument(request, "data_type", f"must be 0 (white list), is {kind!r}")
        raise PlatformUnavailable("there is neither EPID nor launch control on this machine")

    def _plan_key_id_num(self, _request: m.GetSupportedAttKeyIdNumRequest) -> Response:
        self._require_keys()
        return m.GetSupportedAttKeyIdNumResponse(_OK, att_key_id_num=len(self._keys))

    def _plan_key_ids(self, request: m.GetSupportedAttKeyIdsRequest) -> Response:
        needed = _KEY_ID_SIZE * len(self._keys)
        if request.buf_size != needed:
            raise _argument(request, "buf_size", f"must be exactly {needed}, is {request.buf_size}")
        self._require_keys()
        return m.GetSupportedAttKeyIdsResponse(_OK, att_key_ids=b"".join(map(bytes, self._keys.values())))

    def _plan_select(self, request: m.SelectAttKeyIdRequest) -> Response:
        usable = tuple(self._keys.values())
        if request.att_key_id_list is not None:
            # The entry goes back as the caller wrote it, with its own SPID and type.
            wanted = AttestationKeyIdList.parse(request.att_key_id_list).ids
            usable = tuple(key_id for key_id in wanted if bytes(key_id.base) in self._keys)
        if not usable:
            raise UnsupportedKeyId("none of the ids names an attestation key of this platform")
        return m.SelectAttKeyIdResponse(_OK, selected_att_key_id=bytes(_preferred(usable)))

    def _plan_init(self, request: m.InitQuoteExRequest) -> Response | PlatformCall:
        key_id = self._match(request, request.att_key_id)
        if not request.b_pub_key_id:
            # Clients send an uninitialised buf_size here, and crash on a pub_key_id.
            return m.InitQuoteExResponse(_OK, target_info=bytes(TargetInfo.size()), pub_key_id_size=PUB_KEY_ID_SIZE)
        if request.buf_size != PUB_KEY_ID_SIZE:
            raise _argument(request, "buf_size", f"must be {PUB_KEY_ID_SIZE}, is {request.buf_size}")
        return PlatformCall(request, key_id)

    def _plan_quote_size(self, request: m.GetQuoteSizeExRequest) -> PlatformCall:
        return PlatformCall(request, self._match(request, request.att_key_id))

    def _plan_quote(self, request: m.GetQuoteExRequest) -> PlatformCall:
        key_id = self._match(request, request.att_key_id)
        Report.check_size(request.report)
        if request.qe_report_info:
            QeReportInfo.check_size(request.qe_report_info)
        return PlatformCall(request, key_id)

    _PLANS: ClassVar[dict[type[Request], Callable[[AesmBroker, Any], Response | PlatformCall]]] = {
        m.InitQuoteExRequest: _plan_init,
        m.GetQuoteSizeExRequest: _plan_quote_size,
        m.GetQuoteExRequest: _plan_quote,
        m.SelectAttKeyIdRequest: _plan_select,
        m.GetSupportedAttKeyIdNumRequest: _plan_key_id_num,
        m.GetSupportedAttKeyIdsRequest: _plan_key_ids,
    }

    def _match(self, request: Request, att_key_id: bytes | None) -> AttestationKeyId:
        """The platform's own id of the same key: only the first 158 bytes are compared."""
        if att_key_id is None or len(att_key_id) < _KEY_ID_SIZE:
            raise _argument(request, "att_key_id", f"is at least {_KEY_ID_SIZE} bytes, found {len(att_key_id or b'')}")
        key_id = self._keys.get(att_key_id[:_COMPARED_SIZE])
        if key_id is None:
            raise UnsupportedKeyId("the attestation key id names no key of this platform")
        return key_id

    def _perform(self, call: PlatformCall) -> Response:
        if isinstance(call.request, m.GetQuoteExRequest):
            return self._quote(call.request, call.key_id)
        if isinstance(call.request, m.GetQuoteSizeExRequest):
            return m.GetQuoteSizeExResponse(_OK, quote_size=self._platform.quote_size(call.key_id))
        initialized = self._platform.init_quote(call.key_id)
        return m.InitQuoteExResponse(
            _OK,
            target_info=bytes(initialized.target_info),
            pub_key_id_size=len(initialized.pub_key_id),
            pub_key_id=initialized.pub_key_id,
        )

    def _quote(self, request: m.GetQuoteExRequest, key_id: AttestationKeyId | None) -> Response:
        # In this order: a key that is not there (42), a buffer that is too small (3), a report that is not for us (47).
        # Where the last quote would fit, its size is not asked for: that would be a second call, in which Intel's
        # library asks for the certificate again.
        if not 0 < self._last_size <= request.buf_size:
            _check_room(request, self._platform.quote_size(key_id))
        info = QeReportInfo.parse(request.qe_report_info) if request.qe_report_info else None
        return self._quoted(request, self._platform.quote(Report.parse(request.report), key_id, info))

    def _quoted(self, request: m.GetQuoteExRequest, result: QuoteResult) -> Response:
        self._last_size = len(result.quote)
        _check_room(request, self._last_size)
        filled = None
        if request.qe_report_info:
            if result.qe_report_info is None:
                raise NativeError("the platform cannot make a report of its QE", native_code=QUOTE3_QE_REPORT)
            filled = bytes(result.qe_report_info)
        padded = result.quote.ljust(min(request.buf_size, PAD_LIMIT), b"\0")
        return m.GetQuoteExResponse(_OK, quote=padded, qe_report_info=filled)


def _preferred(key_ids: tuple[AttestationKeyId, ...]) -> AttestationKeyId:
    """The first for ECDSA P-256, else the first."""
    return next((key_id for key_id in key_ids if key_id.base.algorithm_id == ALGORITHM_ECDSA_P256), key_ids[0])


def _check_room(request: m.GetQuoteExRequest, needed: int) -> None:
    if request.buf_size < needed:
        raise _argument(request, "buf_size", f"must be {needed} or more, is {request.buf_size}")


def _argument(request: Request, field: str, message: str) -> FormatError:
    return FormatError(message, structure=exchange_of(request).name, field=field)
