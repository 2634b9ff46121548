"""Who asks: shared keys, service principals, `DefaultAzureCredential`, and SAS that Entra signs."""

from __future__ import annotations

import base64
import logging
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cluster_lab import Said, config_of, deleted
from entra_lab import TENANT, Entra, azurite

from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.emulator.tls import make_certificate
from joblib_azure.errors import (
    AuthenticationError,
    ClusterError,
    ConfigurationError,
    ServiceError,
    ServiceUnreachableError,
)
from joblib_azure.service.credentials import client_options, connect_batch, connect_blobs, on_loopback, token_credential

KEY = base64.b64encode(secrets.token_bytes(64)).decode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def entra(certificate: tuple[Path, Path]) -> Iterator[Entra]:
    with Entra(*certificate) as running:
        yield running


@pytest.fixture(scope="module")
def emulator(certificate: tuple[Path, Path]) -> Iterator[BatchEmulator]:
    options = {"certfile": certificate[0], "keyfile": certificate[1], "token_signer": certificate[0]}
    with BatchEmulator(**options, refuse_shared_key=True) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azurite"), "entrastore", KEY, *certificate) as endpoint:
        yield endpoint


@pytest.fixture
def trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is trusted as a company's would be, and a proxy is named as in a company's network."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def _account(emulator: BatchEmulator, storage: str, **more: Any) -> AccountConfig:
    values: dict[str, Any] = {
        "batch_account": emulator.account_name,
        "batch_endpoint": emulator.endpoint,
        "storage_account": "entrastore",
        "storage_endpoint": storage,
    }
    return AccountConfig(**{**values, **more})


@pytest.fixture
def by_principal(
    entra: Entra, emulator: BatchEmulator, storage: str, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> AccountConfig:
    """An account that a service principal signs in to, as doAzureParallel's credentials.json has it."""
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", entra.endpoint)
    principal = {"tenant_id": TENANT, "client_id": entra.client_id, "credential": entra.secret}
    return _account(emulator, storage, service_principal=principal)


@pytest.fixture
def by_default(
    entra: Entra, emulator: BatchEmulator, storage: str, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> AccountConfig:
    """An account without any credentials of its own: the environment's are found."""
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", entra.endpoint)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", entra.client_id)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", entra.secret)
    return _account(emulator, storage)


@pytest.mark.parametrize("kind", ["by_principal", "by_default"])
def test_entra_for_batch_and_blobs(kind: str, entra: Entra, request: pytest.FixtureRequest) -> None:
    account: AccountConfig = request.getfixturevalue(kind)
    entra.scopes.clear()
    said = Said()
    cluster = Cluster.create(config_of(1), account, progress=said)
    with deleted(cluster):
        assert [node.state for node in cluster.nodes()] == ["idle"]
        blobs = cluster.blobs
        blobs.create_container("things")
        blobs.put("things", "one", b"content")
        assert blobs.read("things", "one") == b"content"
        # The name of Batch ends with a slash, so its scope has two.
        assert set(entra.scopes) == {"https://batch.core.windows.net//.default", "https://storage.azure.com/.default"}


def test_sas_are_signed_by_entra_and_only_for_what_they_name(by_principal: AccountConfig, trusted: None) -> None:
    cluster = Cluster(config_of(1), by_principal)
    blobs = cluster.blobs
    blobs.create_container("signed")
    blobs.put("signed", "one", b"first")
    blobs.put("signed", "two", b"second")
    url = blobs.blob_url("signed", "one", timedelta(hours=1))
    query = parse_qs(urlsplit(url).query)
    # A user delegation SAS names who delegated; one of a key does not.
    assert query["sktid"] == [TENANT]
    assert query["sp"] == ["r"]
    assert query["spr"] == ["https"]
    assert _get(url) == b"first"
    assert _status(url.replace("/one?", "/two?")) == 403
    writing = blobs.container_url("signed", "acw", timedelta(days=7))
    assert parse_qs(urlsplit(writing).query)["sp"] == ["acw"]
    assert _status(f"{writing.partition('?')[0]}/one?{writing.partition('?')[2]}") == 403
    expiry = datetime.fromisoformat(parse_qs(urlsplit(writing).query)["se"][0].replace("Z", "+00:00"))
    left = expiry - datetime.now(timezone.utc)
    assert timedelta(days=6, hours=22) < left <= timedelta(days=7)
    with pytest.raises(ConfigurationError, match="lives 7 days at most"):
        blobs.blob_url("signed", "one", timedelta(days=8))
    cluster.close()


def test_a_delegation_key_serves_many_and_is_renewed(by_principal: AccountConfig) -> None:
    cluster = Cluster(config_of(1), by_principal)
    blobs = cluster.blobs

    def begins(days: float) -> str:
        return parse_qs(urlsplit(blobs.blob_url("any", "thing", timedelta(days=days))).query)["ske"][0]

    first = begins(1)
    assert {begins(1), begins(6.9), begins(7)} == {first}
    # As if it were two days old.
    key, expiry = blobs._delegation  # type: ignore[attr-defined]
    blobs._delegation = key, expiry - timedelta(days=2)  # type: ignore[attr-defined]
    assert begins(1) == first
    begins(6)
    assert blobs._delegation[1] > expiry - timedelta(days=1)  # type: ignore[attr-defined]
    cluster.close()


def _opener() -> urllib.request.OpenerDirector:
    import ssl
    from os import environ

    context = ssl.create_default_context(cafile=environ["REQUESTS_CA_BUNDLE"])
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))


def _get(url: str) -> bytes:
    with _opener().open(url, timeout=10) as found:
        return bytes(found.read())


def _status(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        _get(url)
    with caught.value:
        return caught.value.code


def test_a_wrong_secret(by_principal: AccountConfig, entra: Entra) -> None:
    principal = {"tenant_id": TENANT, "client_id": entra.client_id, "credential": "guessed-wrong-secret"}
    account = by_principal.model_copy(
        update={"service_principal": type(by_principal.service_principal)(**principal)}  # type: ignore[misc]
    )
    with pytest.raises(AuthenticationError, match=r"Entra gave no token .*AADSTS7000215") as caught:
        Cluster.list(account)
    assert "guessed-wrong-secret" not in str(caught.value) + repr(caught.value.__cause__)


def test_no_credentials_at_all(
    emulator: BatchEmulator, storage: str, trusted: None, entra: Entra, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", entra.endpoint)
    # Or the machine's own metadata service would be looked for, for seconds.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(AuthenticationError, match=r"az login|servicePrincipal"):
        Cluster.list(_account(emulator, storage))


def test_an_account_that_takes_no_keys(emulator: BatchEmulator, storage: str, trusted: None) -> None:
    account = _account(emulator, storage, batch_key=emulator.account_key, storage_key=KEY)
    with pytest.raises(AuthenticationError, match="refused the credentials"):
        Cluster.list(account)


def test_who_may_submit_but_not_create(
    entra: Entra,
    certificate: tuple[Path, Path],
    storage: str,
    by_principal: AccountConfig,
) -> None:
    """The role Azure Batch Job Submitter: uses a pool, and is told whom to ask for one."""
    options: dict[str, Any] = {"certfile": certificate[0], "keyfile": certificate[1], "token_signer": certificate[0]}
    options["job_submitters"] = (entra.object_id,)
    with BatchEmulator(**options) as emulator:
        owner = _account(emulator, storage, batch_key=emulator.account_key)
        guest = by_principal.model_copy(update={"batch_endpoint": emulator.endpoint})
        config = config_of(pool_size={"dedicated_nodes": {"max": 2}})
        with pytest.raises(AuthenticationError, match="ask its owner to run `joblib-azure cluster create`"):
            Cluster.create(config, guest)
        Cluster.create(config, owner).close()
        cluster = Cluster.attach(config.name, guest)
        with pytest.raises(ClusterError, match="has no nodes, and this identity may not make it have some"):
            cluster.wait_for_node()
        mine = Cluster.attach(config.name, owner)
        mine.demand(1)
        assert len(cluster.wait_for_nodes(1)) == 1
        cluster.open()
        mine.close()
        cluster.close()


def test_what_needs_the_management_plane_is_refused_to_keys(emulator: BatchEmulator, storage: str) -> None:
    subnet = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n"
    with BatchEmulator() as plain:
        account = _account(plain, storage, batch_key=plain.account_key, storage_key=KEY)
        cluster = Cluster(config_of(1, subnet_id=subnet), account)
        with pytest.raises(ConfigurationError, match="subnetId: such a pool is created through Azure Resource Manager"):
            cluster.open()
        assert Cluster.list(account) == ()


@pytest.mark.parametrize("host", ["http://example.org", "http://10.0.0.1:80", "http://169.254.169.254", "http://[::2]"])
def test_plain_http_beyond_this_machine_is_refused(host: str) -> None:
    for connect in (
        lambda: connect_batch(host, account="a", key=KEY),
        lambda: connect_blobs(f"{host}/a", account="a", key=KEY),
        lambda: connect_blobs(connection_string=f"AccountName=a;AccountKey={KEY};BlobEndpoint={host}/a"),
    ):
        with pytest.raises(ConfigurationError, match="is not https: a key or a token would cross") as caught:
            connect()
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.9.9.9", True),
        ("https://localhost:1", True),
        ("http://[::1]:80/x", True),
        ("https://store.blob.core.windows.net", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
    ],
)
def test_loopback(url: str, expected: bool) -> None:
    assert on_loopback(url) is expected


def test_a_proxy_is_not_asked_for_loopback(trusted: None) -> None:
    """The proxy of `trusted` answers nothing; who asked it would fail."""
    with BatchEmulator() as emulator:
        batch = connect_batch(emulator.endpoint, account=emulator.account_name, key=emulator.account_key)
        assert batch.pools() == []
        batch.close()


def test_a_proxy_is_asked_beyond(trusted: None) -> None:
    batch = connect_batch("https://account.region.batch.example", account="a", key=KEY)
    batch._client._config.retry_policy.total_retries = 0
    with pytest.raises(ServiceUnreachableError, match="nothing answers at"):
        batch.pools()
    batch.close()
    assert "use_env_settings" not in client_options("https://account.region.batch.example")


@pytest.mark.parametrize("key", ["not base64!", "abc"])
def test_a_key_that_is_none_is_told_and_not_shown(key: str) -> None:
    for connect in (
        lambda: connect_batch("https://a.example", account="a", key=key),
        lambda: connect_blobs("https://a.example", account="a", key=key),
    ):
        with pytest.raises(ConfigurationError, match="is not Base64") as caught:
            connect()
        assert key not in str(caught.value)


def test_half_a_service_principal() -> None:
    with pytest.raises(ConfigurationError, match="tenantId, clientId and credential"):
        token_credential(client_id="id")


def test_reprs_hold_no_secret(by_principal: AccountConfig, entra: Entra) -> None:
    cluster = Cluster(config_of(1), by_principal)
    texts = [repr(each) for each in (cluster, cluster.connections, cluster.batch, cluster.blobs, by_principal)]
    keyed = connect_blobs("https://a.example", account="a", key=KEY)
    texts.append(repr(keyed))
    assert not [text for text in texts if entra.secret in text or KEY in text]
    cluster.close()
    keyed.close()


def test_tokens_are_in_no_log(by_principal: AccountConfig, entra: Entra, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cluster = Cluster(config_of(1), by_principal)
    cluster.batch.pools()
    cluster.blobs.create_container("logged")
    cluster.blobs.put("logged", "one", b"content")
    signed = cluster.blobs.blob_url("logged", "one", timedelta(hours=1))
    cluster.close()
    assert "urllib3" in {record.name.partition(".")[0] for record in caplog.records}
    assert entra.tokens
    hidden = [*entra.tokens, entra.secret, parse_qs(urlsplit(signed).query)["sig"][0]]
    assert not [value for value in hidden if value in caplog.text]


def test_errors_are_the_packages_own(by_principal: AccountConfig) -> None:
    cluster = Cluster(config_of(1), by_principal)
    with pytest.raises(ServiceError):
        cluster.blobs.read("nowhere", "nothing")
    cluster.close()
