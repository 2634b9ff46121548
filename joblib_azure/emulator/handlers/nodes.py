"""Operations of nodes."""

from __future__ import annotations

from typing import Any

from .. import errors, odata, wire
from ..calls import Answer, Call, handles
from ..state import Node
from . import pools

FIELDS = {
    "state": odata.state(lambda node: node.state),
    "stateTransitionTime": odata.moment(lambda node: node.state_since),
    "lastBootTime": odata.moment(lambda node: node.boot_time),
    "allocationTime": odata.moment(lambda node: node.created),
    "startTaskInfo/state": odata.state(lambda node: node.start_task and node.start_task.state),
    "startTaskInfo/result": odata.state(lambda node: node.start_task and node.start_task.result),
    "startTaskInfo/exitCode": odata.number(lambda node: node.start_task and node.start_task.exit_code),
    "startTaskInfo/startTime": odata.moment(lambda node: node.start_task and node.start_task.start),
    "startTaskInfo/endTime": odata.moment(lambda node: node.start_task and node.start_task.end),
}


def find(call: Call) -> Node:
    wanted = call.params["nodeId"].lower()
    for node in pools.find(call).nodes.values():
        if node.id.lower() == wanted:
            return node
    raise errors.node_not_found()


def _shape(call: Call, node: Node) -> dict[str, Any]:
    shape = wire.node(node, call.base)
    if call.legacy:
        shape.pop("ipv6Address")  # new in 2025-06-01
    return shape


@handles("list_nodes")
async def list_nodes(call: Call) -> Answer:
    return call.listing(
        list(pools.find(call).nodes.values()),
        lambda node: _shape(call, node),
        metadata="nodes",
        key=lambda node: node.sequence,
        fields=FIELDS,
        type_name="BatchNode",
    )


@handles("get_node")
async def get_node(call: Call) -> Answer:
    node = find(call)
    return call.single(_shape(call, node), node, "BatchNode", "nodes/@Element")


@handles("reboot_node")
async def reboot_node(call: Call) -> Answer:
    call.engine.lives.reboot(find(call), call.body.get("nodeRebootOption", "requeue"), reimage=False)
    return call.done()


@handles("reimage_node")
async def reimage_node(call: Call) -> Answer:
    call.engine.lives.reboot(find(call), call.body.get("nodeReimageOption", "requeue"), reimage=True)
    return call.done()


@handles("disable_node_scheduling")
async def disable_node_scheduling(call: Call) -> Answer:
    option = call.body.get("nodeDisableSchedulingOption", "requeue")
    call.engine.lives.set_scheduling(find(call), False, option)
    return call.done()


@handles("enable_node_scheduling")
async def enable_node_scheduling(call: Call) -> Answer:
    call.engine.lives.set_scheduling(find(call), True, "requeue")
    return call.done()


@handles("deallocate_node")
async def deallocate_node(call: Call) -> Answer:
    call.engine.lives.deallocate(find(call), call.body.get("nodeDeallocateOption", "requeue"))
    return call.done()


@handles("start_node")
async def start_node(call: Call) -> Answer:
    call.engine.lives.start(find(call))
    return call.done()


@handles("list_node_extensions")
async def list_node_extensions(call: Call) -> Answer:
    find(call)
    return call.listing([], dict, metadata="extensions", type_name="BatchNodeVMExtension")


@handles("get_node_extension")
async def get_node_extension(call: Call) -> Answer:
    find(call)
    raise errors.extension_not_found()


_NO_LOGIN = "logging in to nodes: they are folders of the machine that the emulator is on"


@handles("create_node_user")
async def create_node_user(call: Call) -> Answer:
    find(call)
    raise errors.not_implemented(_NO_LOGIN)


@handles("replace_node_user")
async def replace_node_user(call: Call) -> Answer:
    find(call)
    raise errors.node_user_not_found()


@handles("delete_node_user")
async def delete_node_user(call: Call) -> Answer:
    find(call)
    raise errors.node_user_not_found()


@handles("get_node_remote_login_settings")
async def get_node_remote_login_settings(call: Call) -> Answer:
    find(call)
    raise errors.not_implemented(_NO_LOGIN)


@handles("upload_node_logs")
async def upload_node_logs(call: Call) -> Answer:
    find(call)
    raise errors.not_implemented("logs of a node's agent: there is none; the emulator's own log is beside its nodes")
