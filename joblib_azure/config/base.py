"""`Settings`, the base of every configuration value: frozen, strict about keys, all errors at once, secrets masked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from ..errors import ConfigurationError
from .explain import explain
from .reading import read_json
from .values import scrub

_M = TypeVar("_M", bound="Settings")


class Settings(BaseModel):
    """Frozen, with camelCase names beside the Python ones, and no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    #: Keys that a user may try here, and what to write instead.
    answers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise ConfigurationError(explain(type(self), exc, values, type(self).__name__)) from None

    # Without this mark pydantic would call it for nested models too, and their errors would lose their paths.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    #: Variable of the environment that names the file.
    file_variable: ClassVar[str] = ""
    #: Variables of the environment that set a value, with its field.
    variables: ClassVar[Mapping[str, str]] = {}
    #: Settings that no longer count from a weaker source where a stronger one sets the key to something else.
    supersedes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Settings that a setting follows from where nothing sets it.
    follows: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @classmethod
    def prepare(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Turn other shapes that are read, doAzureParallel's for one, into this model's."""
        return values

    @classmethod
    def spelling(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the dotted keys that `prepare` turns into others, by those, so that errors name what was written."""
        return {}

    @classmethod
    def check(
        cls: type[_M],
        values: Mapping[str, Any],
        where: str,
        *,
        folder: Path | None = None,
        spelling: Mapping[str, str] | None = None,
    ) -> _M:
        """Check values in this model's own shape; `read` without the other shapes."""
        try:
            return cls.model_validate(dict(values), context={"folder": folder})
        except ValidationError as exc:
            raise ConfigurationError(explain(cls, exc, values, where, spelling)) from None

    @classmethod
    def read(cls: type[_M], values: Mapping[str, Any], where: str, *, folder: Path | None = None) -> _M:
        """Check `values`.

        Parameters
        ----------
        values : mapping
            By the Python names or the camelCase ones.
        where : str
            Where they come from, for the error.
        folder : Path, optional
            What relative paths among the values are relative to; by default they stay as they are.

        Raises
        ------
        ConfigurationError
            All that is wrong, at once.
        """
        return cls.check(cls.prepare(dict(values), where), where, folder=folder, spelling=cls.spelling(values))

    @classmethod
    def load(cls: type[_M], path: str | os.PathLike[str]) -> _M:
        """Read a JSON file; `ConfigurationError` where it is missing, no JSON or wrong."""
        return cls.read(read_json(path), os.fspath(path), folder=Path(path).absolute().parent)

    def to_dict(self, *, secrets: bool = False) -> dict[str, Any]:
        """Return the values for JSON, by their camelCase names.

        Parameters
        ----------
        secrets : bool, default False
            Whether secrets are written out; only then can the result be read again.
        """
        return self.model_dump(mode="json", by_alias=True, context={"secrets": secrets})

    @classmethod
    def schema_json(cls, **options: Any) -> str:
        """Return the JSON Schema of the file, for editors; `options` go to `json.dumps`."""
        from .reference import json_schema

        return json.dumps(json_schema(cls), **options)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _masked(value)

    def __str__(self) -> str:
        return repr(self)

    def __hash__(self) -> int:
        # pydantic's own fails on mappings. Secrets are masked in it, which `__eq__` then tells apart.
        return hash(self.model_dump_json())


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, tuple):
        return tuple(_masked(item) for item in value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    return value


def is_secret(value: Any) -> bool:
    """Whether a value of a model is, or holds, a `SecretStr`."""
    return isinstance(value, SecretStr) or (isinstance(value, tuple) and any(is_secret(item) for item in value))
