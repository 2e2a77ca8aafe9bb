"""Processes start quickly: what is imported is counted, because seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from confcom.cli.root import COMMANDS

SLOW = {
    "asyncio", "cryptography", "google", "grpclib", "h11", "httpx2", "lightkube", "prometheus_client", "rich",
    "sqlalchemy", "sqlite3", "ssl", "starlette", "structlog", "urllib.request", "yaml",
}  # fmt: skip
"""Modules that take 10 to 200 ms each."""

HELP = """
import io, json, sys, contextlib
from confcom.cli.root import COMMANDS, root
import click, importlib
def show(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        root.main([*words, "--help"], prog_name="confcom", standalone_mode=False)
    assert "Usage" in out.getvalue()
show()
for name, (module, attribute, _) in COMMANDS.items():
    show(name)
    command = getattr(importlib.import_module(module), attribute)
    for child in getattr(command, "commands", ()):
        show(name, child)
print(json.dumps(sorted(sys.modules)))
"""


DATACLASSES = """
import sys, json, confcom.cli.root, confcom.cli.verify, confcom.cli.verdict
ours = [vars(module) for name, module in sys.modules.items() if name.startswith("confcom")]
classes = {one for names in ours for one in names.values() if isinstance(one, type)}
made = {f"{one.__module__}.{one.__name__}" for one in classes if "__dataclass_fields__" in vars(one)}
print(json.dumps(sorted(made)))
"""


def imported_by(program: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_confcom_imports_nothing_of_it() -> None:
    found = imported_by("import sys, json, confcom; print(json.dumps(sorted(sys.modules)))")
    assert {name for name in found if name.startswith("confcom")} == {"confcom"}
    bare = imported_by("import sys, json; print(json.dumps(sorted(sys.modules)))")
    assert len(found - bare) <= 20, sorted(found - bare)


def test_help_of_every_command_imports_the_command_line_alone() -> None:
    """All in one process: what none of them imports, no single one does."""
    found = imported_by(HELP)
    assert found & SLOW == set()
    assert found & {"secrets", "difflib", "traceback", "tempfile"} == set()
    ours = {name for name in found if name.startswith("confcom.")}
    assert {name for name in ours if not name.startswith("confcom.cli")} <= {
        "confcom.errors", "confcom.formats", "confcom.formats.signed_json", "confcom.formats.tcb_info",
        "confcom.formats.arguments", "confcom.input_file",
    }  # fmt: skip
    assert len(found) <= 330, len(found)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_imports_its_own_module_only(name: str) -> None:
    module, _, _ = COMMANDS[name]
    program = f"import sys, json; from confcom.cli.root import run; run([{name!r}, '--help']); print()\n"
    program += "sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout.splitlines()[-1]))
    commands = {known for known, _, _ in COMMANDS.values()}
    assert found & commands <= {module, "confcom.cli.daemons"}


def test_verifying_imports_two_libraries_and_what_a_verdict_takes() -> None:
    found = imported_by(
        "import sys, json, confcom\n"
        "for name in 'accept_quote QuoteVerifier load_bundle safe_defaults MrSigner TrustRoots'.split():\n"
        "    getattr(confcom, name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert found & (SLOW - {"cryptography"}) == set()
    assert "cryptography.hazmat.primitives.serialization" not in found
    assert not any(name.startswith(("confcom.appraisal.inspection", "confcom.collateral.store")) for name in found)
    assert found & {"secrets", "tempfile", "tomllib", "shutil"} == set()
    assert len({name for name in found if name.startswith("confcom.")}) <= 40


def test_the_command_that_verifies_adds_its_own_modules_alone() -> None:
    """None is for what is rare: policy files, drafts of files, misspelt settings, tracebacks."""
    libraries = "cryptography.x509, cryptography.hazmat.primitives.asymmetric.ec, msgspec.json, click, pathlib"
    program = "import sys, json, {}; print(json.dumps(sorted(sys.modules)))"
    beside = imported_by(program.format(libraries))
    found = imported_by(program.format("confcom.cli.root, confcom.cli.verify, confcom.cli.verdict")) - beside
    assert found & {"secrets", "tempfile", "tomllib", "difflib", "traceback", "shutil"} == set()
    assert len([name for name in found if name.startswith("confcom")]) <= 54
    assert len(found) <= 78, sorted(found)
    # Python compiles the methods of a dataclass at every start, half a millisecond each.
    assert len(imported_by(DATACLASSES)) <= 52


def test_stores_and_folders_are_opened_without_the_http_library() -> None:
    found = imported_by(
        "import sys, json, confcom\n"
        "for name in 'open_source SourceOptions fetch_for_quote CollateralStore'.split():\n"
        "    getattr(confcom, name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert "confcom.collateral.pcs_client" in found
    assert "httpx2" not in found
    assert "alembic" not in found  # a store that is up to date is opened without it


def test_verifying_with_a_service_and_the_helper_bring_no_store_along() -> None:
    found = imported_by(
        "import sys, json\n"
        "import confcom.collateral.sources, confcom.cli.verdict, confcom.services.quote_helper.helper\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert found & {"sqlalchemy", "sqlite3", "alembic", "psycopg"} == set()
