"""What a call's pickles were made with, for the manifest of its bundles: the node compares before it unpickles."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterable
from typing import Any

from .installed import distributions, owners, stamps

#: Looked at in any case: what the formats of calls and results depend on.
_ALWAYS = ("joblib", "cloudpickle")


def client_needs(modules: Iterable[str], elsewhere: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the client's Python and the versions of what pickles refer to.

    Parameters
    ----------
    modules : iterable of str
        Full names of the modules whose objects were pickled.
    elsewhere : frozenset of str
        Distributions that the user's configuration gives the nodes in a version of their own.

    Returns
    -------
    dict
        As `joblib_azure.node.versions.differences` takes it, and the ``modules`` that are not the user's own: a warm
        runner imports them before its first task. The same object for the same question: not to be changed.
    """
    return _needs(frozenset(modules), elsewhere, "numpy" in sys.modules, stamps())


@functools.lru_cache(maxsize=64)  # asked for each bundle
def _needs(modules: frozenset[str], elsewhere: frozenset[str], numpy: bool, installed: object) -> dict[str, Any]:
    known = distributions()
    shared = {name: {owner.name for owner in owners(name) if not (owner.editable or owner.source)} for name in modules}
    required = set().union(*shared.values())
    names = {*_ALWAYS, *required}
    if numpy:
        names.add("numpy")  # results may be arrays although no argument is one
    packages = {name: known[name].version for name in sorted(names - elsewhere) if name in known}
    return {
        "python": platform.python_version(),
        "packages": packages,
        "required": sorted(required - elsewhere),
        "modules": sorted(name for name, owners_of_it in shared.items() if owners_of_it),
    }
