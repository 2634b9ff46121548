"""A validation's errors as lines for a person: dotted key, value, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from .values import scrub

#: Characters of a value that an error shows.
_SHOWN = 100


def explain(
    cls: type[BaseModel],
    exc: ValidationError,
    values: Mapping[str, Any],
    where: str,
    spelling: Mapping[str, str] | None = None,
) -> str:
    """Return every error of `exc`, a line each.

    Parameters
    ----------
    cls, values
        What was checked.
    where : str
        Where the values come from.
    spelling : mapping of str to str, optional
        Dotted keys of the file, by the keys of the model that they were turned into.
    """
    lines = []
    for error in exc.errors(include_url=False):
        key, secret, parent = _follow(cls, error["loc"], values)
        key = (spelling or {}).get(key, key)
        kind, message = error["type"], _message(error)
        if kind == "extra_forbidden":
            # As it stands there: another spelling of the same setting may be what was read.
            above = _follow(cls, error["loc"][:-1], values)[0]
            key = ".".join(part for part in (above, _printable(str(error["loc"][-1]))) if part)
            lines.append(f"{key}: {_unknown(parent, str(error['loc'][-1]), values if parent is cls else {})}")
        elif kind == "missing":
            lines.append(f"{key}: missing")
        elif kind == "other_key":
            # A rule between two settings, found at the later one and told at the one to change.
            context = error["ctx"]
            lines.append(f"{context['key']} = {_shown(context['value'])}: {context['text']}")
        else:
            whole = isinstance(error["input"], Mapping | BaseModel | list | tuple) and not message.startswith(
                "expected"
            )
            value = "" if secret or whole or not error["loc"] else f" = {_shown(error['input'])}"
            lines.append(f"{key or 'together'}{value}: {message}{_nearest_literal(error)}")
    return f"{where} is not usable:\n  " + "\n  ".join(dict.fromkeys(lines))


def _message(error: Any) -> str:
    """Say what is allowed, without pydantic's words for Python programmers."""
    if error["type"] in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        return "expected an object"
    if error["type"] in ("tuple_type", "list_type"):
        return "expected a list"
    message: str = error["msg"].removeprefix("Value error, ")
    return message.replace("Input should be ", "expected ", 1).replace("a valid string", "a text")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if isinstance(value, SecretStr | BaseModel):
        return f"a {type(value).__name__}"
    text = scrub(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _nearest_literal(error: Any) -> str:
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    allowed = error["ctx"]["expected"].replace(" or ", ", ").split(", ")
    near = difflib.get_close_matches(error["input"], [text.strip("'") for text in allowed], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _unknown(parent: type[BaseModel], key: str, given: Mapping[str, Any]) -> str:
    answer: str | None = getattr(parent, "answers", {}).get(key)
    if answer is not None:
        return answer
    known = dict(names_of(parent))
    if key in known:
        other = next(
            (name for name, field in known.items() if field is known[key] and name != key and name in given), ""
        )
        return f"this setting is there twice, also as {other!r}" if other else "this setting is there twice"
    # Both spellings are candidates, so that a misspelt Python name is answered with a Python name.
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return f"there is no such setting; did you mean {near[0]!r}?"
    return f"there is no such setting; known are {', '.join(field_key(parent, name) for name in parent.model_fields)}"


def _printable(key: str) -> str:
    return key if key.isprintable() else ascii(key)


def _follow(cls: type[BaseModel], loc: tuple[int | str, ...], values: Any) -> tuple[str, bool, type[BaseModel]]:
    """Return the dotted key, whether its value may be a secret, and the model that the last part belongs to.

    The key is spelt as `values` spell it; what they do not have, as a file does.
    """
    parts: list[str] = []
    model: type[BaseModel] | None = cls
    parent, secret = cls, False
    for part in loc:
        if isinstance(part, int) or model is None:
            parts.append(_printable(str(part)))
            within = isinstance(part, int) and isinstance(values, list | tuple) and part < len(values)
            values = values[part] if within else None
            continue
        parent = model
        field = dict(names_of(model)).get(part)
        if field is None:
            parts.append(_printable(part))
            continue
        name = next(name for name, each in model.model_fields.items() if each is field)
        given = values if isinstance(values, Mapping) else {}
        # Where it is there in two spellings, the first of these is the one that was read.
        written = next((key for key, each in names_of(model) if each is field and key in given), None)
        parts.append(written or field_key(model, name))
        values = given.get(written)
        secret = holds_secret(field.annotation)
        model = next(models_in(field.annotation), None)
    return ".".join(parts), secret, parent


def names_of(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield each name that a setting may be written by, with its field; of several the strongest first."""
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        for choice in alias.choices if isinstance(alias, AliasChoices) else [alias]:
            if isinstance(choice, str) and choice != name:
                yield choice, field
        yield name, field


def field_key(model: type[BaseModel], name: str) -> str:
    """Return the name that a setting has in a file."""
    return model.model_fields[name].serialization_alias or name


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that values of a type are made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def holds_secret(annotation: Any) -> bool:
    """Whether a value of this type is or holds a secret, so that a wrong one must not be shown either."""
    if annotation is SecretStr:
        return True
    if any(holds_secret(part) for part in get_args(annotation)):
        return True
    return any(
        holds_secret(field.annotation) for model in models_in(annotation) for field in model.model_fields.values()
    )
