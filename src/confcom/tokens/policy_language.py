"""The policy language of Azure Attestation, versions 1.0, 1.1 and 1.2: text to rules.

A policy has a version, optional `configurationrules`, `authorizationrules` and optional `issuancerules`. Each rule is
`conditions => action;`. Microsoft's own documents break their grammar in a few known ways. `parse_policy` refuses
those with the place and the repair; `lint_policy` accepts them and lists every one, so that `repaired` can mend the
text. Source: Azure Attestation documentation, "claim rule grammar" and "claim rule functions".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput, UnexpectedToken

from confcom.errors import FormatError

MAX_TEXT = 64 << 10
"""Characters of a policy."""
MAX_NESTING = 16
"""Function calls inside one another."""

VERSIONS = ("1.0", "1.1", "1.2")
CONFIGURATION, AUTHORIZATION, ISSUANCE = "configurationrules", "authorizationrules", "issuancerules"
SECTIONS = (CONFIGURATION, AUTHORIZATION, ISSUANCE)
ACTIONS = {
    CONFIGURATION: ("issueproperty",),
    AUTHORIZATION: ("permit", "deny", "add"),
    ISSUANCE: ("add", "issue", "issueproperty"),
}
FUNCTIONS = {
    "JmesPath": 2,
    "JsonToClaimValue": 1,
    "IsSubsetOf": 2,
    "AppendString": 2,
    "NegateBool": 1,
    "ContainsOnlyValue": 2,
}
"""Each function of version 1.2 with its number of arguments."""
CLAIM_PROPERTIES = ("type", "value", "valueType", "issuer")
VALUE_TYPES = ("String", "Integer", "Boolean")
_ORDERED = ("<", "<=", ">", ">=")
RESERVED = frozenset((
    "attester_tcb_status", "cnf", "dbgstat", "exp", "fmspc", "iat", "intuse", "iss", "jti", "nbf", "nonce",
    "policy-hash", "policy_hash", "policy_signer", "rp_data", "simulated", "submods", "tcb-status", "ver",
))  # fmt: skip
RESERVED_PREFIXES = ("aas-", "confcom-", "ear.", "eat_", "maa-", "tdx_", "x-ms-")
"""With `RESERVED` the claims that only the service issues: those of JWT, EAT and EAR, Azure's with their older names,
ours and those of login tokens. The older names that Azure's default policy issues are free, such as `sgx-mrsigner`."""

_GRAMMAR = r"""
start: version section*
version: NAME "=" (DECIMAL | STRING | CURLY) [";"]
section: NAME [EQUAL] "{" rule* "}" [";"]
rule: [conditions] ARROW action [SEMICOLON]
conditions: condition ("&&" condition)*
condition: [BANG] [NAME ":"] LBRACKET comparison ("," comparison)* "]"
comparison: NAME OPERATOR expression
action: NAME LPAR [argument ("," argument)*] RPAR
argument: NAME "=" expression | expression -> positional
?expression: literal | NAME "." NAME -> member | NAME LPAR [expression ("," expression)*] RPAR -> call | NAME -> bare
literal: STRING | CURLY | INTEGER | TRUE | FALSE

ARROW: "=>"
SEMICOLON: ";"
BANG: "!"
LBRACKET: "["
LPAR: "("
RPAR: ")"
EQUAL: "="
OPERATOR: "==" | "!=" | "<=" | ">=" | "<" | ">" | "="
TRUE.2: /true\b/
FALSE.2: /false\b/
NAME: /[A-Za-z_][A-Za-z0-9_]*/
DECIMAL.2: /[0-9]{1,3}\.[0-9]{1,3}/
INTEGER: /-?[0-9]+/
STRING: /"(?:\\.|[^"\\\n])*"/
CURLY: /[\u201c\u201d](?:\\.|[^\u201c\u201d"\\\n])*["\u201c\u201d]|"(?:\\.|[^\u201c\u201d"\\\n])*[\u201c\u201d]/
COMMENT: /\/\/[^\r\n]*/
SPACE: /[ \t\r\n\f\u00a0\ufeff]+/
%ignore COMMENT
%ignore SPACE
"""
Node = Any
"""A tree of lark or a token, as it stands among the children of a tree: their types are not known before run time."""
_SPELLED = {
    "ARROW": "=>", "SEMICOLON": ";", "BANG": "!", "LBRACKET": "[", "LPAR": "(", "RPAR": ")", "RSQB": "]", "LBRACE": "{",
    "RBRACE": "}", "EQUAL": "=", "OPERATOR": "a comparison (==, !=, <, <=, >, >=)", "COLON": ":", "COMMA": ",",
    "DOT": ".", "TRUE": "true", "FALSE": "false", "NAME": "a name", "DECIMAL": "a version (1.0, 1.1, 1.2)",
    "INTEGER": "an integer", "STRING": "a string in double quotes", "__ANON_0": "&&", "$END": "the end of the policy",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in the text: line and column count from 1, `start` and `end` characters from 0."""

    line: int
    column: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Defect:
    """One departure from the grammar. `replacement` takes the place of the text, where a repair is certain.

    A policy with one that is `harmless` can be evaluated: the rule has no effect.
    """

    symbol: str
    place: Place
    rule: str
    message: str
    replacement: str | None = None
    harmless: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The defect for machines: `symbol`, `line`, `column`, `rule`, `message`, and `replacement` where known."""
        found = {
            "symbol": self.symbol,
            "line": self.place.line,
            "column": self.place.column,
            "rule": self.rule,
            "message": self.message,
        }
        return found if self.replacement is None else found | {"replacement": self.replacement}


class PolicyTextError(FormatError):
    """A policy does not follow the grammar. `defect` names the symbol, line, column and the rule that failed."""

    code = "policy-syntax"
    default_advice = (
        "Correct the policy at the place named here; `confcom policy lint` lists every place with its repair."
    )

    def __init__(self, defect: Defect) -> None:
        where = f"line {defect.place.line}, column {defect.place.column}"
        message = f"{where} ({defect.rule}), at {defect.symbol!r}: {defect.message}"
        super().__init__(message, structure="policy", field="")
        self.defect = defect


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that the policy states: bool, int (64 bits, signed) or str."""

    value: bool | int | str


@dataclass(frozen=True, slots=True)
class Member:
    """`identifier.property`: the property of every claim that the identifier names."""

    identifier: str
    property: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function of version 1.2 with its arguments."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Literal | Member | Call


@dataclass(frozen=True, slots=True)
class Comparison:
    """`property OPERATOR expression` of a condition."""

    property: str
    operator: str
    expected: Expression


@dataclass(frozen=True, slots=True)
class Condition:
    """True where at least one claim satisfies every comparison, or none does where it is `negated`."""

    comparisons: tuple[Comparison, ...]
    identifier: str | None
    negated: bool


@dataclass(frozen=True, slots=True)
class Action:
    """What a rule does: `permit()`, `deny()`, or a claim by its properties or copied from an identifier."""

    verb: str
    properties: dict[str, Expression]
    copied: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, action, and the text and line that a trace shows."""

    conditions: tuple[Condition, ...]
    action: Action
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A parsed policy and the text that it was read from."""

    version: str
    configuration: tuple[Rule, ...]
    authorization: tuple[Rule, ...]
    issuance: tuple[Rule, ...]
    text: str = field(repr=False)


def parse_policy(text: str, *, in_force: bool = False) -> PolicyText:
    """Read a policy strictly. One `in_force` may have harmless defects: an older version accepted it.

    Raises:
        PolicyTextError: the first departure from the grammar, or the first rule that issues a reserved claim.
    """
    policy, defects = lint_policy(text)
    for defect in defects:
        if not (in_force and defect.harmless):
            raise PolicyTextError(defect)
    return policy


def is_reserved(claim: str) -> bool:
    """Whether only the service issues this claim, in any spelling: Go's JSON reader takes a name in other case too."""
    name = claim.casefold()
    return name in RESERVED or name.startswith(RESERVED_PREFIXES)


def lint_policy(text: str) -> tuple[PolicyText, tuple[Defect, ...]]:
    """Read a policy and list the known slips in it, in the order of the text.

    Raises:
        PolicyTextError: something that no reading of the grammar allows.
    """
    if len(text) > MAX_TEXT:
        place = Place(1, 1, 0, 0)
        raise PolicyTextError(Defect("", place, "policy", f"{len(text)} characters, at most {MAX_TEXT} are read"))
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise PolicyTextError(_syntax_defect(error, text)) from None
    reader = _Reader(text)
    policy = reader.policy(tree)
    return policy, tuple(sorted(reader.defects, key=lambda defect: defect.place.start))


def repaired(text: str, defects: Sequence[Defect]) -> str:
    """The text with the repair of every defect that has one."""
    for defect in sorted(defects, key=lambda defect: defect.place.start, reverse=True):
        if defect.replacement is not None:
            text = text[: defect.place.start] + defect.replacement + text[defect.place.end :]
    return text


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True, maybe_placeholders=True, postlex=_Nesting())


class _Nesting:
    """Refuses calls that nest too deep while the tokens pass, before anything recursive sees them."""

    always_accept = ()

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth = 0
        for token in stream:
            depth += (token.type == "LPAR") - (token.type == "RPAR")
            if depth > MAX_NESTING + 1:
                message = f"calls are nested more than {MAX_NESTING} deep"
                raise PolicyTextError(Defect(str(token), _place(token), "policy > rule > call", message))
            yield token


def _place(token: Node) -> Place:
    """Of a token or of the position of a tree."""
    start = getattr(token, "start_pos", 0) or 0
    end = getattr(token, "end_pos", None)
    return Place(token.line or 1, token.column or 1, start, start if end is None else end)


def _syntax_defect(error: UnexpectedInput, text: str) -> Defect:
    """The symbol, its place, the rule that failed, and what the grammar expects there."""
    if isinstance(error, UnexpectedToken):
        expected, token = error.accepts or error.expected, error.token
        ended = token.type == "$END"
        symbol = "the end" if ended else str(token)
        place = Place(*_line_and_column(text, len(text)), len(text), len(text)) if ended else _place(token)
        rule = _failing_rule(error.interactive_parser)
    else:
        expected, start = getattr(error, "allowed", set()), int(error.pos_in_stream)  # type: ignore[call-overload]
        symbol, rule = text[start], "policy"
        place = Place(error.line, error.column, start, start + 1)
    if symbol == '"' or symbol in "\u201c\u201d":
        return Defect(symbol, place, rule, "the string is not closed on its line")
    names = sorted(_SPELLED.get(name, name) for name in expected if name != "CURLY")
    return Defect(symbol[:40], place, rule, f"expected {', '.join(names)}" if names else "unknown character")


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _failing_rule(parser: Node) -> str:
    """The rules that were open, from what the parser had on its stack: `policy > authorizationrules > condition`."""
    path, section = ["policy"], None
    for value in parser.parser_state.value_stack if parser else ():
        kind = getattr(value, "type", getattr(value, "data", ""))
        if kind == "NAME":
            section = str(value)
        elif kind == "LBRACE":
            path.append((section or "").lower())
        elif kind in ("LBRACKET", "RSQB"):
            path.append("condition")
        elif kind == "ARROW":
            path = [word for word in path if word != "condition"] + ["action"]
        elif kind == "LPAR" and path[-1] == "action":
            path.append("arguments")
    if path == ["policy"] and section and section.lower() == "version":
        path.append("versionInfo")
    return " > ".join(path)


class _Reader:
    """Walks the tree of one policy into rules and collects what departs from the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.defects: list[Defect] = []
        self.version = ""
        self.section = ""
        self.identifiers: set[str] = set()

    def policy(self, tree: Node) -> PolicyText:
        version, *sections = tree.children
        self._version(version)
        rules: dict[str, tuple[Rule, ...]] = {}
        for section in sections:
            name = self._section_name(section.children[0], rules)
            if section.children[1] is not None:
                self._slip(section.children[1], "a section has its rules in braces, without =", "")
            rules[name] = tuple(self._rule(rule) for rule in section.children[1:] if isinstance(rule, Tree))
        if AUTHORIZATION not in rules:
            place = Place(*_line_and_column(self.text, len(self.text)), len(self.text), len(self.text))
            raise PolicyTextError(Defect("the end", place, "policy", f"the section {AUTHORIZATION} is missing"))
        return PolicyText(
            self.version, rules.get(CONFIGURATION, ()), rules[AUTHORIZATION], rules.get(ISSUANCE, ()), self.text
        )

    def _version(self, tree: Node) -> None:
        keyword, number, *_ = tree.children
        self.section = "versionInfo"
        if keyword.lower() != "version":
            raise self._error(keyword, "a policy begins with version=1.0;, version=1.1; or version=1.2;")
        if number.type != "DECIMAL":
            self._slip(number, "the version is a number without quotes", str(number)[1:-1])
        self.version = str(number).strip('"\u201c\u201d')
        if self.version not in VERSIONS:
            raise self._error(number, f"version {self.version} is unknown: {', '.join(VERSIONS)} are")
        if not self.text[: tree.meta.end_pos].endswith(";"):
            self._missing_semicolon(tree)

    def _section_name(self, token: Node, seen: dict[str, Any]) -> str:
        name: str = token.lower()
        self.section = name
        if name not in SECTIONS:
            near = difflib.get_close_matches(name, SECTIONS, 1, 0.8)
            if not near:
                raise self._error(token, f"expected one of the sections {', '.join(SECTIONS)}")
            self._slip(token, f"the section is written {near[0]}", near[0])
            self.section = name = near[0]
        if name in seen:
            raise self._error(token, f"the section {name} stands twice")
        if any(SECTIONS.index(other) > SECTIONS.index(name) for other in seen):
            raise self._error(token, f"the sections stand in the order {', '.join(SECTIONS)}")
        if name == CONFIGURATION and self.version == "1.0":
            raise self._error(token, "configurationrules need version 1.1 or 1.2")
        return name

    def _rule(self, tree: Node) -> Rule:
        conditions, _, action, semicolon = tree.children
        self.identifiers = set()
        read = tuple(self._condition(each) for each in conditions.children) if isinstance(conditions, Tree) else ()
        found = self._action(action)
        if semicolon is None:
            self._missing_semicolon(tree)
        meta = tree.meta
        return Rule(read, found, meta.line, self.text[meta.start_pos : meta.end_pos])

    def _condition(self, tree: Node) -> Condition:
        bang, identifier, _, *comparisons = tree.children
        if bang is not None:
            self._needs_1_2(bang, "a negated condition")
        read = tuple(self._comparison(each) for each in comparisons)
        if identifier is not None:
            if identifier in self.identifiers:
                raise self._error(identifier, f"the identifier {identifier} stands twice in this rule")
            self.identifiers.add(str(identifier))
        return Condition(read, None if identifier is None else str(identifier), bang is not None)

    def _comparison(self, tree: Node) -> Comparison:
        name, operator, expected = tree.children
        self._claim_property(name)
        if operator == "=":
            self._slip(operator, "a comparison is written ==", "==")
        value = self._expression(expected)
        written = "==" if operator == "=" else str(operator)
        if written in _ORDERED and (
            name != "value" or (isinstance(value, Literal) and (isinstance(value.value, (bool, str))))
        ):
            raise self._error(operator, f"{written} compares integers only")
        return Comparison(str(name), written, value)

    def _action(self, tree: Node) -> Action:
        name, _, *arguments, _ = tree.children
        verb = str(name)
        if verb not in ACTIONS[self.section]:
            message = f"{self.section} take {', '.join(ACTIONS[self.section])}"
            if (verb, self.section) != ("issue", AUTHORIZATION):
                raise self._error(name, message)
            # An example of Microsoft's issues what a rule below asks for; nothing of this section reaches a token.
            self._slip(name, message, "add")
            verb = "add"
        properties: dict[str, Expression] = {}
        copied = None
        given = [argument for argument in arguments if argument is not None]
        if verb in ("permit", "deny"):
            if given:
                raise self._error(name, f"{verb}() takes no arguments")
            return Action(verb, {})
        for number, argument in enumerate(given):
            key, value = self._argument(argument, number)
            if key in properties or (key == "claim" and copied):
                raise self._error(argument.meta, f"{key} stands twice")
            if key == "claim":
                copied = value
            else:
                properties[key] = self._expression(value)
                if verb == "issue" and key == "type":
                    self._check_issued(value, properties[key])
        self._check_claim(name, verb, properties, copied)
        return Action(verb, properties, copied)

    def _argument(self, tree: Node, number: int) -> tuple[str, Node]:
        """The name of an argument and its unread value; the identifier itself for `claim=`."""
        if tree.data == "positional":
            (value,) = tree.children
            if number != 0 or getattr(value, "data", "") != "literal":
                raise self._error(tree.meta, "an argument is written name=value")
            place = _place(tree.meta)
            written = self.text[place.start : place.end]
            self._slip(tree.meta, "the type of a claim is written type=…", f"type={written}")
            return "type", value
        name, value = tree.children
        if name != "claim":
            self._claim_property(name)
            return str(name), value
        if getattr(value, "data", "") != "bare":
            raise self._error(name, "claim= takes an identifier of this rule")
        return "claim", self._known(value.children[0])

    def _check_issued(self, written: Node, kind: Expression) -> None:
        if isinstance(kind, Literal) and isinstance(kind.value, str) and is_reserved(kind.value):
            message = "only the service issues this claim; issue it under another name"
            self._slip(written.meta, message, None, harmless=True)

    def _check_claim(self, name: Token, verb: str, properties: dict[str, Expression], copied: str | None) -> None:
        if copied is not None:
            if properties:
                raise self._error(name, f"{verb}(claim=…) takes nothing else")
            return
        if missing := [each for each in ("type", "value") if each not in properties]:
            raise self._error(name, f"{verb}() lacks {' and '.join(missing)}")
        stated = properties.get("valueType")
        if isinstance(stated, Literal) and stated.value not in VALUE_TYPES:
            raise self._error(name, f"valueType is one of {', '.join(VALUE_TYPES)}")
        kind = properties["type"]
        if isinstance(kind, Literal) and not isinstance(kind.value, str):
            raise self._error(name, "the type of a claim is a string")

    def _expression(self, tree: Node) -> Expression:
        if tree.data == "literal":
            return Literal(self._literal(tree.children[0]))
        if tree.data == "member":
            identifier, name = tree.children
            self._claim_property(name)
            return Member(self._known(identifier), str(name))
        if tree.data == "bare":
            raise self._error(
                tree.children[0], "expected a string, an integer, true, false, a call or identifier.value"
            )
        return self._call(tree)

    def _call(self, tree: Node) -> Call:
        name, left, *arguments, _ = tree.children
        self._needs_1_2(name, f"the function {name}")
        function = str(name)
        if function not in FUNCTIONS:
            near = difflib.get_close_matches(function, FUNCTIONS, 1, 0.8)
            if not near:
                raise self._error(name, f"the functions are {', '.join(FUNCTIONS)}")
            self._slip(name, f"the function is written {near[0]}", near[0])
            function = near[0]
        read = tuple(self._expression(argument) for argument in arguments if argument is not None)
        if function == "ContainsOnlyValue" and len(read) == 1 and len(self.identifiers) == 1:
            (identifier,) = self.identifiers
            self._slip(left, f"{function} lacks the set that it looks at", f"({identifier}.value, ")
            read = (Member(identifier, "value"), *read)
        if len(read) != FUNCTIONS[function]:
            raise self._error(name, f"{function} takes {FUNCTIONS[function]} arguments, found {len(read)}")
        return Call(function, read)

    def _literal(self, token: Token) -> bool | int | str:
        if token.type in ("TRUE", "FALSE"):
            return token.type == "TRUE"
        if token.type == "INTEGER":
            if len(token) > 20 or not -(1 << 63) <= int(token) < 1 << 63:  # Python converts at most 4,300 digits
                raise self._error(token, "an integer has 64 bits")
            return int(token)
        inner = str(token)[1:-1]
        if token.type == "CURLY":
            self._slip(token, "strings stand in straight double quotes", f'"{inner}"')
        return self._unescaped(token, inner)

    def _unescaped(self, token: Token, inner: str) -> str:
        parts, rest = [], iter(inner)
        for character in rest:
            if character == "\\":
                character = next(rest)
                if character not in '"\\':
                    raise self._error(token, rf"the escapes of a string are \" and \\, found \{character}")
            parts.append(character)
        return "".join(parts)

    def _known(self, identifier: Token) -> str:
        if identifier not in self.identifiers:
            raise self._error(identifier, f"no condition before this place names its claims {identifier}")
        return str(identifier)

    def _claim_property(self, name: Token) -> None:
        if name not in CLAIM_PROPERTIES:
            raise self._error(name, f"the properties of a claim are {', '.join(CLAIM_PROPERTIES)}")

    def _needs_1_2(self, token: Token, what: str) -> None:
        if self.version != "1.2":
            raise self._error(token, f"{what} needs version=1.2;, this policy has version={self.version};")

    def _missing_semicolon(self, tree: Node) -> None:
        end = tree.meta.end_pos
        place = Place(tree.meta.end_line, tree.meta.end_column, end, end)
        self.defects.append(Defect("", place, self._path, "a ; is missing here", ";"))

    @property
    def _path(self) -> str:
        return f"policy > {self.section}"

    def _slip(self, token: Node, message: str, replacement: str | None, *, harmless: bool = False) -> None:
        place = _place(token)
        symbol = self.text[place.start : place.end][:40]
        self.defects.append(Defect(symbol, place, self._path, message, replacement, harmless))

    def _error(self, token: Node, message: str) -> PolicyTextError:
        place = _place(token)
        return PolicyTextError(Defect(self.text[place.start : place.end][:40], place, self._path, message))
