"""Evaluates a policy over claims: permit or deny, the claims that it issues, and a trace of every rule.

Rules run from top to bottom; what `add` and `issue` make is seen by the rules below. A condition is true where at
least one claim satisfies it, and its identifier then names all those claims. The decision needs at least one `permit`
and no `deny`. A fault while `authorizationrules` run refuses; one in `issuancerules` skips its rule.

Policies and drafts come from outside, so the work is counted: comparisons, claims and lengths have limits.
Source: Azure Attestation documentation, "claim rule grammar" and "claim rule functions".
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jmespath
import jmespath.functions
import jmespath.parser
import jmespath.visitor
import msgspec

from confcom.errors import ConfcomError
from confcom.formats.arguments import decode_json
from confcom.tokens.policy_language import (
    AUTHORIZATION,
    CONFIGURATION,
    ISSUANCE,
    Action,
    Call,
    Comparison,
    Condition,
    Expression,
    Literal,
    Member,
    PolicyText,
    Rule,
    is_reserved,
)

MAX_STEPS = 200_000
"""Steps of one evaluation: comparisons of a claim with a value, claims made, and what functions read and make."""
MAX_CLAIMS = 2_000
MAX_STRING = 256 << 10
"""Characters of one value."""
MAX_MADE = 1 << 20
"""Characters of all values that a policy makes."""
MAX_QUERY = 4_096
"""Characters of a JMESPath query."""
MAX_QUERY_DEPTH = 40
MAX_COPIES = 64
"""How many times a query may copy its data: the product of what its multi-selects list."""
KEPT = 1 << 20
"""About how many bytes of decisions are kept per policy."""
TRACED = 20
"""Outcomes of a dry run that have their trace."""
SERVICE, POLICY, CUSTOM = "AttestationService", "AttestationPolicy", "CustomClaim"
Value = bool | int | str


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A typed value with its issuer. A read-only claim can be compared and can feed others, but cannot be issued."""

    type: str
    value: Value
    issuer: str = CUSTOM
    read_only: bool = False

    @property
    def value_type(self) -> str:
        """`String`, `Integer` or `Boolean`."""
        return "Boolean" if isinstance(self.value, bool) else "Integer" if isinstance(self.value, int) else "String"

    def property(self, name: str) -> Value:
        """`type`, `value`, `valueType` or `issuer`."""
        return self.value_type if name == "valueType" else getattr(self, name)


class PolicyEvaluationError(ConfcomError):
    """A rule cannot be evaluated: a function's argument, a read-only claim, or a limit."""

    code, azure_code = "policy-evaluation", "PolicyEvaluationError"
    default_advice = "Correct the rule named here; a dry run over recorded evidence shows what every rule sees."


class RuleTrace(msgspec.Struct, frozen=True):
    """What one rule did: `matched` counts the claims of each condition up to the first that failed."""

    section: str
    line: int
    text: str
    matched: tuple[int, ...]
    applied: bool
    claims: tuple[Claim, ...] = ()
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For machines: `section`, `line`, `rule`, `matched`, `applied`, and `claims` and `fault` where known."""
        found: dict[str, Any] = {"section": self.section, "line": self.line, "rule": self.text}
        found |= {"matched": list(self.matched), "applied": self.applied}
        if self.claims:
            found["claims"] = [{"type": each.type, "value": each.value} for each in self.claims]
        return found | ({"fault": self.fault} if self.fault else {})


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a policy: `reason` says in a sentence why it refuses and is empty where it permits."""

    permitted: bool
    reason: str
    issued: tuple[Claim, ...]
    properties: dict[str, Value]
    trace: tuple[RuleTrace, ...]

    def claims(self) -> dict[str, Any]:
        """The issued claims as a token carries them: one value, or a list where a type was issued several times."""
        found: dict[str, list[Value]] = {}
        for claim in self.issued:
            found.setdefault(claim.type, []).append(claim.value)
        return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def evaluate_policy(policy: PolicyText, incoming: Iterable[Claim]) -> Decision:
    """Run a policy over the claims of evidence."""
    return _Evaluation(incoming).run(policy)


class Decisions:
    """The decisions of a policy over what the service says of evidence; usable from several threads.

    A decision is kept by the claims that the policy can look at: evidence of one enclave differs in its report data
    alone, which few policies read.
    """

    def __init__(self, policy: PolicyText) -> None:
        self.policy = policy
        self._types = _types_read(policy)
        self._kept: dict[tuple[Value | None, ...], Decision] = {}
        self._size = 0

    def reads(self, claim: str) -> bool:
        """Whether the decision may depend on the value of a claim of this type."""
        return self._types is None or claim in self._types

    def on(self, named: Mapping[str, Value]) -> Decision:
        """The decision on claims, by their types; their issuer is the service."""
        if self._types is None:
            return evaluate_policy(self.policy, service_claims(named))
        # The values of one claim have one type, so `True` and 1 do not get the same key.
        read = len(named), *map(named.get, self._types)
        decision = self._kept.get(read)
        if decision is None:
            decision = evaluate_policy(self.policy, service_claims(named))
            made = sum(len(str(claim.value)) for rule in decision.trace for claim in rule.claims)
            size = made + 64 * len(read) + 256 * len(decision.trace)
            if self._size + size > KEPT:
                self._kept, self._size = {}, 0
            if size <= KEPT:
                self._kept[read], self._size = decision, self._size + size
        return decision


def service_claims(named: Mapping[str, Value]) -> list[Claim]:
    """The claims of the service that have these types and values."""
    return [Claim(name, value, SERVICE) for name, value in named.items()]


def _types_read(policy: PolicyText) -> tuple[str, ...] | None:
    """The types of the claims that the policy's conditions name; None if one looks at claims of any type."""
    found: dict[str, None] = {}
    for rule in (*policy.configuration, *policy.authorization, *policy.issuance):
        for condition in rule.conditions:
            match condition.comparisons:
                case (Comparison("type", "==", Literal(str(kind))), *_):
                    found[kind] = None
                case _:
                    return None
    return tuple(found)


def configuration(policy: PolicyText) -> dict[str, Value]:
    """The properties of `configurationrules`, which are needed before evidence is verified: no claim is seen.

    Raises:
        PolicyEvaluationError: a rule cannot be evaluated.
    """
    evaluation = _Evaluation(())
    for rule in policy.configuration:
        evaluation.rule(CONFIGURATION, rule)
    if fault := next((each.fault for each in evaluation.trace if each.fault), None):
        raise PolicyEvaluationError(f"policy, line {evaluation.trace[-1].line}: {fault}")
    return evaluation.properties


class Recorded(msgspec.Struct, frozen=True):
    """Evidence of the past: what names it, what was decided then, and what a policy sees of it."""

    label: dict[str, Any]
    before: str
    claims: Sequence[Claim]


def claims_of(recorded: str) -> list[Claim]:
    """The claims in the record of an appraisal: a JSON object of names and values; anything else is a `FormatError`."""
    found = decode_json(recorded, _RECORDED, "audit record", "claims", problem="are no claims")
    return service_claims(found)


_RECORDED = msgspec.json.Decoder(dict[str, bool | int | str])


def dry_run(policy: PolicyText, recorded: Iterable[Recorded]) -> dict[str, Any]:
    """What a policy decides on recorded evidence, beside what was decided: `judged`, `changed` and `outcomes`.

    `changed` counts the differences. Some outcomes have their trace, those that differ before the others.
    """
    outcomes: list[dict[str, Any]] = []
    decisions: list[Decision] = []
    for each in recorded:
        decision = evaluate_policy(policy, each.claims)
        after = "accepted" if decision.permitted else "denied"
        found = {"before": each.before, "after": after, "reason": decision.reason, "claims": decision.claims()}
        outcomes.append(each.label | found)
        decisions.append(decision)
    same = [each["before"] == each["after"] for each in outcomes]
    for place in sorted(range(len(outcomes)), key=same.__getitem__)[:TRACED]:
        outcomes[place]["trace"] = [each.as_dict() for each in decisions[place].trace]
    return {"judged": len(outcomes), "changed": same.count(False), "outcomes": outcomes}


@dataclass(frozen=True, slots=True)
class _Values:
    """What an expression gives: a set of values, and whether one of them came from a read-only claim."""

    values: tuple[Value, ...]
    read_only: bool = False


class _Evaluation:
    """One run: the claims seen so far and the work that is left."""

    def __init__(self, incoming: Iterable[Claim]) -> None:
        self.claims: list[Claim] = []
        self.by_type: dict[Value, dict[tuple[Any, ...], Claim]] = {}
        self.add(incoming)
        self.issued: dict[tuple[type, Claim], Claim] = {}
        self.properties: dict[str, Value] = {}
        self.trace: list[RuleTrace] = []
        self.permits = 0
        self.denial: Rule | None = None
        self.steps = MAX_STEPS
        self.room = MAX_MADE

    def add(self, claims: Iterable[Claim]) -> None:
        """Let the rules below see these, each once."""
        for claim in claims:
            known = self.by_type.setdefault(claim.type, {})
            key = type(claim.value), claim.value, claim.issuer, claim.read_only  # `True` and `1` are equal in Python
            if key not in known:
                known[key] = claim
                self.claims.append(claim)

    def run(self, policy: PolicyText) -> Decision:
        for section, rules in ((CONFIGURATION, policy.configuration), (AUTHORIZATION, policy.authorization)):
            for rule in rules:
                self.rule(section, rule)
        reason = self._refusal()
        if not reason:
            for rule in policy.issuance:
                self.rule(ISSUANCE, rule)
        issued = () if reason else tuple(self.issued.values())
        return Decision(not reason, reason, issued, self.properties, tuple(self.trace))

    def _refusal(self) -> str:
        if fault := next((each for each in self.trace if each.fault), None):
            return f"the rule in line {fault.line} of the policy failed: {fault.fault}"
        if self.denial:
            return f"the rule in line {self.denial.line} of the policy denied: {self.denial.text}"
        return "" if self.permits else "no rule of the policy permitted"

    def rule(self, section: str, rule: Rule) -> None:
        matched: list[int] = []
        made: tuple[Claim, ...] = ()
        applied, fault = False, ""
        try:
            named: dict[str, list[Claim]] = {}
            for condition in rule.conditions:
                found = self._matching(condition, named)
                matched.append(len(found))
                if bool(found) == condition.negated:
                    break
                if condition.identifier:
                    named[condition.identifier] = found
            else:
                made = self._apply(section, rule, named)
                applied = True
        except PolicyEvaluationError as error:
            fault = error.message
        self.trace.append(RuleTrace(section, rule.line, rule.text, tuple(matched), applied, made, fault))

    def _matching(self, condition: Condition, named: dict[str, list[Claim]]) -> list[Claim]:
        """The claims that satisfy every comparison; what they are compared with is computed once."""
        candidates, comparisons = self.claims, condition.comparisons
        # Nearly every condition names a type first.
        if comparisons and (first := comparisons[0]).property == "type" and first.operator == "==":
            types = self._values(first.expected, named)
            candidates = [claim for each in dict.fromkeys(types) for claim in self.by_type.get(each, {}).values()]
            self._spend(len(types) or 1)
            comparisons = comparisons[1:]
        for comparison in comparisons:
            values = self._values(comparison.expected, named)
            candidates = [claim for claim in candidates if self._satisfies(claim, comparison, values)]
        return candidates

    def _satisfies(self, claim: Claim, comparison: Comparison, expected: tuple[Value, ...]) -> bool:
        self._spend(len(expected) or 1)
        found = claim.property(comparison.property)
        if comparison.operator == "!=":
            return not any(_same(found, value) for value in expected)
        compare = _COMPARE[comparison.operator]
        return any(compare(found, value) for value in expected)

    def _spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise PolicyEvaluationError(f"the policy takes more than {MAX_STEPS} steps of comparisons and functions")

    def _apply(self, section: str, rule: Rule, named: dict[str, list[Claim]]) -> tuple[Claim, ...]:
        action = rule.action
        if action.verb == "permit":
            self.permits += 1
            return ()
        if action.verb == "deny":
            self.denial = self.denial or rule
            return ()
        made = self._made(action, named)
        self._spend(len(made))
        if action.verb != "add" and any(claim.read_only for claim in made):
            raise PolicyEvaluationError("a read-only claim cannot be issued, nor what a function made of it")
        if action.verb == "issue" and (reserved := [claim.type for claim in made if is_reserved(claim.type)]):
            raise PolicyEvaluationError(f"only the service issues {reserved[0]!r}, no policy")
        self.room -= sum(len(str(claim.value)) for claim in made)
        if self.room < 0:
            raise PolicyEvaluationError(f"the policy makes claims of more than {MAX_MADE} characters")
        if len(self.claims) + len(made) > MAX_CLAIMS:
            raise PolicyEvaluationError(f"the policy makes more than {MAX_CLAIMS} claims")
        if action.verb == "issueproperty":
            self.properties.update((claim.type, claim.value) for claim in made)
        elif action.verb == "issue":
            # With the type: `True` and `1` are equal in Python, and different values of the language.
            self.issued.update(((type(claim.value), claim), claim) for claim in made)
        if section != CONFIGURATION:
            self.add(made)
        return made

    def _made(self, action: Action, named: dict[str, list[Claim]]) -> tuple[Claim, ...]:
        if action.copied is not None:
            copied = named.get(action.copied, ())
            return tuple(Claim(claim.type, claim.value, POLICY, claim.read_only) for claim in copied)
        kind = self._single(action.properties["type"], named, "the type of a claim")
        value = self._value(action.properties["value"], named)
        made = tuple(Claim(kind, each, POLICY, value.read_only) for each in value.values)
        if "valueType" in action.properties:
            stated = self._single(action.properties["valueType"], named, "valueType")
            if wrong := next((claim for claim in made if claim.value_type != stated), None):
                raise PolicyEvaluationError(f"valueType is {stated}, the value is of type {wrong.value_type}")
        return made

    def _values(self, expression: Expression, named: dict[str, list[Claim]]) -> tuple[Value, ...]:
        return (expression.value,) if isinstance(expression, Literal) else self._value(expression, named).values

    def _value(self, expression: Expression, named: dict[str, list[Claim]]) -> _Values:
        if isinstance(expression, Literal):
            return _Values((expression.value,))
        if isinstance(expression, Member):
            claims = named.get(expression.identifier, [])
            values = tuple(claim.property(expression.property) for claim in claims)
            return _Values(values, any(claim.read_only for claim in claims))
        return self._called(expression, [self._value(each, named) for each in expression.arguments])

    def _called(self, call: Call, arguments: list[_Values]) -> _Values:
        read_only = any(each.read_only for each in arguments)
        if call.function in _SET_FUNCTIONS:
            self._spend(sum(len(each.values) for each in arguments))
            return _Values((_SET_FUNCTIONS[call.function](*(each.values for each in arguments)),))
        singles = [_one(each.values, f"an argument of {call.function}") for each in arguments]
        self._spend(sum(len(each) // 64 for each in singles if isinstance(each, str)))
        if call.function == "JmesPath":
            return _Values(_jmespath(self._spend, *singles), read_only)
        return _Values(_FUNCTIONS[call.function](*singles), read_only)

    def _single(self, expression: Expression, named: dict[str, list[Claim]], what: str) -> str:
        return _typed(_one(self._values(expression, named), what), str, what)


def _one(values: Sequence[Value], what: str) -> Value:
    if len(values) != 1:
        raise PolicyEvaluationError(f"{what} is one value, found {len(values)}")
    return values[0]


_Typed = TypeVar("_Typed", bool, str)


def _typed(value: Value, kind: type[_Typed], what: str) -> _Typed:
    if not isinstance(value, kind):
        raise PolicyEvaluationError(f"{what} is of type {kind.__name__}, found {type(value).__name__}")
    return value


def _same(one: Value, other: Value) -> bool:
    return type(one) is type(other) and one == other


def _ordered(compare: Callable[[int, int], bool]) -> Callable[[Value, Value], bool]:
    return lambda one, other: type(one) is int and type(other) is int and compare(one, other)


_COMPARE: dict[str, Callable[[Value, Value], bool]] = {
    "==": _same,
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
}


def _typed_set(values: Sequence[Value]) -> set[tuple[type, Value]]:
    """`True` and `1` are different values of the language."""
    return {(type(value), value) for value in values}


_SET_FUNCTIONS: dict[str, Callable[..., bool]] = {
    "IsSubsetOf": lambda one, other: _typed_set(one) <= _typed_set(other),
    "ContainsOnlyValue": lambda found, wanted: (
        _typed_set(found) == _typed_set([_one(wanted, "the value of ContainsOnlyValue")])
    ),
}


def _append(one: Value, other: Value) -> tuple[Value, ...]:
    what = "an argument of AppendString"
    appended = _typed(one, str, what) + _typed(other, str, what)
    if len(appended) > MAX_STRING:
        raise PolicyEvaluationError(f"AppendString makes {len(appended)} characters, at most {MAX_STRING} are kept")
    return (appended,)


_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def _json_to_claim_value(text: Value) -> tuple[Value, ...]:
    """Microsoft's own example gives a word without quotes, which is taken as the string that it means."""
    written = _typed(text, str, "the argument of JsonToClaimValue")
    if _BARE_WORD.fullmatch(written) and written not in ("true", "false", "null", "NaN", "Infinity"):
        return (written,)
    found = _json(written, "JsonToClaimValue")
    if isinstance(found, list):
        return tuple(value for each in found for value in _primitive(each, "an array of JsonToClaimValue"))
    return _primitive(found, "JsonToClaimValue")


def _primitive(found: object, what: str) -> tuple[Value, ...]:
    if found is None:
        return ()
    if isinstance(found, str):
        return (found,)
    if isinstance(found, int):
        if not -(1 << 63) <= found < 1 << 63:
            raise PolicyEvaluationError(f"{what} converts integers of 64 bits, found one of {found.bit_length()}")
        return (found,)
    kind = "a fraction" if isinstance(found, float) else "an object" if isinstance(found, dict) else "an array"
    raise PolicyEvaluationError(f"{what} converts strings, integers, booleans and null, found {kind}")


def _encodable(text: str, what: str) -> str:
    """The text, which UTF-8 can write: JSON can name half of a surrogate pair, and no token could hold that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        fault = f"half of a surrogate pair is in the text of {what}: {text[error.start]!r}"
        raise PolicyEvaluationError(fault) from None
    return text


def _json(text: str, function: str) -> object:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        found: object = json.loads(text, parse_constant=refuse)
        if "\\u" in text:
            _encodable(json.dumps(found, ensure_ascii=False), function)
        return found
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise PolicyEvaluationError(f"{function} was given text that is not JSON: {reason}") from None


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
Spend = Callable[[int], None]
"""Counts steps; raises when they are used up."""


class _Functions(jmespath.functions.Functions):
    """JMESPath's functions with the one that Microsoft's policies use beside them. Each call is charged by its size."""

    def __init__(self, spend: Spend, whole: int) -> None:
        """`whole` are the steps for a look at all of the document, which comparisons and `to_string` may take."""
        self._spend, self._whole = spend, whole

    def call_function(self, function_name: str, resolved_args: Any) -> Any:  # noqa: ANN401 - JSON values
        sizes = [len(each) for each in resolved_args if isinstance(each, (str, list, dict))]
        # The glue stands once for each element.
        made = sizes[0] * sizes[1] // 64 if function_name == "join" and len(sizes) == 2 else 0
        self._spend(self._whole + sum(sizes) // 8 + made)
        found = super().call_function(function_name, resolved_args)
        # to_string doubles the escapes of what it is given, and is given that again.
        self._spend(len(found) // 64 if isinstance(found, str) else 0)
        return found

    @jmespath.functions.signature({"types": []})
    def _func_to_number(self, given: object) -> object:
        # Python reads more than JSON, such as 1_0 and digits of other scripts.
        known = not isinstance(given, str) or _NUMBER.fullmatch(given)
        return super()._func_to_number(given) if known else None  # type: ignore[misc]

    @jmespath.functions.signature({"types": ["string", "null"]}, {"types": ["string", "null"]})
    def _func_equals_ignore_case(self, one: str | None, other: str | None) -> bool:
        return one is not None and other is not None and one.casefold() == other.casefold()


class _Interpreter(jmespath.visitor.TreeInterpreter):
    """Counts each part of a query as often as it is evaluated: `map(&…, @)` and filters do that for every element."""

    def __init__(self, spend: Spend, whole: int) -> None:
        super().__init__(jmespath.Options(custom_functions=_Functions(spend, whole)))
        self._spend, self._whole = spend, whole

    def visit(self, node: Any, *args: Any, **more: Any) -> Any:  # noqa: ANN401 - JSON values
        self._spend(1 + (self._whole if node["type"] == "comparator" else 0))
        found = super().visit(node, *args, **more)
        self._spend(len(found) // 8 if isinstance(found, list) else 0)
        return found


def _jmespath(spend: Spend, text: Value, given: Value) -> tuple[Value, ...]:
    """The result as JSON text, strings in their quotes."""
    written = _typed(text, str, "the first argument of JmesPath")
    document = _json(written, "JmesPath")
    query = _typed(given, str, "the query of JmesPath")
    try:
        parsed = _compiled(query)
        spend(len(query))
        found = _Interpreter(spend, len(written) // 2048).visit(parsed, document)
        written = json.dumps(found, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except Exception as error:  # functions of jmespath fail with errors of Python: ceil(`1e999`)
        if isinstance(error, PolicyEvaluationError):
            raise  # of `spend`
        reason = "it is nested too deep" if isinstance(error, RecursionError) else f"{error}".partition("\n")[0][:200]
        reason = reason.encode("utf-8", "backslashreplace").decode()  # it quotes what the query states
        raise PolicyEvaluationError(f"JmesPath cannot evaluate {query[:80]!r}: {reason}") from None
    if len(written) > MAX_STRING:
        raise PolicyEvaluationError(f"JmesPath gives {len(written)} characters, at most {MAX_STRING} are kept")
    return (_encodable(written, "JmesPath"),)


def _compiled(query: str) -> Any:  # noqa: ANN401 - a node of jmespath
    """The tree of a query within its limits: its length, its brackets before it is parsed, its multi-selects after."""
    if len(query) > MAX_QUERY:
        raise ValueError(f"a query has at most {MAX_QUERY} characters, found {len(query)}")
    depth = 0
    for character in query.replace("&&", "").replace("!=", ""):
        depth += (character in "([{&!") - (character in ")]}")
        if depth > MAX_QUERY_DEPTH:
            raise ValueError(f"a query nests at most {MAX_QUERY_DEPTH} brackets")
    # Not jmespath.compile, which keeps queries of strangers in a cache of the process.
    parsed: Any = jmespath.parser.Parser().parse(query).parsed
    copies, nodes = 1, [parsed]
    while nodes:
        node = nodes.pop()
        nodes.extend(child for child in node["children"] if isinstance(child, dict))  # a slice has numbers
        if node["type"] in ("multi_select_list", "multi_select_dict"):
            copies *= len(node["children"]) or 1
        if copies > MAX_COPIES:
            raise ValueError(f"the lists of a query copy its data at most {MAX_COPIES} times")
    return parsed


_FUNCTIONS: dict[str, Callable[..., tuple[Value, ...]]] = {
    "JsonToClaimValue": _json_to_claim_value,
    "AppendString": _append,
    "NegateBool": lambda value: (not _typed(value, bool, "the argument of NegateBool"),),
}
