"""Writes joblib_azure/emulator/wire_schema.json from the API description (a folder given as the argument).

It keeps what the server checks requests against: for every operation its path, success code, query parameters and
body type; for every body type its properties, their types, and which are required.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

DERIVED = "BatchService-2025-06-01.derived.json"
READ_TYPES = (
    "BatchPool",
    "BatchNode",
    "BatchJob",
    "BatchTask",
    "BatchJobPreparationAndReleaseTaskStatus",
    "BatchJobSchedule",
    "BatchNodeVMExtension",
)
TARGET = pathlib.Path(__file__).parents[2] / "joblib_azure" / "emulator" / "wire_schema.json"


def type_of(prop: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """The compact form of a property's type: a name, ``[item]`` for lists, ``{"enum": [...]}``."""
    if "allOf" in prop:
        return type_of(prop["allOf"][0], definitions)
    if "$ref" in prop:
        name = prop["$ref"].rsplit("/", 1)[-1]
        if name == "datetime":
            return "datetime"
        target = definitions.get(name, {})
        return {"enum": target["enum"]} if "enum" in target else f"#{name}"
    if prop.get("type") == "array":
        return [type_of(prop["items"], definitions)]
    if "enum" in prop:
        return {"enum": prop["enum"]}
    if prop.get("format") == "duration":
        return "duration"
    return prop.get("type", "any")


def compact(description: dict[str, Any]) -> dict[str, Any]:
    """Reduce an API description to what the server reads."""
    definitions = description["definitions"]
    operations = []
    types: dict[str, Any] = {}

    def add(kind: Any) -> None:
        if isinstance(kind, list):
            add(kind[0])
        elif isinstance(kind, str) and kind.startswith("#") and kind[1:] not in types:
            definition = definitions[kind[1:]]
            properties = {n: type_of(p, definitions) for n, p in definition.get("properties", {}).items()}
            types[kind[1:]] = {"properties": properties, "required": sorted(definition.get("required", []))}
            for inner in properties.values():
                add(inner)

    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            body = next((p for p in parameters if p.get("in") == "body"), None)
            kind = type_of(body["schema"], definitions) if body else None
            if operation["operationId"] == "replace_job":
                kind = "#BatchJob"  # the SDK reuses the model that it reads
            if operation["operationId"] == "replace_job_schedule":
                kind = "#BatchJobSchedule"
            if operation["operationId"] == "replace_task":
                kind = "#BatchTask"
            if kind is not None:
                add(kind)
            operations.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "id": operation["operationId"],
                    "success": min(int(code) for code in operation["responses"] if code.isdigit()),
                    "query": sorted(p["name"] for p in parameters if p.get("in") == "query"),
                    "body": kind,
                }
            )
    for name in READ_TYPES:  # what `$select` may name
        add(f"#{name}")
    return {"operations": operations, "types": dict(sorted(types.items()))}


if __name__ == "__main__":
    source = pathlib.Path(sys.argv[1]) / DERIVED
    TARGET.write_text(json.dumps(compact(json.loads(source.read_text())), indent=1, sort_keys=True) + "\n")
