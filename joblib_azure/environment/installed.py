"""What the client has installed: distributions, and which of them a module comes from.

Read from the names of ``*.dist-info`` folders and their RECORD files. `importlib.metadata.packages_distributions`
says the same, but parses every METADATA and takes several times as long, which every client would pay.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..node.versions import INFO_FOLDER, normalized

_TOP_LEVEL = re.compile(rb"^(?:\./)?([^/,\n\"]+)[/,]", re.MULTILINE)
_REQUIRES = re.compile(r"^Requires-Dist:\s*([A-Za-z0-9][A-Za-z0-9._-]*)(.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """An installed distribution."""

    name: str  #: normalised
    version: str
    info: Path  #: its .dist-info or .egg-info

    def read(self, name: str) -> str:
        """Return a file of its metadata; empty where it is not there."""
        try:
            return (self.info / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @functools.cached_property  # asked for each bundle; what is installed anew is another object
    def source(self) -> dict[str, Any]:
        """What direct_url.json says: where it was installed from, if that was no index.

        conda's packages name the folder in which they were built, long ago and elsewhere.
        """
        if self.read("INSTALLER").strip() == "conda":
            return {}
        try:
            found: dict[str, Any] = json.loads(self.read("direct_url.json") or "{}")
        except ValueError:
            return {}
        return found

    @property
    def editable(self) -> bool:
        """Whether it is a local project that is imported from where it lies."""
        return bool(self.source.get("dir_info", {}).get("editable"))

    @property
    def requires(self) -> list[str]:
        """Names of what it needs, extras left out."""
        text = self.read("METADATA") or self.read("PKG-INFO")
        return [normalized(name) for name, rest in _REQUIRES.findall(text) if "extra ==" not in rest]

    @property
    def top_levels(self) -> set[str]:
        """Names of the modules and packages that it brings."""
        try:
            record = (self.info / "RECORD").read_bytes()
        except OSError:
            return set(self.read("top_level.txt").split())
        names = {name.decode(errors="replace") for name in _TOP_LEVEL.findall(record)}
        return {name.partition(".")[0] for name in names if not name.endswith((".dist-info", ".pth", ".data"))}


def distributions() -> dict[str, Distribution]:
    """Return the distributions on ``sys.path`` by their normalised names; the first one counts, as on import."""
    return _distributions(stamps())


def stamps() -> tuple[tuple[str, int], ...]:
    """Return the folders of ``sys.path`` and when something was installed in them."""
    found = []
    for entry in dict.fromkeys(sys.path):
        try:
            found.append((os.path.abspath(entry), os.stat(entry or ".").st_mtime_ns))
        except OSError:
            continue
    return tuple(found)


@functools.lru_cache(maxsize=4)
def _distributions(entries: tuple[tuple[str, int], ...]) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    for entry, _ in entries:
        try:
            names = sorted(os.listdir(entry))
        except OSError:
            continue
        for name in names:
            match = INFO_FOLDER.match(name)
            if match:
                key = normalized(match["name"])
                info = Path(entry, name)
                found.setdefault(key, Distribution(name=key, version=match["version"], info=info))
    return found


def owners(module: str) -> tuple[Distribution, ...]:
    """Return the distributions that a module comes from; none for the standard library and for local modules.

    Parameters
    ----------
    module : str
        Its full name, or that of something in it.
    """
    top_level = module.partition(".")[0]
    if top_level in sys.stdlib_module_names:
        return ()
    found = tuple(_owners(stamps()).get(top_level, ()))
    # Several share a namespace, as google.* and azure.*: the longest name that one of them has decides.
    parts = module.split(".")
    while len(found) > 1 and parts:
        narrower = tuple(one for one in found if ".".join(parts) in _modules_of(one))
        if narrower:
            return narrower
        parts.pop()
    return found if len(found) < 2 else ()


@functools.lru_cache(maxsize=256)
def _modules_of(distribution: Distribution) -> frozenset[str]:
    names = re.findall(r"^([^,\n\"]+)\.(?:py|[^/,]*\.so|so|pyd),", distribution.read("RECORD"), re.MULTILINE)
    return frozenset(name.replace("/", ".").removesuffix(".__init__") for name in names)


@functools.lru_cache(maxsize=4)
def _owners(entries: tuple[tuple[str, int], ...]) -> dict[str, list[Distribution]]:
    found: dict[str, list[Distribution]] = {}
    for distribution in _distributions(entries).values():
        for name in distribution.top_levels:
            found.setdefault(name, []).append(distribution)
    return found


def closure(names: Iterable[str]) -> set[str]:
    """Return installed distributions and all that they need, by name."""
    known = distributions()
    found: set[str] = set()
    waiting = [name for name in names if name in known]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [needed for needed in known[name].requires if needed in known]
    return found
