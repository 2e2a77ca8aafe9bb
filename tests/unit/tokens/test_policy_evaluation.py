"""Policies decide: who is permitted, what is issued, and what no policy can make the service do."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.tokens.policy_evaluation import (
    KEPT,
    MAX_CLAIMS,
    MAX_STEPS,
    Claim,
    Decision,
    Decisions,
    PolicyEvaluationError,
    configuration,
    evaluate_policy,
    service_claims,
)
from confcom.tokens.policy_language import parse_policy

EVIDENCE = (
    Claim("debug", False, "AttestationService"),
    Claim("svn", 7, "AttestationService"),
    Claim("signer", "ab", "AttestationService"),
    Claim("fixed", "f", "AttestationService", read_only=True),
    Claim("os", "linux", "CustomClaim"),
    Claim("os", "linux", "AttestationService"),
    Claim("json", '{"values":[0,"a",true,null],"f":1.5,"o":{},"s":"x"}', "AttestationService"),
)


def _decide(authorization: str = "=> permit();", issuance: str = "", version: str = "1.2") -> Decision:
    text = f"version={version};authorizationrules{{{authorization}}};issuancerules{{{issuance}}};"
    return evaluate_policy(parse_policy(text), EVIDENCE)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (r'JsonToClaimValue("\"\\ud800\"")', r"half of a surrogate pair is in the text of JsonToClaimValue: '\ud800'"),
        (r'JmesPath("{\"a\":\"\\udfff\"}","abs(a)")', r"half of a surrogate pair is in the text of JmesPath: '\udfff'"),
        (r'JmesPath("1","`\"\\ud800\"`")', r"half of a surrogate pair is in the text of JmesPath: '\ud800'"),
        (r'JmesPath("1","abs(`\"\\ud800\"`)")', r"invalid type for value: \ud800"),
        ('JmesPath("1","ceil(`1e999`)")', "cannot convert float infinity to integer"),
        (r'JmesPath("{\"a\":1e999}","a")', "Out of range float values"),
        ('JsonToClaimValue("9223372036854775808")', "integers of 64 bits, found one of 64"),
    ],
)
def test_what_no_token_can_hold_is_a_fault_of_its_rule(value: str, fault: str) -> None:
    decision = _decide(issuance=f'=> issue(type="a", value={value}); => issue(type="b", value=1);')
    assert decision.claims() == {"b": 1}
    assert fault in decision.trace[-2].fault
    json.dumps([each.as_dict() for each in decision.trace], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "rules",
    [
        '=> add(type="nonce", value="forged"); c:[type=="nonce"] => issue(claim=c);',
        '=> add(type="a", value="iss"); c:[type=="a"] => issue(type=c.value, value=1);',
        '=> issue(type=AppendString("confcom-", "nonce-bound"), value=true);',
    ],
)
def test_a_name_of_the_service_that_a_policy_computes_is_a_fault_of_its_rule(rules: str) -> None:
    decision = _decide(issuance=f'{rules} => issue(type="b", value=1);')
    assert decision.claims() == {"b": 1}
    assert "only the service issues" in decision.trace[-2].fault


def test_values_at_the_ends_of_what_tokens_hold_are_issued() -> None:
    written = '[-9223372036854775808,9223372036854775807,\\"\\\\ud83d\\\\ude00\\"]'
    decision = _decide(issuance=f'=> issue(type="a", value=JsonToClaimValue("{written}"));')
    assert decision.claims() == {"a": [-(1 << 63), (1 << 63) - 1, "\U0001f600"]}


SGX = {"debug": False, "svn": 7, "report-data": "00"}


def test_a_decision_is_kept_for_all_evidence_that_the_policy_cannot_distinguish() -> None:
    text = """version=1.2;authorizationrules{[type=="debug", value==false] => permit();};
issuancerules{c:[type=="svn"] => issue(type="svn", value=c.value); ![type=="x"] => issue(type="y", value=1);};"""
    decisions = Decisions(parse_policy(text))
    first = decisions.on(SGX)
    assert first.claims() == {"svn": 7, "y": 1}
    assert decisions.on(SGX | {"report-data": "01"}) is first
    assert decisions.on(SGX | {"svn": 8}).claims() == {"svn": 8, "y": 1}
    assert decisions.on(SGX | {"x": ""}).claims() == {"svn": 7}
    assert not decisions.on(SGX | {"debug": True}).permitted
    assert decisions.on(SGX) is first


def test_kept_decisions_are_bounded_by_their_size() -> None:
    """A policy may make a megabyte of claims of what it reads, and has thousands of rules."""
    text = """version=1.2;authorizationrules{=> permit();};
issuancerules{c:[type=="data"] => issue(type="a", value=c.value);
c:[type=="data"] => issue(type="b", value=c.value);};"""
    decisions = Decisions(parse_policy(text))
    for number in range(300):
        data = f"{number:08}" * 2_000
        assert decisions.on({"data": data}).claims() == {"a": data, "b": data}
    assert 10 < len(decisions._kept) < KEPT / 32_000
    assert decisions.on({"data": data}) is decisions.on({"data": data})
    large = {"data": "x" * (KEPT // 2)}
    assert decisions.on(large) is not decisions.on(large)
    many = Decisions(parse_policy(f"version=1.2;authorizationrules{{{'=> permit();' * 2_000}}};"))
    for number in range(20):
        many.on({str(place): "" for place in range(number)})
    assert len(many._kept) <= 2


def test_threads_decide_by_one_policy() -> None:
    """What is kept makes room while others look into it."""
    decisions = Decisions(parse_policy('version=1.2;authorizationrules{[type=="data"] => permit();};'))

    def decide(thread: int) -> bool:
        return all(decisions.on({"data": f"{thread} {number}"}).permitted for number in range(10_000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(decide, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert len(decisions._kept) <= KEPT / 256 + 4


@pytest.mark.parametrize(
    "condition",
    [
        '[issuer=="AttestationService"]',
        '[value=="00"]',
        '[value=="00", type=="report-data"]',
        '[type!="debug"]',
        'a:[type=="debug"] && c:[type==a.type]',
        'a:[type=="debug"] && c:[value!=a.value]',
        'c:[type=="report-data"]',
    ],
)
def test_a_policy_that_reads_the_report_data_decides_each_time(condition: str) -> None:
    rule = condition if "c:" in condition else f"c:{condition}"
    text = f"version=1.2;authorizationrules{{=> permit();}};issuancerules{{{rule} => issue(claim=c);}};"
    decisions = Decisions(parse_policy(text))
    for data in ("00", "01", "00", "02"):
        claims = SGX | {"report-data": data}
        assert decisions.on(claims) == evaluate_policy(decisions.policy, service_claims(claims))


@pytest.mark.parametrize(
    ("authorization", "permitted"),
    [
        ("=> permit();", True),
        ("", False),
        ("=> permit(); => deny();", False),
        ("=> deny(); => permit();", False),
        ('[type=="debug", value==false] => permit();', True),
        ('[type=="debug", value==true] => permit();', False),
        ('[type=="debug", value!=true] => permit();', True),
        ('[type=="svn", value>=7] && [type=="signer", value=="ab"] => permit();', True),
        ('[type=="svn", value>7] => permit();', False),
        ('[type=="svn", value<8, valueType=="Integer"] => permit();', True),
        ('[type=="debug", value==0] => permit();', False),
        ('[type=="signer", value<=9] => permit();', False),
        ('[type=="svn", issuer=="CustomClaim"] => permit();', False),
        ('![type=="absent"] => permit();', True),
        ('![type=="svn"] => permit();', False),
        ('F:[type=="os", issuer=="CustomClaim"] && [issuer=="AttestationService", value==F.value] => permit();', True),
        ('=> add(type="made", value=1); [type=="made", issuer=="AttestationPolicy"] => permit();', True),
        ('[type=="made"] => permit(); => add(type="made", value=1);', False),
        ('=> add(type="a", value=1); => add(type="a", value=true); [type=="a", value==true] => permit();', True),
    ],
)
def test_the_decision(authorization: str, permitted: bool) -> None:
    decision = _decide(authorization)
    assert decision.permitted is permitted
    assert bool(decision.reason) is not permitted


@pytest.mark.parametrize(
    ("rule", "claims"),
    [
        ('c:[type=="svn"] => issue(type="s", value=c.value);', {"s": 7}),
        ('c:[type=="svn"] => issue(claim=c);', {"svn": 7}),
        ('c:[type=="svn"] => add(type="s", value=c.value);', {}),
        ('=> issue(type="a", value="x"); => issue(type="a", value="y");', {"a": ["x", "y"]}),
        ('=> add(type="a", value=AppendString("x", "")); c:[type=="a"] => issue(claim=c);', {"a": "x"}),
        ('=> issue(type="a", value=NegateBool(false));', {"a": True}),
        ('c:[type=="json"] => issue(type="a", value=JmesPath(c.value, "s"));', {"a": '"x"'}),
        ('c:[type=="json"] => issue(type="a", value=JmesPath(c.value, "values[0]"));', {"a": "0"}),
        (
            'c:[type=="json"] => issue(type="a", value=JsonToClaimValue(JmesPath(c.value, "values")));',
            {"a": [0, "a", True]},
        ),
        ('c:[type=="json"] => issue(type="a", value=JsonToClaimValue(JmesPath(c.value, "absent")));', {}),
        (
            'c:[type=="json"] => issue(type="a", value=JsonToClaimValue(JmesPath(c.value, "values[1:]")));',
            {"a": ["a", True]},
        ),
        ('=> issue(type="a", value=JmesPath("[3,2,1]", "[::-2]"));', {"a": "[1,3]"}),
        (f'=> issue(type="a", value=JmesPath("{{}}", "{" && ".join(["a!=`1`"] * 50)}"));', {"a": "true"}),
        ('=> issue(type="a", value=JmesPath("[]", "[to_number(\'-1.5e1\'), to_number(\'7\')]"));', {"a": "[-15.0,7]"}),
        *(
            (f'=> issue(type="a", value=JmesPath("[]", "to_number(\'{text}\')"));', {"a": "null"})
            for text in ("1_0", "\u0663", " 1", "0x10", "+1", "01", "1.", "NaN", "")
        ),
        ('=> issue(type="a", value=JsonToClaimValue("word"));', {"a": "word"}),
        ('=> issue(type="a", value=JmesPath("{}", "equals_ignore_case(\'A\', \'a\')"));', {"a": "true"}),
        ('a:[type=="os"] && b:[type!="absent"] => issue(type="a", value=IsSubsetOf(a.value, b.value));', {"a": True}),
        ('a:[type=="svn"] => issue(type="a", value=ContainsOnlyValue(a.value, 7));', {"a": True}),
        ('a:[type=="debug"] => issue(type="a", value=ContainsOnlyValue(a.value, 0));', {"a": False}),
        ('=> issue(type="a", value=1, valueType="Integer");', {"a": 1}),
        ('=> issue(type="a", value=1); => issue(type="a", value=true); => issue(type="a", value=1);', {"a": [1, True]}),
        ('=> issue(type="a", value=JsonToClaimValue("[1, true, 0, false, 1]"));', {"a": [1, True, 0, False]}),
    ],
)
def test_what_is_issued(rule: str, claims: dict[str, object]) -> None:
    decision = _decide(issuance=rule)
    assert decision.permitted
    assert json.dumps(decision.claims()) == json.dumps(claims)  # True is 1 for Python


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ('c:[type=="fixed"] => issue(type="a", value=c.value);', "read-only"),
        ('c:[type=="fixed"] => issue(type="a", value=AppendString(c.value, "x"));', "read-only"),
        ('c:[type=="fixed"] => add(type="a", value=c.value); d:[type=="a"] => issue(claim=d);', "read-only"),
        ('=> issue(type="a", value=1, valueType="String");', "valueType is String"),
        ('=> issue(type="a", value=NegateBool(1));', "of type bool"),
        ('c:[type=="os"] => issue(type="a", value=AppendString(c.value, "x"));', "one value, found 2"),
        ('c:[type=="json"] => issue(type="a", value=JsonToClaimValue(JmesPath(c.value, "f")));', "found a fraction"),
        ('c:[type=="json"] => issue(type="a", value=JsonToClaimValue(JmesPath(c.value, "o")));', "found an object"),
        ('=> issue(type="a", value=JsonToClaimValue("{bad"));', "not JSON"),
        ('=> issue(type="a", value=JmesPath("{}", "a["));', "cannot evaluate"),
        ('=> issue(type="a", value=JmesPath("{}", ""));', "cannot evaluate"),
        ('=> issue(type="a", value=JmesPath("{}", "' + "|".join(["[@,@]"] * 9) + '"));', "at most 64 times"),
        ('=> issue(type="a", value=JmesPath("{}", "' + "[" * 300 + '"));', "nests at most"),
        ('=> issue(type="a", value=JmesPath("{}", "' + "a.!" * 300 + 'a"));', "cannot evaluate"),
        ('=> issue(type="a", value=JmesPath("' + "[" * 20000 + '", "a"));', "nested too deep"),
    ],
)
def test_a_fault_skips_a_rule_of_issuance_and_refuses_in_authorization(rule: str, fault: str) -> None:
    decision = _decide(issuance=rule)
    assert decision.permitted
    assert "a" not in decision.claims()
    assert any(fault in each.fault for each in decision.trace)
    refused = _decide("=> permit();" + rule.replace("issue(", "add("))
    if "read-only" not in fault:
        assert not refused.permitted
        assert fault in refused.reason


def test_no_fault_outlives_what_read_only_feeds() -> None:
    """Sets that were compared are no longer read-only: only the answer is known."""
    decision = _decide(issuance='c:[type=="fixed"] => issue(type="a", value=ContainsOnlyValue(c.value, "f"));')
    assert decision.claims() == {"a": True}


def test_values_cannot_grow_without_end() -> None:
    doubling = 'c:[type=="a"] => add(type="b", value=AppendString(c.value, c.value));'
    renamed = "".join(
        doubling.replace('"a"', f'"a{number}"').replace('"b"', f'"a{number + 1}"') for number in range(60)
    )
    decision = _decide('=> permit(); => add(type="a0", value="0123456789");' + renamed)
    assert not decision.permitted
    assert "AppendString makes" in decision.reason


def test_claims_and_comparisons_have_limits() -> None:
    many = ",".join(str(number) for number in range(MAX_CLAIMS))
    decision = _decide(f'=> permit(); => add(type="a", value=JsonToClaimValue("[{many}]"));')
    assert "more than 2000 claims" in decision.reason


def test_what_a_policy_makes_is_bounded_as_a_whole() -> None:
    """Each value may be long, and all together may not."""
    rules = "".join(f'c:[type=="long"] => add(type="t{number}", value=c.value);' for number in range(30))
    text = f"version=1.2;authorizationrules{{=> permit(); {rules}}};issuancerules{{}};"
    decision = evaluate_policy(parse_policy(text), [Claim("long", "x" * (64 << 10), "AttestationService")])
    assert not decision.permitted
    assert "more than 1048576 characters" in decision.reason
    many = ",".join(str(number) for number in range(1500))
    work = 'a:[type=="n"] && b:[type=="n", value==a.value] => permit();'
    decision = _decide(f'=> add(type="n", value=JsonToClaimValue("[{many}]"));{work}')
    assert "comparisons" in decision.reason


ONES = json.dumps([1] * 3000)


@pytest.mark.parametrize(
    ("document", "query"),
    [
        (ONES, "map(&not_null(@, " + ",".join("@" * 300) + "), @) | length(@)"),
        (ONES, " || ".join(["[?@ == `2`]"] * 35)),
        (json.dumps(['"']), "|".join(["[to_string(@)]"] * 24) + "|length(@[0])"),
        (json.dumps(["x" * 5000, *[""] * 5000]), "length(join(@[0], @))"),
    ],
)
def test_what_queries_do_counts_as_work(document: str, query: str) -> None:
    """A draft comes from anybody, and a short query may read its document thousands of times or double it."""
    calls = ", ".join(["value != JmesPath(d.value, q.value)"] * 3)
    text = f'version=1.2;authorizationrules{{d:[type=="d"] && q:[type=="q"] && [{calls}] => permit();}};'
    decision = evaluate_policy(parse_policy(text), [Claim("d", document), Claim("q", query)])
    assert f"more than {MAX_STEPS} steps" in decision.reason


def test_claims_that_are_made_again_and_again_count_as_work() -> None:
    numbers = json.dumps(list(range(600)))
    text = 'version=1.2;authorizationrules{n:[type=="n"] => add(type="z", value=JsonToClaimValue(n.value));'
    text += 'c:[type=="z"] => add(type="y", value=c.value);' * 340 + "=> permit();};"
    decision = evaluate_policy(parse_policy(text), [Claim("n", numbers)])
    assert f"more than {MAX_STEPS} steps" in decision.reason


def test_a_query_may_filter_a_long_event_log() -> None:
    log = json.dumps([{"type": f"EV_{number}", "pcr": number % 8, "digest": "00" * 70} for number in range(500)])
    query = "[?type == 'EV_7' && pcr == `7`].digest | length(@)"
    rule = 'd:[type=="d"] && q:[type=="q"] => issue(type="n", value=JsonToClaimValue(JmesPath(d.value, q.value)));'
    text = f"version=1.2;authorizationrules{{=> permit();}};issuancerules{{{rule}}};"
    decision = evaluate_policy(parse_policy(text), [Claim("d", log), Claim("q", query)])
    assert decision.claims() == {"n": 1}


def test_the_trace_says_what_every_rule_saw() -> None:
    decision = _decide('[type=="os"] && [type=="absent"] => deny(); => permit();', '=> issue(type="a", value=1);')
    first, second, third = (each.as_dict() for each in decision.trace)
    assert (first["matched"], first["applied"]) == ([2, 0], False)
    assert (second["matched"], second["applied"]) == ([], True)
    assert third["claims"] == [{"type": "a", "value": 1}]


def test_configuration_is_known_before_any_evidence() -> None:
    text = 'version=1.1;configurationrules{=> issueproperty(type="tcb", value="11");};authorizationrules{};'
    assert configuration(parse_policy(text)) == {"tcb": "11"}
    with pytest.raises(PolicyEvaluationError, match="line 1"):
        configuration(parse_policy(text.replace("1.1", "1.2").replace('"11"', "NegateBool(1)")))


@given(st.text(max_size=80), st.text(max_size=40))
def test_no_document_and_no_query_break_the_evaluation(document: str, query: str) -> None:
    rule = 'd:[type=="d"] && q:[type=="q"] => issue(type="r", value=JsonToClaimValue(JmesPath(d.value, q.value)));'
    policy = parse_policy(f"version=1.2;authorizationrules{{=> permit();}};issuancerules{{{rule}}};")
    assert evaluate_policy(policy, [Claim("d", document), Claim("q", query)]).permitted
