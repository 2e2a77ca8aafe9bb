"""Reference pages that are written from the program: command line, public names, errors, what pods are refused for."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import click
import msgspec

import confcom
from confcom import errors
from confcom.admission.findings import REFUSALS, WARNINGS
from confcom.appraisal.policy_file import PolicyFile, policy_schema
from confcom.cli.root import COMMANDS, root, spoken
from confcom.errors import ExitCode, exit_code
from confcom.pki.proof import Proof

_MEANINGS = {
    ExitCode.OK: "ok; for `verify`: accepted",
    ExitCode.UNEXPECTED: "unexpected: a mistake of ours, or a question without an answer",
    ExitCode.USAGE: "usage or configuration",
    ExitCode.MALFORMED: "malformed input",
    ExitCode.NOT_AUTHENTIC: "not authentic",
    ExitCode.REFUSED: "authentic, but refused by policy or TCB",
    ExitCode.COLLATERAL: "collateral missing, stale, unsound or unreachable",
    ExitCode.PLATFORM: "platform: no SGX, no service, or it failed",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C); a daemon finishes what it has begun and ends with 0; again: at once",
}

PUBLIC_NAMES = {
    """Verify and judge

One call is `accept_quote`; a service keeps a `QuoteVerifier` and calls `judge`. Nothing here does IO or reads a clock.
""": """accept_quote judge AttestationResult Verdict Check QuoteVerifier verify_quote VerifiedQuote appraise Appraisal
        verify_certificate VerifiedPeer load_trust_roots
        Quote TeeType ReportBody TcbStatus TrustRoots TrustRoot""",
    """Policies

A policy is a value. The safe defaults apply unless a policy replaces them.
""": """load_policy PolicyFile Policy AllOf AnyOf safe_defaults AcceptTcb NoDebug MrEnclave MrSigner IsvProdId
        MinIsvSvn ReportData HeldData MrTd Rtmr0 Rtmr1 Rtmr2 Rtmr3 MrSeam MrSignerSeam MrConfigId MrOwner MrOwnerConfig
        TdAttributes Xfam""",
    """Collateral

`load_bundle` and `CollateralStore` need no further package; `open_source` asks services and needs `confcom[cli]`.
""": """Collateral load_bundle save_bundle open_source SourceOptions CollateralSource fetch_for_quote CollateralStore
        RememberedCollateral""",
    """Quotes of this machine

These need `confcom[cli]`.
""": """own_quote_source process_mode open_quote_source QuoteSource QuoteResult Platform open_platform
        IntelDcapPlatform LocalEnclave launch_enclave verify_local_report TargetInfo""",
    """Certificates of attested pods

`request_certificate` asks the certificate signer of a cluster, and needs `confcom[kube]`
([attested-certificates-for-pods.md](../howto/attested-certificates-for-pods.md)).
""": "request_certificate",
    """Errors and exit codes

These are the families. `confcom.errors` holds every error, [errors.md](errors.md) their codes and advice.
""": """ConfcomError FormatError VerificationError PolicyError CollateralError PlatformError ProtocolError ConfigError
        ExitCode exit_code""",
}
"""Title and introduction of a section to its names, in the order of the page."""
PUBLIC_MODULES = {
    "confcom.attestation_client": """Tokens

These names are importable from `confcom.attestation_client`, which needs `confcom[cli]`. How to use them:
[run the attestation service](../howto/run-the-attestation-service.md#verify-a-token).
""",
    "confcom.secret_client": """Secrets

Importable from `confcom.secret_client`, which needs `confcom[cli]`. How to use it:
[release a secret](../howto/release-a-secret.md).
""",
    "confcom.atls": """Attested TLS

Importable from `confcom.atls`, which needs no extra, but for AESM and collateral services `confcom[cli]`. How to use
them: [attested TLS](../howto/attested-tls.md).
""",
}
"""Public modules beside `confcom` to title and introduction of their section; `__all__` has their names."""


def command_line_page() -> bytes:
    """`docs/reference/command-line.md`: exit codes and the help of every command."""
    lines = ["# Command line", "", "Written by `./dev generate` from the program.", "", "## Exit codes", ""]
    lines += ["| code | meaning |", "|---|---|"]
    lines += [f"| {code.value} | {_MEANINGS[code]} |" for code in ExitCode]
    for name, (module, attribute, summary) in COMMANDS.items():
        command = spoken(getattr(importlib.import_module(module), attribute))
        lines += ["", f"## `confcom {name}`", "", summary]
        lines += _help(command, f"confcom {name}")
        if isinstance(command, click.Group):
            for child in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), child)
                if found is not None:
                    lines += ["", f"### `confcom {name} {child}`"]
                    lines += _help(found, f"confcom {name} {child}")
    return ("\n".join(lines) + "\n").encode()


def errors_page() -> bytes:
    """`docs/reference/errors.md`: every code, its exit code and its advice."""
    lines = ["# Errors", "", "Written by `./dev generate` from `src/confcom/errors.py`.", ""]
    lines += [
        "An error has a message (what failed), a code (stable, for machines) and an advice (what to do). The advice",
        "below is the general one; most errors bring a more precise one.",
        "",
        "| code | exit | meaning | advice |",
        "|---|---|---|---|",
    ]
    for kind in _family(errors.ConfcomError):
        number = exit_code(kind.__new__(kind)).value
        meaning = (kind.__doc__ or "").split("\n")[0].replace("|", "\\|")
        lines.append(f"| `{kind.code}` | {number} | {meaning} | {kind.default_advice} |")
    return ("\n".join(lines) + "\n").encode()


def admission_page() -> bytes:
    """`docs/reference/admission.md`: every sentence that a pod is refused with or warned of, with its code."""
    lines = [
        "# What pods are refused for",
        "",
        "Written by `./dev generate` from `src/confcom/admission/findings.py`.",
        "",
    ]
    lines += [
        "The [admission webhook](webhook.md) answers with these sentences, and `confcom check-pods` prints them. Codes",
        "are stable, for machines: they are in the log and in the metrics. A pod may be refused for several reasons.",
    ]
    for title, sentences in (("Refusals", REFUSALS), ("Warnings", WARNINGS)):
        lines += ["", f"## {title}", "", "| code | sentence |", "|---|---|"]
        for code, sentence in sentences.items():
            shown = re.sub(r"{([a-z_]+)}", lambda found: f"*{found[1].replace('_', ' ')}*", sentence)
            lines.append(f"| `{code}` | {shown} |")
    lines += ["", "`malformed-pod` is for what is no pod by its form: the sentence names the place.", ""]
    return "\n".join(lines).encode()


def python_page() -> bytes:
    """`docs/reference/python.md`: signature and docstring of every public name."""
    lines = [
        "# Python",
        "",
        "Written by `./dev generate` from the docstrings.",
        "",
        "These names are importable from `confcom`; each is loaded when it is first used. They and `confcom.errors`",
        "and the modules at the end of the page are the public interface; other modules may change. How to use them:",
        "[verify a quote](../howto/verify-a-quote.md#in-python),",
        "[get collateral](../howto/get-collateral.md#in-python), [get a quote](../howto/get-a-quote.md#in-python).",
    ]
    for title, names in PUBLIC_NAMES.items():
        lines += ["", *f"## {title}".splitlines()]
        for name in names.split():
            lines += ["", f"### `{name}`", "", *_described(name, getattr(confcom, name))]
    for module, title in PUBLIC_MODULES.items():
        found = importlib.import_module(module)
        lines += ["", *f"## {title}".splitlines()]
        for name in found.__all__:
            lines += ["", f"### `{name}`", "", *_described(name, getattr(found, name))]
    return ("\n".join(lines) + "\n").encode()


def policy_schema_page() -> bytes:
    """`docs/reference/policy.schema.json`."""
    return (json.dumps(policy_schema(), indent=2) + "\n").encode()


def _family(kind: type[errors.ConfcomError]) -> list[type[errors.ConfcomError]]:
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(member for child in children for member in _family(child))]


def _described(name: str, value: Callable[..., object]) -> Iterator[str]:
    """Signature or fields, docstring, and for a class the members that have a docstring."""
    signature = _signature(name, value)
    if signature:
        yield from ("```python", signature, "```", "")
    yield from (inspect.getdoc(value) or "").splitlines()
    members: list[str] = []
    if isinstance(value, type) and issubclass(value, Enum):
        members = [f"- `{one.name}` = `{one.value!r}`" for one in value]
    elif isinstance(value, type):
        if issubclass(value, Proof):
            found = _parameters(inspect.signature(value))
            members = [f"- `{one}`" for one in found if one != "*" and "InitVar" not in one]
        members += [line for one, member in vars(value).items() if (line := _member(one, member))]
    if members:
        yield ""
        for line in members:
            yield from textwrap.wrap(line, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _member(name: str, member: object) -> str | None:
    called: Any = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    text = inspect.getdoc(called)
    if name.startswith("_") or not text or not (inspect.isfunction(called) or isinstance(member, property)):
        return None
    shown = name if isinstance(member, property) else f"{name}({', '.join(_parameters(inspect.signature(called)))})"
    return f"- `{shown}`: {' '.join(text.split())}"


def _signature(name: str, value: Callable[..., object]) -> str | None:
    """The call; None for what callers do not construct: protocols, enumerations, proven values, errors, files."""
    unmade = isinstance(value, type) and (
        issubclass(value, (Enum, Proof, BaseException, PolicyFile)) or getattr(value, "_is_protocol", False)
    )
    if unmade:
        return None
    # What a class of the standard library reads in __new__ is here for __init__.
    signature = inspect.signature(value.__init__ if "__new__" in vars(value) else value)
    returned = "" if isinstance(value, type) else f" -> {_annotation(signature.return_annotation)}"
    if isinstance(value, type) and issubclass(value, msgspec.Struct):
        # `msgspec` gives the types themselves, the class has them as they were written.
        written = inspect.get_annotations(value)
        named = [one.replace(annotation=written[key]) for key, one in signature.parameters.items()]
        signature = signature.replace(parameters=named)
    parameters = _parameters(signature)
    line = f"{name}({', '.join(parameters)}){returned}"
    if len(line) <= 110:
        return line
    return f"{name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){returned}"


def _parameters(signature: inspect.Signature) -> list[str]:
    found: list[str] = []
    kinds = [one.kind for one in signature.parameters.values()]
    for one in signature.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in found and one.VAR_POSITIONAL not in kinds:
            found.append("*")
        star = "*" if one.kind is one.VAR_POSITIONAL else ""
        text = f"{star}{one.name}: {_annotation(one.annotation)}"
        found.append(text if one.default is one.empty else f"{text} = {_default(one.default)}")
    return found


def _annotation(annotation: object) -> str:
    # Layouts of records are for the codec; the type is what a caller gives.
    return re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", str(annotation))


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_default, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, Path):
        return f'Path("{value}")'
    return repr(value) if value is None or isinstance(value, (int, float, str, bytes)) else "…"


def _help(command: click.Command, path: str) -> list[str]:
    # A fixed width, so that the page does not depend on the terminal.
    context = click.Context(
        command,
        info_name=path,
        max_content_width=110,
        terminal_width=110,
        help_option_names=list(root.context_settings["help_option_names"]),
    )
    return ["", "```text", command.get_help(context), "```"]
