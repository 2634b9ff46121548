"""What a notebook's cell shows while its code runs: a real kernel, spoken to as a notebook does."""

from __future__ import annotations

import queue
import re
from pathlib import Path
from typing import Any

import cli_process
import pytest

pytest.importorskip("ipykernel")

CELL = """
import time
from joblib import Parallel, delayed, parallel_config
from joblib_azure import LocalCluster

def work(i):
    time.sleep(0.1)
    return i

with LocalCluster(nodes=2, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster{setting}):
    print(sum(Parallel(verbose=5)(delayed(work)(i) for i in range(60))))
"""


def run(folder: Path, code: str) -> list[tuple[str, dict[str, Any]]]:
    """Run a cell in a kernel of its own, and return the messages that it sends meanwhile."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(folder), env=cli_process.environment())
    try:
        cell, messages = client.execute(code), []
        while True:
            try:
                message = client.get_iopub_msg(timeout=100)
            except queue.Empty:
                pytest.fail(f"the kernel says nothing any more: {messages}")
            if message["parent_header"].get("msg_id") != cell:
                continue
            messages.append((message["msg_type"], message["content"]))
            if messages[-1] == ("status", {"execution_state": "idle"}):
                return messages
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.filterwarnings("default")  # of the kernel's client
@pytest.mark.parametrize("setting", ["", ", progress=False"])
def test_a_cell_has_a_display_that_is_empty_in_the_end(tmp_path: Path, setting: str) -> None:
    messages = run(tmp_path, CELL.format(setting=setting))
    said = "".join(content["text"] for kind, content in messages if kind == "stream" and content["name"] == "stdout")
    assert said == "1770\n", messages
    shown = [content for kind, content in messages if kind in ("display_data", "update_display_data")]
    if setting:
        assert shown == []
        return
    pages = [content["data"]["text/html"] for content in shown]
    assert any(re.search(r"<b>work</b> .*\d+ .*calls, .*2 running.*Batch tasks: ", page) for page in pages), pages
    assert pages[-1] == ""
    assert len({content["transient"]["display_id"] for content in shown}) == 1
    assert [kind for kind, _ in messages].count("display_data") == 1
