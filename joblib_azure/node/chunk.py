"""One chunk in the worker that runs it.

The chunk's bytes are unpickled here and nowhere else. Its outcome is always a value in the journal, an
exception too: raised through the inner Parallel it would shut that Parallel's pool.
"""

from __future__ import annotations

import base64
import functools
import mmap
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from joblib.parallel import BatchedCalls, register_parallel_backend

from ..codec import PROTOCOL, unpack
from ..errors import CallExitedError, ResultPicklingError
from . import arrays
from .journal import JournalWriter
from .limits import library_threads
from .nested import NestedBackend, close_nested_pool
from .overlay import use_overlay

# backend="azure" named inside a call means the cores that the call has.
register_parallel_backend("azure", NestedBackend)

#: What the user's traceback should not begin with: this module and joblib's BatchedCalls.
_OWN_FRAMES = (__file__, sys.modules[BatchedCalls.__module__].__file__)


class Span(NamedTuple):
    """A pickle in the bundle's file, and the digests of the buffers that it needs."""

    offset: int
    size: int
    buffers: list[str]


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
    where: str  #: "node …, task …", for tracebacks
    path: tuple[str, ...]  #: further entries of sys.path
    overlay: str | None  #: folder of the user's own modules
    threads: int | None  #: inner_max_num_threads
    initializer: str | None  #: base64 of the pickle of a function and its arguments


@functools.lru_cache(maxsize=4)
def _bundle(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@functools.lru_cache(maxsize=1)
def _journal(folder: str, pid: int) -> JournalWriter:
    return JournalWriter(folder)


def _map(cache: str, digest: str, mode: str | None) -> Any:
    path = Path(cache) / digest[:2] / digest
    return bytearray(path.read_bytes()) if mode is None else arrays.Mapping.open(path, mode)


def _load(setting: Setting, span: Span) -> Any:
    data = memoryview(_bundle(setting.bundle))[span.offset : span.offset + span.size]
    return arrays.load(data, [_map(setting.cache, digest, setting.mmap_mode) for digest in span.buffers])


def run_chunk(setting: Setting, spec: ChunkSpec) -> int:
    """Run one chunk, leave its outcome in this process's journal and return the chunk's number."""
    journal = _journal(setting.journals, os.getpid())
    _prepare_process(setting)
    journal.start(spec.chunk)
    started = time.perf_counter()
    calls = 0
    try:
        _initialize(setting.initializer)
        items, backend, n_jobs = _load(setting, spec.span)
        functions = {number: _load(setting, span) for number, span in spec.functions.items()}
        items = [(functions[f] if isinstance(f, int) else f, args, kwargs) for f, args, kwargs in items]
        calls = len(items)
        started = time.perf_counter()
        result = BatchedCalls(items, (backend, n_jobs))()
        seconds = time.perf_counter() - started
        head, body = {"ok": True}, _pickle_result(result)
    # A call may raise anything, KeyboardInterrupt and SystemExit included: all of it is its outcome.
    except BaseException as exc:
        seconds = time.perf_counter() - started
        head, body = {"ok": False}, _pickle_error(exc, setting.where)
    finally:
        close_nested_pool()
        sys.stdout.flush()
        sys.stderr.flush()
    journal.end(spec.chunk, {**head, "seconds": seconds, "calls": calls}, body)
    return spec.chunk


@functools.lru_cache(maxsize=1)
def _prepare_process(setting: Setting) -> None:
    """Give this process what the bundle's calls expect to find: the modules and the thread limits."""
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


def _pickle_result(result: list[Any]) -> bytes:
    try:
        return arrays.dump(result)
    except Exception as exc:
        kinds = ", ".join(sorted({type(value).__name__ for value in result}))
        raise ResultPicklingError(
            f"the call ran, but its result ({kinds}) cannot be pickled to send it back: "
            f"{type(exc).__name__}: {exc}. Return what can be pickled, or write it to storage inside the call"
        ) from exc


def _pickle_error(exc: BaseException, where: str) -> bytes:
    """Return the pickle of ``(exception, traceback text)`` that is certain to load again."""
    text = f'\n"""\n{_format(exc)}(raised on {where})\n"""'
    if isinstance(exc, SystemExit):
        exc = CallExitedError(f"the call raised SystemExit({exc.code!r}) on {where}")
    try:
        data: bytes = cloudpickle.dumps((exc, text), protocol=PROTOCOL)
        # Exceptions whose __init__ takes other arguments than their args pickle well and fail to load.
        unpack(data)
    except Exception as problem:
        substitute = ResultPicklingError(
            f"the call raised {type(exc).__qualname__}: {exc}; that exception cannot be pickled to send it "
            f"back ({type(problem).__name__}: {problem}). Give it a __reduce__, or raise a built-in type"
        )
        data = cloudpickle.dumps((substitute, text), protocol=PROTOCOL)
    return data


def _format(exc: BaseException) -> str:
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _OWN_FRAMES:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(exc), exc, frames))
