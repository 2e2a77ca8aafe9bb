"""`appraisalpolicy`: appraisal policies as Intel's caching service keeps them for its appraisal library."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request

from confcom.collateral.appraisal_policies import STRUCTURE
from confcom.errors import CollateralNotFound, FormatError
from confcom.protocols.pcs import HttpResponse
from confcom.protocols.pcs_answers import hex_field
from confcom.services.collateral_answers import TEXT, Answer, answer_of, text_answer
from confcom.services.collateral_cache import CollateralCache
from confcom.services.collateral_callers import Bodies, Tokens
from confcom.services.collateral_http import Routes

MAX_POLICY = 256 * 1024
"""Characters of a policy; Intel's have some thousand."""
MAX_AGE = 3600
"""Seconds that clients may keep one: it changes when an administrator says so."""


class PolicyPaths:
    """The path in both versions of the interface: reading is open, changing wants the admin token."""

    def __init__(self, cache: CollateralCache, *, tokens: Tokens, bodies: Bodies) -> None:
        self._cache = cache
        self._tokens = tokens
        self._bodies = bodies

    def routes(self) -> Routes:
        """Both paths."""
        methods = {"GET": self.read, "PUT": self.put}
        return {f"/sgx/certification/v{version}/appraisalpolicy": methods for version in (3, 4)}

    async def read(self, request: Request) -> Answer:
        """The default policy of an FMSPC: the text that was put."""
        fmspc = hex_field(request.query_params.get("fmspc", ""), 6, "PCS request", "fmspc")
        policy = await self._cache.read(lambda: self._cache.store.policies.default(fmspc))
        if policy is None:
            raise CollateralNotFound(
                f"there is no default appraisal policy of FMSPC {fmspc.hex()}",
                advice="Put one: pccsadmin.py put -u https://HOST:8081/sgx/certification/v4/appraisalpolicy -d "
                "-f FMSPC -i policy.jwt",
            )
        headers = (("Content-Type", TEXT), ("Cache-Control", f"max-age={MAX_AGE}"))
        return answer_of(HttpResponse(200, headers, policy.encode()))

    async def put(self, request: Request) -> Answer:
        """Keep a policy; answers with its id."""
        self._tokens.require(request, "admin")
        async with self._bodies.read(request, limit=2 * MAX_POLICY) as body:
            id_ = await self._cache.read(lambda: self._put(body))
        return text_answer(id_)

    def _put(self, body: bytes) -> str:
        try:
            found = _FORM.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"not the documented JSON: {error}", structure=STRUCTURE, field="") from error
        fmspc = hex_field(found.fmspc, 6, STRUCTURE, "fmspc")
        return self._cache.store.policies.put(found.policy, fmspc=fmspc, default=found.is_default)


class _Form(msgspec.Struct):
    is_default: bool
    fmspc: str
    policy: Annotated[str, msgspec.Meta(max_length=MAX_POLICY)]


_FORM = msgspec.json.Decoder(_Form)
