"""``python -m joblib_azure.emulator``: serves one account on loopback until it is told to stop.

The account's key comes in the environment variable ``BATCH_EMULATOR_ACCOUNT_KEY``. One line of JSON on stdout says
where it listens; logs go to stderr. The end of stdin is a sign to stop (so ``</dev/null`` stops it at once): whoever
holds the pipe and dies takes the emulator along.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import uuid
from pathlib import Path

from .options import add_arguments, from_arguments
from .process import KEY_VARIABLE, new_key
from .processes import RUN_ID_VARIABLE


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m joblib_azure.emulator", description="An Azure Batch emulator.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--account", default="emulated", help="name of the Batch account")
    parser.add_argument("--root", type=Path, help="folder of the nodes (a temporary one, removed at the end)")
    parser.add_argument("--access-log", type=Path, help="file that takes one line a request")
    parser.add_argument(
        "--state",
        type=Path,
        help="file that keeps what the account holds, for the next start; with a --root of its own, which keeps the "
        "nodes' disks",
    )
    parser.add_argument("--remove-root", action="store_true", help="remove the root at the end")
    parser.add_argument("--starter", type=int, help="stop when this parent process is gone")
    parser.add_argument("--tls", action="store_true", help="serve https, with a certificate made for it")
    parser.add_argument("--certfile", type=Path, help="serve https, with this certificate")
    parser.add_argument("--keyfile", type=Path, help="the certificate's key, if it is in a file of its own")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    if given.state is not None and (given.root is None or given.remove_root):
        parser.error("--state is of use with a --root that stays: nodes keep their disks there")
    from .server import Settings, serve  # after parsing: --help needs no server
    from .stored import StateError

    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    root = given.root or Path(tempfile.mkdtemp(prefix="batch-"))
    root.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        port=given.port,
        account_name=given.account,
        account_key=os.environ.pop(KEY_VARIABLE, "") or new_key(),
        root=root.resolve(),
        run_id=os.environ.get(RUN_ID_VARIABLE) or uuid.uuid4().hex,
        options=from_arguments(given),
        access_log=given.access_log,
        state=None if given.state is None else given.state.resolve(),
        remove_root=given.remove_root or given.root is None,
        starter=given.starter,
        tls=given.tls,
        certfile=given.certfile,
        keyfile=given.keyfile,
    )
    try:
        asyncio.run(serve(settings, sys.stdout))
    except StateError as exc:
        sys.stderr.write(f"The state cannot be used: {exc}. Move the file away to begin with an empty account.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
