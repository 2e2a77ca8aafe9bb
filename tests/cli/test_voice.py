"""What every command has in common: its writes are checked, it can be interrupted, and names mean one thing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from confcom.cli.options import check_variables, write_file
from confcom.cli.root import COMMANDS, root, run
from confcom.errors import ConfigError, ExitCode, OutputError
from printed_outputs import validator

CONFCOM = [sys.executable, "-m", "confcom"]
FULL = Path("/dev/full")
MACHINE = ("simulate", "machine", "-o", "m.json")


@pytest.fixture
def quote(confcom_process, tmp_path: Path) -> Path:
    """A machine, its collateral and a quote in the folder where `confcom_process` works."""
    for words in (
        MACHINE,
        ("simulate", "collateral", "m.json", "-o", "col"),
        ("quote", "--machine", "m.json", "--report-data", "00", "-o", "q.bin"),
    ):
        assert confcom_process(*words).returncode == 0
    return tmp_path / "q.bin"


JUDGED = ("--collateral", "col", "--trust-root", "col/root_ca.pem")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command with its words."""
    found: dict[tuple[str, ...], click.Command] = {path: group}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = commands(command, (*path, name)) if isinstance(command, click.Group) else {(*path, name): command}
        found |= below
    return found


ALL = commands(root)
OPTIONS = {words: {name for one in command.params for name in one.opts} for words, command in ALL.items()}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_can_be_quiet_and_verbose(words: tuple[str, ...]) -> None:
    assert OPTIONS[words] >= {"-v", "--verbose", "-q", "--quiet"}


NUMBERS = [
    (command, one) for command in ALL.values() for one in command.params if isinstance(one.type, click.FloatRange)
]


@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=lambda one: one.name)
@pytest.mark.parametrize("text", ["nan", "-nan", "inf", "-inf", "1e999"])
def test_what_is_no_finite_number_is_a_mistake_of_usage(
    command: click.Command, option: click.Parameter, text: str
) -> None:
    """With nan, which click takes, `confcom quote --wait` waited for ever."""
    with pytest.raises(click.BadParameter):
        option.type.convert(text, option, click.Context(command))


def test_one_thing_has_one_name() -> None:
    names = set().union(*OPTIONS.values())
    assert not names & {"--simulated-machine", "--ca-certificates", "--upstream-ca"}
    assert {words for words, names in OPTIONS.items() if "--machine" in names} >= {("quote",), ("quote-helper",)}


def test_json_is_asked_for_in_one_way() -> None:
    """`-o` of these names a file or a folder that they write."""
    writers = {("collateral", "fetch"), ("policy", "lint")}
    assert {words for words, names in OPTIONS.items() if "--json" in names and "-o" not in names} <= writers
    for words, command in ALL.items():
        for option in command.params:
            if "--json" in OPTIONS[words] and "-o" in option.opts and words not in writers:
                assert isinstance(option.type, click.Choice)
                assert "json" in option.type.choices


def json_forms() -> Iterator[tuple[str, ...]]:
    """Every way to ask a command for JSON, with the command's words."""
    for words, command in ALL.items():
        yield from ((*words, "--json") for _ in [1] if "--json" in OPTIONS[words])
        for option in command.params:
            if "json" in getattr(option.type, "choices", ()):
                yield (*words, "-o", "json")
                yield (*words, "--output=json")


@pytest.mark.parametrize("words", list(json_forms()), ids=" ".join)
def test_who_asks_for_json_gets_errors_as_json(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code = run([*words, "--no-such-option"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert code == ExitCode.USAGE
    validator("failure").validate(found)
    assert "No such option '--no-such-option'" in found["error"]["message"]
    assert (
        f"confcom {' '.join(word for word in words if not word.startswith('-') and word != 'json')}"
        in found["error"]["advice"]
    )
    assert "No such option" in said.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("policy", "lint", "nowhere", "--json"), ExitCode.USAGE),
        (("policy", "try", "nowhere", "q", "-o", "json"), ExitCode.USAGE),
        (("collateral", "status", "--store", "nowhere", "--json"), ExitCode.COLLATERAL),
        (("collateral", "fetch", "--store", "nowhere", "--json"), ExitCode.USAGE),
        (("check-pods", "nowhere", "--output", "json"), ExitCode.USAGE),
        (("top", "--kubeconfig", "nowhere", "-ojson"), ExitCode.USAGE),
    ],
)  # fmt: skip
def test_a_failure_is_json_too(
    words: tuple[str, ...],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*words]) == code
    validator("failure").validate(json.loads(capsys.readouterr().out))
    assert run([word for word in words if "json" not in word and word not in ("-o", "--output")]) == code
    assert capsys.readouterr().out == ""


def test_a_file_named_json_is_no_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["policy", "lint", "nowhere", "-o", "json"]) == ExitCode.USAGE
    assert capsys.readouterr().out == ""


def test_an_old_name_works_and_says_the_new_one(confcom_process, quote: Path) -> None:
    outcome = confcom_process("quote", "--simulated-machine=m.json", "--report-data", "00", "-o", "again.bin")
    assert outcome.returncode == 0
    assert "--simulated-machine is now called --machine" in outcome.stderr.decode()


def test_a_former_name_is_explained_where_the_option_exists_alone(confcom_process) -> None:
    outcome = confcom_process("verify", "q.bin", "--simulated-machine", "m.json")
    assert (outcome.returncode, "is now called" in outcome.stderr.decode()) == (2, False)
    assert "No such option '--simulated-machine'" in outcome.stderr.decode()


def test_advice_names_the_command_that_was_called(confcom_process) -> None:
    outcome = confcom_process("collateral", "remove", "--store", "x", "--not-seen-since", "90x")
    assert "See `confcom collateral remove --help`." in outcome.stderr.decode()


@pytest.mark.parametrize("words", [words for words in ALL if words], ids=" ".join)
def test_help_is_no_wider_than_a_screen_and_lists_whole_sentences(words: tuple[str, ...]) -> None:
    context = click.Context(ALL[words], info_name=" ".join(words), max_content_width=110, terminal_width=110)
    lines = ALL[words].get_help(context).splitlines()
    assert max(map(len, lines)) <= 120
    assert not any(line.endswith("...") for line in lines[1:])
    assert all(one.help or one.hidden for one in ALL[words].params if isinstance(one, click.Option))


@pytest.mark.parametrize("words", [("verfy",), ("addon", "enabel"), ("simulate", "machin"), ("collateral", "stats")])
def test_a_misspelt_command_gets_a_proposal(confcom_process, words: tuple[str, ...]) -> None:
    outcome = confcom_process(*words)
    assert outcome.returncode == ExitCode.USAGE
    assert "Did you mean" in outcome.stderr.decode()


def test_the_version_has_a_short_option(confcom_process) -> None:
    assert confcom_process("-V").stdout == confcom_process("--version").stdout != b""


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("--help",),
        ("verify", "--help"),
        ("verify", "q.bin", *JUDGED),
        ("verify", "q.bin", *JUDGED, "-o", "json"),
        ("inspect", "q.bin"),
        ("inspect", "--json", "q.bin"),
        ("quote", "--machine", "m.json", "--report-data", "00"),
        ("doctor",),
        ("addon", "manifests"),
        ("quote-helper", "--print-config"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("output", ["full", "closed", "pipe"])
def test_a_write_that_fails_is_one_sentence(words: tuple[str, ...], output: str, quote: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    place: int | None = {"full": os.open(FULL, os.O_WRONLY), "pipe": write}.get(output)
    line = subprocess.run(
        CONFCOM + list(words) if place is not None else ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *CONFCOM, *words],
        cwd=quote.parent, stdout=place, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert line.returncode == ExitCode.USAGE
    said = [one for one in line.stderr.splitlines() if one.startswith("confcom: ") and "standard output" in one]
    assert len(said) == 1
    assert "Traceback" not in line.stderr
    assert "Exception ignored" not in line.stderr


def test_json_by_either_name_is_the_same(confcom_process, quote: Path) -> None:
    at = ("--at", "2026-11-01T00:00:00Z")
    answers = [json.loads(confcom_process("verify", "q.bin", *JUDGED, *at, *form).stdout) for form in
               (("--json",), ("-o", "json"), ("--output=json", "--json"))]  # fmt: skip
    assert answers[0] == answers[1] == answers[2]
    assert confcom_process("verify", "q.bin", *JUDGED, "-o", "text").stdout.startswith(b"ACCEPTED")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"before")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setattr(os, "link", fails)
    for path, exclusive in ((kept, False), (tmp_path / "new", False), (tmp_path / "exclusive", True)):
        with pytest.raises(OutputError, match=f"{path}: No space left"):
            write_file(path, b"after", "quote", exclusive=exclusive)
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]
    assert kept.read_bytes() == b"before"


def test_a_device_is_written_as_it_is() -> None:
    write_file(Path("/dev/null"), b"x", "quote")
    with pytest.raises(OutputError, match="/dev/full: No space left on device"):
        write_file(FULL, b"x", "quote")
    assert FULL.is_char_device()


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """Held enclave memory waits in a signal mask of its own, so the one that waits here is a quote."""
    line = [*CONFCOM, "quote", "--machine", "m.json", "--report-data", "00", "--socket", "nowhere", "--wait", "600"]
    subprocess.run([*CONFCOM, *MACHINE], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    with subprocess.Popen(
        line, cwd=tmp_path, env=os.environ | {"SGX_AESM_ADDR": "1"}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "out-of-proc" in process.stderr.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == ExitCode.INTERRUPTED
        assert process.stderr.read().strip() == "confcom: interrupted"


def test_ctrl_c_while_a_module_makes_its_classes_is_130_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 makes a RuntimeError of it."""

    class Interrupts:
        def __set_name__(self, _owner: object, _name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("confcom.cli.inspect.read_input", lambda *_: type("Late", (), {"field": Interrupts()}))
    assert run(["inspect", "-"]) == ExitCode.INTERRUPTED


def test_quiet_leaves_out_notes(confcom_process, quote: Path) -> None:
    words = ("quote", "--machine", "m.json", "--report-data", "00", "-o", "q2.bin")
    assert confcom_process(*words).stderr != b""
    assert confcom_process(*words, "-q").stderr == b""


def test_source_and_policy_of_verify_may_come_from_the_environment(confcom_process, quote: Path) -> None:
    (quote.parent / "policy.toml").write_text('mr_signer = ["' + "00" * 32 + '"]\n')
    words = ("verify", "q.bin", "--trust-root", "col/root_ca.pem")
    assert confcom_process(*words, CONFCOM_COLLATERAL="col").returncode == ExitCode.OK
    outcome = confcom_process(*words, CONFCOM_COLLATERAL="col", CONFCOM_POLICY="policy.toml")
    assert outcome.returncode == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("name", "daemon", "meant"),
    [
        ("CONFCOM_COLLATERAL_STOER", "", "Did you mean CONFCOM_COLLATERAL_STORE?"),
        ("CONFCOM_QUOTEHELPER_SOCKET", "", "Did you mean CONFCOM_QUOTE_HELPER_…?"),
        ("CONFCOM_ANYTHING_ELSE", "", "Unset it"),
        ("CONFCOM_QUOTE_HELPER_SOKET", "quote-helper", "Did you mean CONFCOM_QUOTE_HELPER_SOCKET?"),
        ("CONFCOM_METRICS_SOKET", "metrics", "Did you mean CONFCOM_METRICS_SOCKET?"),
        ("CONFCOM_COLLATERAL_SERVICE_SOKET", "collateral-service", "Did you mean CONFCOM_COLLATERAL_SERVICE_SOCKET?"),
    ],
)
def test_a_misspelt_variable_is_refused(name: str, daemon: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        check_variables({name: "1"}, daemon, ("socket", "listen") if daemon else ())
    assert meant in caught.value.advice()


@pytest.mark.parametrize(
    ("name", "daemon"),
    [
        ("CONFCOM_COLLATERAL_SERVICE_HOST", "collateral-service"),  # of the Service confcom-collateral
        ("CONFCOM_COLLATERAL_SERVICE_PORT", "collateral-service"),
        ("CONFCOM_COLLATERAL_SERVICE_PORT_HTTPS", "collateral-service"),
        ("CONFCOM_COLLATERAL_PORT_8081_TCP_ADDR", ""),
        ("CONFCOM_METRICS_API_PORT", "metrics"),
        ("CONFCOM_METRICS_API_LISTEN", "metrics"),  # of another daemon: the longest prefix decides
        ("CONFCOM_QUOTE_HELPER_SOKET", "webhook"),
        ("CONFCOM_QUOTE_HELPER_SOCKET", "quote-helper"),
        ("CONFCOM_POLICY", ""),
    ],
)
def test_other_variables_are_left_alone(name: str, daemon: str) -> None:
    check_variables({name: "1"}, daemon, ("socket", "listen"))


def test_a_daemon_refuses_a_misspelt_variable(confcom_process) -> None:
    outcome = confcom_process("quote-helper", "--print-config", CONFCOM_QUOTE_HELPER_SOKET="x")
    assert outcome.returncode == ExitCode.USAGE
    assert "CONFCOM_QUOTE_HELPER_SOCKET" in outcome.stderr.decode()


TWICE = ("g=early", "g=17")
SERVE = ("collateral", "serve", "--insecure-http")
SIGNER = "CONFCOM_CERTIFICATE_SIGNER_APPROVE_FOR"


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (
            (*SERVE, "--tcb-set", TWICE[0], "--tcb-set", TWICE[1]),
            {},
            "--tcb-set: the set of clients of the group g is given twice",
        ),
        ((*SERVE, "--tcb-set", "late"), {}, "--tcb-set: 'late' is neither"),
        (SERVE, {"CONFCOM_COLLATERAL_SERVICE_TCB_SETS": ",".join(TWICE)}, "CONFCOM_COLLATERAL_SERVICE_TCB_SETS: the"),
        ((*SERVE, "--config", "own.toml"), {}, "own.toml: tcb_sets: the set of clients of the group g is given twice"),
        (
            ("certificate-signer",),
            {SIGNER: "kubernetes.io/kubelet-serving"},
            f"{SIGNER}: kubernetes.io/kubelet-serving",
        ),
        (("device-plugin", "--provision-limit", "1"), {}, "--provision-namespaces: names no namespace"),
        (
            ("addon", "manifests", "--collateral-tcb-set", "early", "--collateral-tcb-set", "17"),
            {},
            "--collateral-tcb-set: early, 17 gives the same clients two sets",
        ),
        (
            ("addon", "manifests", "--approve-for", "kubernetes.io/kubelet-serving"),
            {},
            "--approve-for: kubernetes.io/kubelet-serving is a signer of Kubernetes itself",
        ),
    ],
)
def test_a_rule_over_several_values_names_the_setting_as_it_was_given(
    words: tuple[str, ...],
    environment: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path("own.toml").write_text(f"tcb_sets = {json.dumps(TWICE)}")
    assert run(list(words)) == ExitCode.USAGE
    assert f"confcom: {said}" in capsys.readouterr().err


def test_every_command_is_in_the_table() -> None:
    assert {words[0] for words in ALL if words} == set(COMMANDS)


@pytest.mark.parametrize("words", [("-V", "-v"), ("-vV",), ("--verbose", "--version"), ("-q", "--version", "-v")])
def test_the_version_says_what_it_was_built_from(confcom_process, words: tuple[str, ...]) -> None:
    outcome = confcom_process(*words)
    assert outcome.returncode == 0
    first, commit, *more = outcome.stdout.decode().splitlines()
    assert first == f"confcom {version('confcom')}"
    assert re.fullmatch(r"commit ([0-9a-f]{40} of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ.*|unknown: .*)", commit)
    assert f"  cryptography {version('cryptography')}" in more
