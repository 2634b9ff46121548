"""This package's own code for the nodes: one archive, named by its content, always the client's version."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

#: Parts of the package that no node needs. The rest goes along whole: a module of the user's that begins with
#: ``from joblib_azure import LocalCluster`` is imported on the nodes too.
_CLIENT_ONLY = ("cli", "emulator")
_MAIN = """\
import sys
from joblib_azure.node.__main__ import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


class NodeCode(NamedTuple):
    """The package as an archive, and its name in storage."""

    name: str
    data: bytes


@functools.cache
def node_code() -> NodeCode:
    """Pack the package's modules; the same sources give the same bytes."""
    root = Path(__file__).parents[1]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), _MAIN)
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if inside.parts[0] not in _CLIENT_ONLY:
                archive.writestr(zipfile.ZipInfo(f"{root.name}/{inside.as_posix()}"), path.read_bytes())
    data = stream.getvalue()
    return NodeCode(f"code/{hashlib.sha256(data).hexdigest()}.zip", data)
