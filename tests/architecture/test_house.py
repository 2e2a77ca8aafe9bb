"""The house keeps its own rules: contracts, public names, documents in step with the program."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import confcom
from confcom import errors
from confcom.appraisal.quote import STEPS
from confcom.cli.root import COMMANDS, root
from confcom.errors import ERROR_EXIT_CODES, ExitCode, exit_code

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "confcom").rglob("*.py"))
READ_ANYWHERE = {"str", "dict[str, msgspec.Raw]"}
"""Types of which msgspec keeps nothing."""


def every_error() -> list[type[errors.ConfcomError]]:
    found, waiting = [], [errors.ConfcomError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_error_has_an_exit_code_of_its_own_kind() -> None:
    for kind in every_error():
        if kind is errors.ConfcomError:
            continue
        assert any(issubclass(kind, listed) for listed, _ in ERROR_EXIT_CODES), kind
    stale = errors.StaleCollateralError("x")
    assert exit_code(stale) is ExitCode.COLLATERAL
    assert exit_code(errors.SignatureError("x")) is ExitCode.NOT_AUTHENTIC
    assert exit_code(errors.TcbNotSupportedError("x")) is ExitCode.REFUSED


def test_every_error_code_is_unique_and_has_advice() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(codes) == len(set(codes))
    for kind in every_error():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
        assert kind.default_advice


def test_an_error_code_of_one_service_is_on_its_reference_page() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    own = [
        statement.value.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        if ast.unparse(statement.targets[0]) == "code"
    ]
    assert "request-refused" in own
    assert [code for code in own if f"`{code}`" not in pages] == []


def test_public_names_exist_and_are_few() -> None:
    assert len(confcom.__all__) <= 77
    for name in confcom.__all__:
        assert getattr(confcom, name)
    with pytest.raises(AttributeError):
        _ = confcom.nonsense


def test_the_library_needs_nothing_but_its_two_dependencies() -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in {'click', 'rich', 'google', 'structlog', 'grpclib', 'httpx2', 'starlette',"
        " 'sqlalchemy'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import confcom\n"
        "beyond = {'confcom.platforms.intel.dcap', 'confcom.platforms.quoting', 'confcom.wiring', "
        "'confcom.collateral.store.store'}\n"
        "[getattr(confcom, name) for name in confcom.__all__ if confcom._HOME_OF[name] not in beyond]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_device_plugin_needs_the_extra_node_alone() -> None:
    """A node that publishes devices has no client of the Kubernetes API."""
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in {'lightkube', 'rich', 'httpx2', 'starlette', 'jwt', 'yaml'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import confcom.services.device_plugin.plugin\n"
        "from confcom.cli.root import run\n"
        "sys.exit(run(['device-plugin', '--print-config']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_exists_and_has_help(name: str) -> None:
    module, attribute, _ = COMMANDS[name]
    assert getattr(importlib.import_module(module), attribute)
    result = CliRunner().invoke(root, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_every_command_and_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    for name in COMMANDS:
        assert f"`confcom {name}" in page, name
    for code in ExitCode:
        assert re.search(rf"\| {code.value} \|", page), code


def test_every_error_code_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    for kind in every_error():
        assert f"`{kind.code}`" in page, kind.code


def test_documents_link_to_pages_that_exist() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_quick_start_is_two_commands() -> None:
    section = (ROOT / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert [block.strip() for block in blocks] == ["./dev demo", "./dev test"]
    assert section.count("```") == 4


def test_modules_stay_small() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in SOURCES
        if "_pb" not in path.parts and (lines := len(path.read_text().splitlines())) > 600
    ]
    assert long == []


def test_only_services_attested_tls_and_the_command_line_read_the_clock() -> None:
    readers = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today"):
                owner = node.value
                if isinstance(owner, ast.Name) and owner.id == "datetime":
                    readers.append(path.relative_to(ROOT / "src" / "confcom").parts[0])
    assert set(readers) <= {"atls", "cli", "services"}  # TLS libraries call a context without a time


def test_a_struct_is_read_by_a_decoder_that_was_made_at_import() -> None:
    """msgspec 0.22 crashes when several threads make it learn a Struct at once, as the first `decode` does."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assigned = [top for top in tree.body if isinstance(top, ast.Assign | ast.AnnAssign)]
        at_import = {id(node) for top in assigned for node in ast.walk(top)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in at_import:
                continue
            call = ast.unparse(node.func)
            kinds = [ast.unparse(word.value) for word in node.keywords if word.arg == "type"]
            if call == "msgspec.json.Decoder" or (call == "msgspec.json.decode" and {*kinds} - READ_ANYWHERE):
                found.append(f"{path.name}: {ast.unparse(node)}")
    # These are of signed JSON: `prepare` makes the decoder, and each module calls it at import.
    assert found == ["signed_json.py: msgspec.json.Decoder(kind)"]


def test_the_map_names_files_that_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    layers = "|".join(path.name for path in (ROOT / "src" / "confcom").iterdir() if path.is_dir())
    for name in re.findall(rf"`((?:{layers})/[a-z0-9_*./]+)`", page):
        assert list((ROOT / "src" / "confcom").glob(name.rstrip("/"))), name


def test_every_step_of_verification_is_documented() -> None:
    page = (ROOT / "docs" / "explanation" / "verification.md").read_text()
    for step in STEPS:
        assert f"`{step}`" in page, step
