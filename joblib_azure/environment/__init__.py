"""What the client has and the nodes must have: packages as a lock, the user's own modules as an overlay.

Read in this order::

    plan.py       what the nodes of a session get, and how it gets there
    packages.py   which distributions that is
    usercode.py   which modules are the user's own, and what they import
    installed.py  what the client has installed
    indexes.py    where packages come from, and what stays secret of it
    conda.py      packages by their conda names
    lock.py       one file a package, as uv resolves them for the nodes
    obtain.py     what of it has to come from this machine
    wheels.py     wheels that are built, packed or downloaded here
    overlay.py    the user's modules as archives
    versions.py   what a node compares before it unpickles
    code.py       this package's own code for the nodes

The node's side is `joblib_azure.node.prepare`, `.environment`, `.archive`, `.interpreter`, `.overlay` and `.versions`.
"""

from __future__ import annotations

from .code import NodeCode, node_code
from .obtain import node_platform
from .plan import EnvironmentPlan, Lock, plan
from .versions import client_needs

__all__ = ["EnvironmentPlan", "Lock", "NodeCode", "client_needs", "node_code", "node_platform", "plan"]
