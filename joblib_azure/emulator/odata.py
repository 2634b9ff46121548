"""`$filter`, `$select` and paging of lists.

A filter is parsed once into a predicate over the resource's own fields; which properties it may name, and with
which operators, differs by resource (https://learn.microsoft.com/rest/api/batchservice/odata-filters-in-batch).
`$select` prunes the finished JSON. A page is continued by the sequence number of its last item, so that a list
under change neither repeats an item nor leaves one out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import errors, schema, times

Predicate = Callable[[Any], bool]

_TOKEN = re.compile(
    r"\s*(?:(?P<date>(?:DateTime|datetimeoffset)?'(?:[^']|'')*')|(?P<punct>[(),])|(?P<number>-?\d+(?:\.\d+)?)(?![\w-])"
    r"|(?P<word>[A-Za-z_][\w/]*))",
    re.IGNORECASE,
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
#: Parentheses in each other; more is no filter but an attack on the stack.
_MAX_DEPTH = 40
#: Of an integer: those of 64 bits, and a sign.
_MOST_DIGITS = 20
_EQUALITY = frozenset({"eq", "ne"})
_ORDER = frozenset(_OPERATORS)


@dataclass(frozen=True)
class Field:
    """One property that a filter may name: its type, its operators, and how to read it off a resource."""

    kind: str  # "string", "state" (compared without case), "datetime", "int", "bool"
    read: Callable[[Any], Any]
    operators: frozenset[str]


def text(read: Callable[[Any], Any]) -> Field:
    return Field("string", read, _ORDER | {"startswith"})


def state(read: Callable[[Any], Any]) -> Field:
    return Field("state", read, _EQUALITY)


def moment(read: Callable[[Any], Any]) -> Field:
    return Field("datetime", read, _ORDER)


def number(read: Callable[[Any], Any]) -> Field:
    return Field("int", read, _ORDER)


def flag(read: Callable[[Any], Any]) -> Field:
    return Field("bool", read, _EQUALITY)


def exact(read: Callable[[Any], Any]) -> Field:
    return Field("string", read, frozenset({"eq"}))


def equal(read: Callable[[Any], Any]) -> Field:
    return Field("string", read, _EQUALITY)


def prefix(read: Callable[[Any], Any]) -> Field:
    return Field("string", read, frozenset({"startswith"}))


def parse_filter(source: str, fields: Mapping[str, Field]) -> Predicate:
    """Turn a `$filter` into a predicate.

    Raises
    ------
    BatchError
        400 `InvalidQueryParameterValue` for a syntax error, an unknown property, an operator that the property does not
        take, or a literal of another type.
    """
    return _Parser(source, fields).parse()


class _Parser:
    """Recursive descent: or < and < not < comparison."""

    def __init__(self, source: str, fields: Mapping[str, Field]) -> None:
        self._source = source
        self._fields = {name.lower(): field for name, field in fields.items()}
        self._names = sorted(fields)
        self._tokens = self._split(source)
        self._at = 0
        self._depth = 0

    def _bad(self, reason: str) -> errors.BatchError:
        return errors.invalid_query("$filter", self._source, reason)

    def _split(self, source: str) -> list[tuple[str, str]]:
        tokens, position = [], 0
        source = source.rstrip()
        while position < len(source):
            match = _TOKEN.match(source, position)
            if match is None or match.lastgroup is None:
                raise self._bad(f"Syntax error at position {position}.")
            tokens.append((match.lastgroup, match.group(match.lastgroup)))
            position = match.end()
        return tokens

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, punctuation: str) -> None:
        if self._next() != ("punct", punctuation):
            raise self._bad(f"'{punctuation}' is expected.")

    def _is_word(self, word: str) -> bool:
        kind, value = self._peek()
        return kind == "word" and value.lower() == word

    def parse(self) -> Predicate:
        if not self._tokens:
            raise self._bad("The filter is empty.")
        predicate = self._any_of()
        if self._peek()[0] != "end":
            raise self._bad(f"'{self._peek()[1]}' is not expected here.")
        return predicate

    def _any_of(self) -> Predicate:
        parts = [self._all_of()]
        while self._is_word("or"):
            self._next()
            parts.append(self._all_of())
        return parts[0] if len(parts) == 1 else lambda item: any(part(item) for part in parts)

    def _all_of(self) -> Predicate:
        parts = [self._one()]
        while self._is_word("and"):
            self._next()
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else lambda item: all(part(item) for part in parts)

    def _one(self) -> Predicate:
        if self._peek() == ("punct", "("):
            self._next()
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise self._bad("The filter is nested too deeply.")
            inner = self._any_of()
            self._depth -= 1
            self._expect(")")
            return inner
        kind, word = self._next()
        if kind != "word":
            raise self._bad("A property name is expected.")
        if word.lower() == "startswith" and self._peek() == ("punct", "("):
            self._next()
            field = self._field(self._next()[1], "startswith")
            self._expect(",")
            start = str(self._literal(field))
            self._expect(")")
            fold = field.kind == "state"
            return lambda item: _starts(field.read(item), start, fold)
        name = self._next()[1].lower()
        if name not in _OPERATORS:
            raise self._bad(f"'{name}' is no operator; use {', '.join(_OPERATORS)} or startswith().")
        field = self._field(word, name)
        return _comparison(field, name, self._literal(field))

    def _field(self, name: str, used: str) -> Field:
        field = self._fields.get(name.lower())
        if field is None:
            raise self._bad(f"'{name}' cannot be filtered on; properties: {', '.join(self._names)}.")
        if used not in field.operators:
            raise self._bad(f"'{name}' takes {', '.join(sorted(field.operators))}, not {used}.")
        return field

    def _literal(self, field: Field) -> Any:
        kind, value = self._next()
        if field.kind == "int":
            if kind == "number" and "." not in value and len(value) <= _MOST_DIGITS:
                return int(value)
            raise self._bad("An integer is expected.")
        if field.kind == "bool":
            if kind == "word" and value.lower() in ("true", "false"):
                return value.lower() == "true"
            raise self._bad("true or false is expected.")
        if kind != "date":
            raise self._bad("A quoted literal is expected.")
        dated = not value.startswith("'")
        inner = value[value.index("'") + 1 : -1].replace("''", "'")
        if field.kind == "datetime":
            parsed = times.parse_datetime(inner) if dated else None
            if parsed is None:
                raise self._bad("A date is expected, as DateTime'2026-01-31T12:00:00Z'.")
            return parsed
        if dated:
            raise self._bad("A string is expected, not a date.")
        return inner.lower() if field.kind == "state" else inner


def _starts(value: Any, start: str, fold: bool) -> bool:
    if value is None:
        return False
    return (str(value).lower() if fold else str(value)).startswith(start)


def _comparison(field: Field, name: str, literal: Any) -> Predicate:
    compare, read = _OPERATORS[name], field.read
    if field.kind == "state":
        return lambda item: compare(str(read(item) or "").lower(), literal)
    if name in _EQUALITY:
        return lambda item: compare(read(item), literal)

    def ordered(item: Any) -> bool:
        value = read(item)
        return value is not None and compare(value, literal)

    return ordered


# -- $select ----------------------------------------------------------------------------------------------------------


class Selection:
    """The properties that a `$select` names, as a tree."""

    def __init__(self, source: str, type_name: str) -> None:
        self._tree: dict[str, Any] = {}
        for path in source.split(","):
            names = path.strip().split("/")
            self._check(names, type_name, source)
            branch = self._tree
            for name in names[:-1]:
                found = branch.setdefault(name, {})
                if found is None:  # the whole is selected already
                    break
                branch = found
            else:
                branch[names[-1]] = None

    @staticmethod
    def _check(names: list[str], type_name: str, source: str) -> None:
        known: Mapping[str, Any] = schema.properties(type_name)
        for depth, name in enumerate(names):
            if name not in known:
                reason = f"'{'/'.join(names)}' is no property of {type_name}; properties: {', '.join(sorted(known))}."
                raise errors.invalid_query("$select", source, reason)
            kind = known[name]
            kind = kind[0] if isinstance(kind, list) else kind
            nested = isinstance(kind, str) and kind.startswith("#")
            if depth < len(names) - 1 and not nested:
                raise errors.invalid_query("$select", source, f"'{name}' has no properties of its own.")
            known = schema.properties(kind[1:]) if nested else {}

    def apply(self, shape: dict[str, Any]) -> dict[str, Any]:
        return _prune(shape, self._tree)


def _prune(shape: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, inner in tree.items():
        if name not in shape:
            continue
        value = shape[name]
        if inner is None:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = _prune(value, inner)
        else:
            kept[name] = [_prune(item, inner) for item in value]
    return kept


# -- paging -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """The items of one page, and the key to continue after (None: that was the last)."""

    items: list[Any]
    next_key: int | None


def page(
    items: Iterable[Any], key: Callable[[Any], int], *, after: int, size: int, keep: Predicate | None = None
) -> Page:
    """Up to `size` items whose key is above `after`; `items` come in the order of their keys."""
    found: list[Any] = []
    for item in items:
        if key(item) <= after or (keep is not None and not keep(item)):
            continue
        if len(found) == size:
            return Page(found, key(found[-1]))
        found.append(item)
    return Page(found, None)
