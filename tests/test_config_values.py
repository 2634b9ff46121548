"""Every key: there and back through JSON, its secret shown nowhere, its text in the reference."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from config_examples import (
    ACCOUNT,
    CLUSTER,
    CLUSTER_CUSTOM_IMAGE,
    CLUSTER_REGISTRY_IDENTITY,
    MINIMAL,
    canaries,
)
from pydantic import BaseModel

from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.config.base import Settings
from joblib_azure.config.reference import FILES, all_models, described, json_schema, markdown
from joblib_azure.config.resolve import resolve
from joblib_azure.config.values import MASK, scrub
from joblib_azure.errors import ConfigurationError

EXAMPLES: list[tuple[type[Settings], dict[str, Any]]] = [
    (ClusterConfig, CLUSTER),
    (ClusterConfig, CLUSTER_CUSTOM_IMAGE),
    (ClusterConfig, CLUSTER_REGISTRY_IDENTITY),
    (ClusterConfig, MINIMAL),
    (AccountConfig, ACCOUNT),
]


@pytest.mark.parametrize(("kind", "values"), EXAMPLES)
@pytest.mark.parametrize("by_alias", [True, False])
def test_a_configuration_survives_json(kind: type[Settings], values: dict[str, Any], by_alias: bool) -> None:
    config = kind.read(values, "test")
    text = config.model_dump_json(by_alias=by_alias, context={"secrets": True})
    again = kind.read(json.loads(text), "test")
    assert again == config
    assert hash(again) == hash(config)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


@pytest.mark.parametrize(("kind", "values"), EXAMPLES[:4])
def test_a_file_of_an_example_says_what_the_example_does(kind: type[Settings], values: dict[str, Any]) -> None:
    def has(found: Any, given: Any) -> bool:
        if isinstance(given, dict):
            return all(has(found[key], value) for key, value in given.items())
        if isinstance(given, list):
            return all(has(one, other) for one, other in zip(found, given, strict=True))
        return bool(found == given)

    assert has(kind.read(values, "test").to_dict(secrets=True), values)


@pytest.mark.parametrize(
    ("kind", "base", "values"),
    [
        (kind, base, {key: value})
        for kind, base, example in (
            (ClusterConfig, MINIMAL, CLUSTER),
            (AccountConfig, {"batchAccount": "a", "batchEndpoint": "https://a.b", "storageAccount": "s"}, ACCOUNT),
        )
        for key, value in example.items()
        if key not in ("nodes", "maxTasksPerNode", "containerRegistry", "cloud", "batchResourceId", "storageResourceId")
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and len(value) == 1 else "",
)
def test_each_key_alone_by_both_names(kind: type[Settings], base: dict[str, Any], values: dict[str, Any]) -> None:
    (alias,) = values
    names = {field.serialization_alias or name: name for name, field in kind.model_fields.items()}
    config = kind.read({**base, **values}, "test")
    default = kind.read(base, "test") if alias not in base else None
    assert default is None or getattr(config, names[alias]) != getattr(default, names[alias])
    without = {key: value for key, value in base.items() if key != alias}
    assert kind.read({**without, names[alias]: values[alias]}, "test") == config
    assert kind.read(config.to_dict(secrets=True), "test") == config


def test_the_examples_have_every_key() -> None:
    """A new setting must be added to the examples, and thereby to all tests here."""

    def missing(model: type[BaseModel], given: list[dict[str, Any]]) -> set[str]:
        keys = {field.serialization_alias or name for name, field in model.model_fields.items() if not field.exclude}
        return keys - {key for each in given for key in each}

    clusters = [CLUSTER, CLUSTER_CUSTOM_IMAGE, CLUSTER_REGISTRY_IDENTITY]
    assert missing(ClusterConfig, clusters) == set()
    assert missing(AccountConfig, [ACCOUNT]) == set()
    found: dict[str, list[dict[str, Any]]] = {}

    def collect(model: type[BaseModel], value: Any) -> None:
        if isinstance(value, BaseModel):
            found.setdefault(type(value).__name__, []).append(
                {type(value).model_fields[name].serialization_alias or name: 1 for name in value.model_fields_set}
            )
            for name in type(value).model_fields:
                collect(model, getattr(value, name))
        elif isinstance(value, tuple):
            for each in value:
                collect(model, each)

    for kind, values in EXAMPLES:
        collect(kind, kind.read(values, "test"))
    for model in (*all_models(ClusterConfig), *all_models(AccountConfig)):
        assert missing(model, found[model.__name__]) == set(), model


@pytest.mark.parametrize(("kind", "values"), [EXAMPLES[0], EXAMPLES[4]])
def test_secrets_are_shown_nowhere(
    kind: type[Settings], values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = canaries(values)
    assert len(secrets) >= 5
    config = kind.read(values, "test")
    path = tmp_path / "file.json"
    path.write_text(json.dumps(values))
    rows = list(resolve(kind, path, environ={}).rows())
    logging.getLogger("joblib_azure.test").warning("%s %r", config, config)
    shown = [repr(config), str(config), f"{config}", config.model_dump_json(), json.dumps(config.to_dict()), repr(rows)]
    for text in (*shown, caplog.text):
        assert MASK in text
        assert [secret for secret in secrets if secret in text] == []
    revealed = json.dumps(config.to_dict(secrets=True))
    assert [secret for secret in secrets if secret not in revealed] == []


def _broken(value: Any) -> list[Any]:
    """Return the example with each of its leaves made wrong, the secret still in it."""
    found: list[Any] = []
    if isinstance(value, dict):
        for key, each in value.items():
            found += [{**value, key: wrong} for wrong in _broken(each)]
            found.append({**value, key + "x": each})
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found += [[*value[:index], wrong, *value[index + 1 :]] for wrong in _broken(each)]
    else:
        found += [{"object": value}, [value], [[value]]]
    return found


@pytest.mark.parametrize(("kind", "values"), [EXAMPLES[0], EXAMPLES[4]])
def test_no_error_shows_a_secret(kind: type[Settings], values: dict[str, Any]) -> None:
    errors = []
    for wrong in _broken(values):
        for how in (lambda wrong=wrong: kind.read(wrong, "test"), lambda wrong=wrong: kind(**wrong)):
            try:
                how()
            except ConfigurationError as exc:
                errors.append(exc)
    assert len(errors) > 50
    secrets = canaries(values)
    assert [exc for exc in errors if any(secret in f"{exc} {exc!r} {exc.__context__}" for secret in secrets)] == []
    assert {exc.__cause__ for exc in errors} == {None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/p?sv=2&sig=ab%2Bc%3D&se=1", f"https://h/p?sv=2&sig={MASK}&se=1"),
        ("pip @ git+https://token@github.com/a/b", f"pip @ git+https://{MASK}@github.com/a/b"),
        ("AccountName=a;AccountKey=eA==;EndpointSuffix=b", f"AccountName=a;AccountKey={MASK};EndpointSuffix=b"),
        ("mount -o username=u,password=p/w=,vers=3.0", f"mount -o username=u,password={MASK},vers=3.0"),
        ("https://user@host/p and nothing@else", f"https://{MASK}@host/p and nothing@else"),
        ("git+ssh://git@github.com/a/b", f"git+ssh://{MASK}@github.com/a/b"),
        ("no secret here: a@b", "no secret here: a@b"),
    ],
)
def test_a_text_is_scrubbed(text: str, expected: str) -> None:
    assert scrub(text) == expected


def test_what_was_masked_is_not_taken_for_the_secret() -> None:
    masked = AccountConfig.read(ACCOUNT, "test").to_dict()
    with pytest.raises(ConfigurationError, match="batchKey: this is a masked value"):
        AccountConfig.read(masked, "test")


def test_secrets_tell_configurations_apart() -> None:
    other = {**ACCOUNT, "batchKey": "another"}
    assert AccountConfig.read(other, "test") != AccountConfig.read(ACCOUNT, "test")


@pytest.mark.parametrize("kind", FILES.values())
def test_every_key_is_described_and_in_the_schema(kind: type[Settings]) -> None:
    schema = json_schema(kind)
    for model in (kind, *all_models(kind)):
        part = schema if model is kind else schema["$defs"][model.__name__]
        for name, field in model.model_fields.items():
            assert described(model).get(name), (model, name)
            entry = part["properties"][field.serialization_alias or name]
            assert "``" not in entry["description"]
    assert json.loads(kind.schema_json()) == schema
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_the_schema_knows_what_is_read_besides() -> None:
    schema = json_schema(ClusterConfig)
    assert schema["required"] == ["vmSize"]  # The name may be there as pool.
    assert {"const": "cores"} in schema["properties"]["maxTasksPerNode"]["anyOf"]
    assert {"spotNodes", "lowPriorityNodes"} <= schema["$defs"]["PoolSize"]["properties"].keys()
    assert schema["properties"]["retries"]["maximum"] == 10
    assert schema["additionalProperties"] is False
    assert "sharedKey" in json_schema(AccountConfig)["properties"]
    # The key by which an editor finds it is no setting.
    ClusterConfig.read({**MINIMAL, "$schema": "./cluster.schema.json"}, "test")


def test_the_reference_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == markdown(), (
        "write it again: joblib-azure config reference > docs/configuration.md"
    )
