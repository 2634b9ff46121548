"""Prices that were looked up, in the user's cache folder: a small file for each size in each region."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

logger = logging.getLogger(__name__)

#: A change of what is kept gives the files other names.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the list said.

    Parameters
    ----------
    looked_up : float
        Seconds since the epoch.
    dedicated, spot : float or None
    """

    looked_up: float
    dedicated: float | None
    spot: float | None


def path_of(url: str, region: str, size: str, currency: str) -> Path:
    """Return where the prices of a size in a region are kept."""
    folder = Path(platformdirs.user_cache_dir("joblib_azure", appauthor=False)) / "prices"
    digest = hashlib.sha256(json.dumps([_FORMAT, url, region, size, currency]).encode()).hexdigest()[:12]
    return folder / f"{re.sub('[^A-Za-z0-9_-]', '_', f'{region}-{size}-{currency}')}-{digest}.json"


def read(path: Path) -> Found | None:
    """Return what is kept; None where there is nothing, or nothing that can be read."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        prices = [None if told[kind] is None else float(told[kind]) for kind in ("dedicated", "spot")]
        return Found(looked_up=float(told["looked_up"]), dedicated=prices[0], spot=prices[1])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(path: Path, found: Found) -> None:
    """Keep it, for all processes of the user at once; where that cannot be, it is looked up again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as stream:
                json.dump(asdict(found), stream)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as exc:
        logger.debug("keeping prices in %s: %s", path, exc)
