"""The node's side of an environment: archives in storage, the interpreter, the node's own files."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from joblib_azure import LocalCluster
from joblib_azure.node import archive, interpreter
from joblib_azure.node.environment import Environment, PreparationError


@pytest.fixture
def place(wide_cluster: LocalCluster) -> Iterator[Any]:
    """Return the URL of a name in a new container, with the SAS that nodes get."""
    container = f"environment-{uuid.uuid4().hex[:12]}"
    wide_cluster.blobs.create_container(container)

    def url(name: str) -> str:
        base, _, token = wide_cluster.blobs.container_url(container, "rc", timedelta(hours=1)).partition("?")
        return f"{base}/{name}?{token}"

    url.put = lambda name, data: wide_cluster.blobs.put(container, name, data)  # type: ignore[attr-defined]
    yield url
    wide_cluster.blobs.delete_container(container)


def environment(folder: Path) -> Path:
    python = interpreter.ask(sys.executable)
    assert python is not None
    interpreter.make_venv(folder, python)
    packages = folder / "lib" / f"python{python.minor}" / "site-packages"
    (packages / "deep" / "er").mkdir(parents=True)
    (packages / "deep" / "er" / "x.py").write_text("x = 1\n")
    (packages / "large.bin").write_bytes(bytes(range(256)) * 65536)
    (folder / "bin" / "tool").write_text("#!/bin/sh\necho tool\n")
    (folder / "bin" / "tool").chmod(0o755)
    subprocess.run([str(folder / "bin" / "python"), "-m", "compileall", "-q", str(packages)], check=True)
    (folder / archive.READY).write_text("{}")
    return packages


def test_an_archive_brings_all_but_the_interpreter(place: Any, tmp_path: Path) -> None:
    packages = environment(tmp_path / "one")
    said = archive.publish(place("a.tar.gz"), tmp_path / "one", tmp_path / "scratch")
    assert said.startswith("stored its archive")
    assert not (tmp_path / "scratch").exists()
    assert archive.unpack(place("a.tar.gz"), tmp_path / "two")
    assert not (tmp_path / "two" / "bin" / "python").exists()
    assert not (tmp_path / "two" / archive.READY).exists()
    python = interpreter.ask(sys.executable)
    assert python is not None
    program = interpreter.make_venv(tmp_path / "two", python)
    other = tmp_path / "two" / packages.relative_to(tmp_path / "one")
    files = {path.relative_to(packages) for path in packages.rglob("*")}
    assert files == {path.relative_to(other) for path in other.rglob("*")}
    assert (other / "large.bin").read_bytes() == (packages / "large.bin").read_bytes()
    # The byte code that came along is used: nothing is compiled again.
    code = "import deep.er.x, sys; print(deep.er.x.__file__)"
    loud = subprocess.run([str(program), "-v", "-c", code], capture_output=True, text=True, check=True)
    assert loud.stdout.strip() == str(other / "deep" / "er" / "x.py")
    assert f"{other / 'deep' / 'er' / '__pycache__'}" in loud.stderr
    assert "wrote" not in loud.stderr
    assert subprocess.check_output([str(tmp_path / "two" / "bin" / "tool")], text=True) == "tool\n"


def test_an_archive_is_stored_once_and_nobody_can_change_it(place: Any, tmp_path: Path) -> None:
    environment(tmp_path / "one")
    assert archive.claim(place("claim"))
    assert not archive.claim(place("claim"))
    archive.publish(place("a.tar.gz"), tmp_path / "one", tmp_path / "scratch")
    said = archive.publish(place("a.tar.gz"), tmp_path / "one", tmp_path / "scratch")
    assert "was not stored" in said
    request = urllib.request.Request(
        place("a.tar.gz"), data=b"poison", headers={"x-ms-blob-type": "BlockBlob"}, method="PUT"
    )
    with pytest.raises(urllib.error.HTTPError) as caught, archive.open_url(request):
        pass
    assert caught.value.code in (403, 409)
    caught.value.close()


def test_an_archive_that_is_not_there_or_not_right(place: Any, tmp_path: Path) -> None:
    assert not archive.unpack(place("nothing.tar.gz"), tmp_path / "a")
    place.put("bad.tar.gz", b"no archive at all")
    with pytest.raises(archive.ArchiveError):
        archive.unpack(place("bad.tar.gz"), tmp_path / "b")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.py"), io.BytesIO())
    # Without the SHA-256 that a node would have stored with it.
    place.put("unsigned.tar.gz", stream.getvalue())
    with pytest.raises(archive.ArchiveError, match="SHA-256"):
        archive.unpack(place("unsigned.tar.gz"), tmp_path / "c")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside.py"), io.BytesIO())
    place.put("outside.tar.gz", stream.getvalue())
    with pytest.raises(archive.ArchiveError, match="outside"):
        archive.unpack(place("outside.tar.gz"), tmp_path / "d")
    assert not (tmp_path / "outside.py").exists()


def described(**values: Any) -> dict[str, Any]:
    nothing = {"digest": "d", "packages": [], "modules": [], "certificates": None, "python_archive": None}
    return {**nothing, "offline": False, "uv_environment": {}, "commands": ["no-such-python"], **values}


def test_python_from_the_client_where_the_node_has_another(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZ_BATCH_NODE_ROOT_DIR", str(tmp_path / "batch" / "tasks"))
    with pytest.raises(
        PreparationError, match=r"this node has Python 3.* and the client has 3\.99; environment.offline"
    ):
        Environment(described(python="3.99", offline=True))._interpreter()
    # What there is of Python 3.99: a program that says that it is.
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        program = b"""#!/bin/sh\necho '[[3, 99, 0], "/opt/python3.99", "cpython", false]'\n"""
        member = tarfile.TarInfo("cpython-3.99.0-linux/bin/python3.99")
        member.size, member.mode = len(program), 0o755
        tar.addfile(member, io.BytesIO(program))
    data = stream.getvalue()
    place.put("python.tar.gz", data)
    shipped = {
        "name": "python", "file": "python.tar.gz", "sha256": hashlib.sha256(data).hexdigest(),
        "url": place("python.tar.gz"), "shipped": True,
    }  # fmt: skip
    found = Environment(described(python="3.99", offline=True, python_archive=shipped))._interpreter()
    assert found == ("/opt/python3.99", "3.99.0")


def test_room_is_made_of_what_nobody_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from joblib_azure.node import environment

    monkeypatch.setenv("AZ_BATCH_NODE_ROOT_DIR", str(tmp_path / "batch" / "tasks"))
    folders = tmp_path / "joblib_azure" / str(os.getuid()) / "environments"
    for name in ("old", "new"):
        (folders / name).mkdir(parents=True)
        (folders / name / archive.READY).write_text("{}")
    os.utime(folders / "old", (0, 0))
    folders.parent.chmod(0o700)
    made = Environment(described(python="3.11"))
    made._make_room()
    assert (folders / "old").exists()
    monkeypatch.setattr(environment, "_ENOUGH_SPACE", 1 << 62)
    made._make_room()
    assert [path.name for path in folders.iterdir()] == ["new"]
