"""The published schemas of outputs: every command that prints JSON has one, and it says what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator, ValidationError
from output_schemas import OUTPUTS

from confcom.cli.root import root
from printed_outputs import SCHEMAS, check_printed, schema_of, validator


def printing_json(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Commands with `-o json` or `--json`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from printing_json(command, (*path, name))
        elif command is not None:
            choices = [one.type.choices for one in command.params if isinstance(one.type, click.Choice)]
            if any("json" in found for found in choices) or any("--json" in one.opts for one in command.params):
                yield " ".join((*path, name))


def test_every_command_that_prints_json_has_a_schema() -> None:
    described = [command for _, commands in OUTPUTS.values() for command in commands]
    assert set(printing_json(root)) <= set(described)
    assert len(described) == len(set(described))


def test_every_schema_is_one_and_is_listed() -> None:
    listed = re.findall(r"\(([a-z-]+)\.schema\.json\)", (SCHEMAS / "README.md").read_text())
    assert sorted(listed) == sorted(OUTPUTS) == sorted(path.name.split(".")[0] for path in SCHEMAS.glob("*.json"))
    for name in OUTPUTS:
        Draft202012Validator.check_schema(validator(name).schema)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands print, by the words of the call, with the files of a simulated machine."""
    folder = tmp_path_factory.mktemp("outputs")
    made = {
        "bad.txt": "version= 1.0;\nauthorizationrules\n{\n",
        "good.txt": "version= 1.0;\nauthorizationrules\n{\n\t=> permit();\n};\n",
        "good.toml": "min_isv_svn = 3\n",
        "bad.toml": "min_isv_svn = -3\n",
        "pod.yaml": "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, resources: {limits: "
        "{sgx.intel.com/epc: 10Mi}}}, {name: b, image: b, resources: {limits: {sgx.intel.com/epc: 10}}}]}\n",
        "junk": "junk",
    }
    for name, text in made.items():
        (folder / name).write_text(text)
    calls = [
        "simulate machine -o m.json",
        "simulate collateral m.json -o col",
        "quote --machine m.json --report-data 00 -o q.bin",
        "verify q.bin --collateral col -o json",
        "verify q.bin --collateral col --trust-root col/root_ca.pem -o json",
        "verify q.bin --collateral col --trust-root col/root_ca.pem --isv-prod-id 9 --mr-signer "
        + "ab" * 32
        + " --json",
        "verify nothing --collateral col -o json",
        "verify junk --collateral col -o json",
        "inspect q.bin -o json",
        "inspect junk --json",
        "policy lint bad.txt --json",
        "policy lint good.txt --json",
        "policy lint good.toml --json",
        "policy lint bad.toml --json",
        "policy try good.txt q.bin -o json",
        "check-pods pod.yaml -o json",
        "collateral fetch --source col --quote q.bin --store s.db --trust-root col/root_ca.pem --json",
        "collateral status --store s.db --trust-root col/root_ca.pem -o json",
        "doctor -o json",
        "addon list-available",
    ]
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SGX_AESM_ADDR", raising=False)
        for call in calls:
            printed[call] = CliRunner().invoke(root, call.split()).stdout
    return printed


def test_what_commands_print_follows_its_schema(outputs: dict[str, str]) -> None:
    seen = {schema_of(call.split()): check_printed(call.split(), text) for call, text in outputs.items()}
    assert {name for name, count in seen.items() if count} == {
        "verify", "inspect", "policy-lint", "policy-try", "check-pods", "collateral-fetch", "collateral-status",
        "doctor", "addon-list-available",
    }  # fmt: skip
    for call, text in outputs.items():
        assert schema_of(call.split()) is None or check_printed(call.split(), text) == 1, call


def objects(document: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all objects of a document."""
    if isinstance(document, dict):
        yield path
        for key, value in document.items():
            yield from objects(value, (*path, key))
    elif isinstance(document, list):
        for key, value in enumerate(document):
            yield from objects(value, (*path, key))


OPEN = {"fields", "claims", "patch"}
"""Keys of objects that follow the input: their keys are not ours."""


def test_a_key_that_no_schema_names_is_refused_wherever_it_is(outputs: dict[str, str]) -> None:
    tried = 0
    for call, text in outputs.items():
        if (name := schema_of(call.split())) is None:
            continue
        for place in objects(json.loads(text)):
            if OPEN & set(place):
                continue
            document = json.loads(text)
            found = document
            for key in place:
                found = found[key]
            found["unknown"] = 1
            with pytest.raises(ValidationError):
                validator(name).validate(document)
            tried += 1
    assert tried > 50


def test_the_meaning_of_each_key_of_verify_is_on_its_page() -> None:
    page = (SCHEMAS.parent / "verify-json.md").read_text()
    keys = validator("verify").schema["$defs"]["Verify"]["properties"]
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_schemas_have_the_keys_of_records_without_a_command_here(tmp_path: Path) -> None:
    for name in ("top", "why"):
        for each in validator(name).schema["$defs"].values():
            if "properties" in each:
                assert sorted(each["required"]) == sorted(each["properties"])
                assert each["additionalProperties"] is False
