"""Runs in the Azure CLI's environment: takes a JSON list of arguments a line, answers with a line of JSON."""

import contextlib
import io
import json
import sys

from azure.cli.core import get_default_cli


def run(arguments):
    cli = get_default_cli()
    words, code = io.StringIO(), 0
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
        try:
            code = cli.invoke(arguments, out_file=io.StringIO())
        except SystemExit as exc:
            code = exc.code
    result = cli.result.result if cli.result is not None else None
    error = str(cli.result.error) if cli.result is not None and cli.result.error is not None else ""
    return {"code": code or 0, "result": result, "words": f"{error} {words.getvalue()[-2000:]}"}


for line in sys.stdin:
    sys.stdout.write(json.dumps(run(json.loads(line)), default=str) + "\n")
    sys.stdout.flush()
