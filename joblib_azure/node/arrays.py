"""Arrays whose buffers the node caches arrive as ``numpy.memmap``, as in joblib's own loky backend.

They are mapped by name, so that a nested Parallel hands them to its workers by name too and copies nothing.
On their way back maps are plain arrays (`codec.pickling`): the client does not have the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..codec import Unpickler


class Mapping(mmap.mmap):
    """A cached buffer, read-only or copied on write, that knows its file."""

    path: str
    mode: str  #: as `numpy.memmap` has it: "r" or "c"

    @classmethod
    def open(cls, path: Path, mode: str) -> Mapping:
        """Map the file at `path`. Modes that would write into it copy on write: it is named by its hash."""
        with path.open("rb") as file:
            found = cls(file.fileno(), 0, access=mmap.ACCESS_READ if mode == "r" else mmap.ACCESS_COPY)
        found.path, found.mode = str(path), "r" if mode == "r" else "c"
        return found


class _Unpickler(Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        # What numpy's arrays with their buffer out of band call to be rebuilt; numpy 1 has it in numpy.core.
        if name == "_frombuffer" and module in ("numpy._core.numeric", "numpy.core.numeric"):
            return _Rebuild(found)
        return found


class _Rebuild:
    """Numpy's ``_frombuffer``, but for a `Mapping` the array is a ``numpy.memmap`` of its file."""

    def __init__(self, from_buffer: Callable[..., Any]) -> None:
        self._from_buffer = from_buffer

    def __call__(self, buffer: Any, *layout: Any) -> Any:
        array = self._from_buffer(buffer, *layout)
        # Read-only buffers may arrive as a memoryview of what was given.
        mapping = buffer.obj if isinstance(buffer, memoryview) else buffer
        if not isinstance(mapping, Mapping):
            return array
        import numpy as np

        base = np.memmap(mapping.path, dtype=array.dtype, mode=mapping.mode)  # type: ignore[call-overload]
        mapped = np.lib.stride_tricks.as_strided(base, array.shape, array.strides, subok=True)
        mapped.flags.writeable = array.flags.writeable
        return mapped


def load(data: bytes | memoryview, buffers: Sequence[Any], part: Callable[[int], Any] | None = None) -> Any:
    """Unpickle an argument's authenticated bytes; of `buffers` those that are a `Mapping` stay maps.

    Parameters
    ----------
    data : bytes or memoryview
    buffers : sequence
    part : callable, optional
        Returns the object of a part by its number.
    """
    return _Unpickler(data, buffers, part).load()
