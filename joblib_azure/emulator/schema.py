"""Requests against the API description: which operations exist, and whether a body is well formed.

``wire_schema.json`` is made from the official description by ``tests/emulator/make_wire_schema.py``. What passes
through: decoded JSON bodies, on their way to the handlers, which check what the description does not say (ranges,
combinations).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from . import errors, times

#: Properties that older api-versions still send. The service dropped them in 2025-06-01; none changes how a task runs.
_LEGACY: dict[str, tuple[str, ...]] = {
    "BatchPoolCreateOptions": ("targetNodeCommunicationMode", "resourceTags", "certificateReferences"),
    "BatchPoolUpdateOptions": ("targetNodeCommunicationMode", "resourceTags", "certificateReferences"),
    "BatchPoolSpecification": ("targetNodeCommunicationMode", "resourceTags", "certificateReferences"),
    "BatchPoolReplaceOptions": ("targetNodeCommunicationMode", "certificateReferences"),
}


_INTEGER = re.compile(r"-?\d{1,10}")
#: Sent back as they were read, by PUT: what is required of them is required of answers only.
_READ_TYPES = ("BatchJob", "BatchJobSchedule", "BatchTask")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the REST API, as described."""

    name: str
    method: str
    path: str
    success: int
    query: frozenset[str]
    body: str | None


@cache
def _description() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("wire_schema.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def operations() -> list[Operation]:
    """All operations, in the order of the description."""
    return [
        Operation(
            name=item["id"].removesuffix("_internal"),
            method=item["method"],
            path=item["path"],
            success=item["success"],
            query=frozenset(name.lower() for name in item["query"]),
            body=item["body"],
        )
        for item in _description()["operations"]
    ]


def properties(type_name: str) -> dict[str, Any]:
    """The properties of a type and their types, as ``wire_schema.json`` writes them."""
    found: dict[str, Any] = _description()["types"][type_name]["properties"]
    return found


def check_body(body: Any, kind: str, *, legacy: bool) -> dict[str, Any]:
    """Check a request's body; return it without its nulls (the service takes null for "not there").

    Raises
    ------
    BatchError
        400 `InvalidRequestBody`, `MissingRequiredProperty` or `InvalidPropertyValue`.
    """
    checked = _check(body, kind, "", legacy)
    if not isinstance(checked, dict):
        raise errors.invalid_body("An object is expected.")
    return checked


def _check(value: Any, kind: Any, where: str, legacy: bool) -> Any:
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise errors.invalid_body(f"The property '{where}' must be a list.")
        return [_check(item, kind[0], f"{where}[{index}]", legacy) for index, item in enumerate(value)]
    if isinstance(kind, dict):
        return _check_enum(value, kind["enum"], where)
    if kind.startswith("#"):
        return _check_object(value, kind[1:], where, legacy)
    if kind == "integer" and isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)  # as `az batch` sends the numbers of its options, which Azure takes
    if not _is(value, kind):
        raise errors.invalid_body(f"The property '{where}' must be of type {kind}.")
    if kind == "duration":
        return _duration(value, where)
    if kind == "datetime" and times.parse_datetime(value) is None:
        raise errors.invalid_property(where, value, "The value must be an ISO 8601 date and time.")
    return value


def _duration(value: str, where: str) -> str:
    """A duration in the service's own writing: ``PT5M`` for the ``PT05M00S`` of `az batch`."""
    span = times.parse_duration(value)
    if span is None:
        raise errors.invalid_property(where, value, "The value must be an ISO 8601 duration.")
    return value if value == times.UNLIMITED else times.duration(span)


def _check_object(value: Any, name: str, where: str, legacy: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.invalid_body(f"The property '{where}' must be an object." if where else "An object is expected.")
    description = _description()["types"][name]
    known = description["properties"]
    checked: dict[str, Any] = {}
    for key, item in value.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            if key.startswith("odata.") or (legacy and key in _LEGACY.get(name, ())):
                continue  # an annotation, as in a model that is sent back as it was read; or of older days
            if legacy and key == "authenticationTokenSettings":
                raise errors.not_implemented(f"the property '{path}', which the service has retired")
            raise errors.invalid_body(
                f"The property '{path}' does not exist on type '{name}'. Make sure to only use property names that "
                "are defined by the type."
            )
        if item is not None:
            checked[key] = _check(item, known[key], path, legacy)
    for key in description["required"]:
        if key not in checked and name not in _READ_TYPES:
            raise errors.missing_property(f"{where}.{key}" if where else key)
    return checked


def _check_enum(value: Any, members: list[str], where: str) -> str:
    if isinstance(value, str):
        for member in members:
            if member.lower() == value.lower():
                return member
    raise errors.invalid_property(where, value, f"The value must be one of {', '.join(members)}.")


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "object":
        return isinstance(value, dict)
    return kind == "any" or isinstance(value, str)
