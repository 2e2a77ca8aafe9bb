"""Examples of Microsoft's documentation of Azure Attestation: each has its documented meaning, or a stated defect.

Source: the articles "policy examples", "author and sign a policy", "claim rule grammar", "claim rule functions", "claim
sets", "custom TCB baseline enforcement", "policy version 1.0" to "1.2" and "sample policies for TPM", in the versions
since 2020; one example of each kind, shortened to what tells it from the others.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from confcom.formats.arguments import encode_base64url
from confcom.tokens.policy_evaluation import SERVICE, Claim, Value, configuration, evaluate_policy
from confcom.tokens.policy_jws import read_policy
from confcom.tokens.policy_language import PolicyTextError, lint_policy, parse_policy, repaired

ENCLAVE: dict[str, Value] = {
    "x-ms-sgx-is-debuggable": False,
    "x-ms-sgx-product-id": 1,
    "x-ms-sgx-mrsigner": "mrsigner1",
    "x-ms-sgx-svn": 2,
    "$is-debuggable": False,
    "$sgx-mrsigner": "mrsigner1",
}
BOOT: dict[str, Value] = {
    "aikValidated": True,
    "secureBootEnabled": True,
    "bootDebuggingDisabled": True,
    "notSafeMode": True,
}
_BOUNDARY = {"EVENT_DRTM_STATE_AUTH": {"SignatureValid": True}}
EVENTS = [
    {
        "EventSeq": 3,
        "EventTypeString": "EV_EVENT_TAG",
        "PcrIndex": 20,
        "ProcessedData": {"EVENT_DRTM_SMM": {"Value": 2}},
    },
    {
        "EventSeq": 7,
        "EventTypeString": "EV_EFI_VARIABLE_DRIVER_CONFIG",
        "PcrIndex": 7,
        "ProcessedData": {
            "VariableGuid": "8BE4DF61-93CA-11D2-AA0D-00E098032B8C",
            "UnicodeName": "SecureBoot",
            "VariableData": "AQ",
        },
    },
    {
        "EventSeq": 9,
        "EventTypeString": "EV_EVENT_TAG",
        "PcrIndex": 20,
        "ProcessedData": {"EVENT_TRUSTBOUNDARY": _BOUNDARY},
    },
]
SECURE_BOOT = """version=1.2;
authorizationrules {
  => permit();
};
issuancerules
{
c:[type == "events", issuer=="AttestationService"] => add(type = "efiConfigVariables", value = JmesPath(c.value, \
"Events[?EventTypeString == 'EV_EFI_VARIABLE_DRIVER_CONFIG' && ProcessedData.VariableGuid == \
'8BE4DF61-93CA-11D2-AA0D-00E098032B8C']"));
c:[type=="efiConfigVariables", issuer="AttestationPolicy"]=> issue(type = "secureBootEnabled", value = \
JsonToClaimValue(JmesPath(c.value, "[?ProcessedData.UnicodeName == 'SecureBoot'] | length(@) == `1` && \
@[0].ProcessedData.VariableData == 'AQ'")));
![type=="secureBootEnabled", issuer=="AttestationPolicy"] => issue(type="secureBootEnabled", value=false);
};
"""
SMM_LEVEL = """version = 1.2;
authorizationrules { => permit(); };
issuancerules
{
    // The event may stand there once, and its signature holds
    c:[type=="events", issuer=="AttestationService"] => add(type="validDrtmStateAuthEvent", value=JmesPath(c.value, \
"Events[? EventTypeString == 'EV_EVENT_TAG' && PcrIndex == `20` && \
ProcessedData.EVENT_TRUSTBOUNDARY.EVENT_DRTM_STATE_AUTH.SignatureValid != `null`] | length(@) == `1` && @[0] | \
@.{EventSeq:EventSeq, SignatureValid:ProcessedData.EVENT_TRUSTBOUNDARY.EVENT_DRTM_STATE_AUTH.SignatureValid}"));
    c:[type=="validDrtmStateAuthEvent", issuer=="AttestationPolicy"] => issue(type="drtmMleValid", \
value=JsonToClaimValue(JmesPath(c.value, "SignatureValid")));
    ![type=="drtmMleValid", issuer=="AttestationPolicy"] => issue(type="drtmMleValid", value=false);
    [type=="drtmMleValid", value==true, issuer=="AttestationPolicy"] &&
    c:[type=="validDrtmStateAuthEvent", issuer=="AttestationPolicy"] => add(type="validDrtmStateAuthEventSeq", \
value=JmesPath(c.value, "EventSeq"));
    [type=="drtmMleValid", value==true, issuer=="AttestationPolicy"] &&
    c:[type=="validDrtmStateAuthEventSeq", issuer=="AttestationPolicy"] => add(type="smmQuery", \
value=AppendString(AppendString("Events[? EventTypeString == 'EV_EVENT_TAG' && PcrIndex == `20` && EventSeq < `", \
c.value), "`].ProcessedData.EVENT_DRTM_SMM | length(@) == `1` && @[0] | @.Value"));
    [type=="drtmMleValid", value==true, issuer=="AttestationPolicy"] &&
    c1:[type=="smmQuery", issuer=="AttestationPolicy"] &&
    c2:[type=="events", issuer=="AttestationService"] => issue(type="smmLevel", \
value=JsonToClaimValue(JmesPath(c2.value, c1.value)));
};
"""
KEY_ATTESTATION = """version=1.2;
authorizationrules
{
    // Key Attest Policy
    c:[type=="x-ms-tpm-request-key", issuer=="AttestationService"] => add(type="requestKeyType", \
value=JsonToClaimValue(JmesPath(c.value, "jwk.kty")));
    c:[type=="requestKeyType", issuer=="AttestationPolicy", value=="RSA"] => issue(type="verified", value=true);
    c:[type=="verified", issuer=="AttestationPolicy" , value==true] => permit();
};
issuancerules
{

};
"""


def _issuing(rules: str, version: str = "1.2") -> str:
    return f"version={version};authorizationrules{{=> permit();}};issuancerules{{{rules}}};"


# Name, text, claims of the evidence, whether it is permitted, what is issued, and the symbols at the slips in it.
EXAMPLES: list[tuple[str, str, dict[str, Value], bool, dict[str, Any], list[str]]] = [
    (
        "default of 2020, as the documentation sets its quotation marks",
        (
            "Version= 1.0;\nauthorizationrules\n{\n\tc:[type==”$is-debuggable”] => permit();\n};\nissuancerules\n{\n"
            "\tc:[type==”$sgx-mrsigner”] => issue(type=”sgx-mrsigner”, value=c.value);\n};"
        ),
        ENCLAVE,
        True,
        {"sgx-mrsigner": "mrsigner1"},
        ["”$is-debuggable”", "”$sgx-mrsigner”", "”sgx-mrsigner”"],
    ),
    (
        "several enclaves",
        (
            "version= 1.0;\nauthorizationrules \n{\n"
            '\t[ type=="x-ms-sgx-is-debuggable", value==false ]&&\n\t[ type=="x-ms-sgx-mrsigner", value=="mrsigner1"] '
            "=> permit(); \n"
            '\t[ type=="x-ms-sgx-is-debuggable", value==false ]&& \n\t[ type=="x-ms-sgx-mrsigner", value=="mrsigner2"] '
            "=> permit(); \n};"
        ),
        ENCLAVE,
        True,
        {},
        [],
    ),
    (
        "a deny before any other rule",
        "version=1.0;\nauthorizationrules\n{\n=>deny();\n};\n\nissuancerules\n{\n};",
        ENCLAVE,
        False,
        {},
        [],
    ),
    (
        "a number that is issued",
        (
            'version=1.0;\nauthorizationrules\n{\n[type=="secureBootEnabled", value==true, '
            'issuer=="AttestationService"]'
            '=>permit();\n};\nissuancerules\n{\n=> issue(type="SecurityLevelValue", value=100);\n};'
        ),
        BOOT,
        True,
        {"SecurityLevelValue": 100},
        [],
    ),
    (
        "sections with =, and a rule without its end",
        (
            'Version=1.0;\n\nauthorizationrules={\n[type=="secureBootEnabled", value==true]=>permit();\n};\n\n'
            'issuancerules={\n=>issue(type="SecurityLevelValue", value=100)\n};'
        ),
        BOOT,
        True,
        {"SecurityLevelValue": 100},
        ["=", "=", ""],
    ),
    (
        "a misspelt section, single =, and no end of any rule",
        (
            'version=1.0;\nauthizationrules\n{\n   c:[type="secureBootEnabled", '
            'issuer=="AttestationService"]=> permit()\n};'
            '\nissuancerules\n{\n  c:[type="secureBootEnabled", issuer=="AttestationService"]=> issue(claim=c)\n'
            '  c:[type="notSafeMode", issuer=="AttestationService"]=> issue(claim=c)\n};'
        ),
        BOOT,
        True,
        {"secureBootEnabled": True, "notSafeMode": True},
        ["authizationrules", "=", "", "=", "", "=", ""],
    ),
    (
        "a custom baseline, with a quotation mark of each kind",
        (
            'version = 1.1;  \nconfigurationrules  \n{  \n=> issueproperty (  \ntype = "x-ms-sgx-tcbidentifier", value '
            '= "11”  \n);  \n};  \n\nauthorizationrules  \n{  \n=> permit();  \n};  \nIssuancerules  \n{  \n'
            'c:[type=="x-ms-sgx-svn"] => issue(type="svn", value=c.value);  \n};  \n'
        ),
        ENCLAVE,
        True,
        {"svn": 2},
        ['"11”'],
    ),
    (
        "properties of TPM",
        (
            'version=1.1;\nconfigurationrules{\n=> issueproperty(type = "required_pcr_mask", value = 15);\n'
            '=> issueproperty(type = "require_valid_aik_cert", value = false);\n};\n'
            "authorizationrules { \n    => permit();\n};"
            '\nissuancerules\n{\n[type=="aikValidated", value==true]&& \n[type=="secureBootEnabled", value==true] &&\n'
            '[type=="notSafeMode", value==true] => issue(type="PlatformAttested", value=true);\n\n'
            '[type=="aikValidated", value==false] => issue(type="PlatformAttested", value=false);\n};'
        ),
        BOOT,
        True,
        {"PlatformAttested": True},
        [],
    ),
    (
        "a property of a token from a rule, and a copied claim",
        _issuing(
            'F1:[type=="OSName" , issuer=="AttestationService"] && \n[type=="OSName" , value== F1.value ] \n'
            '=> issueproperty(type="report_validity_in_minutes", value=1440);\n'
            'C2:[type=="OSName" , issuer=="AttestationService"] \n=> issue(claim = C2);',
            "1.0",
        ),
        {"OSName": "Windows"},
        True,
        {"OSName": "Windows"},
        [],
    ),
    (
        "functions: a query of text and one of claims",
        _issuing(
            '=>add(type="JmesPathResult", value=JmesPath("{\\"foo\\": \\"bar\\"}", "foo"));'
            'c1:[type="JsonData"] && c2:[type=="JmesPathQuery"] =>\nadd(type="Second", '
            'value=JmesPath(c1.value, c2.value));c:[type=="JmesPathResult"] => issue(claim=c);'
            'c:[type=="Second"] => issue(claim=c);'
        ),
        {"JsonData": '{"values": [0,1,2,3,4]}', "JmesPathQuery": "values[2]"},
        True,
        {"JmesPathResult": '"bar"', "Second": "2"},
        ["="],
    ),
    (
        "functions: JSON to values, where a number is a number",
        _issuing(
            'c:[type=="JsonIntegerData"] => issue(type="IntegerResult", value=JsonToClaimValue(c.value));'
            'c:[type=="JsonBooleanData"] => issue(type="BooleanResult", value=JsonToClaimValue(c.value));'
            'c:[type=="JsonStringData"] => issue(type="StringResult", value=JsonToClaimValue(c.value));'
            'c:[type=="JsonData"] => issue(type="Result", value=JsonToClaimValue(c.value));'
            'c:[type=="Null"] => issue(type="Nothing", value=JsonToClaimValue(c.value));'
        ),
        {
            "JsonIntegerData": "100",
            "JsonBooleanData": "true",
            "JsonStringData": "abc",
            "JsonData": '[0, "abc", true]',
            "Null": "null",
        },
        True,
        {"IntegerResult": 100, "BooleanResult": True, "StringResult": "abc", "Result": [0, "abc", True]},
        [],
    ),
    (
        "functions: misspelt, with an argument missing, and a negated condition",
        _issuing(
            'c:[type=="Input"] => issue(type="Negated", value=NegateBol(c.value));'
            'c:[type=="Set"] => issue(type="Only", value=ContainsOnlyValue(100));'
            '![type=="Claim3"] => issue(type="Claim3", value=300)'
        ),
        {"Input": True, "Set": 100},
        True,
        {"Negated": False, "Only": True, "Claim3": 300},
        ["NegateBol", "(", ""],
    ),
    (
        "a query over events",
        SECURE_BOOT,
        {"events": json.dumps({"Events": EVENTS})},
        True,
        {"secureBootEnabled": True},
        ["="],
    ),
    (
        "the same without the event",
        SECURE_BOOT,
        {"events": '{"Events": []}'},
        True,
        {"secureBootEnabled": False},
        ["="],
    ),
    (
        "a query that a rule puts together",
        SMM_LEVEL,
        {"events": json.dumps({"Events": EVENTS})},
        True,
        {"drtmMleValid": True, "smmLevel": 2},
        [],
    ),
    (
        "an issue among authorizationrules",
        KEY_ATTESTATION,
        {"x-ms-tpm-request-key": '{"jwk": {"kty": "RSA"}}'},
        True,
        {},
        ["issue"],
    ),
    (
        "the same for another key",
        KEY_ATTESTATION,
        {"x-ms-tpm-request-key": '{"jwk": {"kty": "EC"}}'},
        False,
        {},
        ["issue"],
    ),
    (
        "the type of a claim without its name",
        _issuing('[type=="secureBootEnabled", value==true] => issue("PlatformAttested", value=true);'),
        BOOT,
        True,
        {"PlatformAttested": True},
        ['"PlatformAttested"'],
    ),
]


@pytest.mark.parametrize(
    ("text", "claims", "permitted", "issued", "slips"),
    [example[1:] for example in EXAMPLES],
    ids=[example[0] for example in EXAMPLES],
)
def test_an_example_has_its_documented_meaning(
    text: str, claims: dict[str, Value], permitted: bool, issued: dict[str, Any], slips: list[str]
) -> None:
    policy, defects = lint_policy(text)
    assert [defect.symbol for defect in defects] == slips
    decision = evaluate_policy(policy, [Claim(name, value, SERVICE) for name, value in claims.items()])
    assert (decision.permitted, decision.claims()) == (permitted, issued)
    if not slips:
        return
    with pytest.raises(PolicyTextError):
        parse_policy(text)
    mended = parse_policy(repaired(text, defects))
    again = evaluate_policy(mended, [Claim(name, value, SERVICE) for name, value in claims.items()])
    assert (again.permitted, again.claims()) == (permitted, issued)


DEFECTS = [
    (
        'version= 1.0;\nauthorizationrules\n{\n[ type=="x-ms-sgx-product-id", value==<product-id> ] => permit();\n};',
        "<",
        4,
    ),
    (
        _issuing(
            'c:[type=="String1"] && c2:[type=="String2"] => add(type="Result", value=AppendString(c1.value, c2.value));'
        ),
        "c1",
        1,
    ),
    ("version=MajorVersion.MinorVersion", "MajorVersion", 1),
]


@pytest.mark.parametrize(("text", "symbol", "line"), DEFECTS)
def test_what_an_example_leaves_open_is_named_at_its_place(text: str, symbol: str, line: int) -> None:
    with pytest.raises(PolicyTextError) as refused:
        lint_policy(text)
    assert (refused.value.defect.symbol, refused.value.defect.place.line) == (symbol, line)


def test_properties_of_examples() -> None:
    text = next(example[1] for example in EXAMPLES if example[0] == "properties of TPM")
    assert configuration(parse_policy(text)) == {"required_pcr_mask": 15, "require_valid_aik_cert": False}


def test_an_unsigned_policy_as_it_is_published() -> None:
    """Unsigned, with a space in its JSON, and no signature after the second dot."""
    text = 'version= 1.0;authorizationrules{c:[type=="$is-debuggable"] => permit();};'
    payload = f'{{"AttestationPolicy": "{encode_base64url(text.encode())}"}}'
    sent = read_policy(f"eyJhbGciOiJub25lIn0.{encode_base64url(payload.encode())}.")
    assert (sent.text, sent.signer) == (text, None)
    assert parse_policy(sent.text).authorization
