"""Writes the API descriptions beside it from the full ones (a folder given as the argument), without their prose.

``2024-07-01.20.0.json`` is the official description (azure-rest-api-specs, MIT licence), which the older api-versions
are held to (2024-02-01.19.0 has fewer operations); ``2025-06-01.json`` is derived from azure-batch 15.1.0.
``error_codes.tsv`` has the published codes.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
SOURCES = {
    "BatchService-2024-07-01.20.0.json": "2024-07-01.20.0.json",
    "BatchService-2025-06-01.derived.json": "2025-06-01.json",
}
#: What a validator reads of a schema, a parameter, an operation and a response.
KEPT = {
    *("type", "format", "enum", "properties", "required", "items", "$ref", "allOf", "additionalProperties"),
    *("minimum", "maximum", "maxItems", "x-nullable", "readOnly"),
    *("operationId", "parameters", "responses", "schema", "name", "in"),
}
MAPS = {"properties", "responses"}
#: The derivation lost that these are written as strings, as OData writes 64-bit integers.
LONG = (("FileProperties", "contentLength"),)


def bare(value: Any) -> Any:
    """The value without what only people read."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if name in KEPT}
    return {
        name: {key: bare(each) for key, each in item.items()} if name in MAPS else bare(item)
        for name, item in kept.items()
    }


def main(folder: pathlib.Path) -> None:
    for source, target in SOURCES.items():
        full = json.loads((folder / source).read_text())
        for kind, name in LONG:
            full["definitions"].get(kind, {"properties": {name: {}}})["properties"][name]["format"] = "int64"
        lines = []
        for part in ("paths", "definitions"):
            entries = full[part].items()
            if part == "paths":
                entries = [(path, {verb: bare(each) for verb, each in verbs.items()}) for path, verbs in entries]
            else:
                entries = [(name, bare(each)) for name, each in entries]
            rows = ",\n".join(f"{json.dumps(name)}:{json.dumps(each, separators=(',', ':'))}" for name, each in entries)
            lines.append(f'"{part}":{{\n{rows}\n}}')
        (HERE / target).write_text("{" + ",\n".join(lines) + "}\n")
    shutil.copyfile(folder / "error_codes.tsv", HERE / "error_codes.tsv")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
