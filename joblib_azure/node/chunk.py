"""One chunk in the worker that runs it.

The chunk's bytes are unpickled here and nowhere else. Its outcome is always a value in the journal, an
exception too: raised through the inner Parallel it would shut that Parallel's pool.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from joblib.parallel import BatchedCalls, register_parallel_backend

from ..codec import Payload, encode_outcome, pack, unpack
from ..errors import CallExitedError, ResultPicklingError
from . import arrays, baseline
from .journal import JournalWriter
from .limits import library_threads
from .nested import NestedBackend, close_nested_pool, line_buffered
from .overlay import use_overlay
from .traces import remote_text

# backend="azure" named inside a call means the cores that the call has.
register_parallel_backend("azure", NestedBackend)

#: Seconds between two looks for a buffer that is on its way: at first, at most, and until nobody waits any more.
_FIRST_LOOK, _LAST_LOOK, _LONGEST_WAIT = 0.001, 0.05, 3600.0


#: Seconds of fetching and unpickling of which an outcome tells: there are a thousand outcomes of short calls a second.
_WORTH = 0.001

#: A buffer: its name in the node's cache, or where it lies in the bundle's file and its bytes.
Place = str | tuple[int, int]


class Span(NamedTuple):
    """A pickle in the bundle's file, the buffers that it needs, and its parts."""

    offset: int
    size: int  #: 0 where all of it is a part
    buffers: list[Place]
    parts: list[tuple[Place, list[Place]]]  #: of each, its pickle and its buffers


class ChunkSpec(NamedTuple):
    """A chunk to run: where its pickle lies, and where those of its functions lie."""

    chunk: int
    span: Span
    functions: dict[int, Span]


class Setting(NamedTuple):
    """What all chunks of a bundle share."""

    bundle: str  #: path of the authenticated bundle
    journals: str  #: folder of the journals
    cache: str  #: folder of the node's buffers
    mmap_mode: str | None  #: how buffers are mapped; None: each call gets copies of its own
    path: tuple[str, ...]  #: further entries of sys.path
    overlay: str | None  #: folder of the user's own modules
    threads: int | None  #: inner_max_num_threads
    initializer: str | None  #: base64 of the pickle of a function and its arguments
    lease: str | None  #: folder that says what the calls find, in a process that served other tasks before


@functools.lru_cache(maxsize=4)
def _bundle(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@functools.lru_cache(maxsize=1)
def _journal(folder: str, pid: int) -> JournalWriter:
    return JournalWriter(folder)


class _Inputs:
    """What a chunk is given: its pickles on the maps of their buffers."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._maps: dict[Place, memoryview] = {}
        #: Seconds for which buffers were still on their way.
        self.waited = 0.0

    def load(self, span: Span) -> Any:
        """Return the object of a pickle."""
        made: dict[int, Any] = {}

        def part(number: int) -> Any:
            # Once: where two calls of a chunk are given the same object, it is the same object.
            if number not in made:
                pickled, buffers = span.parts[number]
                made[number] = self._unpickle(self._map(pickled), buffers)
            return made[number]

        if not span.size:
            return part(0)
        data = memoryview(_bundle(self._setting.bundle))[span.offset : span.offset + span.size]
        return self._unpickle(data, span.buffers, part)

    def _unpickle(self, data: memoryview, buffers: Sequence[Place], part: Callable[[int], Any] | None = None) -> Any:
        return arrays.load(data, [self._buffer(place) for place in buffers], part)

    def _buffer(self, place: Place) -> Any:
        """Return a buffer as the Parallel's ``mmap_mode`` has it.

        What may be written to is nobody else's, even where the bytes are alike.
        """
        mode = self._setting.mmap_mode
        if mode is None:
            return bytearray(self._map(place))
        return self._map(place) if mode == "r" else self._open(place, mode)

    def _map(self, place: Place) -> memoryview:
        if place not in self._maps:
            self._maps[place] = self._open(place, "r")
        return self._maps[place]

    def _open(self, place: Place, mode: str) -> memoryview:
        if isinstance(place, tuple):
            return arrays.Mapping.open(self._setting.bundle, mode, *place)
        path = Path(self._setting.cache) / place[:2] / place
        # It is on its way. Bounded: where it does not come, the task ends this process.
        pause, begun = _FIRST_LOOK, time.monotonic()
        while not path.exists() and time.monotonic() < begun + _LONGEST_WAIT:
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK)
        self.waited += time.monotonic() - begun
        return arrays.Mapping.open(path, mode)


#: How far a chunk has come.
_LOADING, _RUNNING, _DONE = "loading", "running", "done"


class _Counted:
    """A chunk's calls, and the place of the one that runs among them."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self.place = -1

    def __iter__(self) -> Iterator[Any]:
        for place, item in enumerate(self._items):
            self.place = place
            yield item


def run_chunk(setting: Setting, spec: ChunkSpec) -> int:
    """Run one chunk, leave its outcome in this process's journal and return the chunk's number."""
    if baseline.enter(setting.lease):
        # What the task before used, and what its initializer did, which was put back.
        for kept in (_bundle, _journal, _initialize):
            kept.cache_clear()
    journal = _journal(setting.journals, os.getpid())
    _prepare_process(setting)
    journal.start(spec.chunk)
    began = time.time()
    started = time.perf_counter()
    loading = 0.0
    calls = 0
    inputs = _Inputs(setting)
    stage, progress = _LOADING, _Counted(())
    try:
        _initialize(setting.initializer)
        with baseline.importing():
            items, backend, n_jobs = inputs.load(spec.span)
            functions = {number: inputs.load(span) for number, span in spec.functions.items()}
        items = [(functions[f] if isinstance(f, int) else f, args, kwargs) for f, args, kwargs in items]
        backend = functions[backend] if isinstance(backend, int) else backend
        calls = len(items)
        loading = time.perf_counter() - started
        started += loading
        stage = _RUNNING
        batch = BatchedCalls((), (backend, n_jobs))
        batch.items = progress = _Counted(items)
        result = batch()
        stage = _DONE
        seconds = time.perf_counter() - started
        ok, encoded = True, _encode_results(result)
    # A call may raise anything, KeyboardInterrupt and SystemExit included: all of it is its outcome.
    except BaseException as exc:
        seconds = time.perf_counter() - started
        ok, encoded = False, _encode_error(exc, stage)
    finally:
        close_nested_pool()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a call closed it, or put something else there
                stream.flush()
    # Not above: where the disk takes no more, that is no outcome of the call's.
    found: dict[str, Any] = {"ok": ok}
    if not ok and stage == _RUNNING and progress.place >= 0:
        found["place"] = progress.place
    head, body = _leave(journal, spec.chunk, found, encoded)
    baseline.leave(setting.lease)
    span: dict[str, Any] = {"began": began, "seconds": seconds, "calls": calls}
    if loading > _WORTH:
        span["loading"] = [round(inputs.waited, 4), round(loading, 4)]
    journal.end(spec.chunk, {**head, **span}, body)
    return spec.chunk


@functools.lru_cache(maxsize=1)
def _prepare_process(setting: Setting) -> None:
    """Give this process what the bundle's calls expect to find: the modules and the thread limits."""
    line_buffered()
    use_overlay(setting.overlay)
    sys.path += [entry for entry in setting.path if entry not in sys.path]
    # Variables such as OMP_NUM_THREADS were set before this process began; they do not reach a library
    # that was loaded by then, nor one with a limit of its own.
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=library_threads(setting.threads))


@functools.lru_cache(maxsize=16)
def _initialize(initializer: str | None) -> None:
    """Call the Parallel's initializer, the first time that this process runs a chunk of it."""
    if initializer is not None:
        function, args = unpack(base64.b64decode(initializer))
        function(*args)


def _leave(
    journal: JournalWriter, chunk: int, head: dict[str, Any], encoded: bytes | Payload
) -> tuple[dict[str, Any], bytes]:
    """Leave what is large in a file of its own; return the head and what goes into the journal."""
    if isinstance(encoded, bytes):
        return head, encoded
    return {**head, "groups": encoded.groups, "payload": journal.payload(chunk, encoded.parts)}, b""


def _encode_results(result: list[Any]) -> bytes | Payload:
    try:
        return encode_outcome(result, each=True)
    except Exception as exc:
        kinds = ", ".join(sorted({type(value).__name__ for value in result}))
        raise ResultPicklingError(
            f"the call ran, but its result ({kinds}) cannot be pickled to send it back: "
            f"{type(exc).__name__}: {exc}. Return what can be pickled, or write it to storage inside the call"
        ) from exc


def _encode_error(exc: BaseException, stage: str) -> bytes | Payload:
    """Encode ``(exception, traceback text)`` so that it is certain to load again."""
    text = remote_text(exc) + _advice(exc, stage)
    if isinstance(exc, SystemExit):
        exc = CallExitedError(
            f"the call raised SystemExit({exc.code!r}), which ends a call and not your process. Return, or raise "
            "another exception, where a call is to end early"
        )
    try:
        # Exceptions whose __init__ takes other arguments than their args pickle well and fail to load.
        unpack(*pack((exc, text), None))
        return encode_outcome((exc, text), each=False)
    except Exception as problem:
        substitute = ResultPicklingError(
            f"the call raised {type(exc).__qualname__}: {exc}; that exception cannot be pickled to send it "
            f"back ({type(problem).__name__}: {problem}). Give it a __reduce__, or raise a built-in type"
        )
        return encode_outcome((substitute, text), each=False)


def _advice(exc: BaseException, stage: str) -> str:
    said = ""
    if stage == _LOADING:
        said = "while the call's function and arguments were unpickled on the node, before it ran"
    if isinstance(exc, ModuleNotFoundError):
        said += f"{': ' if said else ''}the nodes have no module {exc.name!r}; name its package in pythonPackages, or "
        said += "install it in their image"
    return f"({said})\n" if said else ""
