"""Every error that goes over the wire: one factory for each, with the code, status and wording of the service.

Handlers and the engine raise what these return; ``app`` turns it into the documented body. Codes and statuses are those
of https://learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes.
"""

from __future__ import annotations

from typing import Any


class BatchError(Exception):
    """An answer other than success: the HTTP status, the service's code, and the text that says what to do."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        values: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.headers = headers or {}
        self.status = status
        self.code = code
        self.message = message
        self.values = values or {}

    def body(self) -> dict[str, Any]:
        """The error as an item of a collection's result carries it (without the request's id and time)."""
        found: dict[str, Any] = {"code": self.code, "message": {"lang": "en-US", "value": self.message}}
        if self.values:
            found["values"] = [{"key": key, "value": value} for key, value in self.values.items()]
        return found


def not_implemented(what: str) -> BatchError:
    """For what the service has and this emulator has not: never answered with a success."""
    return BatchError(501, "NotImplemented", f"The Azure Batch emulator does not implement {what}.", {"Feature": what})


# -- the request as such ----------------------------------------------------------------------------------------------


def authentication_failed(detail: str) -> BatchError:
    text = (
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
        "including the signature."
    )
    return BatchError(403, "AuthenticationFailed", text, {"AuthenticationErrorDetail": detail})


def authentication_missing() -> BatchError:
    detail = "The Authorization header is missing: sign the request with SharedKey, or send a Bearer token."
    return BatchError(401, "AuthenticationFailed", detail, {"AuthenticationErrorDetail": detail})


def token_refused(detail: str) -> BatchError:
    text = "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly."
    challenge = {"WWW-Authenticate": 'Bearer authorization_uri="https://login.microsoftonline.com/common"'}
    return BatchError(401, "AuthenticationFailed", text, {"AuthenticationErrorDetail": detail}, challenge)


def needs_token(kind: str) -> BatchError:
    """For what Azure gives to tokens only, since other resources of the subscription take part (kind: Network, …)."""
    return authentication_failed(
        f"The specified type of authentication SharedKey is not allowed when external resources of type {kind} are "
        "linked."
    )


def insufficient_permissions(detail: str) -> BatchError:
    text = "The account being accessed does not have sufficient permissions to execute this operation."
    return BatchError(403, "InsufficientAccountPermissions", text, {"Reason": detail})


def invalid_authentication_info(detail: str) -> BatchError:
    text = (
        "The authentication information was not provided in the correct format. Verify the value of Authorization "
        "header."
    )
    return BatchError(400, "InvalidAuthenticationInfo", text, {"Reason": detail})


def unsupported_version(version: str, known: list[str]) -> BatchError:
    return BatchError(
        400,
        "UnsupportedRequestVersion",
        "The specified api-version is not supported by the service.",
        {"ApiVersion": version, "SupportedVersions": ", ".join(known)},
    )


def invalid_uri(path: str) -> BatchError:
    return BatchError(
        400, "InvalidUri", "The requested URI does not represent any resource on the server.", {"Path": path}
    )


def unsupported_verb(method: str, allowed: list[str]) -> BatchError:
    text = "The resource doesn't support the specified HTTP verb."
    return BatchError(405, "UnsupportedHttpVerb", text, {"Verb": method, "AllowedVerbs": ", ".join(allowed)})


def missing_query(name: str) -> BatchError:
    text = "A query parameter that's mandatory for this request is not specified."
    return BatchError(400, "MissingRequiredQueryParameter", text, {"QueryParameterName": name})


def unsupported_query(name: str) -> BatchError:
    text = "One of the query parameters specified in the request URI is not supported."
    return BatchError(400, "UnsupportedQueryParameter", text, {"QueryParameterName": name})


def invalid_query(name: str, value: str, reason: str) -> BatchError:
    return BatchError(
        400,
        "InvalidQueryParameterValue",
        "The value specified for one of the query parameters in the request URI is invalid.",
        {"QueryParameterName": name, "QueryParameterValue": value, "Reason": reason},
    )


def out_of_range_query(name: str, value: str, low: int, high: int) -> BatchError:
    return BatchError(
        400,
        "OutOfRangeQueryParameterValue",
        "One of the query parameters specified in the request URI is outside the permissible range.",
        {
            "QueryParameterName": name,
            "QueryParameterValue": value,
            "MinimumAllowed": str(low),
            "MaximumAllowed": str(high),
        },
    )


def invalid_header(name: str, value: str, reason: str) -> BatchError:
    return BatchError(
        400,
        "InvalidHeaderValue",
        "The value for one of the HTTP headers is not in the correct format.",
        {"HeaderName": name, "HeaderValue": value, "Reason": reason},
    )


def multiple_conditions() -> BatchError:
    return BatchError(
        400, "MultipleConditionHeadersNotSupported", "Multiple condition headers are not supported in this request."
    )


def body_too_large(limit: int) -> BatchError:
    text = "The size of the request body exceeds the maximum size permitted."
    return BatchError(413, "RequestBodyTooLarge", text, {"MaxLimit": str(limit)})


def invalid_body(reason: str) -> BatchError:
    text = "The specified Request Body is not syntactically valid."
    return BatchError(400, "InvalidRequestBody", text, {"Reason": reason})


def missing_property(name: str) -> BatchError:
    text = "A required property was not specified in the request body."
    return BatchError(400, "MissingRequiredProperty", text, {"PropertyName": name})


def invalid_property(name: str, value: object, reason: str) -> BatchError:
    return BatchError(
        400,
        "InvalidPropertyValue",
        "The value provided for one of the properties in the request body is invalid.",
        {"PropertyName": name, "PropertyValue": str(value), "Reason": reason},
    )


def invalid_autoscale(detail: str) -> BatchError:
    text = "The specified autoscaling settings are invalid."
    return BatchError(400, "InvalidAutoScalingSettings", text, {"Reason": detail})


def invalid_formula(code: str, message: str, detail: str) -> BatchError:
    """For a formula that is none: `AutoScalingFormulaSyntaxError`, `AutoScalingFormulaTooLong`."""
    return BatchError(400, code, message, {"Message": detail})


def too_many_enables() -> BatchError:
    # 503 in the table of the service's codes; no other status is documented for it
    text = (
        "Too many Enable Pool AutoScale requests are issued on the pool: they must be separated by at least 30 seconds."
    )
    return BatchError(503, "TooManyEnableAutoScaleRequests", text)


def invalid_range(value: str, size: int) -> BatchError:
    text = "The range specified is invalid for the current size of the resource."
    return BatchError(416, "InvalidRange", text, {"Range": value, "Size": str(size)})


def condition_not_met() -> BatchError:
    text = "The condition specified using HTTP conditional header(s) is not met."
    return BatchError(412, "ConditionNotMet", text)


def internal_error() -> BatchError:
    return BatchError(500, "InternalError", "The server encountered an internal error. Please retry the request.")


# -- what does not exist ----------------------------------------------------------------------------------------------


def pool_not_found() -> BatchError:
    return BatchError(404, "PoolNotFound", "The specified pool does not exist.")


def node_not_found() -> BatchError:
    return BatchError(404, "NodeNotFound", "The specified node does not exist.")


def job_not_found() -> BatchError:
    return BatchError(404, "JobNotFound", "The specified job does not exist.")


def task_not_found() -> BatchError:
    return BatchError(404, "TaskNotFound", "The specified task does not exist.")


def file_not_found() -> BatchError:
    return BatchError(404, "FileNotFound", "The specified file does not exist.")


def node_user_not_found() -> BatchError:
    return BatchError(404, "NodeUserNotFound", "The specified node user does not exist.")


def extension_not_found() -> BatchError:
    return BatchError(404, "ResourceNotFound", "The specified resource does not exist.")


def schedule_not_found() -> BatchError:
    return BatchError(404, "JobScheduleNotFound", "The specified job schedule does not exist.")


def application_not_found() -> BatchError:
    return BatchError(404, "ApplicationNotFound", "The specified application does not exist.")


# -- what the state forbids -------------------------------------------------------------------------------------------


def conflict(code: str, message: str, values: dict[str, str] | None = None) -> BatchError:
    """Any 409."""
    return BatchError(409, code, message, values)


def pool_exists() -> BatchError:
    return conflict("PoolExists", "The specified pool already exists.")


def pool_being_deleted() -> BatchError:
    return conflict("PoolBeingDeleted", "The specified pool is being deleted.")


def pool_being_resized() -> BatchError:
    return conflict("PoolBeingResized", "The specified pool is being resized.")


def pool_quota(limit: int) -> BatchError:
    text = "The account has reached its quota of pools. Delete pools that are not needed, or ask for a higher quota."
    return conflict("PoolQuotaReached", text, {"Quota": str(limit)})


def invalid_for_state(detail: str) -> BatchError:
    text = "The operation is invalid for the current state of the resource."
    return conflict("OperationInvalidForCurrentState", text, {"Reason": detail})


def job_exists() -> BatchError:
    return conflict("JobExists", "The specified job already exists.")


def job_quota(limit: int) -> BatchError:
    text = (
        "The account has reached its quota of active jobs and job schedules. Terminate or delete jobs that are not "
        "needed, or ask for a higher quota."
    )
    return conflict("ActiveJobAndScheduleQuotaReached", text, {"Quota": str(limit)})


def job_in_state(state: str) -> BatchError:
    """The 409 for a job that is no longer (or not now) able to do what is asked."""
    code, text = {
        "deleting": ("JobBeingDeleted", "The specified job is being deleted."),
        "terminating": ("JobBeingTerminated", "The specified job is being terminated."),
        "completed": ("JobCompleted", "The specified job is already in a completed state."),
        "disabled": ("JobDisabled", "The specified job is disabled."),
        "disabling": ("JobDisabled", "The specified job is being disabled."),
    }.get(state, ("JobNotActive", "The specified job is not active."))
    return conflict(code, text, {"JobState": state})


def schedule_exists() -> BatchError:
    return conflict("JobScheduleExists", "The specified job schedule already exists.")


def schedule_in_state(state: str) -> BatchError:
    """The 409 for a job schedule that is no longer able to do what is asked."""
    code, text = {
        "deleting": ("JobScheduleBeingDeleted", "The specified job schedule is being deleted."),
        "terminating": ("JobScheduleBeingTerminated", "The specified job schedule is being terminated."),
    }.get(state, ("JobScheduleCompleted", "The specified job schedule is already in a completed state."))
    return conflict(code, text, {"JobScheduleState": state})


def task_exists() -> BatchError:
    return conflict("TaskExists", "The specified task already exists.")


def task_completed() -> BatchError:
    return conflict("TaskCompleted", "The specified task is already in a completed state.")


def task_not_completed() -> BatchError:
    return conflict("TaskNotCompleted", "The specified task is not in a completed state.")


def task_succeeded() -> BatchError:
    return conflict("TaskSucceeded", "The specified task has completed with a success, and cannot be reactivated.")


def task_files_unavailable(detail: str) -> BatchError:
    text = "The files of the specified task are not available: the node is not there, or the task has not run yet."
    return conflict("TaskFilesUnavailable", text, {"Reason": detail})


def task_files_cleaned_up() -> BatchError:
    return conflict("TaskFilesCleanedup", "The files of the specified task are cleaned up.")
