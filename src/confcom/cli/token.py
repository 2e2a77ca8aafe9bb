"""`confcom token`: look at attestation tokens, and verify them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.cli.options import STREAM, identity_options, output_options, print_json, printable, trust_root_option
from confcom.errors import ConfcomError, ConfigError

if TYPE_CHECKING:
    from confcom.tokens.verification import PinnedKey, TokenPolicy, VerifiedToken


@click.group()
def token() -> None:
    """Look at attestation tokens, and verify them: ours, Azure's, and EAR of other verifiers."""


@token.command("inspect")
@click.argument("file", type=STREAM, metavar="TOKEN")
@output_options
@click.pass_context
def inspect_token(context: click.Context, file: Path, as_json: bool) -> int:
    """Show header and claims of TOKEN, as `confcom inspect` does. Nothing is verified."""
    from confcom.cli.inspect import inspect

    code: int = context.invoke(inspect, file=file, as_json=as_json)
    return code


@token.command("verify")
@click.argument("file", type=STREAM, metavar="TOKEN")
@click.option("--keys", metavar="JWKS", type=STREAM, required=True, help="File with the issuer's keys, got over TLS.")
@click.option("--issuer", metavar="URL", required=True, help="Who must have issued it (claim iss).")
@identity_options
@click.option("--nonce", metavar="TEXT", help="The nonce that was sent with the evidence.")
@click.option("--report-data", metavar="HEX", help="The report data begins with these bytes.")
@click.option("--accept-tcb", metavar="STATUS,…", default="UpToDate", help="Good enough where the token states one.")
@click.option("--allow-debug", is_flag=True, help="Accept debug enclaves and TDs: their memory is open.")
@click.option("--allow-simulated", is_flag=True, help="Accept simulated evidence, for which no hardware vouches.")
@click.option("--at", metavar="RFC3339", help="Judge as of this time. Default: now.")
@click.option(
    "--issuer-policy",
    metavar="FILE",
    type=STREAM,
    help="Require that an enclave vouches for the signing key, and that this policy of `confcom verify` accepts it.",
)
@click.option("--collateral", metavar="PATH-OR-URL", help="What judges that enclave's quote, as of `confcom verify`.")
@trust_root_option
@output_options
def verify(
    file: Path,
    keys: Path,
    issuer: str,
    at: str | None,
    as_json: bool,
    issuer_policy: Path | None,
    collateral: str | None,
    trust_root: tuple[str, ...],
    **expected: Any,  # noqa: ANN401
) -> int:
    """Verify TOKEN offline, with keys from a file, and its claims.

    Accepted (exit 0) means: signed by a key of the file, of this issuer, in force at the time, debug off, and every
    expectation given here met. With --issuer-policy also: an enclave that the policy accepts vouches for the key.
    """
    from confcom.cli.options import parse_time, read_input
    from confcom.errors import ExitCode, exit_code
    from confcom.formats.arguments import without_bom
    from confcom.tokens.jws import MAX_TOKEN, token_in
    from confcom.tokens.verification import MAX_KEY_SET, KeySet, verify_token

    try:
        now = parse_time(at, "--at")
        # Windows writes both with a byte order mark, and in UTF-16.
        text = token_in(without_bom(read_input(file, MAX_TOKEN, "token")).decode("ascii", "replace").strip())
        if text is None:
            raise ConfigError("the file is JSON without a token", advice="Give the token, or the service's answer.")
        # Whether a file of keys is old, its owner knows.
        held = without_bom(read_input(keys, MAX_KEY_SET, "key set"))
        pinned = KeySet.parse(held, fetched=now, max_age=timedelta.max)
        verified = verify_token(text, pinned, issuer=issuer, now=now)
        _policy(**expected).check(verified)
        vouching = None
        if issuer_policy is not None:
            vouching = _vouching_enclave(verified.key, issuer_policy, collateral, trust_root, now)
    except ConfcomError as error:
        if not as_json:
            raise
        print_json({"accepted": False, "error": error.as_dict()})
        return exit_code(error)
    if as_json:
        enclave = {} if vouching is None else {"key_attested_by": vouching}
        print_json({"accepted": True, "claims": dict(verified.claims), "key": verified.key.key_id} | enclave)
    else:
        _show(verified, now)
        if vouching is not None:
            click.echo(printable(f"  {'key':>10} attested by the enclave {vouching.get('mr_enclave')}"))
    return ExitCode.OK


def _vouching_enclave(
    key: PinnedKey, policy: Path, collateral: str | None, trust_root: tuple[str, ...], now: datetime
) -> dict[str, Any]:
    """The identity of the enclave that vouches for the key, which the policy accepts."""
    from confcom.appraisal.policy_file import MAX_POLICY, parse_policy
    from confcom.appraisal.quote import QuoteVerifier
    from confcom.appraisal.result import identity
    from confcom.cli.options import read_input, trust_roots
    from confcom.cli.verdict import choose_collateral
    from confcom.tokens.attested_key import check_attested_key

    file = parse_policy(read_input(policy, MAX_POLICY, "policy"), name=str(policy))
    roots = trust_roots(trust_root)
    accepted = file.policy(accept_simulated=any(root.simulated for root in roots.roots))
    with choose_collateral(collateral, roots, now) as chosen:
        verified = check_attested_key(
            key.certificate,
            lambda quote: chosen.collateral(quote, "standard"),
            accepted,
            verifier=QuoteVerifier(roots),
            now=now,
            grace=file.grace,
        )
    return identity(verified.quote.body)


def _policy(
    *,
    mr_enclave: tuple[str, ...],
    mr_signer: tuple[str, ...],
    report_data: str | None,
    accept_tcb: str,
    **others: Any,  # noqa: ANN401 - as the policy has them
) -> TokenPolicy:
    from confcom.cli.options import parse_hex
    from confcom.tokens.verification import TokenPolicy

    return TokenPolicy(
        mr_enclave=tuple(parse_hex(value, "--mr-enclave", most=32) for value in mr_enclave),
        mr_signer=tuple(parse_hex(value, "--mr-signer", most=32) for value in mr_signer),
        report_data=b"" if report_data is None else parse_hex(report_data, "--report-data", most=64),
        accept_tcb=tuple(name.strip() for name in accept_tcb.split(",")),
        **others,
    )


def _show(token: VerifiedToken, now: datetime) -> None:
    claims, left = token.stated, timedelta(seconds=int(token.claims["exp"] - now.timestamp()))
    force = f"in force for {left} more" if left > timedelta() else f"over since {-left}, as far as clocks may differ"
    click.echo(printable(f"accepted: a token of {token.claims['iss']}, key {token.key.key_id}, {force}"))
    for name in ("x-ms-sgx-mrenclave", "x-ms-sgx-mrsigner", "x-ms-sgx-product-id", "x-ms-sgx-svn", "tdx_mrtd"):
        if name in claims:
            click.echo(printable(f"  {name.rpartition('-')[2]:>10} {claims[name]}"))
    status = claims.get("confcom-tcb-status", claims.get("attester_tcb_status"))
    click.echo(printable(f"  {'TCB':>10} {status or 'not stated by this issuer'}"))
    if claims.get("confcom-simulated"):
        click.echo("  SIMULATED: no hardware vouches for this.")
