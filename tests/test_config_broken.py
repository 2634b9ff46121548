"""Whatever is in a file, a person gets a ConfigurationError that they can read, and no traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from config_examples import ACCOUNT, CLUSTER, MINIMAL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joblib_azure.cli.config import _kind_of
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.config.base import Settings
from joblib_azure.config.explain import names_of
from joblib_azure.config.resolve import resolve
from joblib_azure.errors import ConfigurationError

KINDS: list[type[Settings]] = [ClusterConfig, AccountConfig]
DATA = Path(__file__).parent / "data" / "doazureparallel"
OWN = [MINIMAL, CLUSTER, ACCOUNT, *(json.loads(path.read_text()) for path in sorted(DATA.glob("*.json")))]

#: Keys that mean something somewhere, so that the values get past the first check.
_KEYS = sorted(
    {name for kind in KINDS for name, _ in names_of(kind)}
    | {"sharedKey", "storageAccount", "name", "key", "url", "min", "max", "rPackages", "dedicatedNodes", "pool"}
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "cores", "FIXED", "Standard_D4s_v5", "https://", "http://[", "https://a:b", "AccountKey=;", "\0"]
    )
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
_SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path) -> list[str]:
    """Read a file in every way that there is, and return the errors' texts."""
    errors = []
    for kind in KINDS:
        for how in (lambda kind=kind: kind.load(path), lambda kind=kind: resolve(kind, path, environ={})):
            try:
                found = how()
            except ConfigurationError as exc:
                text = str(exc)
                # What it says must be printable on any terminal, and name the file.
                text.encode("utf-8")
                assert path.name in text
                assert "Traceback" not in text
                errors.append(text)
            else:
                repr(found)
    return errors


@_SETTINGS
@given(values=st.dictionaries(st.sampled_from(_KEYS) | st.text(), _JSON, max_size=6))
def test_any_json_is_told(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(values))
    read(path)


@_SETTINGS
@given(data=st.data(), own=st.sampled_from(OWN))
def test_any_value_in_place_of_a_right_one_is_told(data: st.DataObject, own: dict[str, Any], tmp_path: Path) -> None:
    values = json.loads(json.dumps(own))
    holder: Any = values
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not (isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans())):
            break
        holder = holder[key]
    if isinstance(holder, dict) and data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(_JSON)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(values))
    read(path)
    _kind_of(values)


@_SETTINGS
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_told(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bytes.json"
    path.write_bytes(raw)
    assert len(read(path)) == 4


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(own=st.sampled_from(OWN), part=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=3))
def test_a_truncated_file_is_told(own: dict[str, Any], part: float, junk: bytes, tmp_path: Path) -> None:
    text = json.dumps(own).encode()
    path = tmp_path / "truncated.json"
    path.write_bytes(text[: math.floor(len(text) * part)] + junk)
    if (text[: math.floor(len(text) * part)] + junk).rstrip() != text:
        assert len(read(path)) == 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_unicode_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    """Windows' editors and shells write some of these."""
    path = tmp_path / "file.json"
    path.write_bytes(json.dumps({**MINIMAL, "metadata": {"who": "Zoë"}}, ensure_ascii=False).encode(encoding))
    assert ClusterConfig.load(path).metadata == {"who": "Zoë"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (json.dumps({**MINIMAL, "metadata": {"who": "Zoë"}}, ensure_ascii=False).encode("latin-1"), "not utf-8 text"),
        (b"", "line 1: not valid JSON"),
        (b'{"name": "a",\n "nodes": 1 // one\n}', "line 2: not valid JSON.*no comments"),
        (b'{"nodes": NaN}', "NaN is no JSON number"),
        (b'{"nodes": 1, "nodes": 2}', "the key 'nodes' is there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"nodes": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"name": "a", "vmSize": "Standard_F2", "nodes": 1e999}', "nodes"),
        (b'{"\\ud800": 1}', "half a character"),
        (b"null", "expected a JSON object, found NoneType"),
    ],
)
def test_a_broken_file_says_where(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(raw)
    with pytest.raises(ConfigurationError, match=said):
        ClusterConfig.load(path)
    assert len(read(path)) == 4


def test_a_folder_and_a_name_that_cannot_be_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no\0where.json", tmp_path / ("long" * 200)):
        with pytest.raises(ConfigurationError, match="cannot read"):
            ClusterConfig.load(path)
