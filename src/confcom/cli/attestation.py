"""`confcom attestation`: the service that judges evidence and signs tokens."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from confcom.cli.daemons import daemon, migrate_command, needing, run_until_stopped
from confcom.cli.options import FILE, now, parse_time, trust_roots
from confcom.errors import ConfigError

if TYPE_CHECKING:
    from confcom.services.attestation.attestation_service import AttestationServiceConfig


@click.group()
def attestation() -> None:
    """Judge evidence and sign tokens, by the API of Azure Attestation."""


@daemon(
    "attestation-service",
    "confcom.services.attestation.attestation_service:AttestationServiceConfig",
    extras="services,cli",
    name="serve",
)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:8443]")
@click.option("--tls-certificate", metavar="PEM", help="Certificate chain; reloaded when it changes.")
@click.option("--tls-key", metavar="PEM", help="Its key.")
@click.option("--insecure-http", is_flag=True, default=None, help="Serve without TLS.")
@click.option("--url", metavar="URL", help="URL by which clients come: issuer of tokens.  [default: from --listen]")
@click.option(
    "--store", metavar="PATH-OR-URL", help="Policies and audit.  [default: /var/lib/confcom/attestation.sqlite]"
)
@click.option("--keys", metavar="DIR-OR-URI", help="Signing keys.  [default: /var/lib/confcom/attestation-keys]")
@click.option("--attest-keys", is_flag=True, default=None, help="Have this process's enclave vouch for the keys.")
@click.option("--machine", "simulated_machine", metavar="FILE", help="Have a simulated enclave vouch for them.")
@click.option("--collateral", metavar="PATH-OR-URL", help="As of `confcom verify`.  [default: intel]")
@click.option("--collateral-ca", metavar="PEM", help="CAs of the collateral service's TLS certificate.")
@click.option("--update", metavar="SET,…", help="As of `confcom verify`; the first decides.  [default: standard]")
@click.option("--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root instead of Intel's.")
@click.option("--policy", metavar="FILE", help="Policy file of `confcom verify`, applied first.")
@click.option(
    "--trust-model",
    type=click.Choice(["open", "isolated", "shared"]),
    help="Who may set policies: administrators, those with a known signature, or no one.  [default: open]",
)
@click.option("--administrators", metavar="TOML", help="Who may read and set policies, and how they are known.")
@click.option("--policy-signer", "policy_signers", metavar="PEM", multiple=True, help="First signers of policies.")
def serve(config: AttestationServiceConfig) -> None:
    """Serve attestation by the API of Azure Attestation.

    Clients of Azure work unchanged with this URL, clients of RATS get EAR.
    """
    from confcom.pki.chain import simulated_world
    from confcom.services.attestation import attestation_service as service

    roots = trust_roots(config.trust_roots)
    quote = None
    if config.attest_keys or config.simulated_machine:
        from confcom.cli.quote import quotes_of_this_process

        if config.simulated_machine and not simulated_world(roots):
            raise ConfigError(
                "a simulated enclave cannot attest the keys of an instance that judges hardware",
                advice="Leave out --machine, or trust the simulated root (--trust-root).",
            )
        quote = quotes_of_this_process(Path(config.simulated_machine) if config.simulated_machine else None)
    mark = ", SIMULATED" if simulated_world(roots) else ""
    ready = "attestation service: ready on "
    run_until_stopped(service.serve, config, ready=ready, mark=mark, roots=roots, clock=now, quote=quote)


attestation.add_command(serve)


_store = click.option(
    "--store",
    metavar="PATH-OR-URL",
    envvar="CONFCOM_ATTESTATION_SERVICE_STORE",
    show_envvar=True,
    default="/var/lib/confcom/attestation.sqlite",
    show_default=True,
    help="The store of the service: a path, or postgresql://USER@HOST/DATABASE.",
)


attestation.add_command(migrate_command(_store, "confcom.services.attestation.attestation_store"))


@attestation.command("new-keys")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--simulated", is_flag=True, help="For an instance that judges simulated evidence.")
def new_keys(folder: Path, simulated: bool) -> None:
    """Put new signing keys into DIR: one RSA, one P-256.

    A running service publishes them within seconds; they sign after the overlap. Remove the old files then: their
    keys stay published until their last tokens have expired.
    """
    with needing("signing keys", "services,cli"):
        from confcom.services.attestation.signing_keys import make_pair

    try:
        for path in make_pair(folder, now(), simulated=simulated):
            click.echo(path)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", advice="Name the folder of --keys.") from error


class _OfKey(click.Command):
    """Takes for a key id what is no whole option: an id may begin with "-", and have letters of options behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, with ids behind all options."""
        options = {"-h", "--help", "--", *(name for one in self.params for name in one.opts)}
        ids = [given for given in args if given.startswith("-") and given.partition("=")[0] not in options]
        return super().parse_args(ctx, [given for given in args if given not in ("--", *ids)] + ["--", *ids])


@attestation.command("revoke-key", cls=_OfKey)
@click.argument("key_id", metavar="KEY-ID")
@_store
def revoke_key(key_id: str, store: str) -> None:
    """Take a signing key out of every key set, for good.

    For a key KEY-ID that is in the wrong hands. Running replicas follow within seconds. Relying parties learn of it
    when they next fetch the keys.
    """
    with needing("the store", "services,cli"):
        from confcom.services.attestation.attestation_store import AttestationStore

    with closing(AttestationStore.open(store, made=False)) as opened:
        if not opened.revoke_key(key_id, now()):
            raise ConfigError(f"no key {key_id!r} was published", advice="Key ids are the 'kid' of GET /certs.")
    click.echo(f"revoked {key_id}: in no key set within seconds; relying parties keep the keys that they have fetched")


@attestation.command()
@_store
@click.option("--kind", metavar="TYPE", help="SgxEnclave, OpenEnclave or TdxVm.")
@click.option("--verdict", type=click.Choice(["accepted", "denied", "refused"]), help="What the service decided.")
@click.option("--caller", metavar="ADDRESS", help="Who asked.")
@click.option("--policy-hash", metavar="HASH", help="As in the token: base64url.")
@click.option("--evidence-hash", metavar="HEX", help="SHA-256 of the evidence as it was sent.")
@click.option("--since", metavar="RFC3339", help="Records from this time on.")
@click.option("--until", metavar="RFC3339", help="Records from before this time.")
def audit(store: str, kind: str | None, since: str | None, until: str | None, **equal: str | None) -> None:
    """Print appraisals as lines of JSON, the newest first.

    The service may be running.
    """
    with needing("the audit record", "services,cli"):
        import msgspec

        from confcom.services.attestation.attestation_store import AttestationStore, RecordFilter
        from confcom.tokens.azure import AttestationType

    if kind is not None and kind not in list(AttestationType):
        raise click.BadParameter(f"{kind!r} is none of {', '.join(AttestationType)}", param_hint="--kind")
    wanted = RecordFilter(
        kind=None if kind is None else AttestationType(kind),
        since=None if since is None else parse_time(since, "--since"),
        until=None if until is None else parse_time(until, "--until"),
        **equal,
    )
    with closing(AttestationStore.open(store, made=False)) as opened:
        for row in opened.export(wanted):
            click.echo(msgspec.json.encode(row))
