"""`confcom simulate`: machines without SGX hardware, in files; `confcom demo`: the whole system on one of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import click

from confcom.cli.options import FILE, Number, parse_hex, parse_time, printable, write_file
from confcom.errors import ConfigError
from confcom.formats.tcb_info import TcbStatus

SEED_SIZE = 32
"""Bytes of a random seed."""
MAX_HOLD = 366 * 86400
"""Seconds."""

_OUTPUT = click.option("-o", "--output", metavar="FILE", type=FILE, required=True, help="The file to write.")


@click.group()
def simulate() -> None:
    """Make simulated machines, and what their quotes are verified with.

    A simulated machine speaks the same bytes as a real one and protects nothing. No verifier accepts its quotes unless
    it is told to trust its root.
    """


@simulate.command()
@_OUTPUT
@click.option("--seed", metavar="HEX", help="16 to 64 bytes: the same seed and time make the same machine.")
@click.option("--at", metavar="RFC3339", help="When its certificates begin. Default: now.")
@click.option("--world", metavar="FILE", type=FILE, help="Make a machine of this machine file's world; needs --name.")
@click.option("--name", metavar="NAME", help="Which one: the same name, say a node's, is the same machine every time.")
def machine(output: Path, seed: str | None, at: str | None, world: Path | None, name: str | None) -> None:
    """Make a machine file. Processes with the same file are on the same machine.

    With --world and --name, what was in the output file is replaced: that machine can always be made again.
    """
    from confcom.wiring import create_machine_file, create_named_machine_file

    if (world is None) != (not name):
        raise ConfigError("--world and --name come together", advice="Give both, or neither.")
    if world is not None and name:
        if seed is not None or at is not None:
            raise ConfigError("seed and time are the world's", advice="Leave out --seed and --at.")
        create_named_machine_file(output, world, name)
        click.echo(f"simulated machine {printable(name)}: {printable(output)}")
        return
    chosen = os.urandom(SEED_SIZE) if seed is None else parse_hex(seed, "--seed", most=64)
    create_machine_file(output, chosen, parse_time(at, "--at"))
    click.echo(f"simulated machine: {printable(output)} (keep it secret: who reads it can forge its quotes)")


@simulate.command()
@click.argument("machine", type=FILE)
@click.option("-o", "--output", metavar="FOLDER", type=FILE, required=True, help="The folder to fill.")
@click.option("--at", metavar="RFC3339", help="When it is issued; it is valid for 30 days. Default: now.")
@click.option(
    "--tcb-status",
    metavar="STATUS",
    type=click.Choice([status.value for status in TcbStatus]),
    default=TcbStatus.UP_TO_DATE.value,
    show_default=True,
    help="The machine's TCB, as the authority judges it: OutOfDate, SWHardeningNeeded, …",
)
@click.option("--advisory", metavar="ID", multiple=True, help="Advisory for that status. Repeatable.")
@click.option("--revoke", is_flag=True, help="Revoke the machine's PCK certificate.")
def collateral(
    machine: Path, output: Path, at: str | None, tcb_status: str, advisory: tuple[str, ...], revoke: bool
) -> None:
    """Write the collateral of MACHINE.

    It verifies the quotes of the machine: TCB info, QE identity, CRLs, issuer chains, and root_ca.pem.
    """
    from confcom.wiring import export_simulated_collateral

    now = parse_time(at, "--at")
    export_simulated_collateral(machine, output, now, tcb_status=tcb_status, advisory_ids=advisory, revoke_pck=revoke)
    click.echo(
        f"simulated collateral: {printable(output)}\n"
        f"  verify with: --collateral {printable(output)} --trust-root {printable(output / 'root_ca.pem')}"
    )


@simulate.command()
@_OUTPUT
@click.option("--name", required=True, help="Name of the enclave; decides its MRENCLAVE.")
@click.option("--signer", help="Name of the signer; decides its MRSIGNER. Default: the enclave's name.")
@click.option("--product", metavar="N", type=click.IntRange(0, 0xFFFF), default=1, show_default=True, help="ISVPRODID.")
@click.option("--svn", metavar="N", type=click.IntRange(0, 0xFFFF), default=1, show_default=True, help="ISVSVN.")
@click.option("--debug", is_flag=True, help="A debug enclave, which verifiers refuse.")
def enclave(output: Path, name: str, signer: str | None, product: int, svn: int, debug: bool) -> None:
    """Declare an enclave for `confcom quote --enclave`."""
    from confcom.wiring import load_declaration

    lines = (
        f"enclave = {_toml_string(name, '--name')}",
        f"signer = {_toml_string(signer or name, '--signer')}",
        f"isv_prod_id = {product}",
        f"isv_svn = {svn}",
        f"debug = {json.dumps(debug)}",
    )
    if output.suffix == ".json":
        raise ConfigError("the declaration is written as TOML", advice="Name a file that ends in .toml.")
    write_file(output, "\n".join((*lines, "")).encode(), "declaration", exclusive=True)
    declared = load_declaration(output)
    click.echo(
        f"simulated enclave: {printable(output)}\n"
        f"  MRENCLAVE {declared.mr_enclave.hex()}\n"
        f"  MRSIGNER  {declared.mr_signer.hex()}"
    )


@simulate.command()
@click.option("--epc", metavar="SIZE", required=True, help="How much enclave memory, for example 10Mi.")
@click.option("--device", metavar="FILE", type=FILE, default=Path("/dev/sgx_enclave"), show_default=True,
              help="Stand-in of the enclave device.")  # fmt: skip
@click.option("--for", "seconds", metavar="SECONDS", type=Number(0, MAX_HOLD), help="Default: until it is ended.")
def hold(epc: str, device: Path, seconds: float | None) -> None:
    """Hold enclave memory, to test the monitoring of EPC.

    It acts as a simulated enclave and uses no memory. Run it in a container on a simulated node. What it maps counts
    as EPC of this container.
    """
    from confcom.devices.sgx_node import map_enclave_memory, parse_epc_sizes

    size = sum(parse_epc_sizes(epc))
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # the first process of a container ends at no signal by itself
    with map_enclave_memory(device, size):
        click.echo(f"simulated enclave: holds {size} bytes of {printable(device)}")
        if seconds is None:
            signal.sigwait(ends)
        else:
            signal.sigtimedwait(ends, seconds)


def _toml_string(text: str, option: str) -> str:
    # What JSON and TOML write alike is all of printable text.
    if not text.isprintable():
        raise ConfigError(f"{option}: a name has printable characters only")
    return json.dumps(text, ensure_ascii=False)


@click.command()
@click.option(
    "--keep",
    metavar="FOLDER",
    type=FILE,
    help="Leave machine, collateral and quotes in this new folder, for experiments of your own.",
)
def demo(keep: Path | None) -> int:
    """Show the whole system on this machine, on the simulated platform.

    Two enclaves attest each other through the quote helper, without it, and as neighbours; then forgeries are refused.
    Needs no hardware, no network and no privileges, and leaves nothing behind.
    """
    from confcom.cli.demo_acts import play

    return play(keep)
