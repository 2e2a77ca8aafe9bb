"""Tokens by which an enclave logs in to Vault or OpenBao (JWT method): flat claims, one audience, minutes of life.

A login token is a bearer token, and quotes pass through programs outside the enclave. So the token is encrypted to a
key that the quote vouches for (JWE, RFC 7516: ECDH-ES on P-256, A256GCM), and only the enclave can read it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from confcom.appraisal.quote import VerifiedQuote
from confcom.formats.sgx import ReportBody, td_base
from confcom.tokens.azure import AttestRequest, AzureError

LIFE = 300
"""Seconds."""
MAX_AUDIENCE = 256
"""Characters."""
_OURS = {
    "iss", "aud", "sub", "iat", "nbf", "exp", "jti", "tee", "debug", "tcb-status", "fmspc", "simulated", "policy-hash",
    "mrenclave", "mrsigner", "product-id", "svn", "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3",
}  # fmt: skip
_ALGORITHMS = ["ECDH-ES", "A256GCM"]
_HEADER = {"alg": "ECDH-ES", "enc": "A256GCM", "cty": "JWT"}


def new_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A key to read one token with, and the runtime data that names it."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = ECKey.import_key(private.public_key()).as_dict(private=False)
    return private, msgspec.json.encode({"keys": [public | {"use": "enc", "kid": "login"}]})


def check_request(request: AttestRequest) -> None:
    """What a login token takes: an audience, a bound nonce, and runtime data with one key.

    Raises:
        AzureError: one of them is missing, or a draft policy would decide.
    """
    audience = request.login_for or ""
    if not audience.strip() or len(audience) > MAX_AUDIENCE or not audience.isprintable():
        raise AzureError(f"'loginFor' is the audience of the token, printable and up to {MAX_AUDIENCE} characters")
    if not request.bind_nonce:
        raise AzureError(
            "a login token takes a bound nonce",
            advice="Get one with POST /nonces, quote over it, send bindNonce: true.",
        )
    if request.draft_policy is not None:
        raise AzureError("a draft policy gives no login token")
    _reader(request)


def login_claims(
    verified: VerifiedQuote, issued: dict[str, Any], *, issuer: str, audience: str, now: int
) -> dict[str, Any]:
    """The claims; those that the policy issued join them, but for names of ours, of the other kind of TEE too.

    Vault compares for equality and copies only text into its metadata, so measurements are hex and nothing is nested.
    """
    body = verified.quote.body
    if isinstance(body, ReportBody):
        who: dict[str, Any] = {
            "sub": f"sgx:{body.mr_signer.hex()}:{body.isv_prod_id}",
            "tee": "sgx",
            "mrenclave": body.mr_enclave.hex(),
            "mrsigner": body.mr_signer.hex(),
            "product-id": body.isv_prod_id,
            "svn": body.isv_svn,
            "debug": body.attributes.debug,
        }
    else:
        td = td_base(body)
        who = {"sub": f"tdx:{td.mr_td.hex()}", "tee": "tdx", "mrtd": td.mr_td.hex(), "debug": td.debug}
        who |= {f"rtmr{number}": getattr(td, f"rtmr{number}").hex() for number in range(4)}
    status = verified.tcb_status
    return {name: value for name, value in issued.items() if name not in _OURS} | who | {
        "iss": issuer,
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + LIFE,
        "tcb-status": status.value if status else None,
        "fmspc": verified.pck.fmspc.hex(),
        "simulated": verified.simulated,
    }  # fmt: skip


def seal(token: str, request: AttestRequest) -> str:
    """The token encrypted to the key of the runtime data (compact JWE)."""
    return jwe.encrypt_compact(_HEADER, token.encode(), _reader(request), algorithms=_ALGORITHMS)


def unseal(sealed: str, private: ec.EllipticCurvePrivateKey) -> str:
    """The token; `ValueError` for anything else than `seal` makes for this key."""
    try:
        opened = jwe.decrypt_compact(sealed, ECKey.import_key(private), algorithms=_ALGORITHMS).plaintext
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the answer is not encrypted to this key: {error}") from None
    return (opened or b"").decode("ascii", "replace")


def _reader(request: AttestRequest) -> ECKey:
    """The public key of the runtime data."""
    try:
        (given,) = request.runtime.json["keys"] if request.runtime is not None else []
        curve = {name: given[name] for name in ("kty", "crv", "x", "y")}
        if (curve["kty"], curve["crv"]) == ("EC", "P-256") and given.get("use", "enc") == "enc" and "d" not in given:
            return ECKey.import_key(curve)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise AzureError(
        'a login token takes JSON runtime data {"keys": [JWK]} with one public key on P-256, for which it is encrypted',
        advice="confcom.attestation_client makes key and request (login_token).",
    )
