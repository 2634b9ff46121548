"""What is listed, read and stored past the SDK's models is what the SDK says."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseTimeoutError
from azure.core.pipeline import Pipeline
from azure.core.rest import HttpRequest
from azure.storage.blob import BlobServiceClient

from joblib_azure import LocalCluster
from joblib_azure.errors import AuthenticationError, ResourceNotFoundError
from joblib_azure.retries.policy import Patience
from joblib_azure.service import lightblobs
from joblib_azure.service.blob import AzureBlobs
from joblib_azure.service.credentials import connect_blobs
from joblib_azure.service.lightblobs import LightBlobs
from joblib_azure.service.lighttransport import LightTransport

NAMES = ("a", "a b", "a&b<c>", "a%20b", "ä/ö", "deep/er/still", "q?x=y", "z+")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, cores_per_node=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def blobs(cluster: LocalCluster) -> AzureBlobs:
    blobs = cluster.blobs
    assert isinstance(blobs, AzureBlobs)
    blobs.create_container("light")
    for number, name in enumerate(NAMES):
        blobs.put("light", name, bytes(range(10 + number)))
    return blobs


@pytest.fixture(scope="module")
def sdk(cluster: LocalCluster) -> Iterator[BlobServiceClient]:
    with BlobServiceClient.from_connection_string(cluster.storage_connection_string) as client:
        yield client


def test_a_list_is_the_sdk_s(blobs: AzureBlobs, sdk: BlobServiceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in (5000, 3):
        monkeypatch.setattr(lightblobs, "_PAGE", page)
        for prefix in ("", "a", "ä/", "none"):
            given = sdk.get_container_client("light").list_blobs(name_starts_with=prefix)
            wanted = [(each.name, each.size, each.last_modified) for each in given]
            assert [(each.name, each.size, each.modified) for each in blobs.blobs("light", prefix)] == wanted


def test_what_is_quickly_read_is_what_the_page_says(blobs: AzureBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = blobs.blobs("light", "")
    monkeypatch.setattr(lightblobs, "_quickly", lambda page: None)
    assert blobs.blobs("light", "") == quick
    assert {item.name for item in quick} >= set(NAMES)


@pytest.mark.parametrize(
    "blobs_of_it",
    [
        b"<Name>a</Name><Properties><Content-Length>1</Content-Length></Properties>",
        b'<Name Encoded="true">a%00</Name><Last-Modified>x</Last-Modified><Content-Length>1</Content-Length>',
        b"<Name>a</Name></Blob><Blob><Name>b</Name><Last-Modified>x</Last-Modified><Content-Length>1</Content-Length>",
        b"<Name><![CDATA[a]]></Name><Last-Modified>x</Last-Modified><Content-Length>1</Content-Length>",
    ],
)
def test_a_page_that_is_not_as_expected_is_read_slowly(blobs_of_it: bytes) -> None:
    assert lightblobs._quickly(b"<EnumerationResults><Blobs><Blob>" + blobs_of_it + b"</Blob></Blobs>") is None


def test_what_is_stored_is_what_the_sdk_reads(blobs: AzureBlobs, sdk: BlobServiceClient) -> None:
    for name, data in (("put", b"one"), ("put", b"another"), ("put/none", b""), ("ä/ö b", bytes(300_000))):
        assert blobs.put("light", name, data)
        blob = sdk.get_blob_client("light", name)
        assert blob.download_blob().readall() == data
        assert blob.get_blob_properties().blob_type == "BlockBlob"
        blobs.delete("light", name)
    with pytest.raises(ResourceNotFoundError):
        blobs.put("nothing", "a", b"x")


def test_bytes_are_the_sdk_s(blobs: AzureBlobs, sdk: BlobServiceClient) -> None:
    assert blobs.read("light", "a", 2, 5) == sdk.get_blob_client("light", "a").download_blob(2, 5).readall()


def test_bytes_are_those_asked_for(blobs: AzureBlobs) -> None:
    for number, name in enumerate(NAMES):
        whole = bytes(range(10 + number))
        assert blobs.read("light", name) == whole
        assert blobs.read("light", name, 2, 5) == whole[2:7]
        assert blobs.read("light", name, 3, 1000) == whole[3:]


def test_what_is_not_there_is_told(blobs: AzureBlobs) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        blobs.read("light", "none", 0, 5)
    assert caught.value.context["code"] == "BlobNotFound"
    for action in (lambda: blobs.blobs("nothing", ""), lambda: blobs.read("nothing", "a", 0, 5)):
        with pytest.raises(ResourceNotFoundError) as caught:
            action()
        assert (caught.value.context["code"], caught.value.context["status"]) == ("ContainerNotFound", 404)


def test_another_key_is_refused(blobs: AzureBlobs) -> None:
    stranger = connect_blobs(blobs.endpoint, account=blobs.endpoint.rstrip("/").rpartition("/")[2], key="c3RyYW5nZXI=")
    for action in (
        lambda: stranger.blobs("light", ""),
        lambda: stranger.read("light", "a", 0, 3),
        lambda: stranger.put("light", "a", b"x"),
    ):
        with pytest.raises(AuthenticationError):
            action()
    stranger.close()


def test_its_debug_log_shows_no_signature(blobs: AzureBlobs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        blobs.read("light", "a", 0, 3)
        blobs.blobs("light", "")
    assert "GET /" in caplog.text
    assert "sig=" not in caplog.text
    assert "SharedKey" not in caplog.text


def test_half_an_answer_is_none() -> None:
    """A connection that ends within a body gives no bytes, but an error once it was tried again in vain."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 100\r\n\r\nhalf")
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/account"
        light = LightBlobs(Pipeline(LightTransport(connect=5, read=5), [Patience(1.0)]), url, "2023-11-03")
        with pytest.raises(AzureError):
            light.read("c", "b", 0, 100)
        assert len(asked) > 1


def test_its_transport_tells_what_went_wrong() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        transport = LightTransport(connect=1, read=0.2)
        with pytest.raises(ServiceResponseTimeoutError):  # it is taken, and not answered
            transport.send(HttpRequest("GET", url))
    with pytest.raises(ServiceRequestError):  # nobody takes it
        transport.send(HttpRequest("GET", url))
    transport.close()
    with pytest.raises(ValueError, match="already been closed"):
        transport.send(HttpRequest("GET", url))


def test_its_transport_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all that is asked through requests; but not where the environment is not to be heard, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(AzureError):
            LightTransport(connect=5, read=5).send(HttpRequest("GET", "https://account.blob.example/c/b"))
        thread.join(5)
        assert asked[0].startswith(b"CONNECT account.blob.example:443 ")
        with pytest.raises(AzureError):
            LightTransport(connect=5, read=5, from_environment=False).send(HttpRequest("GET", "https://127.0.0.1:1/b"))
        assert len(asked) == 1


@pytest.mark.parametrize(("first", "asked"), [("503 Busy\r\nRetry-After: 1", 2), ("404 None", 1)])
def test_a_request_past_the_pipeline_is_its_first_try(first: str, asked: int) -> None:
    """What the service says to it holds: when to come again, or that there is no sense in that."""
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for status in (first, "206 Partial Content"):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.recv(4096)
                times.append(time.monotonic())
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".encode())
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        transport = LightTransport(connect=5, read=5)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/account"
        key = lightblobs.SharedKey("account", "c3RyYW5nZXI=")
        pipeline = Pipeline(transport, [Patience(10.0), lightblobs.SharedKeyPolicy(key)])
        light = LightBlobs(pipeline, url, "2023-11-03", (transport, key))
        if asked == 1:
            with pytest.raises(AzureError):
                light.read("c", "b", 0, 2)
        else:
            assert light.read("c", "b", 0, 2) == b"ok"
            assert times[1] - times[0] >= 1.0
    assert len(times) == asked
