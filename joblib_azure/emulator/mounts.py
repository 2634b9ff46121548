"""File systems that a pool mounts: checked as the service does, and not mounted.

Where a mount would appear, below ``AZ_BATCH_NODE_MOUNTS_DIR``, each node has an empty folder; a warning in the log says
so when the pool is made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from . import errors

_log = logging.getLogger(__name__)
_KINDS = (
    "azureBlobFileSystemConfiguration",
    "nfsMountConfiguration",
    "cifsMountConfiguration",
    "azureFileShareConfiguration",
)


def check(body: dict[str, Any], *, warn: str | None = None) -> None:
    """Refuse mounts that exclude each other, leave the folder of mounts, or need an identity that the pool has not.

    Parameters
    ----------
    warn : str, optional
        The id of the pool, for the warning.
    """
    for index, mount in enumerate(body.get("mountConfiguration", [])):
        where = f"mountConfiguration[{index}]"
        kinds = [kind for kind in _KINDS if kind in mount]
        if len(kinds) != 1:
            raise errors.invalid_property(where, ", ".join(kinds), f"Specify exactly one of {', '.join(_KINDS)}.")
        given = mount[kinds[0]]
        path = PurePosixPath(given["relativeMountPath"])
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(path):
            reason = "The path must lie in the directory of mounts."
            raise errors.invalid_property(f"{where}.{kinds[0]}.relativeMountPath", path, reason)
        if kinds == ["azureBlobFileSystemConfiguration"]:
            ways = [name for name in ("accountKey", "sasKey", "identityReference") if name in given]
            if len(ways) != 1:
                reason = "Specify exactly one of accountKey, sasKey and identityReference."
                raise errors.invalid_property(f"{where}.{kinds[0]}", ", ".join(ways), reason)
            if ways == ["identityReference"]:
                reason = "The pool has no identity: pools with one are made through Azure Resource Manager."
                raise errors.invalid_property(f"{where}.{kinds[0]}.identityReference", path, reason)
        if warn is not None:
            _log.warning("pool %s: %s is not mounted; nodes have an empty folder fsmounts/%s", warn, kinds[0], path)


def paths(spec: dict[str, Any]) -> Iterator[str]:
    """Where the mounts of a pool appear, below ``fsmounts``."""
    for mount in spec.get("mountConfiguration", []):
        for given in mount.values():
            yield given["relativeMountPath"]
