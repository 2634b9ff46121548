"""What the models say of themselves: the JSON Schema for editors, and the reference in the documentation.

The texts are the models' own docstrings, so that there is one place to write them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import AliasChoices, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from .account import AccountConfig
from .base import Settings
from .cluster import ClusterConfig
from .explain import field_key, holds_secret, models_in

#: The two files, by the word that the command line has for each.
FILES: dict[str, type[Settings]] = {"cluster": ClusterConfig, "credentials": AccountConfig}
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def described(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring says of each field, without the type."""
    doc = inspect.getdoc(model) or ""
    found: dict[str, str] = {}
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^(\w[\w, ]*) : .*\n((?:[ ]{4}.*\n?|\n)*)", section[1] if section else "", re.MULTILINE)
    for names, text in entries:
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def summary(model: type[BaseModel]) -> str:
    """Return the docstring up to its parameters."""
    return (inspect.getdoc(model) or "").partition("\nParameters\n")[0].strip()


def json_schema(model: type[Settings]) -> dict[str, Any]:
    """Return the JSON Schema of a file, with the names and shapes that are read besides."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    models = {each.__name__: each for each in (model, *all_models(model))}
    for name, part in {model.__name__: schema, **schema.get("$defs", {})}.items():
        of = models[name]
        part["description"] = _code(summary(of))
        texts = described(of)
        for field_name, field in of.model_fields.items():
            _complete(part, field_name, field, of, texts.get(field_name, ""))
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    if model is ClusterConfig:
        slots = schema["properties"]["maxTasksPerNode"]
        kept = {key: slots.pop(key) for key in ("type", "minimum", "maximum")}
        slots["anyOf"] = [kept, {"const": "cores"}]
        commands = schema["properties"]["commandLine"]
        kept = {key: commands.pop(key) for key in ("type", "items")}
        commands["anyOf"] = [kept, {"type": "string"}]
    else:
        for key, text in _CREDENTIALS_SHAPES.items():
            schema["properties"].setdefault(key, {"type": ["object", "string"], "description": text})
        # doAzureParallel has the accounts' ids within it.
        schema["$defs"]["ServicePrincipal"]["additionalProperties"] = True
    return {"$schema": _SCHEMA, **schema}


_CREDENTIALS_SHAPES = {
    "sharedKey": "The accounts with their keys, as doAzureParallel has them.",
    "githubAuthenticationToken": "doAzureParallel's name of githubToken.",
    "applicationInsights": "Read for doAzureParallel's sake, and not used.",
}


def _complete(part: dict[str, Any], name: str, field: FieldInfo, model: type[BaseModel], text: str) -> None:
    properties = part["properties"]
    key = field_key(model, name)
    alias = field.validation_alias
    choices = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [key]
    written = next(choice for choice in (*choices, key, name) if choice in properties)
    entry = properties.pop(written)
    entry.pop("title", None)
    # A null default says "not given", and stands for what the description tells.
    if entry.get("default", 0) is None:
        entry.pop("default")
    if text:
        entry["description"] = _code(text)
    if len(choices) > 1 and written in part.get("required", ()):
        # Either name will do, which `required` cannot say; what is missing is told when the file is read.
        part["required"].remove(written)
    for choice in dict.fromkeys([key, *choices]):
        properties[choice] = entry if choice == key else {**entry, "description": f"The same as {key}."}


def all_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the models below a model, each once, in the order of their keys."""
    seen: dict[type[BaseModel], None] = {}
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            for each in (part, *all_models(part)):
                seen.setdefault(each)
    yield from seen


def markdown() -> str:
    """Return the reference page of all settings."""
    lines = [_HEAD]
    for word, model in FILES.items():
        lines += [f"## {word}.json", "", _code(summary(model)), "", *_table(model)]
        for part in all_models(model):
            lines += [f"### {_places(model, part)}", "", _code(summary(part)), "", *_table(part)]
    return "\n".join(lines).rstrip() + "\n"


def _table(model: type[BaseModel]) -> list[str]:
    texts = described(model)
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        key = f"`{field_key(model, name)}`"
        variable = next((each for each, of in getattr(model, "variables", {}).items() if of == name), "")
        text = texts.get(name, "") + (f" Environment: `{variable}`." if variable else "")
        cells = [key, _type(field) + _ALSO.get(name, ""), _default(field), _code(text)]
        lines.append(f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |")
    return [*lines, ""]


def _code(text: str) -> str:
    """Turn a docstring's double backquotes into single ones, and the Python names in them into a file's."""
    names = {
        name: field_key(each, name)
        for model in FILES.values()
        for each in (model, *all_models(model))
        for name in each.model_fields
    }
    text = re.sub(r"``([a-z]+(?:_[a-z]+)+)``", lambda found: f"``{names.get(found[1], found[1])}``", text)
    return text.replace("``", "`")


def _places(model: type[BaseModel], part: type[BaseModel], at: str = "") -> str:
    found = []
    for name, field in model.model_fields.items():
        for each in models_in(field.annotation):
            many = "[]" if get_origin(field.annotation) is tuple or "tuple" in str(field.annotation) else ""
            key = f"{at}{field_key(model, name)}{many}"
            if each is part:
                found.append(f"`{key}`")
            elif part in all_models(each):
                found.append(_places(each, part, f"{key}."))
    return ", ".join(found)


#: What a validator reads besides the type.
_ALSO = {"max_tasks_per_node": ', or `"cores"`', "command_line": ", or one text"}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", SecretStr: "text, secret"}


def _type(field: FieldInfo) -> str:
    text = _word(field.annotation)
    bounds = {type(each).__name__: each for each in field.metadata}
    least = next((f"at least {getattr(bounds[n], a)}" for n, a in (("Ge", "ge"),) if n in bounds), "")
    above = f"above {bounds['Gt'].gt}" if "Gt" in bounds else ""
    most = f"at most {bounds['Le'].le}" if "Le" in bounds else ""
    limits = ", ".join(each for each in (least, above, most) if each)
    return f"{text}, {limits}" if limits else text


def _word(annotation: Any) -> str:
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, args = get_origin(annotation), [each for each in get_args(annotation) if each is not type(None)]
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in args)
    if origin is tuple:
        return f"list of {_plural(_word(args[0]))}"
    if origin is dict:
        return "object of texts"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object, below"
    if hasattr(annotation, "__metadata__") or len(args) == 1:
        return "text, secret" if holds_secret(annotation) and not list(models_in(annotation)) else _word(args[0])
    return " or ".join(_word(each) for each in args)


def _plural(word: str) -> str:
    return {"text": "texts", "text, secret": "texts, secret", "object, below": "objects, below"}.get(word, word)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "–"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


_HEAD = """# Configuration

Every setting of the two files, generated from the code by `joblib-azure config reference`. Keys may be written in
camelCase, as here, or by their Python names (`maxTasksPerNode` or `max_tasks_per_node`). Both files are read in
doAzureParallel's own shape too; see [from-doazureparallel.md](from-doazureparallel.md).

## Where values come from

A keyword is stronger than the environment, the environment stronger than a file, a file stronger than the default.
`joblib-azure config show` prints each value with its source. The environment can set

| variable | what it sets |
| --- | --- |
| `JOBLIB_AZURE_CLUSTER` | the path of the cluster's file, or `local` |
| `JOBLIB_AZURE_CREDENTIALS` | the path of the credentials' file; by default a `credentials.json` beside the cluster's |
| `AZURE_BATCH_ACCOUNT` | `batchAccount` |
| `AZURE_BATCH_ENDPOINT` | `batchEndpoint` |
| `AZURE_BATCH_ACCESS_KEY` | `batchKey` |
| `AZURE_STORAGE_ACCOUNT` | `storageAccount` |
| `AZURE_STORAGE_KEY` | `storageKey` |
| `AZURE_STORAGE_CONNECTION_STRING` | `storageConnectionString`; it counts where `AZURE_STORAGE_ACCOUNT` is set too |

and no key of the cluster. An account is taken whole: where the environment names another Batch or storage account
than the file, the file's endpoint and key of that account no longer count. Without keys the sign-in is Entra's, and
[its own variables](https://learn.microsoft.com/python/api/overview/azure/identity-readme#environment-variables)
(`AZURE_CLIENT_ID` …) count.

## Checking

`joblib-azure config check FILE` tells all that is wrong with a file at once. `joblib-azure config schema cluster` and
`… schema credentials` print a JSON Schema: save it, and name it in the file with `"$schema": "./cluster.schema.json"`
for completion and checks in an editor. Secrets are masked in everything that is printed or logged.
"""
