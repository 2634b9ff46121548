"""Whom a job trusts: nobody without its key is unpickled, and a task can do no more than its own work.

On a real Azurite: what lies there is tampered with as somebody would who has the storage account and not the job's
key, and what a task was given is tried on everything that is none of its business.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import queue
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobClient, BlobServiceClient, BlobType, ContainerClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BatchedCalls

from joblib_azure import LocalCluster
from joblib_azure.bundler import CallSettings
from joblib_azure.call import Call, ChunkFuture, UnderWay
from joblib_azure.codec import (
    CallEncoder,
    Payload,
    content_name,
    encode_outcome,
    new_key,
    outcomes_of,
    read_bundle,
    seal,
    unseal_all,
    write_bundle,
)
from joblib_azure.codec.records import MAGIC
from joblib_azure.errors import IntegrityError
from joblib_azure.node.cache import Cache
from joblib_azure.node.inputs import Inputs
from joblib_azure.node.journal import Outcome as NodeOutcome
from joblib_azure.node.nested import NestedBackend
from joblib_azure.node.sender import Sender
from joblib_azure.node.storage import TaskStorage
from joblib_azure.registry import session_for
from joblib_azure.service.blob import AzureBlobs
from joblib_azure.service.credentials import connect_blobs
from joblib_azure.session import Session
from joblib_azure.storage import BUFFERS

HOUR = timedelta(hours=1)
#: Seconds after which a test gives up waiting.
LONG = 60.0
#: Bytes of a result or an argument that lies in storage by itself.
LARGE = 2 << 20

tampering = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` gives something, and return that."""
    end = time.monotonic() + LONG
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {LONG:.0f} s for {what}"
        time.sleep(0.02)
    return found


def flipped(data: bytes | memoryview, at: int, bits: int = 1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= bits
    return bytes(changed)


def armed(file: Path, size: int) -> bytes:
    """Return `size` bytes that leave a file where they are unpickled."""
    return pickle.dumps(Bomb(file)).ljust(size, b"\0")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Where the bombs leave a file; they must not."""
    file = tmp_path / "unpickled"
    yield file
    assert not file.exists(), "what was tampered with was unpickled"


@pytest.fixture(scope="module")
def session(cluster: LocalCluster) -> Session:
    return session_for(cluster)


@pytest.fixture(scope="module")
def service(session: Session) -> Iterator[BlobServiceClient]:
    """The storage account, as somebody sees it who has its key."""
    connection = session.cluster.account.storage_connection_string
    assert connection is not None
    with BlobServiceClient.from_connection_string(connection.get_secret_value()) as service:
        yield service


@dataclass(frozen=True)
class Given:
    """What the service gives to every task of a job."""

    key: bytes = field(repr=False)
    inputs: str = field(repr=False)
    outputs: str = field(repr=False)


@pytest.fixture(scope="module")
def given_to_tasks(cluster: LocalCluster, session: Session) -> Given:
    credential = AzureNamedKeyCredential(cluster.account_name, cluster.account_key)
    with BatchClient(endpoint=cluster.batch_endpoint, credential=credential) as batch:
        found = batch.get_job(session.job).common_environment_settings or []
    values = {setting.name: setting.value or "" for setting in found}
    key, inputs, outputs = (values[f"JOBLIB_AZURE_{name}"] for name in ("KEY", "INPUTS", "OUTPUTS"))
    return Given(base64.b64decode(key), inputs, outputs)


# tampering, piece by piece --------------------------------------------------------------------------------


def identity(*args: Any) -> Any:
    return args


class Stored(NamedTuple):
    """A bundle that lies in the session's container, with bombs in all that is pickled of it."""

    data: bytes
    task: str
    storage: TaskStorage


@pytest.fixture
def bundle(session: Session, given_to_tasks: Given, file: Path) -> Stored:
    encoder = CallEncoder(1000)
    calls: list[Any] = [(identity, (Bomb(file), np.arange(500.0)), {}), (lambda: Bomb(file), (), {})]
    chunk = encoder.chunk(SimpleNamespace(items=calls, _backend=None, _n_jobs=None))
    data, _ = write_bundle(session.key, f"{session.job}/tampered", {"call": "c"}, [(0, chunk)], encoder)
    return Stored(data, "tampered", TaskStorage(given_to_tasks.inputs, given_to_tasks.outputs, "tampered"))


@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
@tampering
def test_a_bundle_with_any_byte_changed_is_refused(
    session: Session, bundle: Stored, given_to_tasks: Given, place: float, bits: int
) -> None:
    where = f"{session.job}/{bundle.task}"
    blobs = session.cluster.blobs
    blobs.put(session.inputs, f"bundles/{bundle.task}", bundle.data)
    assert read_bundle(given_to_tasks.key, where, bundle.storage.read_bundle()).chunks
    changed = flipped(bundle.data, int(place * len(bundle.data)), bits)
    blobs.put(session.inputs, f"bundles/{bundle.task}", changed)
    with pytest.raises(IntegrityError, match=where):
        read_bundle(given_to_tasks.key, where, bundle.storage.read_bundle())


@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
@tampering
def test_a_buffer_with_any_byte_changed_is_not_kept(
    session: Session, given_to_tasks: Given, tmp_path: Path, place: float, bits: int
) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    name = content_name(data)
    blobs, cache = session.cluster.blobs, Cache(tmp_path / "cache")
    url = blobs.blob_url(BUFFERS, name, HOUR)
    cache.path(name).unlink(missing_ok=True)
    blobs.put(BUFFERS, name, flipped(data, int(place * len(data)), bits))
    try:
        assert fetched(given_to_tasks, cache, name, len(data), url).missing == [name]
        assert not cache.path(name).exists()
        blobs.put(BUFFERS, name, data)
        assert not fetched(given_to_tasks, cache, name, len(data), url).broken
        assert cache.path(name).read_bytes() == data
    finally:
        blobs.delete(BUFFERS, name)


def fetched(given_to_tasks: Given, cache: Cache, name: str, size: int, url: str) -> Inputs:
    """Fetch a buffer as a task does."""
    storage = TaskStorage(given_to_tasks.inputs, given_to_tasks.outputs, "t")
    inputs = Inputs(storage, cache, {"sizes": {name: size}, "urls": {name: url}, "coming": []}, lambda: None)
    inputs.begin([name])
    inputs.close()
    return inputs


class Listener:
    """A call of a session with a task of which only storage knows, and what it is told of it."""

    def __init__(self, session: Session, return_as: str) -> None:
        self.session = session
        shape = CallSettings(
            n_jobs=2, max_nbytes=None, mmap_mode="r", inner_max_num_threads=None, path=(), return_as=return_as
        )
        self.call: Call = session.start_call(shape)
        self.told: queue.Queue[ChunkFuture] = queue.Queue()
        self.call.add(BatchedCalls([(abs, (1,), {})], (NestedBackend(), None)), self.told.put)
        self.task = f"{self.call.id}-task"
        self.blob = f"{self.call.id}/{self.task}/000"
        with session.work.changed:  # held, so that nobody else plans what this chunk is in
            self.call.function = "abs"
            session.work.planner.open_call(self.call.id, n_jobs=2, cost=None)
            session.work.planner.add(self.call.id, 0, 1, time.monotonic())
            session.work.planner.exhaust(self.call.id)
            [bundle] = session.work.planner.plan(time.monotonic() + LONG)
        self._entry = UnderWay(bundle, self.call, self.task, 0.0, {0})

    def say(self, data: bytes) -> None:
        """Store what the task is to have said."""
        session = self.session
        container = session.cluster.blobs
        assert isinstance(container, AzureBlobs)
        container._client.get_blob_client(session.outputs, self.blob).upload_blob(
            data, blob_type=BlobType.APPENDBLOB, overwrite=True
        )
        with session.work.changed:
            session.work.under_way[self.task] = self._entry
            session.work.changed.notify_all()

    def record(self, body: bytes, **head: Any) -> bytes:
        place = f"{self.session.job}/{self.blob}#0"
        return seal(self.session.key, place, {"chunk": 0, "ok": True, **head}, body)

    def result(self) -> Any:
        """Return what the call is told."""
        found = self.told.get(timeout=LONG).result()
        return found if isinstance(found, list) else list(found)

    def close(self) -> None:
        self.session.work.finish(self._entry)
        self.session.end_call(self.call)


@pytest.fixture
def listen(session: Session) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def listen(return_as: str = "list") -> Listener:
        made.append(Listener(session, return_as))
        return made[-1]

    yield listen
    for listener in made:
        listener.close()


def parts_of_a_record(record: bytes, body: int) -> dict[str, int]:
    """Return a byte of every part of a record but the lengths: those make it look cut short."""
    return {"magic": 1, "head": len(MAGIC) + 12 + 3, "body": len(record) - 32 - body // 2, "code": len(record) - 7}


@pytest.mark.parametrize("part", ["magic", "head", "body", "code"])
@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_a_changed_outcome_fails_its_call(
    part: str, return_as: str, listen: Callable[..., Listener], file: Path
) -> None:
    listener = listen(return_as)
    body = pickle.dumps([Bomb(file)])
    record = listener.record(body)
    listener.say(flipped(record, parts_of_a_record(record, len(body))[part]))
    with pytest.raises(IntegrityError, match=listener.blob):
        listener.result()


def test_what_is_told_of_a_changed_outcome_is_what_the_session_can_read(listen: Callable[..., Listener]) -> None:
    """The other way round: untouched, the same record is taken."""
    listener = listen()
    listener.say(listener.record(pickle.dumps([41])))
    assert listener.result() == [41]


@pytest.mark.parametrize("at", range(len(MAGIC), len(MAGIC) + 12))
def test_an_outcome_with_a_changed_length_is_not_taken(at: int, listen: Callable[..., Listener], file: Path) -> None:
    """Longer, it looks as if more was on its way; whatever it is, nothing is unpickled but the outcome itself."""
    listener = listen()
    record = listener.record(pickle.dumps([Bomb(file)]))
    listener.say(flipped(record, at))
    with contextlib.suppress(queue.Empty):
        future = listener.told.get(timeout=0.3)
        with pytest.raises(IntegrityError, match=listener.blob):
            future.result()
        return
    listener.say(listener.record(pickle.dumps([42])))
    assert listener.result() == [42]


@pytest.mark.parametrize("kind", ["another key", "another run", "another record", "another job"])
def test_an_outcome_from_elsewhere_fails_its_call(kind: str, listen: Callable[..., Listener], file: Path) -> None:
    listener = listen()
    key, job, blob = listener.session.key, listener.session.job, listener.blob
    places = {
        "another key": (new_key(), f"{job}/{blob}#0"),
        "another run": (key, f"{job}/{blob[:-1]}1#0"),
        "another record": (key, f"{job}/{blob}#1"),
        "another job": (key, f"{job[:-1]}x/{blob}#0"),
    }
    used, place = places[kind]
    listener.say(seal(used, place, {"chunk": 0, "ok": True}, pickle.dumps([Bomb(file)])))
    with pytest.raises(IntegrityError, match=blob):
        listener.result()


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999999])
@pytest.mark.parametrize("return_as", ["list", "generator"])
@pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
def test_a_changed_payload_fails_its_call(
    raised: bool, return_as: str, place: float, listen: Callable[..., Listener], session: Session, file: Path
) -> None:
    listener = listen(return_as)
    content = np.random.default_rng(0).bytes(LARGE)
    value: Any = (ValueError(content), "traceback") if raised else [[content, Bomb(file)]]
    payload = encode_outcome(value, each=not raised)
    assert isinstance(payload, Payload)
    data = b"".join(payload.parts)
    blob = f"{listener.blob}.0"
    session.cluster.blobs.put(session.outputs, blob, flipped(data, int(place * len(data))))
    head = {"ok": not raised, "groups": payload.groups, "blob": blob, "contents": [content_name(data)]}
    listener.say(listener.record(b"", **head))
    with pytest.raises(IntegrityError, match=blob):
        listener.result()


def test_a_payload_that_became_shorter_fails_its_call(listen: Callable[..., Listener], session: Session) -> None:
    listener = listen()
    payload = encode_outcome([np.random.default_rng(0).bytes(LARGE)], each=True)
    assert isinstance(payload, Payload)
    data = b"".join(payload.parts)
    blob = f"{listener.blob}.0"
    session.cluster.blobs.put(session.outputs, blob, data[: LARGE // 2])
    head = {"groups": payload.groups, "blob": blob, "contents": [content_name(data)]}
    listener.say(listener.record(b"", **head))
    with pytest.raises(IntegrityError, match=blob):
        listener.result()


# tampering, end to end ------------------------------------------------------------------------------------


def large(number: int) -> Any:
    return np.full(LARGE // 8, number, dtype=float)


def waits(number: int, gate: str) -> int:
    """Return once the gate is open."""
    end = time.monotonic() + LONG
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.02)
    return number


@contextlib.contextmanager
def small_window(session: Session) -> Iterator[None]:
    """Fetch nothing ahead but what is next."""
    before, session.holdings.window._budget = session.holdings.window._budget, 0
    try:
        yield
    finally:
        session.holdings.window._budget = before


def arrived(session: Session, count: int) -> str:
    """Wait until so many results of the only call that runs have arrived; return its id."""
    [call] = session.work.calls
    until(lambda: session.holdings.window.left == count and not session.work.under_way, f"{count} results")
    return call


def stored(service: BlobServiceClient, container: str, wanted: Callable[[str], bool]) -> list[BlobClient]:
    found = service.get_container_client(container)
    return [found.get_blob_client(blob.name) for blob in found.list_blobs() if wanted(blob.name)]


def three_of(service: BlobServiceClient, outputs: str, call: str) -> list[BlobClient]:
    """Return a call's payloads once there are only three."""
    found = stored(service, outputs, lambda name: name.startswith(call) and "." in name)
    return found if len(found) == 3 else []


def drained(results: Iterator[Any]) -> list[Any]:
    """Return what a generator still gives before it fails."""
    found = []
    for result in results:
        found.append(result)
    return found


def test_a_payload_that_is_changed_before_it_is_consumed(
    cluster: LocalCluster, session: Session, service: BlobServiceClient, file: Path
) -> None:
    with small_window(session), parallel_config("azure", cluster=cluster):
        results = Parallel(return_as="generator", batch_size=1)(delayed(large)(i) for i in range(4))
        call = arrived(session, 4)
        # Of the first that came, which was fetched at once, the blob is gone by then.
        payloads = until(lambda: three_of(service, session.outputs, call), "the first to be fetched")
        for blob in payloads:
            size = blob.get_blob_properties().size
            blob.upload_blob(armed(file, size), overwrite=True)
        with pytest.raises(IntegrityError, match="|".join(blob.blob_name for blob in payloads)):
            drained(results)
        results.close()
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_an_outcome_that_is_changed_before_it_is_read_again(
    cluster: LocalCluster, session: Session, service: BlobServiceClient, file: Path
) -> None:
    with small_window(session), parallel_config("azure", cluster=cluster):
        results = Parallel(return_as="generator", batch_size=1)(delayed(abs)(-i) for i in range(6))
        call = arrived(session, 6)
        streams = stored(service, session.outputs, lambda name: name.startswith(call))
        for blob in streams:
            size = blob.get_blob_properties().size
            blob.upload_blob(armed(file, size), blob_type=BlobType.APPENDBLOB, overwrite=True)
        with pytest.raises(IntegrityError, match="|".join(blob.blob_name for blob in streams)):
            drained(results)
        results.close()


@pytest.mark.parametrize("forged", ["with another key", "moved"])
def test_what_is_appended_to_the_outcomes_of_a_running_task_ends_its_call(
    cluster: LocalCluster, session: Session, service: BlobServiceClient, file: Path, tmp_path: Path, forged: str
) -> None:
    gate = tmp_path / "gate"
    with parallel_config("azure", cluster=cluster):
        results = Parallel(return_as="generator", batch_size=1)(delayed(waits)(i, str(gate)) for i in range(2))
        try:
            # Of this call: a task of one that has failed is under way until it is seen to end.
            [call] = session.work.calls
            [blob, *_] = until(
                lambda: stored(
                    service,
                    session.outputs,
                    lambda name: (
                        name.startswith(f"{call}/") and "." not in name and name.split("/")[1] in session.work.under_way
                    ),
                ),
                "a task to begin",
            )
            place = f"{session.job}/{blob.blob_name}#{0 if forged == 'with another key' else 1}"
            key = new_key() if forged == "with another key" else session.key
            blob.append_block(seal(key, place, {"chunk": 0, "ok": True}, pickle.dumps([Bomb(file)])))
            with pytest.raises(IntegrityError, match=blob.blob_name):
                drained(results)
        finally:
            gate.touch()
            results.close()
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_a_bundle_that_is_changed_before_its_task_begins(
    cluster: LocalCluster, session: Session, service: BlobServiceClient, file: Path, tmp_path: Path
) -> None:
    """Its task refuses it, and says which; the client sends its calls again."""
    gate = tmp_path / "gate"
    with parallel_config("azure", cluster=cluster):
        first = Parallel(return_as="generator", batch_size=1)(delayed(waits)(i, str(gate)) for i in range(2))
        try:
            begun = until(lambda: two_of(session), "both task slots to be taken")
            second = Parallel(return_as="generator", batch_size=1)(delayed(waits)(i, str(gate)) for i in range(2))
            [task, *_] = until(lambda: sorted(set(session.work.under_way) - begun), "a task that waits")
            blob = service.get_blob_client(session.inputs, f"bundles/{task}")
            data = blob.download_blob().readall()
            forged = seal(new_key(), f"{session.job}/{task}#0", {"call": "c", "records": 1, "sizes": {}, "urls": {}})
            forged += seal(new_key(), f"{session.job}/{task}#1", {"chunk": 0}, armed(file, len(data)))
            blob.upload_blob(forged, overwrite=True)
        finally:
            gate.touch()
        assert list(first) == list(second) == [0, 1]
    said = cluster.batch.task_file_tail(session.job, task, "stderr.txt")
    assert "IntegrityError" in said
    assert f"{session.job}/{task}" in said


def two_of(session: Session) -> set[str]:
    """Return the tasks of what runs once there are two."""
    with session.work.changed:
        tasks = {task for task, entry in session.work.under_way.items() if entry.call.id in session.work.calls}
    return tasks if len(tasks) == 2 else set()


def total(array: Any, *_: Any) -> float:
    return float(array.sum())


def test_a_buffer_with_wrong_bytes_is_stored_again(
    cluster: LocalCluster, session: Session, service: BlobServiceClient
) -> None:
    array: Any = np.random.default_rng(1).random(LARGE // 8)
    name = content_name(memoryview(array).cast("B"))
    blob = service.get_blob_client(BUFFERS, name)
    wrong = flipped(array.tobytes(), LARGE // 2)
    blob.upload_blob(wrong)
    with parallel_config("azure", cluster=cluster):
        assert Parallel()(delayed(total)(array, i) for i in range(3)) == [float(array.sum())] * 3
    assert blob.download_blob().readall() == array.tobytes()


def node_caches(cluster: LocalCluster) -> Iterator[Path]:
    """Yield the buffers that the nodes hold."""
    for node in (cluster.host.folder / "nodes").iterdir():
        for found in (node / "joblib_azure" / str(os.getuid()) / "buffers").glob("??/*"):
            if found.suffix != ".lock":
                yield found


def length(words: list[str], number: int) -> int:
    return len(words) + number


def test_a_buffer_that_holds_a_pickle_is_not_unpickled_when_it_has_wrong_bytes(
    cluster: LocalCluster, session: Session, service: BlobServiceClient, file: Path
) -> None:
    words = [f"word {i}" for i in range(100_000)]
    before = {blob.blob_name for blob in stored(service, BUFFERS, lambda name: True)}
    with parallel_config("azure", cluster=cluster):
        calls = [delayed(length)(words, i) for i in range(6)]
        expected = [100_000 + i for i in range(6)]
        assert Parallel(batch_size=1)(calls) == expected
        parts = stored(service, BUFFERS, lambda name: name not in before)
        assert parts
        sizes = [blob.get_blob_properties().size for blob in parts]
        for blob, size in zip(parts, sizes, strict=True):
            blob.upload_blob(armed(file, size), overwrite=True)
        until(lambda: not session.work.under_way, "the tasks to end")
        for cached in node_caches(cluster):
            cached.unlink()
        assert Parallel(batch_size=1)(calls) == expected
    for blob in parts:
        assert content_name(blob.download_blob().readall()) == blob.blob_name


# what a task may do ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(HttpResponseError) as caught:
        yield
    assert caught.value.status_code in (403, 404)
    assert "BlobNotFound" not in str(caught.value)  # it was not even looked for


def moved(url: str, container: str) -> ContainerClient:
    """Return another container, as the token of a URL opens it."""
    parts = urlsplit(url)
    path = f"{parts.path.rpartition('/')[0]}/{container}"
    return ContainerClient.from_container_url(parts._replace(path=path).geturl())


def tries(container: ContainerClient, name: str) -> dict[str, Callable[[], Any]]:
    """Return all that might be done to a container and a blob that is in it."""
    blob = container.get_blob_client(name)
    return {
        "list": lambda: list(container.list_blobs()),
        "read": lambda: blob.download_blob().readall(),
        "stat": blob.get_blob_properties,
        "blocks": lambda: blob.get_block_list("all"),
        "overwrite": lambda: blob.upload_blob(b"mine", overwrite=True),
        "create": lambda: container.get_blob_client("of-mine").upload_blob(b"mine"),
        "append": lambda: container.get_blob_client("of-mine").create_append_blob(),
        "mark": lambda: blob.set_blob_metadata({"a": "b"}),
        "delete": blob.delete_blob,
        "snapshot": blob.create_snapshot,
        "delete all": container.delete_container,
        "mark all": lambda: container.set_container_metadata({"a": "b"}),
        "policies": container.get_container_access_policy,
    }


ALL = tuple(tries(ContainerClient("http://127.0.0.1/a", "c"), "b"))
WRITES = ("overwrite", "create", "append", "mark")


@pytest.fixture(scope="module")
def others(service: BlobServiceClient) -> Iterator[str]:
    """The container of another job, with a blob in it."""
    name = "joblib-20200102-030405-0badcafe-out"
    service.create_container(name).upload_blob("blob", b"another's")
    yield name
    service.delete_container(name)


@pytest.fixture(scope="module")
def granted(cluster: LocalCluster, session: Session, service: BlobServiceClient, given_to_tasks: Given) -> str:
    """The URL of the only buffer that a task was given, from its bundle's manifest."""
    with parallel_config("azure", cluster=cluster):
        array: Any = np.arange(LARGE // 8, dtype=float)
        Parallel(batch_size=1)(delayed(total)(array, i) for i in range(2))
    name = content_name(memoryview(array).cast("B"))
    for blob in stored(service, session.inputs, lambda name: name.startswith("bundles/")):
        task = blob.blob_name.partition("/")[2]
        with contextlib.suppress(IntegrityError):  # other tests' have left some that are not
            found = read_bundle(session.key, f"{session.job}/{task}", blob.download_blob().readall())
            if name in found.manifest["urls"]:
                assert found.manifest["sizes"][name] == array.nbytes
                return str(found.manifest["urls"][name])
    raise AssertionError("no bundle names the buffer")


@pytest.mark.parametrize("what", ALL)
@pytest.mark.parametrize("which", ["inputs", "outputs"])
def test_a_task_cannot_reach_another_jobs_container(
    what: str, which: str, given_to_tasks: Given, others: str, service: BlobServiceClient
) -> None:
    with refused():
        tries(moved(getattr(given_to_tasks, which), others), "blob")[what]()
    assert service.get_blob_client(others, "blob").download_blob().readall() == b"another's"


@pytest.mark.parametrize("what", [what for what in ALL if what not in ("read", "stat", "blocks")])
def test_a_task_can_only_read_its_inputs(
    what: str, given_to_tasks: Given, session: Session, service: BlobServiceClient
) -> None:
    blob = service.get_blob_client(session.inputs, "for-reading")
    blob.upload_blob(b"to be read", overwrite=True)
    container = ContainerClient.from_container_url(given_to_tasks.inputs)
    with refused():
        tries(container, "for-reading")[what]()
    assert tries(container, "for-reading")["read"]() == b"to be read"


@pytest.mark.parametrize("what", [what for what in ALL if what not in (*WRITES, "snapshot")])
def test_a_task_can_only_write_its_outputs(
    what: str, given_to_tasks: Given, session: Session, service: BlobServiceClient
) -> None:
    blob = service.get_blob_client(session.outputs, "written")
    blob.upload_blob(b"by a task", overwrite=True)
    container = ContainerClient.from_container_url(given_to_tasks.outputs)
    with refused():
        tries(container, "written")[what]()
    assert blob.download_blob().readall() == b"by a task"
    blob.delete_blob()


def test_a_task_can_do_its_work(
    given_to_tasks: Given, granted: str, session: Session, service: BlobServiceClient, tmp_path: Path
) -> None:
    service.get_blob_client(session.inputs, "bundles/mine").upload_blob(b"bundle", overwrite=True)
    storage = TaskStorage(given_to_tasks.inputs, given_to_tasks.outputs, "mine")
    assert storage.read_bundle() == b"bundle"
    assert not storage.aborted("call")
    name, _ = storage.open_outcomes("call")
    storage.append(b"one")
    storage.append(b"two")
    large = np.random.default_rng(0).bytes(20 << 20)
    [content] = storage.put_payload(f"{name}.0", memoryview(large), [len(large)])
    assert content == content_name(large)
    cache, buffer = Cache(tmp_path), urlsplit(granted).path.rpartition("/")[2]
    assert not fetched(given_to_tasks, cache, buffer, LARGE, granted).broken
    assert content_name(cache.path(buffer).read_bytes()) == buffer
    outputs = service.get_container_client(session.outputs)
    assert outputs.download_blob(name).readall() == b"onetwo"
    for blob in (name, f"{name}.0"):
        outputs.delete_blob(blob)
    # What it has to say goes out by a sender; it marks its blob once a call has raised.
    speaking = storage.renewed("mine")
    name, _ = speaking.open_outcomes("call")
    sender, mark = Sender(speaking, session.key, session.job, name, tmp_path), outputs.get_blob_client(f"{name}.failed")
    sender.put(NodeOutcome(0, {"ok": True}, b"one"))
    sender.flush(20)
    assert not mark.exists()
    sender.put(NodeOutcome(1, {"ok": False}, b"two"))
    sender.close({"node": "here"})
    assert mark.exists()
    records = [
        each
        for r in unseal_all(session.key, f"{session.job}/{name}", outputs.download_blob(name).readall())
        for each in outcomes_of(r)
    ]
    assert [bytes(each.body) for each in records] == [b"one", b"two", b""]


@pytest.mark.parametrize("what", ALL)
@pytest.mark.parametrize("with_token_of", ["inputs", "outputs", "another buffer"])
def test_a_task_cannot_reach_a_buffer_that_it_was_not_granted(
    what: str, with_token_of: str, given_to_tasks: Given, granted: str, service: BlobServiceClient
) -> None:
    url = granted if with_token_of == "another buffer" else getattr(given_to_tasks, with_token_of)
    blob = service.get_blob_client(BUFFERS, content_name(b"another's"))
    blob.upload_blob(b"another's", overwrite=True)
    token = urlsplit(url).query
    container = ContainerClient.from_container_url(f"{service.get_container_client(BUFFERS).url}?{token}")
    with refused():
        tries(container, blob.blob_name)[what]()
    assert blob.download_blob().readall() == b"another's"
    blob.delete_blob()
    with contextlib.suppress(ResourceNotFoundError):
        service.get_blob_client(BUFFERS, "of-mine").delete_blob()


@pytest.mark.parametrize("what", [what for what in ALL if what not in ("read", "stat", "blocks")])
def test_a_task_can_only_read_a_buffer_that_it_was_granted(what: str, granted: str, service: BlobServiceClient) -> None:
    parts = urlsplit(granted)
    name = parts.path.rpartition("/")[2]
    container = ContainerClient.from_container_url(f"{service.get_container_client(BUFFERS).url}?{parts.query}")
    with refused():
        tries(container, name)[what]()
    assert content_name(BlobClient.from_blob_url(granted).download_blob().readall()) == name


@pytest.mark.parametrize(
    ("endpoint", "protocols"),
    [
        ("https://account.blob.core.windows.net", {"https"}),
        ("https://account.blob.storage.example", {"https"}),
        ("http://127.0.0.1:10000/account", {"https", "http"}),
    ],
)
def test_a_token_crosses_no_network_in_the_clear(endpoint: str, protocols: set[str]) -> None:
    key = base64.b64encode(b"k" * 64).decode()
    blobs = connect_blobs(endpoint, account="account", key=key)
    for url in (blobs.blob_url("c", "b", HOUR), blobs.container_url("c", "r", HOUR)):
        query = parse_qs(urlsplit(url).query)
        assert set(query["spr"][0].split(",")) == protocols
        assert key not in url
        assert query["sp"] == ["r"]
    blobs.close()


# what a call can see of its task --------------------------------------------------------------------------


def processes_of_the_node() -> list[dict[str, str]]:
    """Return what the processes of this node show of themselves: clients of tasks, supervisor, hosts and runners."""
    found = []
    machine = os.environ["AZ_BATCH_NODE_ROOT_DIR"].removesuffix("/batch/tasks")
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if not folder.name.isdigit() or machine not in (folder / "cmdline").read_text(errors="replace"):
                continue
            shown = {
                "pid": folder.name,
                "command": (folder / "cmdline").read_text(errors="replace"),
                "environment": (folder / "environ").read_text(errors="replace"),
                "open": "",
            }
            for number in (folder / "fd").iterdir():
                if number.resolve().is_file():
                    shown["open"] += number.read_bytes()[:100_000].decode(errors="replace")
            found.append(shown)
    found.append({"own": repr(dict(os.environ)), "arguments": repr(sys.argv)})
    return found


def files_of_the_task() -> dict[str, bytes]:
    """Return the files that a call finds in its task's folder, and in what the node keeps for the running tasks."""
    found = {}
    kept = Path(os.environ["AZ_BATCH_NODE_ROOT_DIR"]).parents[1] / "joblib_azure"
    for folder in (Path(os.environ["AZ_BATCH_TASK_DIR"]), *kept.glob("*/leases"), *kept.glob("*/code/*")):
        for path in folder.rglob("*"):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def signature(url: str) -> str:
    return parse_qs(urlsplit(url).query)["sig"][0]


def secrets_of(given: Given) -> list[str]:
    return [base64.b64encode(given.key).decode(), signature(given.inputs), signature(given.outputs)]


@pytest.mark.parametrize("shape", ["cluster", "wide_cluster"])
def test_no_process_of_a_task_shows_the_jobs_secrets(shape: str, request: pytest.FixtureRequest) -> None:
    cluster: LocalCluster = request.getfixturevalue(shape)
    credential = AzureNamedKeyCredential(cluster.account_name, cluster.account_key)
    with parallel_config("azure", cluster=cluster):
        found = Parallel()(delayed(processes_of_the_node)() for _ in range(2))
        job = session_for(cluster).job
    with BatchClient(endpoint=cluster.batch_endpoint, credential=credential) as batch:
        values = {s.name: s.value or "" for s in batch.get_job(job).common_environment_settings or []}
    key, inputs, outputs = (values[f"JOBLIB_AZURE_{name}"] for name in ("KEY", "INPUTS", "OUTPUTS"))
    assert base64.b64decode(key) == session_for(cluster).key
    secrets = [key, signature(inputs), signature(outputs), signature(inputs).replace("+", "%2B")]
    for processes in found:
        commands = " ".join(process.get("command", "") for process in processes)
        for name in ("from client import main", "supervise", "runner"):
            assert name in commands
        for process in processes:
            for part, text in process.items():
                for name in ("JOBLIB_AZURE_KEY=", "JOBLIB_AZURE_INPUTS=", "JOBLIB_AZURE_OUTPUTS="):
                    assert part != "environment" or name not in text, f"{name} in {process}"
                for secret in secrets:
                    assert secret not in text, f"{part} of {process.get('command')}"


def test_no_file_of_a_task_holds_the_jobs_secrets(cluster: LocalCluster, given_to_tasks: Given) -> None:
    with parallel_config("azure", cluster=cluster):
        [found, _] = Parallel()(delayed(files_of_the_task)() for _ in range(2))
    assert found
    for path, data in found.items():
        for secret in secrets_of(given_to_tasks):
            assert secret.encode() not in data, path


def test_the_key_comes_through_the_service_and_is_the_sessions(given_to_tasks: Given, session: Session) -> None:
    assert given_to_tasks.key == session.key


class Several(Listener):
    def records(self, count: int, size: int) -> bytes:
        place = f"{self.session.job}/{self.blob}"
        return b"".join(
            seal(self.session.key, f"{place}#{n}", {"chunk": n, "ok": True}, pickle.dumps([bytes([n]) * size]))
            for n in range(count)
        )


def test_a_small_outcome_that_is_read_again_is_read_alone(session: Session) -> None:
    with small_window(session):
        listener = Several(session, "generator")
        for _ in range(49):
            listener.call.add(BatchedCalls([(abs, (1,), {})], (NestedBackend(), None)), listener.told.put)
        listener._entry.remaining.update(range(50))
        blobs: Any = session.cluster.blobs
        before, lengths = blobs.read, []

        def read(container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
            data: bytes = before(container, name, offset, length)
            if offset:
                lengths.append(len(data))
            return data

        blobs.read = read
        try:
            listener.say(listener.records(50, 10_000))
            for _ in range(50):
                future = listener.told.get(timeout=20)
                assert list(future.result()) == [bytes([future.chunk]) * 10_000]
        finally:
            blobs.read = before
            listener.close()
        assert max(lengths) < 20_000, f"{sum(lengths)} bytes were read for 50 records of 10 kB"


def test_a_payload_that_was_emptied_is_told_at_once(session: Session) -> None:
    listener = Listener(session, "list")
    payload = encode_outcome([np.random.default_rng(0).bytes(LARGE)], each=True)
    assert isinstance(payload, Payload)
    blob = f"{listener.blob}.0"
    session.cluster.blobs.put(session.outputs, blob, b"")
    head = {"groups": payload.groups, "blob": blob, "contents": [content_name(b"".join(payload.parts))]}
    begun = time.monotonic()
    listener.say(listener.record(b"", **head))
    with pytest.raises(IntegrityError, match=blob):
        listener.result()
    assert time.monotonic() - begun < 20
    listener.close()
