"""What the client has and the node must have. For now: this package's own code, always the client's version.

The node code travels with the job as one archive, named by its content. The job preparation task unpacks and
compiles it, so that a task's interpreter starts with byte code at hand.
"""

from __future__ import annotations

import functools
import hashlib
import io
import shlex
import zipfile
from pathlib import Path
from typing import NamedTuple

#: Parts of the package that no node needs. The rest goes along whole: a module of the user's that begins with
#: ``from joblib_azure import LocalCluster`` is imported on the nodes too.
_CLIENT_ONLY = ("cli", "emulator")
_ARCHIVE = "joblib_azure_node.zip"
_FOLDER = "joblib_azure_node"
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
    root = Path(__file__).parent
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), _MAIN)
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if inside.parts[0] not in _CLIENT_ONLY:
                archive.writestr(zipfile.ZipInfo(f"{root.name}/{inside.as_posix()}"), path.read_bytes())
    data = stream.getvalue()
    return NodeCode(f"code/{hashlib.sha256(data).hexdigest()}.zip", data)


def preparation_files(url: str) -> dict[str, str]:
    """Return the resource files of the job preparation task."""
    return {_ARCHIVE: url}


def preparation_command(python: str) -> str:
    """Return the command line of the job preparation task."""
    run = shlex.quote(python)
    script = (
        f"set -e; {run} -m zipfile -e {_ARCHIVE} {_FOLDER}; {run} -m compileall -q {_FOLDER}; "
        # Said here, once a node, and not by every task: what the environment lacks.
        f"{run} -c 'import joblib, cloudpickle, threadpoolctl, azure.storage.blob'"
    )
    return f"/bin/sh -c {shlex.quote(script)}"


def task_command(python: str) -> str:
    """Return the command line of every task. Batch runs it without a shell, so it names one for the variable."""
    script = f'exec {shlex.quote(python)} "$AZ_BATCH_JOB_PREP_WORKING_DIR/{_FOLDER}"'
    return f"/bin/sh -c {shlex.quote(script)}"
