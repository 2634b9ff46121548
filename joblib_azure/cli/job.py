"""``joblib-azure job``: jobs that were submitted and left to themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .common import (
    cluster_option,
    columns,
    count,
    credentials_option,
    emit,
    emit_line,
    json_option,
    load_account,
    offered,
    size,
)

if TYPE_CHECKING:
    from ..cluster.connections import Connections
    from ..config import AccountConfig
    from ..jobs import Job, StoredFile
    from ..jobs.arrivals import Arrival
    from ..service import TaskState

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _moment(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def _with_account(command: F) -> F:
    """Add the options that say which account is meant; the command gets it as its first argument."""

    @cluster_option
    @credentials_option
    @wraps(command)
    def wrapper(*args: Any, cluster_file: str | None, credentials_file: str | None, **kw: Any) -> Any:
        return command(load_account(credentials_file, cluster_file), *args, **kw)

    return wrapper  # type: ignore[return-value]


def _with_job(command: F) -> F:
    """The same with the argument NAME; the command gets the job."""

    @click.argument("name", shell_complete=_names)
    @_with_account
    @wraps(command)
    def wrapper(account: AccountConfig, *args: Any, name: str, **kw: Any) -> Any:
        with _attached(account, name) as found:
            return command(found, *args, **kw)

    return wrapper  # type: ignore[return-value]


@contextlib.contextmanager
def _attached(account: AccountConfig, name: str) -> Iterator[Job]:
    from ..jobs import Job

    job = Job.attach(name, account=account)
    try:
        yield job
    finally:
        job.close()


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a job in the shell."""
    from ..labels import name_of
    from ..storage import JOB_PREFIX

    def find(found: Connections) -> list[str]:
        return sorted({name for each in found.batch.job_list(f"{JOB_PREFIX}{incomplete}") if (name := name_of(each))})

    return offered(ctx, find)


@click.group()
def job() -> None:
    """See jobs that were submitted, collect their results, end and remove them."""


@job.command(name="list")
@_with_account
@json_option
def list_jobs(account: AccountConfig, as_json: bool) -> None:
    """List the account's jobs, the newest first."""
    from ..jobs import Job

    found = Job.list(account=account)
    if as_json:
        emit(found)
        return
    if not found:
        click.echo(f"There are no jobs on the account {account.batch_account}.")
        return
    rows = [
        (each.name, each.kind, each.state, each.pool, _moment(each.created), _moment(each.ended), each.reason)
        for each in found
    ]
    click.echo(columns(rows, ("job", "kind", "state", "pool", "submitted (UTC)", "ended", "why")))


@job.command()
@click.option("--tasks", "with_tasks", is_flag=True, help="Its Batch tasks too, one by one.")
@click.option("--cost", "with_cost", is_flag=True, help="What it has cost too, estimated; a request for each task.")
@_with_job
@json_option
def show(job: Job, with_tasks: bool, with_cost: bool, as_json: bool) -> None:
    """Tell how far a job has come."""
    status = job.status()
    tasks = list(job.tasks()) if with_tasks else []
    cost = job.cost() if with_cost else None
    if as_json:
        more = {} if cost is None else {"cost": cost.data()}
        emit({**vars(status), **more, **({"task_list": tasks} if with_tasks else {})})
        return
    click.echo(str(status))
    if status.nodes is not None:
        kinds = {"dedicated": status.nodes.dedicated, "spot": status.nodes.spot}
        said = [f"{number} {kind} {state}" for kind, counts in kinds.items() for state, number in counts.items()]
        click.echo(f"pool {status.pool}: {', '.join(said) or 'no nodes'}")
    if cost is not None:
        click.echo(f"cost{' up to now' if cost.running else ''}: {cost.kept}")
    if status.failed:
        click.echo(f"`joblib-azure job results {job.name} --on-error return` tells how calls failed.")
    if tasks:
        rows = [_row(each) for each in tasks]
        click.echo(
            "\n" + columns(rows, ("task", "state", "node", "started (UTC)", "ended", "exit", "retries", "failure"))
        )


def _row(task: TaskState) -> tuple[object, ...]:
    return (
        task.id,
        task.state,
        task.node,
        _moment(task.started),
        _moment(task.ended),
        "-" if task.exit_code is None else str(task.exit_code),
        str(task.retries + task.requeues),
        task.failure,
    )


@job.command()
@_with_job
@click.argument("task", required=False)
@click.option("--stdout", is_flag=True, help="What it printed, in place of its stderr.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the task ends.")
@json_option
def logs(job: Job, task: str | None, stdout: bool, follow: bool, as_json: bool) -> None:
    """Show what a task has written: by default the first that failed, or else the one that started last."""
    from ..jobs.logs import STDERR, STDOUT

    task, stream = task or _interesting(job), STDOUT if stdout else STDERR
    found = job.logs(task, follow=follow, stream=stream)
    if as_json:
        emit({"job": job.name, "task": task, "stream": stream, "content": "".join(found)})
        return
    for text in found:
        click.echo(text, nl=False)


def _interesting(job: Job) -> str:
    tasks = [each for each in job.tasks() if each.started is not None]
    if not tasks:
        raise click.ClickException(f"no task of job {job.name!r} has started: there is nothing to show yet")
    failed = [each for each in tasks if each.failure]
    found = failed[0] if failed else max(tasks, key=lambda each: each.started)  # type: ignore[arg-type, return-value]
    click.echo(f"task {found.id} on node {found.node}:", err=True)
    return found.id


@job.command()
@click.option(
    "--output",
    type=_FILE,
    help="Write them, as a list, with joblib.dump. By default each is printed, a line each.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "return", "drop"]),
    help="What becomes of calls that failed. Default: as the job was submitted.",
)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait no longer for the next one.")
@_with_job
@json_option
def results(job: Job, output: Path | None, on_error: Any, timeout: float | None, as_json: bool) -> None:
    """Collect a job's results, in order, as they come. Unpickled here: only of jobs that you trust.

    With --json a line for each: its call's number, and its result or error.
    """
    from ..jobs.delivery import collect

    policy, values = on_error or job.on_error, []
    with contextlib.closing(collect(job, ordered=True, timeout=timeout, progress=None)) as arrivals:
        for number, failed, value in _outcomes(arrivals):
            if failed and policy == "raise":
                raise click.ClickException(_failure(job, number, value))
            if failed and policy == "drop":
                continue
            if output is not None:
                values.append(value)
            elif as_json:
                emit_line({"call": number, **({"error": _described(value)} if failed else {"result": value})})
            else:
                click.echo(repr(value))
    if output is not None:
        _dump(values, output)


def _outcomes(arrivals: Iterator[tuple[int, Arrival]]) -> Iterator[tuple[int, bool, Any]]:
    """Yield each call's number, whether it failed, and its result or error."""
    from ..jobs.delivery import error_of, succeeded, value_of

    try:
        for number, arrival in arrivals:
            well = succeeded(arrival)
            yield number, not well, value_of(arrival) if well else error_of(arrival)
    except TimeoutError as exc:
        raise click.ClickException(str(exc)) from exc


def _failure(job: Job, number: int, error: BaseException) -> str:
    """Say what a call raised, as its traceback has it, and how to have the others."""
    remote = "" if error.__cause__ is None else f"{error.__cause__}\n"
    more = f"`joblib-azure job results {job.name} --on-error drop` has the others, `--on-error return` all errors"
    return f"call {number} of job {job.name!r} failed{':' if remote else ''}{remote}{_line(error)}\n{more}"


def _line(error: BaseException) -> str:
    return f"{'' if error.__cause__ is not None else ': '}{type(error).__name__}: {error}"


def _described(error: BaseException) -> dict[str, Any]:
    """Return an error as JSON has it: what, where, and the traceback on the node."""
    remote = error.__cause__
    ids = getattr(error, "context", None) or getattr(remote, "context", {})
    message = getattr(error, "message", None) or str(error)
    return {"type": type(error).__name__, "message": message, **ids, "traceback": getattr(remote, "text", "")}


@job.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Download them into this folder, each below its task's id.",
)
@click.option("--match", default="**", metavar="PATTERN", help="Only those whose path matches. Default: all.")
@click.option("--wait", is_flag=True, help="With --output: wait for the end of all tasks.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: no longer than that.")
@_with_job
@json_option
def files(job: Job, output: Path | None, match: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """List the files that a job's calls have left in storage, or download them."""
    if (wait or timeout is not None) and output is None:
        raise click.UsageError("--wait and --timeout are of --output: add that")
    if output is not None:
        _download(job, output, match, wait=wait, timeout=timeout, as_json=as_json)
        return
    found = job.output_files(match)
    if as_json:
        emit(found)
        return
    if not found:
        click.echo(f"No files of job {job.name} are stored; those of a task are when it has ended.")
        return
    rows = [(_numbers(each), each.path, size(each.size), _moment(each.modified), each.task) for each in found]
    click.echo(columns(rows, ("calls", "file", "size", "stored (UTC)", "task")))


def _numbers(stored: StoredFile) -> str:
    last = stored.first + stored.calls - 1
    return str(last) if stored.calls == 1 else f"{stored.first}-{last}"


def _download(job: Job, output: Path, match: str, *, wait: bool, timeout: float | None, as_json: bool) -> None:
    try:
        made = job.download(output, match=match, wait=wait, timeout=timeout)
    except TimeoutError as exc:
        raise click.ClickException(str(exc)) from exc
    if as_json:
        emit([str(path) for path in made])
    else:
        click.echo(f"{count(len(made), 'file')} of job {job.name} in {output}")


def _dump(values: list[Any], path: Path) -> None:
    import joblib

    from .common import pending

    joblib.dump(values, pending(path))
    pending(path).replace(path)
    click.echo(f"{count(len(values), 'result')} in {path}: joblib.load({str(path)!r})")


@job.command()
@click.option("--html", "page", type=_FILE, help="Write a page with the chart; it needs a browser and nothing else.")
@click.option("--png", "picture", type=_FILE, help="Write a picture, with matplotlib of the extra [plots].")
@_with_job
@json_option
def timeline(job: Job, page: Path | None, picture: Path | None, as_json: bool) -> None:
    """Tell where a job's time went and what would make it faster, or draw its run; also while it runs."""
    found = job.timeline()
    for path, content in ((page, found.html), (picture, found.png)):
        if path is not None:
            made = content()
            path.write_bytes(made if isinstance(made, bytes) else made.encode())
            click.echo(f"The run of job {job.name} is in {path}.", err=as_json)
    if as_json:
        emit(found.data())
    elif page is None and picture is None:
        click.echo(found.summary)


@job.command()
@_with_job
@json_option
def cost(job: Job, as_json: bool) -> None:
    """Estimate what a job's nodes have cost: node-hours by kind, and money where a price is known."""
    found = job.cost()
    if as_json:
        emit(found.data())
        return
    click.echo(str(found))
    for note in found.notes:
        click.echo(f"Note: {note}.")


@job.command()
@_with_job
def cancel(job: Job) -> None:
    """End a job; what its calls have returned stays."""
    job.cancel()
    click.echo(f"Job {job.name} ends. `joblib-azure job results {job.name} --on-error drop` has what there is.")


@job.command()
@click.argument("name", shell_complete=_names)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_with_account
def delete(account: AccountConfig, name: str, yes: bool) -> None:
    """Remove a job with its results and logs; of a script's, all that its runs have computed."""
    from ..jobs import Job
    from ..labels import check_name

    check_name(name)
    if not yes:
        click.confirm(f"Remove job {name} and all of its results?", abort=True)
    Job.remove(name, account=account)
    click.echo(f"Job {name} is removed.")
