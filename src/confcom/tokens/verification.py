"""Verifies attestation tokens: ours, Azure's, and EAR of other verifiers, by keys that the caller pinned.

A token never says which key or which algorithm is good: `alg: none`, keys in its header (`jwk`, `x5c`, `jku`) and key
ids that the key set does not have count for nothing. Issuer and time are always checked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from confcom.errors import FormatError, PolicyError, VerificationError
from confcom.formats.arguments import checked_bytes, checked_time, checked_type, checked_values, decode_json
from confcom.formats.sgx import AttributeFlags
from confcom.pki.der import UNREADABLE, der_reason
from confcom.pki.proof import PROOF, Proof, sealed
from confcom.tokens.jws import ReadJws

ALGORITHMS = {"RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "EC": ("ES256", "ES384", "ES512")}
"""What a key of each kind may sign with."""
LEEWAY = timedelta(minutes=1)
"""How far clocks may differ."""
MIN_RSA = 2048
"""Bits."""
_CURVES = ("P-256", "P-384", "P-521")
LAST = 253_402_300_799
"""Seconds since 1970 of the last time that a claim may hold: the end of the year 9999."""
MAX_KEYS = 64
MAX_KEY_SET = 1 << 20
"""Bytes of a key set."""


class TokenError(VerificationError):
    """A token is not authentic: no pinned key signed it, another issuer did, or its time is over."""

    code = "token-not-authentic"
    default_advice = "Do not trust this token; ask the attester for a fresh one."


class TokenRefused(PolicyError):
    """An authentic token does not say what the policy expects."""

    code = "token-refused"
    default_advice = "Compare the claims with what you expect; `confcom token inspect` shows them."


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """A public key by its id, and its certificate, where it has one."""

    key_id: str
    kind: str
    public: Any
    certificate: x509.Certificate | None
    algorithms: tuple[str, ...]
    """What it may sign with: the `alg` of its JWK, or what its kind can."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys that may sign tokens, as of the time when they were fetched."""

    keys: tuple[PinnedKey, ...]
    fetched: datetime
    max_age: timedelta = timedelta(days=1)

    @classmethod
    def parse(cls, data: bytes, *, fetched: datetime, max_age: timedelta = timedelta(days=1)) -> KeySet:
        """Read a JWKS (RFC 7517), with Azure's keys that are nothing but a certificate; `FormatError` for all else."""
        checked_time(fetched, "fetched")
        if len(data) > MAX_KEY_SET:
            raise FormatError(f"{len(data)} bytes, at most {MAX_KEY_SET} are read", structure="JWKS", field="")
        given = decode_json(data, _JWKS, "JWKS", once=True, problem="is no key set")
        if len(given.keys) > MAX_KEYS:
            raise FormatError(
                f"has {len(given.keys)} keys, at most {MAX_KEYS} are read", structure="JWKS", field="keys"
            )
        read = (_read_key(key, f"keys[{number}]") for number, key in enumerate(given.keys))
        return cls(tuple(key for key in read if key is not None), fetched, max_age)


@sealed
@dataclass(frozen=True, slots=True, repr=False)
class VerifiedToken(Proof):
    """An authentic token. Only `verify_token` makes one. Authentic is not acceptable: see `TokenPolicy`."""

    made_by: ClassVar[str] = "verify_token"

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    key: PinnedKey
    proof: InitVar[object] = None

    @property
    def stated(self) -> dict[str, Any]:
        """The claims about the evidence by Azure's names; of an EAR those of its one submodule.

        Raises:
            TokenRefused: an EAR that does not affirm its submodule, or has several.
        """
        claims = dict(self.claims)
        return claims | _of_ear(claims) if isinstance(claims.get("submods"), dict) else claims

    def __repr__(self) -> str:
        return f"<VerifiedToken of {self.claims.get('iss')!r}, key {self.key.key_id[:12]}>"


def verify_token(token: str, keys: KeySet, *, issuer: str, now: datetime, leeway: timedelta = LEEWAY) -> VerifiedToken:
    """Verify signature, issuer and time of a token.

    Raises:
        FormatError: not a JWS with a JSON object.
        TokenError: not signed by a pinned key that is still good, of another issuer, expired or not yet valid.
    """
    checked_time(now, "now")
    checked_type(keys, KeySet, "keys")
    checked_type(issuer, str, "issuer")
    jws = ReadJws.parse(checked_type(token, str, "token"))
    if not jws.exact:
        raise TokenError("the token is not written in base64url without padding, in one way only")
    if jws.critical:
        raise TokenError(f"the token has critical headers that this verifier does not know: {jws.critical}")
    if abs(now - keys.fetched) > keys.max_age:
        away = "older than" if keys.fetched < now else "ahead of now by over"
        raise TokenError(
            f"the key set is of {keys.fetched:%Y-%m-%d %H:%M} UTC, {away} {keys.max_age}",
            advice="Fetch the keys again, or allow their age.",
        )
    key = _signing_key(jws, keys)
    if key.certificate is not None:
        since, until = key.certificate.not_valid_before_utc, key.certificate.not_valid_after_utc
        if until < now:
            raise TokenError(f"the certificate of key {key.key_id!r} ended on {until:%Y-%m-%d}")
        if since > now + leeway:
            raise TokenError(f"the certificate of key {key.key_id!r} begins on {since:%Y-%m-%d}")
    claims = jws.claims()
    if claims.get("iss") != issuer:
        found = str(claims.get("iss"))
        raise TokenError(f"the token is of the issuer {found[:200]!r}, not {issuer!r}", expected=issuer, found=found)
    _check_times(claims, now, leeway)
    return VerifiedToken(jws.header, claims, key, PROOF)


def _signing_key(jws: ReadJws, keys: KeySet) -> PinnedKey:
    algorithm, key_id = jws.header.get("alg"), jws.header.get("kid")
    if algorithm == "none" or not jws.signature:
        raise TokenError("the token is not signed: an answer to a draft policy, or a forgery")
    # EAR of Trustee name no key: every pinned one is tried, never one of the token's own.
    fitting = [key for key in keys.keys if key_id is None or key.key_id == key_id]
    if not fitting:
        raise TokenError(
            f"no pinned key has the id {key_id!r}",
            advice="If the issuer changed its keys, fetch its key set again over a connection that you trust.",
        )
    long = [key for key in fitting if not isinstance(key.public, rsa.RSAPublicKey) or key.public.key_size >= MIN_RSA]
    if not long:
        raise TokenError(f"key {fitting[0].key_id!r} has {fitting[0].public.key_size} bits, {MIN_RSA} are the least")
    for key in long:
        if algorithm in key.algorithms and jws.verify(key.public, algorithm):
            return key
    raise TokenError("the signature is not of a pinned key")


def _check_times(claims: Mapping[str, Any], now: datetime, leeway: timedelta) -> None:
    seconds, slack = now.timestamp(), leeway.total_seconds()
    for name in ("exp", "nbf", "iat"):
        if name in claims and (isinstance(claims[name], bool) or not isinstance(claims[name], (int, float))):
            raise TokenError(f"the claim {name!r} is no number: {str(claims[name])[:80]!r}")
        if name in claims and not 0 <= claims[name] <= LAST:
            raise TokenError(f"the claim {name!r} is no time: {str(claims[name])[:80]}")
    if "exp" not in claims:
        raise TokenError("the token has no end (claim 'exp')")
    if claims["exp"] + slack <= seconds:  # RFC 7519, section 4.1.4: at its end it is over
        raise TokenError(f"the token expired {_ago(seconds - claims['exp'])} ago")
    for name in ("nbf", "iat"):
        if name in claims and claims[name] - slack > seconds:
            raise TokenError(f"the token is not valid yet: its {name!r} is {_ago(claims[name] - seconds)} ahead")


def _ago(seconds: float) -> str:
    return str(timedelta(seconds=int(min(seconds, 1e9))))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """What a relying party expects of an SGX token; empty tuples and None expect nothing.

    Debug enclaves and simulated evidence are refused unless they are allowed. `accept_tcb` are the statuses that are
    good enough, where the token states one: Azure's do not.
    """

    mr_enclave: tuple[bytes, ...] = ()
    mr_signer: tuple[bytes, ...] = ()
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None
    nonce: str | None = None
    report_data: bytes = b""
    accept_tcb: tuple[str, ...] = ("UpToDate",)
    require_tcb: bool = False
    """Refuse tokens that state no TCB status."""
    allow_debug: bool = False
    allow_simulated: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further claims and their exact values."""

    def __post_init__(self) -> None:
        for name in ("mr_enclave", "mr_signer"):
            for value in checked_values(getattr(self, name), name):
                checked_bytes(value, name, 32)
        for status in checked_values(self.accept_tcb, "accept_tcb"):
            checked_type(status, str, "accept_tcb")
        checked_bytes(self.report_data, "report_data")

    def check(self, token: VerifiedToken) -> None:
        """Refuse what is not expected.

        Raises:
            TokenRefused: the first claim that is not as expected.
        """
        claims = token.stated
        self._check_state(claims)
        self._one_of(claims, "x-ms-sgx-mrenclave", [value.hex() for value in self.mr_enclave])
        self._one_of(claims, "x-ms-sgx-mrsigner", [value.hex() for value in self.mr_signer])
        self._one_of(claims, "x-ms-sgx-product-id", [] if self.isv_prod_id is None else [self.isv_prod_id])
        self._one_of(claims, "nonce", [] if self.nonce is None else [self.nonce])
        for name, value in self.more.items():
            self._one_of(claims, name, [value])
        svn = claims.get("x-ms-sgx-svn")
        if self.min_isv_svn is not None and (type(svn) is not int or svn < self.min_isv_svn):
            raise _refused("x-ms-sgx-svn", f"at least {self.min_isv_svn}", svn)
        for found in _all_of(claims, "x-ms-sgx-report-data", "tdx_report_data"):
            if self.report_data and not (isinstance(found, str) and found.startswith(self.report_data.hex())):
                raise _refused("x-ms-sgx-report-data", self.report_data.hex() + "…", found)

    def _check_state(self, claims: Mapping[str, Any]) -> None:
        for debug in _all_of(claims, "x-ms-sgx-is-debuggable", "tdx_td_attributes_debug"):
            # Tokens about something else, such as answers about policies, have the same issuer and key.
            if not isinstance(debug, bool) or (debug and not self.allow_debug):
                raise _refused("x-ms-sgx-is-debuggable", "True or False" if self.allow_debug else "False", debug)
        if claims.get("confcom-simulated", False) is not False and not self.allow_simulated:
            raise TokenRefused(
                f"the claim 'confcom-simulated' is {claims['confcom-simulated']!r}: the evidence is simulated",
                advice="Do not trust it: no hardware vouches for it. A test may allow it, with --allow-simulated.",
            )
        for status in _all_of(claims, "confcom-tcb-status", "attester_tcb_status"):
            if status not in self.accept_tcb and (status is not None or self.require_tcb):
                raise _refused("confcom-tcb-status", " or ".join(self.accept_tcb), status)

    @staticmethod
    def _one_of(claims: Mapping[str, Any], name: str, expected: list[Any]) -> None:
        found = claims.get(name)
        if expected and _written(found) not in map(_written, expected):
            raise _refused(name, " or ".join(str(value) for value in expected), found)


def _all_of(claims: Mapping[str, Any], *names: str) -> list[Any]:
    """The values under every name that one thing has for SGX and TDX, or [None].

    In tokens of some issuers a policy adds the name of the other kind of TEE, with any value.
    """
    return [claims[name] for name in names if name in claims] or [None]


def _written(value: object) -> str:
    """A claim's value as JSON, in which 1, 1.0 and true differ at every depth."""
    return json.dumps(value, sort_keys=True, default=repr)


def _refused(name: str, expected: str, found: object) -> TokenRefused:
    return TokenRefused(f"the claim {name!r} is {found!r}, expected {expected}")


def _of_ear(claims: Mapping[str, Any]) -> dict[str, Any]:
    """What an EAR of ours says of its one submodule."""
    modules = claims["submods"]
    if len(modules) != 1 or not isinstance(module := next(iter(modules.values())), dict):
        raise TokenRefused(f"the EAR has {len(modules)} submodules, expected one")
    evidence = module.get("ear.veraison.annotated-evidence")
    # Simulated evidence is never affirmed; whether it is allowed, the claim decides.
    simulated = isinstance(evidence, dict) and evidence.get("confcom-simulated") is True
    if module.get("ear.status") not in (2, "affirming") and not simulated:
        raise _refused("ear.status", "affirming (2)", module.get("ear.status"))
    found = dict(evidence) if isinstance(evidence, dict) else {}
    found |= _of_trustee(found)
    return found | ({"nonce": claims["eat_nonce"]} if "eat_nonce" in claims else {})


def _of_trustee(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What an EAR of Trustee says of an enclave or a TD, by the names of ours: it gives the fields of the quote in hex.

    Integers are little-endian, as in the quote (claims of its verifiers for SGX and TDX).
    """
    try:
        if isinstance(sgx := evidence.get("sgx"), dict):
            body = sgx["body"]
            number = {name: int.from_bytes(bytes.fromhex(body[name]), "little") for name in _TRUSTEE_NUMBERS}
            return _stated_tcb(sgx) | {
                "x-ms-attestation-type": "sgx",
                "x-ms-sgx-is-debuggable": bool(number["attributes.flags"] & AttributeFlags.DEBUG),
                "x-ms-sgx-mrenclave": body["mr_enclave"],
                "x-ms-sgx-mrsigner": body["mr_signer"],
                "x-ms-sgx-product-id": number["isv_prod_id"],
                "x-ms-sgx-svn": number["isv_svn"],
                "x-ms-sgx-report-data": body["report_data"],
            }
        if isinstance(tdx := evidence.get("tdx"), dict):
            body = tdx["quote"]["body"]
            return _stated_tcb(tdx) | {
                "x-ms-attestation-type": "tdxvm",
                "tdx_td_attributes_debug": tdx["td_attributes"]["debug"],
                "tdx_mrtd": body["mr_td"],
                "tdx_report_data": body["report_data"],
            }
    except (KeyError, TypeError, ValueError) as error:
        raise TokenRefused(f"the evidence of the EAR cannot be read: {error!r}") from None
    return {}


_TRUSTEE_NUMBERS = ("attributes.flags", "isv_prod_id", "isv_svn")


def _stated_tcb(evidence: Mapping[str, Any]) -> dict[str, Any]:
    return {"confcom-tcb-status": evidence["tcb_status"]} if "tcb_status" in evidence else {}


class _Jwks(msgspec.Struct):
    keys: list[dict[str, Any]]


_JWKS = msgspec.json.Decoder(_Jwks)


def _read_key(jwk: Mapping[str, Any], where: str) -> PinnedKey | None:
    """One key; None for kinds and curves that sign no tokens."""
    try:
        kind = jwk.get("kty")
        if kind not in ALGORITHMS or jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ("verify",)):
            return None
        if jwk.get("crv", "P-256") not in _CURVES:
            return None
        algorithms = (jwk["alg"],) if isinstance(jwk.get("alg"), str) else ALGORITHMS[kind]
        own = {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in jwk}
        certificate, public = None, None
        if chain := jwk.get("x5c"):
            certificate = x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True))
            public = certificate.public_key()
        if public is None or own.keys() & {"n", "x"}:
            stated: Any = (RSAKey if kind == "RSA" else ECKey).import_key(own).public_key
            if public not in (None, stated):
                raise ValueError("the certificate in x5c is of another key (RFC 7517, section 4.7)")
            public = stated
        key_id = jwk.get("kid", "")
        if not isinstance(key_id, str):
            raise ValueError("kid is no string")
    except (*UNREADABLE, KeyError, IndexError, AttributeError, JoseError) as error:
        raise FormatError(f"cannot be read: {der_reason(error)}", structure="JWKS", field=where) from None
    return PinnedKey(key_id, kind, public, certificate, tuple(set(algorithms) & set(ALGORITHMS[kind])))
