"""Claims of docs/security.md that no other test shows; and that each claim there names a test that there is."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from joblib import Parallel, delayed, parallel_config

from joblib_azure import Job, LocalCluster, submit
from joblib_azure.environment.code import node_code
from joblib_azure.environment.overlay import Overlay
from joblib_azure.environment.plan import EnvironmentPlan
from joblib_azure.errors import IntegrityError, JobError
from joblib_azure.jobs.names import Description, read_description, write_description
from joblib_azure.labels import key_of
from joblib_azure.local.host import processes_of
from joblib_azure.node.prepare import ARCHIVE
from joblib_azure.registry import session_for
from joblib_azure.service import JobDetails

ROOT = Path(__file__).parents[1]
HOUR = timedelta(hours=1)


# the document ---------------------------------------------------------------------------------------------------------


def test_each_claim_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    claims = re.findall(r"^(\d+)\. .*?(?=^\d+\. |^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert [int(number) for number in claims] == list(range(1, len(claims) + 1))
    for claim in re.finditer(r"^\d+\. .*?(?=^\d+\. |^#|\Z)", text, re.MULTILINE | re.DOTALL):
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", claim[0])
        assert named, claim[0]
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text())
            names = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
            assert not test or test in names, f"{file}::{test}"


# the machine of a local cluster ---------------------------------------------------------------------------------------


def test_a_local_cluster_listens_on_loopback_only(cluster: LocalCluster) -> None:
    found = {}
    for process in processes_of(cluster.run_id):
        # A node's processes come and go.
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in process.net_connections("inet"):
                if each.status == "LISTEN":
                    found[each.laddr.port] = each.laddr.ip
    assert set(found.values()) == {"127.0.0.1"}
    assert urlsplit(cluster.batch_endpoint).port in found


def test_a_local_cluster_s_folder_is_this_user_s_alone(cluster: LocalCluster) -> None:
    """What is below it, logs, blobs and nodes, nobody else reaches."""
    found = cluster.host.folder.stat()
    assert found.st_mode & 0o777 == 0o700
    assert found.st_uid == os.getuid()


# nodes ----------------------------------------------------------------------------------------------------------------


def limits() -> dict[str, list[str]]:
    """The limit of core files of this node's processes, by what they are."""
    found: dict[str, list[str]] = {}
    machine = os.environ["AZ_BATCH_NODE_ROOT_DIR"].removesuffix("/batch/tasks")
    commands: dict[str, tuple[str, str, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text(errors="replace")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            said = re.search(r"^Max core file size +(\S+)", (folder / "limits").read_text(), re.MULTILINE)
        except OSError:
            continue
        if machine in command and said is not None:
            commands[folder.name] = (command, parent, said[1])
    for command, parent, limit in commands.values():
        forked = "supervise" in commands.get(parent, ("", "", ""))[0]
        kind = "host" if forked and "supervise" in command else "supervisor" if "supervise" in command else "other"
        found.setdefault(kind, []).append(limit)
    return found


@pytest.fixture
def with_cores() -> Iterator[None]:
    """Core files are wanted on this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("this machine allows no core files at all")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_what_holds_a_job_s_secrets_leaves_no_core_file(with_cores: None) -> None:
    with LocalCluster(nodes=1, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster):
        Parallel()(delayed(abs)(-i) for i in range(2))  # the next task is a warm one's
        [found] = Parallel()(delayed(limits)() for _ in range(1))
    assert set(found["host"]) == {"0"}
    assert "0" not in found["supervisor"]  # which holds none: or this could not fail


def environment_of_a_call() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("JOBLIB_AZURE_")}


def test_a_call_s_environment_holds_nothing_that_opens_anything(cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=cluster):
        [found, *_] = Parallel()(delayed(environment_of_a_call)() for _ in range(2))
        key = base64.b64encode(session_for(cluster).key).decode()
    assert found["JOBLIB_AZURE_NODE"] == "1"
    assert not {"JOBLIB_AZURE_KEY", "JOBLIB_AZURE_INPUTS", "JOBLIB_AZURE_OUTPUTS"} & found.keys()
    shown = json.dumps(found)
    assert key not in shown
    assert "sig=" not in shown
    assert cluster.account_key not in shown


@pytest.mark.parametrize("changed", [False, True], ids=["as it was stored", "changed"])
def test_node_code_that_somebody_changed_in_storage_is_not_run(
    changed: bool, cluster: LocalCluster, tmp_path: Path
) -> None:
    """The job preparation's own command line, with the files that its resource files name."""
    container = f"security-{uuid.uuid4().hex[:12]}"
    blobs = cluster.blobs
    blobs.create_container(container)
    plan = EnvironmentPlan(sys.executable, None, Overlay([], ()))
    files = plan.ship(blobs, container, HOUR)
    if changed:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("__main__.py", f"open({str(tmp_path / 'run')!r}, 'w')")
        blobs.put(container, node_code().name, stream.getvalue())
    assert set(files) == {ARCHIVE}
    for name, url in files.items():
        with urllib.request.urlopen(url) as answer:
            (tmp_path / name).write_bytes(answer.read())
    done = subprocess.run(shlex.split(plan.preparation_command), cwd=tmp_path, capture_output=True, text=True, env={})
    blobs.delete_container(container)
    assert ("is not what the client stored; nothing of it was run" in done.stderr) == changed
    assert (tmp_path / "joblib_azure_unpacked").exists() != changed
    assert not (tmp_path / "run").exists()


# detached jobs --------------------------------------------------------------------------------------------------------


def test_what_a_job_shows_of_itself_opens_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    job = submit([delayed(abs)(-i) for i in range(4)], cluster=cluster, name="shown")
    assert list(job.results()) == [0, 1, 2, 3]
    key = AzureNamedKeyCredential(cluster.account_name, cluster.account_key)
    with BatchClient(cluster.batch_endpoint, key) as batch:
        settings = batch.get_job(job.id).common_environment_settings or []
    secrets = {each.name: each.value or "" for each in settings}
    hidden = [secrets["JOBLIB_AZURE_KEY"], cluster.account_key]
    hidden += [parse_qs(urlsplit(secrets[f"JOBLIB_AZURE_{name}"]).query)["sig"][0] for name in ("INPUTS", "OUTPUTS")]
    again = Job.attach("shown", cluster)
    timeline = again.timeline()
    shown = [repr(job), repr(again), repr(again.status()), str(again.status()), timeline.html(), timeline.summary]
    shown += [json.dumps(timeline.data()), repr(list(again.tasks())), repr(vars(again.status()))]
    for text in shown:
        for secret in hidden:
            assert secret not in text
    job.delete()


@pytest.mark.parametrize("key", [None, "", "bm8=", "no base64", base64.b64encode(bytes(31)).decode()])
def test_a_job_without_a_key_is_not_believed(key: str | None) -> None:
    """Whoever may write to storage could have made what an empty key authenticates."""
    settings = {} if key is None else {"JOBLIB_AZURE_KEY": key}
    created = datetime.now(timezone.utc)
    details = JobDetails(id="joblib-x-001", pool="p", state="active", created=created, environment=settings)
    with pytest.raises(JobError, match="has no key in its settings on the service"):
        key_of(details)
    whole = replace(details, environment={"JOBLIB_AZURE_KEY": base64.b64encode(b"k" * 32).decode()})
    assert key_of(whole) == b"k" * 32


def test_a_job_s_description_is_read_by_its_key_only(cluster: LocalCluster) -> None:
    container = f"security-{uuid.uuid4().hex[:12]}"
    cluster.blobs.create_container(container)
    description = Description(call="d0", calls=4, tasks=1, complete=True)
    write_description(cluster.blobs, container, b"k" * 32, "job", description)
    assert read_description(cluster.blobs, container, b"k" * 32, "job") == description
    for key, job in ((b"x" * 32, "job"), (b"k" * 32, "another")):
        with pytest.raises(IntegrityError):
            read_description(cluster.blobs, container, key, job)
    cluster.blobs.delete_container(container)
