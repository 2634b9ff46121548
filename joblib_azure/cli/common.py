"""What all commands share: how they are found, which files they read and write, and how they end.

A command is imported when it runs, not when it is listed. A `JoblibAzureError` ends it with a message and exit
code 1, Ctrl-C with what is left behind and exit code 130; neither with a traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import AuthenticationError, ConfigurationError, JoblibAzureError, ServiceUnreachableError

if TYPE_CHECKING:
    from ..cluster.connections import Connections
    from ..config import AccountConfig, ClusterConfig, PoolSize
    from ..service import BlobItem

F = TypeVar("F", bound=Callable[..., Any])

#: What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT

#: Seconds that completion in a shell may take, and names that it offers.
_OFFER_SECONDS, _MOST_OFFERED = 5.0, 100

CLUSTER_FILE, CLUSTER_VARIABLE = "cluster.json", "JOBLIB_AZURE_CLUSTER"
CREDENTIALS_FILE, CREDENTIALS_VARIABLE = "credentials.json", "JOBLIB_AZURE_CREDENTIALS"


# commands ---------------------------------------------------------------------------------------------------


class Interrupted(click.ClickException):
    """Ctrl-C, with what a person should know now."""

    exit_code = INTERRUPTED

    def show(self, file: Any = None) -> None:
        click.echo(f"\nStopped. {self.format_message()}".rstrip(), file=file, err=file is None)


class Commands(click.Group):
    """A group whose commands are imported when they run, and whose errors are told without a traceback.

    Parameters
    ----------
    lazy : mapping of str to tuple
        Module beside this one, name in it and one line of help, by the command's name.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, name, _ = self.lazy[cmd_name]
        command: click.Command = getattr(import_module(f"{__package__}.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in self.lazy:
                rows.append((name, self.lazy[name][2]))
            elif (command := self.get_command(ctx, name)) is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _warnings_told():
                return super().invoke(ctx)
        except JoblibAzureError as exc:
            if isinstance(exc, AuthenticationError | ServiceUnreachableError):
                exc.advise("`joblib-azure doctor` tries each step of the way by itself")
            raise click.ClickException(str(exc)) from exc
        except (KeyboardInterrupt, click.Abort):
            raise Interrupted("") from None


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"Warning: {record.getMessage()}", err=True)


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """Tell this package's warnings, and not the SDKs', which come with a traceback each."""
    ours, theirs = logging.getLogger(__package__.partition(".")[0]), logging.getLogger("azure")
    told, silent = _Told(logging.WARNING), logging.NullHandler()
    ours.addHandler(told)
    theirs.addHandler(silent)  # without any handler Python would write them to stderr
    try:
        yield
    finally:
        ours.removeHandler(told)
        theirs.removeHandler(silent)


def cluster_option(command: F) -> F:
    """Add ``--cluster FILE``."""
    return click.option(
        "--cluster",
        "cluster_file",
        metavar="FILE",
        shell_complete=_complete_file,
        help=f"The cluster's file. Default: what {CLUSTER_VARIABLE} names, then ./{CLUSTER_FILE}.",
    )(command)


def credentials_option(command: F) -> F:
    """Add ``--credentials FILE``."""
    return click.option(
        "--credentials",
        "credentials_file",
        metavar="FILE",
        shell_complete=_complete_file,
        help=f"The account's file. Default: what {CREDENTIALS_VARIABLE} names, then {CREDENTIALS_FILE} beside the "
        "cluster's file, then the variables AZURE_BATCH_… and AZURE_STORAGE_….",
    )(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")(command)


class Bounds(click.ParamType):  # type: ignore[type-arg]  # generic in new releases of click only
    """``MIN:MAX`` nodes, or a number: 0 to that many, or, where it may be `single`, the number itself."""

    name = "bounds"

    def __init__(self, *, single: bool = False) -> None:
        self.single = single

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "N|MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        least, colon, most = value.strip().rpartition(":")
        try:
            bounds = (int(least) if colon else 0, int(most))
        except ValueError:
            self.fail(f"{value!r} is not a number of nodes; write 4, or 1:4 for 1 to 4 nodes", param, ctx)
        if not 0 <= bounds[0] <= bounds[1]:
            self.fail(f"{value!r}: expected 0 ≤ MIN ≤ MAX", param, ctx)
        return bounds[1] if self.single and not colon else bounds


# completion -------------------------------------------------------------------------------------------------


def offered(ctx: click.Context, find: Callable[[Connections], Iterable[str]]) -> list[str]:
    """Return what a shell may complete, of the account that the command line names.

    Whatever fails, nothing is offered, and nothing that takes long: somebody has only pressed a key.
    """
    found: list[str] = []

    def look() -> None:
        from ..cluster.connections import Connections

        with contextlib.suppress(Exception):
            account = load_account(ctx.params.get("credentials_file"), ctx.params.get("cluster_file"))
            with contextlib.closing(Connections(account)) as connections:
                found.extend(itertools.islice(find(connections), _MOST_OFFERED))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_OFFER_SECONDS)
    return list(found)


def _complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


# files ------------------------------------------------------------------------------------------------------


def cluster_path(given: str | None) -> Path:
    """Return the file of the cluster that is meant; whether it is there is not looked at."""
    named = given or os.environ.get(CLUSTER_VARIABLE) or CLUSTER_FILE
    if named == "local":
        raise ConfigurationError(
            'the cluster "local" is this machine: it starts with your script and ends with it, and there is nothing to '
            f"manage. For a pool on Azure name its file with --cluster FILE, or in {CLUSTER_VARIABLE}"
        )
    return Path(named)


def load_cluster(given: str | None) -> ClusterConfig:
    """Read the cluster's file."""
    from ..config import ClusterConfig

    path = cluster_path(given)
    if not path.exists():
        raise ConfigurationError(
            f"{path} is not there. Write one with `joblib-azure init`, or name one with --cluster FILE"
        )
    return ClusterConfig.load(path)


def load_account(given: str | None, cluster_file: str | None = None) -> AccountConfig:
    """Read the account's file, which is beside the cluster's where none is named, and the environment."""
    from ..config.resolve import resolve_account

    beside = cluster_file or os.environ.get(CLUSTER_VARIABLE) or CLUSTER_FILE
    return resolve_account(given, beside=beside).config


def write_file(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file at once: killed at any moment, the old one or the new one is there, and never half of it.

    Parameters
    ----------
    path : Path
    text : str
    private : bool
        Nobody else may read it, from its first byte on.
    """
    path = Path(os.path.realpath(path))
    new = pending(path)
    new.unlink(missing_ok=True)  # of a run that was killed
    mode = 0o600 if private else 0o666
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if not private and path.exists():
        new.chmod(path.stat().st_mode & 0o777)
    os.replace(new, path)


def pending(path: Path) -> Path:
    """Return where `write_file` keeps a file that is not complete yet."""
    return path.with_name(f"{path.name}.new")


def ignore_in_git(path: Path) -> bool:
    """Make git leave a file with secrets out, before it is there: True where .gitignore was written for that."""
    list_path = path.parent / ".gitignore"
    text = list_path.read_text(encoding="utf-8") if list_path.exists() else ""
    present = {line.strip().lstrip("/") for line in text.splitlines()}
    lines = [name for name in (path.name, pending(path).name) if name not in present]
    if lines:
        separator = "\n" if text and not text.endswith("\n") else ""
        write_file(list_path, text + separator + "\n".join(lines) + "\n")
    return bool(lines)


def as_file(values: Mapping[str, Any]) -> str:
    """Return JSON as these files have it."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


# output -----------------------------------------------------------------------------------------------------


def on_terminal() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str) -> None:
    """Have a person agree to what cannot be undone. :raises click.UsageError: nobody is there."""
    if not on_terminal():
        raise click.UsageError(f"{question} Nobody is here to be asked: add --yes")
    click.confirm(question, abort=True)


def emit(value: Any) -> None:
    """Write JSON: values of this package by their fields, times as ISO 8601, durations as seconds."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def emit_line(value: Any) -> None:
    """Write JSON on a line of its own, for what comes one by one."""
    click.echo(json.dumps(plain(value), ensure_ascii=False))


def plain(value: Any) -> Any:
    """Return `value` as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What a value does not show, a secret mostly, it does not show here either.
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value) if each.repr}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def columns(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Return rows as aligned columns; the last one is as long as it is."""
    table = [[str(cell) for cell in row] for row in ([head] if head else [])] + [
        ["-" if cell in (None, "") else str(cell) for cell in row] for row in rows
    ]
    if not table:
        return ""
    widths = [max(len(row[index]) for row in table if index < len(row)) for index in range(max(map(len, table)))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in table
    )


def count(number: int, thing: str) -> str:
    """Return ``1 node`` or ``2 nodes``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def bounds_line(size: PoolSize) -> str:
    """Return ``0 to 4 dedicated and 2 spot nodes``."""
    kinds = {"dedicated": size.dedicated_nodes, "spot": size.spot_nodes}
    said = [
        f"{each.max if each.min == each.max else f'{each.min} to {each.max}'} {kind}"
        for kind, each in kinds.items()
        if each.max
    ]
    one = size.dedicated_nodes.max + size.spot_nodes.max == 1
    return f"{' and '.join(said) or '0'} {'node' if one else 'nodes'}"


def size(number: int) -> str:
    """Return bytes as a person reads them.

    Examples
    --------
    >>> size(999), size(12_345), size(3_400_000_000)
    ('999 B', '12.3 kB', '3.4 GB')
    """
    amount, units = float(number), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    for larger in units:
        if round(amount, 1) < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{number} B" if unit == "B" else f"{amount:.1f} {unit}"


def show_blobs(
    found: Sequence[BlobItem], limit: int | None, titles: Sequence[str], none: str, *, as_json: bool
) -> None:
    """Show blobs, the first ones, and how many more there are; `none` where there are none."""
    shown = found[:limit]
    if as_json:
        emit(shown)
        return
    if not found:
        click.echo(none)
        return
    rows = [(each.name, size(each.size), f"{each.modified:%Y-%m-%d %H:%M:%S}") for each in shown]
    click.echo(columns(rows, titles))
    if len(shown) < len(found):
        rest = found[len(shown) :]
        click.echo(f"and {len(rest)} more, {size(sum(each.size for each in rest))} together")
