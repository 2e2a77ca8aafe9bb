"""The public interface: what documents and examples import, where it is described, and what it needs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import reference_pages

import confcom
from confcom import errors
from documented import ROOT

EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")})
PAGES.remove(ROOT / "docs" / "reference" / "python.md")  # signatures, which are no programs
ONLY_CLI = (
    "structlog",
    "grpclib",
    "h11",
    "prometheus_client",
    "starlette",
    "jwt",
    "grpc_tools",
    "hypothesis",
    "pytest",
)
"""Packages that `confcom[cli]` does not install."""


def python_of(page: Path) -> Iterator[str]:
    """The Python that a page shows: fenced blocks, and indented ones that import something."""
    text = page.read_text()
    yield from re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^    .*\n|^\n)+", rest, re.MULTILINE):
        if re.search(r"^    (from|import) \w+", block, re.MULTILINE):
            yield textwrap.dedent(block)


def imported(source: str) -> Iterator[str]:
    """What of confcom a program imports, or uses as `confcom.name`: each as `module name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "confcom":
            yield f"confcom {node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "confcom":
            yield from (f"{node.module} {name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "confcom")


def is_public(name: str) -> bool:
    module, _, member = name.partition(" ")
    return (
        name == "confcom"
        or (module == "confcom" and member in confcom.__all__)
        or (module in reference_pages.PUBLIC_MODULES and member in importlib.import_module(module).__all__)
        or (module == "confcom.errors" and hasattr(errors, member) and not member.startswith("_"))
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_import_public_names_only(path: Path) -> None:
    names = list(imported(path.read_text()))
    assert names
    assert [name for name in names if not is_public(name)] == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in EXAMPLES}), ids=lambda path: path.name)
def test_an_example_has_at_most_150_lines_of_python(folder: Path) -> None:
    assert sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py")) <= 150


def test_a_private_name_of_the_package_is_noticed_where_it_is_used() -> None:
    names = imported("import confcom\nconfcom.wiring.x()\nprint(confcom.judge)")
    assert [name for name in names if not is_public(name)] == ["confcom wiring"]


def test_documents_import_public_names_only() -> None:
    found = [(page.name, name) for page in PAGES for source in python_of(page) for name in imported(source)]
    assert ("get-a-quote.md", "confcom open_quote_source") in found
    assert ("use-intel-hardware.md", "confcom IntelDcapPlatform") in found
    assert [one for one in found if not is_public(one[1])] == []


@pytest.mark.parametrize(
    "name",
    ["confcom.formats.quote Quote", "confcom.cli", "confcom nonsense", "confcom.errors Any_", "confcom.atls Memory"],
)
def test_a_private_name_is_noticed(name: str) -> None:
    assert not is_public(name)


def test_the_three_lists_of_names_agree() -> None:
    tree = ast.parse(Path(confcom.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        f"{node.module}": {one.name for one in node.names} for node in block.body if isinstance(node, ast.ImportFrom)
    }
    assert typed == {home: set(names.split()) for home, names in confcom._HOMES.items()}
    assert sorted(set().union(*typed.values())) == confcom.__all__
    assert dir(confcom) == confcom.__all__


def test_every_public_name_is_described_once() -> None:
    described = " ".join(reference_pages.PUBLIC_NAMES.values()).split()
    assert sorted(described) == confcom.__all__
    undocumented = [name for name in confcom.__all__ if not (getattr(confcom, name).__doc__ or "").strip()]
    assert undocumented == []


def refusing(packages: tuple[str, ...], program: str) -> subprocess.CompletedProcess[str]:
    """Run a program where these packages are not installed."""
    refuse = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name.split('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name.split('.')[0])\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    return subprocess.run([sys.executable, "-c", refuse + program], capture_output=True, text=True, check=False)


def test_every_public_name_and_the_example_need_the_extra_cli_only() -> None:
    examples = [str(ROOT / "examples" / name) for name in ("remote_attestation", "local_attestation")]
    names = "import confcom\n[getattr(confcom, name) for name in confcom.__all__]\n"
    done = refusing(ONLY_CLI, f"{names}sys.path[:0] = {examples!r}\nimport peer, neighbours\n")
    assert done.returncode == 0, done.stderr


def test_attested_tls_needs_the_bare_package_only() -> None:
    needed = ("cryptography", "msgspec", "cffi", "_cffi_backend", "typing_extensions")
    others = tuple({name.partition(".")[0] for name in packages_distributions()} - {*needed, "confcom"})
    done = refusing(others, "from confcom.atls import ClientContext, Issuer, ServerContext, https_opener\n")
    assert done.returncode == 0, done.stderr


def test_a_name_that_needs_a_further_package_says_which_to_install() -> None:
    done = refusing(("google",), "from confcom import open_quote_source\n")
    assert "confcom.open_quote_source needs the package 'google': install confcom[cli]" in done.stderr


def test_a_service_without_its_package_is_a_sentence() -> None:
    done = refusing(
        ("httpx2",),
        "from datetime import UTC, datetime\n"
        "from confcom import ConfigError, SourceOptions, TrustRoots, open_source\n"
        "options = SourceOptions(roots=TrustRoots.intel(), at=datetime.now(UTC))\n"
        "try:\n"
        "    open_source('intel', options).__enter__()\n"
        "except ConfigError as error:\n"
        "    print(error, error.advice())\n",
    )
    assert done.stdout == "a service needs the package 'httpx2' Install confcom[cli].\n", done.stderr
