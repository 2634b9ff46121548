"""Operations of nodes."""

from __future__ import annotations

from .. import errors, odata, wire
from ..calls import Answer, Call, handles
from ..state import Node
from . import pools

FIELDS = {
    "id": odata.text(lambda node: node.id),
    "state": odata.state(lambda node: node.state),
    "schedulingState": odata.state(lambda node: "enabled" if node.scheduling_enabled else "disabled"),
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


@handles("list_nodes")
async def list_nodes(call: Call) -> Answer:
    return call.listing(
        list(pools.find(call).nodes.values()),
        lambda node: wire.node(node, call.base),
        metadata="nodes",
        key=lambda node: node.sequence,
        fields=FIELDS,
        type_name="BatchNode",
    )


@handles("get_node")
async def get_node(call: Call) -> Answer:
    node = find(call)
    return call.single(wire.node(node, call.base), node, "BatchNode", "nodes/@Element")


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
