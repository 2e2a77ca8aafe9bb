"""`confcom policy`: policy files, made from what shall be accepted."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from confcom.cli.options import (
    FILE,
    STREAM,
    json_option,
    naming,
    output_options,
    print_json,
    printable,
    read_input,
    write_file,
    write_output,
)
from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import without_bom

if TYPE_CHECKING:
    from confcom.appraisal.enclave_file import SignedEnclave
    from confcom.tokens.policy_evaluation import Recorded
    from confcom.tokens.policy_language import PolicyText

MAX_RECORD = 64 << 20
"""Bytes of a file with recorded evidence."""


@click.group()
def policy() -> None:
    """Write policies: what a relying party accepts."""


@policy.command("from")
@click.argument("enclave", type=STREAM)
@click.option("--file", "inside", metavar="PATH", help="The enclave in an image that has several.")
@click.option("-o", "--output", metavar="FILE", type=STREAM, help="Write the policy there. Default: standard output.")
def from_enclave(enclave: Path, inside: str | None, output: Path | None) -> None:
    """Write the policy that accepts exactly one signed enclave.

    ENCLAVE is its file, or a saved container image that holds it. Reads the SIGSTRUCT: who signed (MRSIGNER), which
    build (MRENCLAVE), product and security version. Its signature is checked; whether you trust the signer is for you
    to decide. For `confcom verify --policy`. An image is what `docker save` or `podman save` write, or an archive of
    the OCI's layout.
    """
    # Here: cryptography is slow to load, and --help does without.
    from confcom.appraisal.enclave_file import policy_text

    signed = _signed_enclave(enclave, inside)
    write_output(output or Path("-"), policy_text(signed).encode(), "policy")


def _signed_enclave(enclave: Path, inside: str | None) -> SignedEnclave:
    from confcom.appraisal.enclave_file import MAX_ENCLAVE, is_archive, read_image_enclave, read_signed_enclave
    from confcom.input_file import open_input

    # Images are large: they are not read as a whole, but for those of a pipe. What cannot be opened is explained below.
    if str(enclave) != "-" and os.path.isfile(enclave):  # noqa: PTH113 - for a name that no file can have, too
        with suppress(OSError), open_input(enclave) as stream:
            if is_archive(stream.read(512)):
                stream.seek(0)
                return read_image_enclave(stream, inside)
    data = read_input(enclave, MAX_ENCLAVE, "enclave")
    if is_archive(data[:512]):
        return read_image_enclave(io.BytesIO(data), inside)
    if inside is not None:
        raise ConfigError(f"--file names a file in an image, and {enclave} is none", advice="Leave it out.")
    return read_signed_enclave(data, name=f"the enclave file {'on standard input' if str(enclave) == '-' else enclave}")


@policy.command("try")
@click.argument("draft", type=STREAM, metavar="POLICY")
@click.argument("recorded", type=STREAM, metavar="EVIDENCE…", nargs=-1, required=True)
@click.option("--current", metavar="POLICY", type=STREAM, help="Policy to compare with. Default: the service's own.")
@output_options
def try_policy(draft: Path, recorded: tuple[Path, ...], current: Path | None, as_json: bool) -> int:
    """Show what a policy would decide, rule by rule.

    POLICY is text in Azure's policy language, or its JWS. EVIDENCE is a quote, a report or evidence of Open Enclave, or
    the lines of `confcom attestation audit`. Evidence is decided by --current too, a line of the audit record has its
    own verdict. Nothing of evidence is verified here: a policy sees evidence that is authentic.
    """
    from confcom.errors import ExitCode
    from confcom.tokens.azure import policy_hash
    from confcom.tokens.policy_evaluation import dry_run
    from confcom.tokens.policy_language import parse_policy

    rules = parse_policy(read_policy_text(draft))
    before = None if current is None else parse_policy(read_policy_text(current))
    cases = [case for path in recorded for case in read_recorded(path, before)]
    found = {"policy_hash": policy_hash(rules.text)} | dry_run(rules, cases)
    if as_json:
        print_json(found)
    else:
        _show_trial(found)
    return ExitCode.OK


class _Line(msgspec.Struct):
    """A record of an appraisal, as `confcom attestation audit` prints it."""

    id: int
    at: str
    evidence_hash: str
    verdict: str
    claims: str


_LINE = msgspec.json.Decoder(_Line)


def read_recorded(path: Path, current: PolicyText | None) -> Iterator[Recorded]:
    """What the file holds: one piece of evidence, or records of which those count that a policy decided."""
    from confcom.appraisal.result import read_evidence
    from confcom.tokens.azure import DEFAULT_POLICIES, policy_claims, quote_claims, type_of
    from confcom.tokens.policy_evaluation import Recorded, claims_of, evaluate_policy, service_claims
    from confcom.tokens.policy_language import parse_policy

    data = read_input(path, MAX_RECORD, "evidence")
    if not data.lstrip().startswith(b"{"):
        with naming(str(path)):
            evidence = read_evidence(data)
        rules = current or parse_policy(DEFAULT_POLICIES[type_of(evidence)])
        claims = service_claims(policy_claims(quote_claims(evidence.quote)))
        before = "accepted" if evaluate_policy(rules, claims).permitted else "denied"
        yield Recorded({"evidence": str(path)}, before, claims)
        return
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry = _LINE.decode(line) if line.strip() else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            message = f"is no record of an appraisal: {error}"
            raise FormatError(message, structure=path.name, field=f"line {number}") from None
        if entry is not None and entry.claims:
            label = {"id": entry.id, "at": entry.at, "evidence_hash": entry.evidence_hash}
            yield Recorded(label, entry.verdict, claims_of(entry.claims))


def _show_trial(found: dict[str, Any]) -> None:
    """Each outcome in a line, and below it what every rule saw where the trace is known."""
    for outcome in found["outcomes"]:
        name = outcome.get("evidence") or f"{outcome['id']} of {outcome['at']}"
        verdicts = " → ".join(dict.fromkeys((outcome["before"], outcome["after"])))
        click.echo(printable(f"{name}: {verdicts}{outcome['reason'] and ': ' + outcome['reason']}"))
        for rule in outcome.get("trace", ()):
            state = "applied" if rule["applied"] else rule.get("fault") or "did not apply"
            matched = ", ".join(str(count) for count in rule["matched"]) or "always"
            click.echo(printable(f"  line {rule['line']}: {' '.join(rule['rule'].split())}"))
            click.echo(printable(f"    claims matched: {matched}; {state}"))
    click.echo(f"{found['judged']} judged, {found['changed']} decided otherwise than before")


@policy.command()
@click.argument("file", type=STREAM, metavar="POLICY")
@click.option("-o", "--output", metavar="FILE", type=FILE, help="Write the policy there with every known repair.")
@json_option
def lint(file: Path, output: Path | None, as_json: bool) -> int:
    """Check a policy file, or a policy in Azure's policy language.

    POLICY is a file for `confcom verify --policy` if its name ends in .toml, .yaml, .yml or .json: what is wrong with
    it is named. Any other is text in Azure's language: every departure from the grammar is listed, with its repair.
    """
    from confcom.errors import ExitCode
    from confcom.tokens.policy_language import PolicyTextError, lint_policy, repaired

    if file.suffix in (".toml", ".yaml", ".yml", ".json"):
        if output is not None:
            raise ConfigError(f"-o repairs text in Azure's policy language, and {file} is a policy file")
        wrong = _wrong_in_file(file)
        if as_json:
            print_json({"ok": not wrong, "defects": [{"message": wrong}] if wrong else []})
        else:
            click.echo(printable(wrong or "the policy file can be used"))
        return ExitCode.MALFORMED if wrong else ExitCode.OK
    text = read_policy_text(file)
    try:
        _, found = lint_policy(text)
    except PolicyTextError as error:
        found = (error.defect,)
    if output is not None:
        write_file(output, repaired(text, found).encode(), "policy")
    if as_json:
        print_json({"ok": not found, "defects": [defect.as_dict() for defect in found]})
    else:
        for defect in found:
            repair = "" if defect.replacement is None else f"; write {defect.replacement!r}"
            where = f"line {defect.place.line}, column {defect.place.column}"
            click.echo(printable(f"{where} ({defect.rule}), at {defect.symbol!r}: {defect.message}{repair}"))
        click.echo(f"{len(found)} to correct" if found else "the policy follows the grammar")
    return ExitCode.MALFORMED if found else ExitCode.OK


def read_policy_text(file: Path) -> str:
    """The text of a policy in Azure's language; the file has it in UTF-8 or UTF-16, or the JWS around it."""
    from confcom.tokens.policy_language import MAX_TEXT

    data = without_bom(read_input(file, 8 * MAX_TEXT, "policy"))
    try:
        text = data.decode()
        if not text.lstrip().startswith("ey"):
            return text
        from confcom.tokens.policy_jws import read_policy

        return read_policy(text).text
    except (UnicodeDecodeError, ConfcomError) as error:
        raise FormatError(str(error), structure=str(file), field="") from error


def _wrong_in_file(file: Path) -> str:
    """What is wrong with a file for `confcom verify --policy`, empty for nothing."""
    from confcom.appraisal.policy_file import MAX_POLICY, parse_policy

    data = read_input(file, MAX_POLICY, "policy")
    try:
        parse_policy(data, name=str(file)).policy()
    except ConfigError as error:
        return error.message
    return ""
