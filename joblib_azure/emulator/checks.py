"""What the service checks of a body beyond its form: ids, ranges, combinations; and what the emulator refuses."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from . import errors, resourcefiles, times

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INT32 = 2**31 - 1


def identifier(value: str, where: str = "id") -> None:
    if not _ID.fullmatch(value):
        reason = "Use 1 to 64 letters, digits, hyphens and underscores."
        raise errors.invalid_property(where, value, reason)


def between(body: dict[str, Any], name: str, low: int, high: int = _INT32) -> None:
    value = body.get(name)
    if value is not None and not low <= value <= high:
        raise errors.invalid_property(name, value, f"The value must lie between {low} and {high}.")


def display_name(body: dict[str, Any]) -> None:
    if len(body.get("displayName", "")) > 1024:
        raise errors.invalid_property("displayName", body["displayName"][:64] + "…", "At most 1024 characters.")


def metadata(body: dict[str, Any]) -> None:
    for item in body.get("metadata", []):
        if not item["name"]:
            raise errors.BatchError(400, "EmptyMetadataKey", "A metadata item has an empty name.")


def duration(text: str | None, where: str, *, least: timedelta = timedelta(0)) -> timedelta | None:
    if text is None:
        return None
    value = times.parse_duration(text)
    if value is None or value < least:
        raise errors.invalid_property(where, text, f"The duration must be at least {least}.")
    return value


def constraints(body: dict[str, Any], where: str = "constraints") -> None:
    given = body.get("constraints", {})
    for name in ("maxWallClockTime", "retentionTime"):
        value = duration(given.get(name), f"{where}.{name}")
        if value == timedelta(0) and name == "maxWallClockTime":
            raise errors.invalid_property(f"{where}.{name}", given[name], "The duration must be above zero.")
    if given.get("maxTaskRetryCount", 0) < -1:
        raise errors.invalid_property(f"{where}.maxTaskRetryCount", given["maxTaskRetryCount"], "At least -1.")


def refuse(body: dict[str, Any], *names: str) -> None:
    """501 for what the service knows and the emulator does not do."""
    for name in names:
        if body.get(name):
            raise errors.not_implemented(f"the property '{name}'")


def packages(body: dict[str, Any]) -> None:
    if body.get("applicationPackageReferences"):
        missing = ", ".join(item["applicationId"] for item in body["applicationPackageReferences"])
        text = "One or more application package references could not be satisfied: the account has no applications."
        raise errors.conflict("InvalidApplicationPackageReferences", text, {"ApplicationIds": missing})


def other_id(job: dict[str, Any], task_id: str) -> None:
    """409 for a task with the id of the job's preparation or release task."""
    for name, kind in (("jobPreparationTask", "Preparation"), ("jobReleaseTask", "Release")):
        other = job.get(name)
        if other is not None and other.get("id", name[:-4].lower()).lower() == task_id.lower():
            text = f"The id of the task is that of the job {kind.lower()} task."
            raise errors.conflict(f"TaskIdSameAsJob{kind}Task", text)


def runnable(body: dict[str, Any], where: str) -> None:
    """A task of any kind: its command line, resource files, user and environment."""
    if not body["commandLine"].strip():
        raise errors.invalid_property(f"{where}commandLine", body["commandLine"], "The command line is empty.")
    if body.get("containerSettings"):
        raise errors.not_implemented("containerSettings: it runs no containers")
    resourcefiles.check(body.get("resourceFiles", []), f"{where}resourceFiles")
    for index, item in enumerate(body.get("environmentSettings", [])):
        if not item["name"] or "=" in item["name"] or "\0" in item["name"] + item.get("value", ""):
            name = f"{where}environmentSettings[{index}].name"
            raise errors.invalid_property(name, item["name"], "Not a name of an environment variable.")
    user = body.get("userIdentity", {})
    if "username" in user and "autoUser" in user:
        reason = "Specify either username or autoUser."
        raise errors.invalid_property(f"{where}userIdentity", user, reason)
