"""Large arguments on a local cluster: they move once, arrive as joblib's own backends have them, and never wrong."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import joblib
import numpy as np
import pandas as pd
import pytest
from azure.storage.blob import BlobServiceClient
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.codec import PIECE, content_name
from joblib_azure.errors import ContentChangedError
from joblib_azure.registry import close_sessions, session_for
from joblib_azure.storage import BUFFERS
from joblib_azure.transfer import Transfers

LONG = 60.0
MB = 1 << 20
_LINE = re.compile(r'^\S+ - - \[[^\]]+\] "([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) ', re.MULTILINE)


@pytest.fixture(autouse=True)
def azure(cluster: LocalCluster) -> Iterator[None]:
    with parallel_config("azure", cluster=cluster):
        yield


@pytest.fixture(autouse=True, scope="module")
def names_that_hold(cluster: LocalCluster) -> Iterator[None]:
    """Whatever the tests do, what lies under a name in the end has it."""
    yield
    session_for(cluster)
    for blob in cluster.blobs.blobs(BUFFERS, ""):
        assert content_name(cluster.blobs.read(BUFFERS, blob.name)) == blob.name


def numbers(size: int, seed: int) -> Any:
    """Return an array of so many bytes."""
    return np.random.default_rng(seed).random(size // 8)


def name_of(array: Any) -> str:
    return content_name(memoryview(array).cast("B"))


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"waited {LONG:.0f} s for {what}"
        time.sleep(0.02)


def requests(cluster: LocalCluster, name: str) -> dict[str, int]:
    """Return how often the client stored a buffer and the nodes fetched it."""
    log = cluster.host.storage_access_log
    if log is None:
        pytest.skip("an Azurite that somebody else started is in use, whose log is out of reach")
    found = {"stored": 0, "fetched": 0}
    for method, target, _ in _LINE.findall(log.read_text()):
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        if unquote(parts.path).endswith(f"/{BUFFERS}/{name}"):
            found["stored"] += method == "PUT" and query.get("comp") != ["blocklist"]
            found["fetched"] += method == "GET" and "sig" in query
    return found


def settled(cluster: LocalCluster) -> None:
    session = session_for(cluster)
    until(lambda: not session.work.under_way, "the tasks to end")


def forgotten_by_nodes(cluster: LocalCluster) -> None:
    """Empty the nodes' caches."""
    settled(cluster)
    for node in (cluster.host.folder / "nodes").iterdir():
        for path in (node / "joblib_azure" / str(os.getuid()) / "buffers").glob("??/*"):
            path.unlink(missing_ok=True)


def total(array: Any, *_: Any) -> float:
    return float(np.asarray(array).sum())


def looked_at(array: Any, *_: Any) -> tuple[str, bool, float]:
    """Return what an array is, whether it can be written to, and its sum."""
    return type(array).__name__, bool(array.flags.writeable), total(array)


def overwritten(array: Any, number: int) -> tuple[float, float]:
    """Return the sum of an array before and after all of it was overwritten."""
    before = total(array)
    array[...] = number
    return before, total(array)


# once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2 * MB, 2 * PIECE + 8])
def test_an_array_moves_once_for_two_calls_and_another_session(size: int, cluster: LocalCluster) -> None:
    array = numbers(size, size)
    expected = [total(array)] * 4
    assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(4)) == expected
    settled(cluster)
    [stored] = list(cluster.blobs.blobs(BUFFERS, name_of(array)))
    assert stored.size == size
    assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(4)) == expected
    first = session_for(cluster).job
    close_sessions(cluster)
    assert Parallel(batch_size=1)(delayed(total)(array.copy(), i) for i in range(4)) == expected
    assert session_for(cluster).job != first
    [again] = list(cluster.blobs.blobs(BUFFERS, name_of(array)))
    assert again == stored
    pieces = -(-size // PIECE)
    made = requests(cluster, name_of(array))
    assert made["stored"] == pieces
    assert made["fetched"] >= pieces


def test_a_node_fetches_an_array_once(cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 3)
    Parallel(batch_size=1)(delayed(total)(array, i) for i in range(2))
    settled(cluster)
    fetched = requests(cluster, name_of(array))["fetched"]
    for _ in range(3):
        assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(8)) == [total(array)] * 8
    settled(cluster)
    # Of two nodes, one may not have had it the first time.
    assert requests(cluster, name_of(array))["fetched"] <= fetched + 1


def test_what_is_within_others_moves_once_too(cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 4)
    frame = pd.DataFrame({"a": array, "b": array[::-1]})
    given = [{"x": array}, (array, 1), frame]
    found = Parallel(batch_size=1)(delayed(lambda one: total(sum_of(one)))(one) for one in given)
    assert found == pytest.approx([total(array), total(array), 2 * total(array)])
    assert requests(cluster, name_of(array))["stored"] == 1


def sum_of(given: Any) -> Any:
    if isinstance(given, dict):
        return given["x"]
    return given[0] if isinstance(given, tuple) else given.to_numpy()


# maps and copies ------------------------------------------------------------------------------------------


class Memory:
    """The most memory that this process has of its own while it is looked at; maps of files are not."""

    def __enter__(self) -> Memory:
        self._over = threading.Event()
        self._begun = self.most = self._now()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self.most - self._begun

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def test_an_array_that_is_a_map_arrives_as_one_and_is_not_loaded(tmp_path: Path) -> None:
    size = 192 * MB
    joblib.dump(np.arange(size // 8, dtype=float), tmp_path / "array")
    array = joblib.load(tmp_path / "array", mmap_mode="r")
    with Memory() as memory:
        found = Parallel(batch_size=1)(delayed(looked_at)(array, i) for i in range(4))
    assert {(kind, writeable) for kind, writeable, _ in found} == {("memmap", False)}
    assert {value for _, _, value in found} == {total(array)}
    assert memory.grown < size // 2


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_what_joblib_loads_by_map_in_any_mode(mode: str, tmp_path: Path) -> None:
    joblib.dump({"a": numbers(2 * MB, 5), "f": np.asfortranarray(np.ones((600, 600)))}, tmp_path / "arrays")
    given = joblib.load(tmp_path / "arrays", mmap_mode=mode)
    before = (tmp_path / "arrays").read_bytes()
    found = Parallel(batch_size=1)(delayed(looked_at)(given[name][::2]) for name in ("a", "f"))
    assert found == [("memmap", False, total(given[name][::2])) for name in ("a", "f")]
    assert (tmp_path / "arrays").read_bytes() == before


def test_without_a_limit_each_call_has_a_copy_of_its_own(cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 6)
    before = array.copy()
    pool = Parallel(batch_size=1, max_nbytes=None)
    for _ in range(2):
        found = pool(delayed(overwritten)(array, i) for i in range(6))
        assert found == [(total(before), float(i * array.size)) for i in range(6)]
    assert (
        Parallel(max_nbytes=None)(delayed(looked_at)(array, i) for i in range(2))
        == [("ndarray", True, total(before))] * 2
    )
    np.testing.assert_array_equal(array, before)
    assert requests(cluster, name_of(array))["stored"] == 1


@pytest.mark.parametrize("limit", [1000, "1K", 1, 0])
def test_a_small_limit_maps_small_arrays(limit: Any) -> None:
    small, empty = np.arange(1000.0), np.zeros((0, 3))
    found = Parallel(max_nbytes=limit)(delayed(looked_at)(array) for array in (small, empty, small[::2]))
    assert found[0] == ("memmap", False, total(small))
    assert found[1][2] == 0
    assert found[2] == ("memmap", False, total(small[::2]))


def test_a_large_limit_maps_nothing() -> None:
    array = numbers(2 * MB, 7)
    found = Parallel(max_nbytes="100M")(delayed(looked_at)(array, i) for i in range(2))
    assert found == [("ndarray", True, total(array))] * 2


@pytest.mark.parametrize("mode", ["c", "r+", "w+"])
def test_what_a_call_writes_stays_with_it(mode: str, cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 8)
    before = array.copy()
    for _ in range(2):
        found = Parallel(batch_size=1, mmap_mode=mode)(delayed(overwritten)(array, i) for i in range(6))
        assert found == [(total(before), float(i * array.size)) for i in range(6)]
    np.testing.assert_array_equal(array, before)
    for node in (cluster.host.folder / "nodes").iterdir():
        for path in (node / "joblib_azure" / str(os.getuid()) / "buffers").glob("??/*"):
            assert path.suffix == ".lock" or content_name(path.read_bytes()) == path.name


@pytest.mark.parametrize("size", [10_000, 2 * MB])
def test_by_default_nobody_writes_into_what_others_see(size: int) -> None:
    """As with loky: small arguments are copies, large ones refuse."""
    array = numbers(size, 9)
    if size < MB:
        assert Parallel()(delayed(overwritten)(array, 1) for _ in range(2)) == [(total(array), float(array.size))] * 2
    else:
        with pytest.raises(ValueError, match="read-only"):
            Parallel()(delayed(overwritten)(array, 1) for _ in range(2))


# changes --------------------------------------------------------------------------------------------------


def extremes(array: Any, number: int) -> tuple[float, float, int]:
    return float(array.min()), float(array.max()), number


@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize("size", [MB // 2, 2 * MB])
def test_an_array_that_changes_between_two_calls(size: int, pause: float) -> None:
    """Each call sees it as it was at some moment, or the Parallel says that it changed."""
    array = np.zeros(size // 8)

    def calls() -> Iterator[Any]:
        for number in range(8):
            array[...] = number
            yield delayed(extremes)(array, number)
            time.sleep(pause)

    with contextlib.suppress(ContentChangedError):
        for lowest, highest, _ in Parallel(batch_size=1)(calls()):
            assert lowest == highest


def test_an_array_that_changed_from_one_parallel_to_the_next(cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 10)
    pool = Parallel(batch_size=1)
    for _ in range(3):
        array += 1
        expected = total(array)
        assert pool(delayed(total)(array, i) for i in range(3)) == [expected] * 3


# losses ---------------------------------------------------------------------------------------------------


def test_a_buffer_that_storage_has_lost_is_stored_again(cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 11)
    expected = [total(array)] * 3
    assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(3)) == expected
    session = session_for(cluster)
    forgotten_by_nodes(cluster)
    assert cluster.blobs.delete(BUFFERS, name_of(array))
    assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(3)) == expected
    assert session_for(cluster) is session
    assert cluster.blobs.stat(BUFFERS, name_of(array)) is not None


def test_some_buffers_that_storage_has_lost_are_stored_again(cluster: LocalCluster) -> None:
    arrays = [numbers(MB, 100 + i) for i in range(3)]
    expected = sum(map(total, arrays))
    assert Parallel()([delayed(sum_of_all)(arrays)]) == [expected]
    forgotten_by_nodes(cluster)
    for array in arrays:
        assert cluster.blobs.delete(BUFFERS, name_of(array))
    assert Parallel()([delayed(sum_of_all)(arrays)]) == [expected]


def sum_of_all(arrays: list[Any]) -> float:
    return sum(map(total, arrays))


def test_what_nodes_still_hold_is_not_missed(cluster: LocalCluster) -> None:
    array = numbers(2 * MB, 12)
    assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(8)) == [total(array)] * 8
    settled(cluster)
    cluster.blobs.delete(BUFFERS, name_of(array))
    assert Parallel(batch_size=1)(delayed(total)(array, i) for i in range(8)) == [total(array)] * 8


def test_what_changes_while_a_piece_is_sent_is_a_changed_argument(cluster: LocalCluster) -> None:
    array = numbers(2 * PIECE, 1)
    name = name_of(array)

    def change(request: Any) -> None:
        if "comp=block&" in request.http_request.url:
            array[...] = 0

    cluster.blobs.create_container("changes")
    with BlobServiceClient.from_connection_string(
        cluster.storage_connection_string, raw_request_hook=change
    ) as service:
        blob = service.get_blob_client("changes", name)
        with pytest.raises(ContentChangedError):
            Transfers().upload(blob, memoryview(array).cast("B"), name=name)


def test_many_buffers_that_storage_has_lost_are_stored_again(cluster: LocalCluster) -> None:
    """More than are fetched at a time, and more than a task is tried."""
    arrays = [numbers(MB, 100 + i) for i in range(40)]
    expected = sum(map(total, arrays))
    assert Parallel()([delayed(sum_of_all)(arrays)]) == [expected]
    forgotten_by_nodes(cluster)
    for array in arrays:
        assert cluster.blobs.delete(BUFFERS, name_of(array))
    assert Parallel()([delayed(sum_of_all)(arrays)]) == [expected]
