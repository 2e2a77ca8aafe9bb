"""The policy language: what follows the grammar is read, what does not is refused at its place with its repair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.tokens.policy_language import (
    Call,
    Comparison,
    Literal,
    Member,
    PolicyTextError,
    lint_policy,
    parse_policy,
    repaired,
)

PERMIT = "authorizationrules{=> permit();};"


def _issue(rule: str, version: str = "1.2") -> str:
    return f"version={version};{PERMIT}issuancerules{{{rule}}};"


def test_sections_conditions_and_actions() -> None:
    policy = parse_policy(
        """Version= 1.2;
        configurationrules { => issueproperty(type="x-ms-sgx-tcbidentifier", value="azuredefault"); };
        authorizationrules {
            // debug enclaves are refused
            c:[type=="x-ms-sgx-is-debuggable", value==true] && ![type=="tester"] => deny();
            [type=="x-ms-sgx-svn", value>=3] => permit();
        };
        Issuancerules { c:[type=="$svn"] => issue(type="svn", value=c.value); c:[type=="a"] => issue(claim=c); }"""
    )
    assert policy.version == "1.2"
    assert policy.configuration[0].action.properties["value"] == Literal("azuredefault")
    debug, svn = policy.authorization
    assert [condition.negated for condition in debug.conditions] == [False, True]
    assert debug.conditions[0].identifier == "c"
    assert debug.line == 5
    assert svn.conditions[0].comparisons[1] == Comparison("value", ">=", Literal(3))
    first, second = policy.issuance
    assert first.action.properties["value"] == Member("c", "value")
    assert second.action.copied == "c"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_comment_ends_with_its_line(end: str) -> None:
    lines = ("version=1.0;", "authorizationrules{", "// nobody with a debugger", '[type=="d"] => deny();', "};")
    (rule,) = parse_policy(end.join(lines)).authorization
    assert rule.action.verb == "deny"


def test_strings_keep_what_is_escaped() -> None:
    policy = parse_policy(_issue(r'=> add(type="q", value=JmesPath("{\"a\":\"\\\\b\"}", "a"));'))
    call = policy.issuance[0].action.properties["value"]
    assert isinstance(call, Call)
    assert call.arguments[0] == Literal(r'{"a":"\\b"}')


SLIPS = [
    ('c:[type="a"] => issue(claim=c);', 'c:[type=="a"] => issue(claim=c);', "="),
    ("[type==“a”] => issue(type=“b”, value=1);", '[type=="a"] => issue(type="b", value=1);', "“a”"),
    ('[type==”a”] => add(type="b", value=1);', '[type=="a"] => add(type="b", value=1);', "”a”"),
    ('=> issue("b", value=true);', '=> issue(type="b", value=true);', '"b"'),
    ('=> issue(type="b", value=true)', '=> issue(type="b", value=true);', ""),
    ('=> add(type="b", value=NegateBol(true));', '=> add(type="b", value=NegateBool(true));', "NegateBol"),
    (
        'c:[type=="s"] => add(type="b", value=ContainsOnlyValue(100));',
        'c:[type=="s"] => add(type="b", value=ContainsOnlyValue(c.value, 100));',
        "(",
    ),
]


@pytest.mark.parametrize(("written", "meant", "symbol"), SLIPS)
def test_a_known_slip_is_refused_with_its_repair(written: str, meant: str, symbol: str) -> None:
    with pytest.raises(PolicyTextError) as refused:
        parse_policy(_issue(written))
    assert refused.value.defect.symbol == symbol
    assert refused.value.defect.place.line == 1
    policy, defects = lint_policy(_issue(written))
    assert repaired(_issue(written), defects) == _issue(meant)
    strict = parse_policy(_issue(meant))
    assert [(rule.conditions, rule.action) for rule in policy.issuance] == [
        (rule.conditions, rule.action) for rule in strict.issuance
    ]


REFUSED = [
    ("", 1, 1, "policy", "expected a name"),
    ("version=1.3;" + PERMIT, 1, 9, "policy > versionInfo", "version 1.3 is unknown"),
    ("version=1.0;", 1, 13, "policy", "authorizationrules is missing"),
    ("version=1.0;configurationrules{};" + PERMIT, 1, 13, "policy > configurationrules", "need version 1.1"),
    ("version=1.0;" + PERMIT * 2, 1, 46, "policy > authorizationrules", "stands twice"),
    ("version=1.0;issuancerules{};" + PERMIT, 1, 29, "policy > authorizationrules", "in the order"),
    (
        'version=1.0;\nauthorizationrules{ => issueproperty(type="a", value=1); };',
        2,
        24,
        "policy > authorizationrules",
        "permit",
    ),
    ('version=1.0;\nauthorizationrules{\n[type=="a" => permit();\n};', 3, 12, "condition", "expected"),
    ('version=1.0;authorizationrules{[type=="a', 1, 39, "policy", "not closed"),
    (_issue('![type=="a"] => add(type="b", value=1);', "1.1"), 1, 60, "policy > issuancerules", "needs version=1.2"),
    (_issue('=> add(type="b", value=c.value);'), 1, 83, "policy > issuancerules", "no condition before"),
    (_issue('=> add(type="b", value=Reverse("a"));'), 1, 83, "policy > issuancerules", "the functions are"),
    (_issue('=> add(type="b", value=NegateBool(true, true));'), 1, 83, "policy > issuancerules", "takes 1 arguments"),
    (_issue('[type=="a", value>"b"] => add(type="b", value=1);'), 1, 77, "policy > issuancerules", "integers only"),
    (_issue('=> add(type="b", value=99999999999999999999);'), 1, 83, "policy > issuancerules", "64 bits"),
    (_issue('=> add(type="b", value=-' + "1" * 5000 + ");"), 1, 83, "policy > issuancerules", "64 bits"),
    (_issue('=> add(type="b", value=\u0663);'), 1, 83, "policy", "expected"),
    ("version=\u0661.0;" + PERMIT, 1, 9, "policy", "expected"),
    (_issue('=> add(type="b");'), 1, 63, "policy > issuancerules", "lacks value"),
    (_issue(r'=> add(type="b", value="\n");'), 1, 83, "policy > issuancerules", "escapes"),
    (_issue('=> add(type="b", value=' + "AppendString(" * 30), 1, 303, "policy > rule > call", "nested"),
    ("version=1.0;" + "/" * 70000, 1, 1, "policy", "characters"),
]


@pytest.mark.parametrize(("text", "line", "column", "rule", "message"), REFUSED)
def test_what_breaks_the_grammar_is_refused_at_its_place(
    text: str, line: int, column: int, rule: str, message: str
) -> None:
    for read in (parse_policy, lint_policy):
        with pytest.raises(PolicyTextError) as refused:
            read(text)
        defect = refused.value.defect
        assert (defect.place.line, defect.place.column) == (line, column)
        assert rule in defect.rule
        assert message in defect.message
        assert set(defect.as_dict()) == {"symbol", "line", "column", "rule", "message"}


@pytest.mark.parametrize(
    "name",
    [
        *("nonce", "iss", "exp", "confcom-nonce-bound", "x-ms-sgx-ehd", "x-ms-policy-signer", "tdx_rtmr0", "cnf"),
        *("Iss", "X-MS-SGX-MRENCLAVE", "x-m\u017f-sgx-ehd"),
    ],
)
def test_a_claim_of_the_service_is_issued_by_no_policy(name: str) -> None:
    text = _issue(f'\n c:[type=="a"] => issue(value=c.value, type="{name}"); => issue(type="b", value=1);')
    with pytest.raises(PolicyTextError, match="only the service issues this claim") as refused:
        parse_policy(text)
    defect = refused.value.defect
    assert (defect.symbol, defect.place.line, defect.place.column) == (f'"{name}"', 2, 45)
    assert defect.rule == "policy > issuancerules"
    policy, (listed,) = lint_policy(text)
    assert (listed, repaired(text, [listed])) == (defect, text)
    # One that was set before this was refused still decides.
    assert parse_policy(text, in_force=True) == policy
    with pytest.raises(PolicyTextError, match="==") as other:
        parse_policy(text.replace('type=="a"', 'type="a"'), in_force=True)
    assert other.value.defect.symbol == "="


def test_names_that_azures_default_policy_issues_are_free() -> None:
    for name in ("is-debuggable", "sgx-mrsigner", "sgx-mrenclave", "product-id", "svn", "tee", "aud", "mrsigner", "n"):
        parse_policy(_issue(f'=> issue(type="{name}", value=1);'))
    parse_policy(_issue('=> add(type="nonce", value=1); c:[type=="nonce"] => issue(type="a", value=c.value);'))


_WORDS = (
    'version = 1.2 ; authorizationrules issuancerules { } => permit ( ) deny add issue type value , == "a" c : [ ] ! '
    "&& c.value 1 true JmesPath claim “b” //"
)
_TOKENS = st.sampled_from([*_WORDS.split(), "\n"])


@given(st.lists(_TOKENS, max_size=60).map("".join) | st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        policy, defects = lint_policy("version=1.2;authorizationrules{" + text)
    except PolicyTextError:
        return
    # What is repaired follows the grammar.
    assert parse_policy(repaired(policy.text, defects)).version == "1.2"
