"""What every request goes through: authentication, versions, bodies, errors, conditions."""

from __future__ import annotations

import datetime
import json
import uuid
from email.utils import formatdate
from typing import Any

import pytest
from azure.batch import models
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from emulator_lab import Lab


def test_a_signed_request_is_answered(lab: Lab) -> None:
    status, headers, body = lab.raw("GET", "/pools")
    assert status == 200
    assert headers["content-type"] == "application/json; odata=minimalmetadata"
    assert uuid.UUID(headers["request-id"])
    assert isinstance(json.loads(body)["value"], list)


def test_wrong_key(lab: Lab) -> None:
    client = lab.client_for("2025-06-01", key="d3Jvbmc=")
    body = lab.refused(403, "AuthenticationFailed", lambda: list(client.list_pools()))
    assert "not the same as any computed signature" in json.dumps(body)


def test_missing_credentials(lab: Lab) -> None:
    status, _, body = lab.raw("GET", "/pools", sign=lambda text: "")
    assert status == 401
    assert json.loads(body)["code"] == "AuthenticationFailed"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda text: text.replace("SharedKey ", "SharedKeyLite "), 400),
        (lambda text: "SharedKey nothing", 400),
        (lambda text: text.replace(":", ":x"), 403),
        (lambda text: text.replace("SharedKey ", "SharedKey other"), 403),
        (lambda text: "Bearer abc", 401),
    ],
)
def test_bad_credentials(lab: Lab, change: Any, status: int) -> None:
    assert lab.raw("GET", "/pools", sign=change)[0] == status


@pytest.mark.parametrize(("minutes", "status"), [(-20, 403), (20, 403), (-10, 200), (10, 200)])
def test_clock_skew(lab: Lab, minutes: int, status: int) -> None:
    moment = datetime.datetime.now(datetime.timezone.utc).timestamp() + 60 * minutes
    assert lab.raw("GET", "/pools", headers={"ocp-date": formatdate(moment, usegmt=True)})[0] == status


def test_the_signature_covers_the_query(lab: Lab) -> None:
    status, headers, _ = lab.raw("GET", "/pools", query="api-version=2025-06-01&maxresults=3")
    assert status == 200
    assert headers["dataserviceversion"] == "3.0"


@pytest.mark.parametrize("version", ["2025-06-01", "2024-07-01.20.0", "2024-02-01.19.0"])
def test_known_versions(lab: Lab, version: str) -> None:
    assert lab.raw("GET", "/pools", query=f"api-version={version}")[0] == 200


def test_unknown_and_missing_version(lab: Lab) -> None:
    for query, code in (
        ("api-version=2019-08-01.10.0", "UnsupportedRequestVersion"),
        ("", "MissingRequiredQueryParameter"),
    ):
        status, _, body = lab.raw("GET", "/pools", query=query)
        assert (status, json.loads(body)["code"]) == (400, code)


def test_error_body(lab: Lab) -> None:
    status, headers, raw = lab.raw("GET", "/jobs/nothing-here")
    body = json.loads(raw)
    assert status == 404
    assert body["code"] == "JobNotFound"
    assert body["odata.metadata"].endswith("errors/@Element")
    assert body["message"]["lang"] == "en-US"
    first, request, moment = body["message"]["value"].split("\n")
    assert first == "The specified job does not exist."
    assert request == f"RequestId:{headers['request-id']}"
    assert moment.startswith("Time:")


def test_client_request_id_is_returned_when_asked_for(lab: Lab) -> None:
    given = {"client-request-id": "abc", "return-client-request-id": "true"}
    assert lab.raw("GET", "/pools", headers=given)[1]["client-request-id"] == "abc"
    assert "client-request-id" not in lab.raw("GET", "/pools", headers={"client-request-id": "abc"})[1]


def test_unknown_path_verb_and_parameter(lab: Lab) -> None:
    for method, path, query, status, code in (
        ("GET", "/nowhere", "api-version=2025-06-01", 400, "InvalidUri"),
        ("PUT", "/pools", "api-version=2025-06-01", 405, "UnsupportedHttpVerb"),
        ("GET", "/pools", "api-version=2025-06-01&colour=red", 400, "UnsupportedQueryParameter"),
    ):
        answer = lab.raw(method, path, query=query)
        assert (answer[0], json.loads(answer[2])["code"]) == (status, code)


def test_what_is_not_implemented_says_so(lab: Lab, pool: str) -> None:
    status, _, body = lab.raw("GET", f"/pools/{pool}/nodes/{lab.nodes(pool)[0].id}/remoteloginsettings")
    assert status == 501
    assert json.loads(body)["code"] == "NotImplemented"
    assert "logging in to nodes" in json.loads(body)["message"]["value"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "InvalidRequestBody"),
        (b"[]", "InvalidRequestBody"),
        (b"", "InvalidRequestBody"),
        (b'{"id": "x"}', "MissingRequiredProperty"),
        (b'{"id": "x", "poolInfo": {"poolId": "p"}, "colour": "red"}', "InvalidRequestBody"),
        (b'{"id": 3, "poolInfo": {"poolId": "p"}}', "InvalidRequestBody"),
        (b'{"id": "a b", "poolInfo": {"poolId": "p"}}', "InvalidPropertyValue"),
        (b'{"id": "x", "poolInfo": {"poolId": "p"}, "priority": 1001}', "InvalidPropertyValue"),
        (b'{"id": "x", "poolInfo": {"poolId": "p"}, "onTaskFailure": "cry"}', "InvalidPropertyValue"),
        (
            b'{"id": "x", "poolInfo": {"poolId": "p"}, "constraints": {"maxWallClockTime": "1h"}}',
            "InvalidPropertyValue",
        ),
    ],
)
def test_malformed_bodies(lab: Lab, body: bytes, code: str) -> None:
    status, _, answer = lab.raw("POST", "/jobs", body)
    assert (status, json.loads(answer)["code"]) == (400, code)


def test_wrong_content_type(lab: Lab) -> None:
    status, _, body = lab.raw("POST", "/jobs", b"{}", {"Content-Type": "text/plain"})
    assert (status, json.loads(body)["code"]) == (400, "InvalidHeaderValue")


def test_too_large_a_body(lab: Lab) -> None:
    status, _, body = lab.raw("POST", "/jobs", b" " * 1_048_577)
    assert (status, json.loads(body)["code"]) == (413, "RequestBodyTooLarge")


def test_conditions_on_reads_and_writes(lab: Lab, pool: str, job: str) -> None:
    found = lab.client.get_job(job)
    same = {"etag": found.etag}
    with pytest.raises(HttpResponseError) as caught:
        lab.client.get_job(job, match_condition=MatchConditions.IfModified, **same)
    assert caught.value.status_code == 304
    assert lab.client.get_job(job, match_condition=MatchConditions.IfNotModified, **same).id == job
    change = models.BatchJobUpdateOptions(priority=5)
    lab.client.update_job(job, change, match_condition=MatchConditions.IfNotModified, **same)
    with pytest.raises(HttpResponseError) as caught:  # the update has changed the ETag
        lab.client.update_job(job, change, match_condition=MatchConditions.IfNotModified, **same)
    assert caught.value.status_code == 412
    before = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    after = before + datetime.timedelta(hours=2)
    with pytest.raises(HttpResponseError) as caught:
        lab.client.update_job(job, change, if_unmodified_since=before)
    assert caught.value.status_code == 412
    with pytest.raises(HttpResponseError) as caught:
        lab.client.get_job(job, if_modified_since=after)
    assert caught.value.status_code == 304
    lab.client.update_job(job, change, if_unmodified_since=after)


def test_only_one_condition_at_a_time(lab: Lab, pool: str) -> None:
    given = {"If-Match": "*", "If-Modified-Since": formatdate(0, usegmt=True)}
    status, _, body = lab.raw("GET", f"/pools/{pool}", headers=given)
    assert (status, json.loads(body)["code"]) == (400, "MultipleConditionHeadersNotSupported")


def test_heads(lab: Lab, pool: str) -> None:
    assert lab.client.pool_exists(pool) is True
    with pytest.raises(ResourceNotFoundError):
        lab.client.pool_exists("no-such-pool")


def test_supported_images_and_applications(lab: Lab) -> None:
    agents = {image.node_agent_sku_id for image in lab.client.list_supported_images()}
    assert {"batch.node.ubuntu 22.04", "batch.node.ubuntu 24.04"} <= agents
    only = list(lab.client.list_supported_images(filter="nodeAgentSKUId eq 'batch.node.ubuntu 24.04'"))
    assert {image.node_agent_sku_id for image in only} == {"batch.node.ubuntu 24.04"}
    assert list(lab.client.list_applications()) == []


def test_the_key_is_masked(lab: Lab) -> None:
    assert lab.emulator.account_key not in repr(lab.emulator)
    assert "***" in repr(lab.emulator)


def test_what_the_service_reads_and_writes_in_its_own_way(lab: Lab) -> None:
    """Numbers as text and durations of any writing come from the Azure CLI."""
    name = lab.name("job")
    limits = {"maxWallClockTime": "PT090M00.500S", "maxTaskRetryCount": "-1"}
    given = {"id": name, "poolInfo": {"poolId": "p"}, "priority": "7", "constraints": limits, "odata.note": "none"}
    assert lab.raw("POST", "/jobs", json.dumps(given).encode())[0] == 201
    found = json.loads(lab.raw("GET", f"/jobs/{name}")[2])
    assert (found["priority"], found["constraints"]["maxTaskRetryCount"]) == (7, -1)
    assert found["constraints"]["maxWallClockTime"] == "PT1H30M0.5S"
    for wrong in ("7.5", "seven", "", "99999999999"):
        body = json.dumps({**given, "id": "other", "priority": wrong}).encode()
        assert lab.raw("POST", "/jobs", body)[0] == 400
