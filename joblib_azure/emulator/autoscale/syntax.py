"""From the text of a formula to its statements: tokens, and a parser that goes down from the weakest operator.

    statement   := name "=" expression | expression          separated by ";", the last may end the text
    expression  := or [ "?" expression ":" expression ]
    or          := and { "||" and }                          and := equality { "&&" equality }
    equality    := relation { ("==" | "!=") relation }       relation := sum { ("<" | "<=" | ">" | ">=") sum }
    sum         := product { ("+" | "-") product }           product := unary { ("*" | "/") unary }
    unary       := ("-" | "!") unary | postfix
    postfix     := primary { "." name [ "(" arguments ")" ] }
    primary     := number | string | name | name "(" arguments ")" | "(" expression ")"

Comments begin with ``//`` and end with the line. Names are case-sensitive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .problems import FormulaTooLong, SyntaxProblem

MAX_BYTES = 8192
MAX_STATEMENTS = 100
#: Parentheses, calls and ternaries in each other; more is no formula but an attack on the stack.
_MAX_DEPTH = 40

Position = tuple[int, int]


# -- expressions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    value: float
    at: Position


@dataclass(frozen=True)
class Text:
    value: str
    at: Position


@dataclass(frozen=True)
class Name:
    name: str
    at: Position


@dataclass(frozen=True)
class Unary:
    operator: str
    operand: Expression
    at: Position


@dataclass(frozen=True)
class Binary:
    operator: str
    left: Expression
    right: Expression
    at: Position

    def chain(self) -> tuple[Expression, list[Binary]]:
        """The leftmost operand, and the operations on it from the left: ``1 + 1 + …`` is as deep as it is long."""
        operations: list[Binary] = []
        first: Expression = self
        while isinstance(first, Binary):
            operations.append(first)
            first = first.left
        return first, operations[::-1]


@dataclass(frozen=True)
class Ternary:
    condition: Expression
    positive: Expression
    negative: Expression
    at: Position


@dataclass(frozen=True)
class Function:
    name: str
    arguments: tuple[Expression, ...]
    at: Position


@dataclass(frozen=True)
class Member:
    """`time().hour`; with arguments, `$PendingTasks.GetSample(1)`."""

    owner: Expression
    name: str
    arguments: tuple[Expression, ...] | None
    at: Position


Expression = Number | Text | Name | Unary | Binary | Ternary | Function | Member


@dataclass(frozen=True)
class Statement:
    """An assignment, or (without a name) an expression for what it does: `stop()`."""

    name: str | None
    expression: Expression
    at: Position


@dataclass(frozen=True)
class Formula:
    """The statements of a text."""

    text: str
    statements: tuple[Statement, ...]


# -- tokens -----------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>(?:\s|//[^\n]*)+)|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    r'|(?P<string>"[^"\n]*")|(?P<name>\$?[A-Za-z_]\w*)|(?P<sign><=|>=|==|!=|&&|\|\||[-+*/<>!?:;,.()=])'
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: Position


def _tokens(text: str) -> Iterator[_Token]:
    place, line, start = 0, 1, 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        at = (line, place - start + 1)
        if match is None or match.lastgroup is None:
            raise SyntaxProblem(f"Unexpected character '{text[place]}'", at)
        if match.lastgroup != "space":
            yield _Token(match.lastgroup, match.group(), at)
        breaks = match.group().count("\n")
        if breaks:
            line += breaks
            start = match.start() + match.group().rindex("\n") + 1
        place = match.end()
    yield _Token("end", "the end of the formula", (line, place - start + 1))


# -- parser -----------------------------------------------------------------------------------------------------------

#: How strongly each operator binds.
_STRENGTH = {
    sign: strength
    for strength, signs in enumerate((("||",), ("&&",), ("==", "!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "/")))
    for sign in signs
}


def parse(text: str) -> Formula:
    """Return the statements of a formula.

    Raises
    ------
    SyntaxProblem
        `FormulaTooLong` for more than 8 KB; for more than 100 statements, and for what is no formula.
    """
    size = len(text.encode())
    if size > MAX_BYTES:
        raise FormulaTooLong(f"The formula has {size} bytes; at most {MAX_BYTES} are allowed")
    statements = tuple(_Parser(list(_tokens(text))).statements())
    if not statements:
        raise SyntaxProblem("The formula has no statements", (1, 1))
    if len(statements) > MAX_STATEMENTS:
        reason = f"The formula has {len(statements)} statements; at most {MAX_STATEMENTS} are allowed"
        raise SyntaxProblem(reason, statements[MAX_STATEMENTS].at)
    return Formula(text, statements)


class _Parser:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    @property
    def _token(self) -> _Token:
        return self._tokens[self._place]

    def _next(self) -> _Token:
        token = self._token
        self._place += token.kind != "end"
        return token

    def _sees(self, *signs: str) -> bool:
        return self._token.kind == "sign" and self._token.text in signs

    def _expect(self, sign: str) -> None:
        if not self._sees(sign):
            raise self._unexpected(f"'{sign}' is expected")
        self._next()

    def _unexpected(self, wanted: str) -> SyntaxProblem:
        return SyntaxProblem(f"Unexpected {self._token.text}; {wanted}", self._token.at)

    def statements(self) -> Iterator[Statement]:
        while self._token.kind != "end":
            yield self._statement()
            if self._token.kind != "end":
                self._expect(";")

    def _statement(self) -> Statement:
        at = self._token.at
        following = self._tokens[min(self._place + 1, len(self._tokens) - 1)]
        if self._token.kind == "name" and (following.kind, following.text) == ("sign", "="):
            name = self._next().text
            self._next()
            return Statement(name, self._expression(), at)
        return Statement(None, self._expression(), at)

    def _expression(self) -> Expression:
        self._depth += 1
        self._bound(self._depth)
        found = self._binary(0)
        if self._sees("?"):
            at = self._next().at
            positive = self._expression()
            self._expect(":")
            found = Ternary(found, positive, self._expression(), at)
        self._depth -= 1
        return found

    def _binary(self, least: int) -> Expression:
        """Operators that bind at least as strongly; those of the same strength group from the left."""
        found = self._unary()
        while self._token.kind == "sign" and _STRENGTH.get(self._token.text, -1) >= least:
            token = self._next()
            found = Binary(token.text, found, self._binary(_STRENGTH[token.text] + 1), token.at)
        return found

    def _unary(self) -> Expression:
        signs = []
        while self._sees("-", "!"):
            signs.append(self._next())
        self._bound(len(signs))
        found = self._postfix()
        for sign in reversed(signs):
            found = Unary(sign.text, found, sign.at)
        return found

    def _bound(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise SyntaxProblem("The formula is nested too deeply", self._token.at)

    def _postfix(self) -> Expression:
        found = self._primary()
        members = 0
        while self._sees("."):
            members += 1
            self._bound(members)
            at = self._next().at
            if self._token.kind != "name":
                raise self._unexpected("a name is expected")
            name = self._next().text
            found = Member(found, name, self._arguments() if self._sees("(") else None, at)
        return found

    def _primary(self) -> Expression:
        token = self._token
        if token.kind == "number":
            self._next()
            return Number(float(token.text), token.at)
        if token.kind == "string":
            self._next()
            return Text(token.text[1:-1], token.at)
        if token.kind == "name":
            self._next()
            if self._sees("("):
                return Function(token.text, self._arguments(), token.at)
            return Name(token.text, token.at)
        if self._sees("("):
            self._next()
            found = self._expression()
            self._expect(")")
            return found
        raise self._unexpected("a value is expected")

    def _arguments(self) -> tuple[Expression, ...]:
        self._expect("(")
        found: list[Expression] = []
        while not self._sees(")"):
            if found:
                self._expect(",")
            found.append(self._expression())
        self._next()
        return tuple(found)
