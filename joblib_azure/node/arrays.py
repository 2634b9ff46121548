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
    """A buffer in a file, read-only or copied on write, that knows where it lies."""

    path: str
    offset: int
    mode: str  #: as `numpy.memmap` has it: "r" or "c"

    @classmethod
    def open(cls, path: Path | str, mode: str, offset: int = 0, size: int | None = None) -> memoryview:
        """Return a view on a map of `size` bytes of a file from `offset` on; by default of all of it.

        Modes that would write into the file copy on write: a cached buffer is named by its content.
        """
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = 0 if size is None else offset - start + size
        with open(path, "rb") as file:
            access = mmap.ACCESS_READ if mode == "r" else mmap.ACCESS_COPY
            found = cls(file.fileno(), length, access=access, offset=start)
        found.path, found.offset, found.mode = str(path), offset, "r" if mode == "r" else "c"
        return memoryview(found)[offset - start :]


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
        mapping = buffer.obj if isinstance(buffer, memoryview) else buffer
        if not isinstance(mapping, Mapping):
            return array
        import numpy as np

        where = {"mode": mapping.mode, "offset": mapping.offset, "shape": (array.size,)}
        base = np.memmap(mapping.path, dtype=array.dtype, **where)  # type: ignore[call-overload]
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
