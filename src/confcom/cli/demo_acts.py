"""The acts of `confcom demo`, in their order."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from confcom.cli.demo_refusals import SIGNER, Witness
from confcom.cli.demo_stage import PeerOutcome, Stage, interruptible, open_stage
from confcom.cli.demo_view import View
from confcom.cli.options import now
from confcom.cli.streams import write_file
from confcom.collateral.bundle import load_bundle
from confcom.errors import ExitCode
from confcom.wiring import create_machine_file, declare_enclave, export_simulated_collateral


def play(keep: Path | None) -> int:
    """Play every act; 1 when something did not end as it should."""
    view = View()
    with interruptible(), open_stage(keep) as stage:
        started = time.monotonic()
        view.introduce()
        _build(stage, view)
        _attest_out_of_proc(stage, view)
        _attest_in_proc(stage, view)
        _attest_locally(stage, view)
        witness = Witness(stage.machine, stage.socket, stage.root)
        _refuse(stage, witness, view)
        view.summarize(time.monotonic() - started)
        if keep is None:
            view.suggest()
        else:
            view.invite(stage, witness)
    return ExitCode.UNEXPECTED if view.unmet else ExitCode.OK


def _build(stage: Stage, view: View) -> None:
    view.act(
        "A machine, its authority, and the quote helper",
        "On a real node the first two come from Intel; here they come from a file of random secrets.",
    )
    create_machine_file(stage.machine, secrets.token_bytes(32), now())
    view.step("a machine with secrets of its own, as a processor has them in its fuses")
    export_simulated_collateral(stage.machine, stage.collateral, now())
    view.step("collateral: what the authority says about such machines, signed, for every verifier")
    pid = stage.start_helper()
    view.step(f"the quote helper of this node, a process of its own (pid {pid}), listens on {stage.socket}")


def _attest_out_of_proc(stage: Stage, view: View) -> None:
    view.act(
        "Two enclaves attest each other, with quotes from the quote helper (out-of-proc)",
        "Two processes run examples/remote_attestation with SGX_AESM_ADDR set. Each makes a key, gets a quote over its "
        "own and the other's public key, and checks the other's quote.",
    )
    peers = stage.meet(out_of_proc=True)
    view.peers(*peers)
    view.step("both accepted each other, and each read the other's encrypted message", met=_met(*peers))
    view.step("each said that it works out-of-proc, and why", met=_said("quotes out-of-proc", *peers))
    served = stage.wait_for_quotes(len(peers))
    by_helper = sorted(served) == sorted(peer.pid for peer in peers)
    view.step("the helper's log shows one quote for each of the two processes", met=by_helper)


def _attest_in_proc(stage: Stage, view: View) -> None:
    view.act(
        "The same without the quote helper (in-proc)",
        "The same program without SGX_AESM_ADDR: each process brings its own quoting enclave.",
    )
    before = len(stage.quotes_served())
    peers = stage.meet()
    view.peers(*peers)
    view.step("both accepted each other, and each read the other's encrypted message", met=_met(*peers))
    view.step("each said that it works in-proc, and why", met=_said("quotes in-proc", *peers))
    view.step("the helper was not asked", met=len(stage.quotes_served()) == before)


def _attest_locally(stage: Stage, view: View) -> None:
    view.act(
        "Neighbours on one machine (local attestation)",
        "examples/local_attestation: enclaves of one machine need no quote, because the processor itself makes reports "
        "that only the neighbour can check.",
    )
    before = len(stage.quotes_served())
    neighbours = stage.attest_locally(declare_enclave("", SIGNER).mr_signer.hex())
    view.peers(neighbours)
    view.step("both accepted each other", met=neighbours.code == 0 and neighbours.out.count("accepted") == 2)
    view.step("no quote was made", met=len(stage.quotes_served()) == before)


def _refuse(stage: Stage, witness: Witness, view: View) -> None:
    view.act(
        "What a verifier refuses",
        "One genuine quote first, then six that must not pass. The reasons are the verifier's own.",
    )
    collateral = load_bundle(stage.collateral)
    for trial in witness.trials():
        write_file(stage.folder / trial.file, trial.evidence, "quote")
        view.trial(trial, trial.hold(collateral, now()))


def _met(*peers: PeerOutcome) -> bool:
    """Whether each ended well and printed what the other had to say."""
    greetings = {"A": "hello from B", "B": "hello from A"}
    return all(peer.code == 0 and f"received, encrypted: '{greetings[peer.name]}'" in peer.out for peer in peers)


def _said(words: str, *peers: PeerOutcome) -> bool:
    return all(words in peer.out for peer in peers)
