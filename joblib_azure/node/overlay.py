"""The user's own modules on a node: archives of the bundle, unpacked once a node, on ``sys.path`` for its calls only.

::

    manifest["overlay"] = [digest, …] ── fetched as buffers are ──► cache/…
                                                                      │ unpack, once a node
                                     worker's sys.path[0] ◄── overlays/<hash of the digests>/
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import sys
from collections.abc import Sequence

from .cache import Cache
from .locks import locked

_on_path: list[str] = []


def unpack_overlay(digests: Sequence[str], cache: Cache) -> str | None:
    """Return the folder with the modules of these archives of the node's buffer cache; None where there are none."""
    if not digests:
        return None
    # Late: most tasks find their overlay unpacked.
    import zipfile

    folders = cache.folder.parent / "overlays"
    target = folders / hashlib.sha256("\n".join(digests).encode()).hexdigest()[:32]
    if not target.exists():
        folders.mkdir(parents=True, exist_ok=True)
        with locked(target.with_suffix(".lock")):
            if not target.exists():
                part = target.with_suffix(f".{os.getpid()}.part")
                try:
                    for digest in digests:
                        with zipfile.ZipFile(cache.path(digest)) as archive:
                            archive.extractall(part)
                    part.rename(target)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    return str(target)


def use_overlay(folder: str | None) -> None:
    """Let this process import from `folder`, and from no overlay before it.

    The overlay comes first, as the script's folder does at home.
    """
    wanted = [folder] if folder else []
    if _on_path == wanted:
        if sys.path[: len(wanted)] != wanted:  # the process was put back between two tasks
            sys.path[:0] = wanted
        return
    for old in _on_path:
        sys.path[:] = [entry for entry in sys.path if entry != old]
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(old + os.sep):
                del sys.modules[name]
    _on_path[:] = wanted
    sys.path[:0] = _on_path
    importlib.invalidate_caches()
