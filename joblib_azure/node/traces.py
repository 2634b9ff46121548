"""The traceback of a call as its user wants to read it: his own frames.

Around them are those of the machinery: this package's, joblib's, loky's, cloudpickle's. They come and go between his
own ones and tell nothing; what remains of them are the innermost ones, where one of them is what raises.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import cloudpickle
import joblib

#: As frames name them: by the paths that they were imported from.
_PYTHON = Path(traceback.__file__).parent
#: This package; its frames are always left out.
_OURS = f"{Path(__file__).parents[1]}/"
#: Folders and files of the machinery.
_MACHINERY = (
    *(f"{Path(module.__file__).parent}/" for module in (joblib, cloudpickle)),
    *(f"{_PYTHON / name}/" for name in ("concurrent", "multiprocessing")),
    str(_PYTHON / "runpy.py"),
    "<frozen runpy>",
)


def remote_text(exc: BaseException) -> str:
    """Return an exception's traceback, with its causes, in the user's frames."""
    found = traceback.TracebackException.from_exception(exc)
    _shorten(found)
    return "".join(found.format())


def _shorten(found: traceback.TracebackException) -> None:
    frames = [frame for frame in found.stack if not frame.filename.startswith(_OURS)]
    last = max((at for at, frame in enumerate(frames) if not frame.filename.startswith(_MACHINERY)), default=-1)
    kept = [frame for at, frame in enumerate(frames) if at > last or not frame.filename.startswith(_MACHINERY)]
    # Without any, there is nothing to head with "Traceback".
    found.stack = traceback.StackSummary.from_list(kept) if kept else None  # type: ignore[assignment]
    for other in (found.__cause__, found.__context__, *(getattr(found, "exceptions", None) or ())):
        if other is not None:
            _shorten(other)
