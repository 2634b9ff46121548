"""Entra tokens over TLS: what the account takes, and what it refuses with which words."""

from __future__ import annotations

import base64
import json
import os
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AccessToken, AzureNamedKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from emulator_lab import Lab

from joblib_azure.emulator import BatchEmulator
from joblib_azure.emulator.options import Options

AUDIENCE = "https://batch.core.windows.net/"
ISSUER = "https://sts.windows.net/11111111-2222-3333-4444-555555555555/"


SIGNER = ec.generate_private_key(ec.SECP256R1())


def token(signer: Any = SIGNER, alg: str = "ES256", **claims: Any) -> str:
    """A token of the right form; a claim that is None is left out."""
    now = time.time()
    full = {"aud": AUDIENCE, "iss": ISSUER, "iat": now, "nbf": now, "exp": now + 3600, "oid": "somebody", **claims}
    return jwt.encode({name: value for name, value in full.items() if value is not None}, signer, alg)


def unsigned(**head: Any) -> str:
    """A token of which everything is right but what its head says of the signature."""
    encoded = base64.urlsafe_b64encode(json.dumps(head).encode()).rstrip(b"=").decode()
    return f"{encoded}.{token().split('.')[1]}.c2lnbmF0dXJl"


def nested() -> str:
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode()
    return f"{token().split('.')[0]}.{deep}.c2lnbmF0dXJl"


class Credential:
    """What azure-core asks for a token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.scopes: list[str] = []

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken(self.text, int(time.time()) + 3600)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public half of whoever signs."""
    file = tmp_path_factory.mktemp("signer") / "public.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    file.write_bytes(SIGNER.public_key().public_bytes(encoding, form))
    return file


@pytest.fixture(scope="module")
def secured(signer: Path) -> Iterator[BatchEmulator]:
    options = {"token_issuer": ISSUER, "token_signer": signer, "job_submitters": ["submitter"]}
    with BatchEmulator(tls=True, **options) as running:
        yield running


def client(emulator: BatchEmulator, credential: Any) -> BatchClient:
    return BatchClient(emulator.endpoint, credential, retry_total=0, connection_verify=str(emulator.certificate))


def test_the_sdk_talks_tls_with_a_token(secured: BatchEmulator) -> None:
    credential = Credential(token())
    assert secured.endpoint.startswith("https://127.0.0.1:")
    assert list(client(secured, credential).list_pools()) == []
    assert set(credential.scopes) == {"https://batch.core.windows.net//.default"}


def test_shared_keys_work_beside_tokens(secured: BatchEmulator) -> None:
    key = AzureNamedKeyCredential(secured.account_name, secured.account_key)
    assert list(client(secured, key).list_pools()) == []


def test_a_client_that_does_not_know_the_certificate_refuses_it(secured: BatchEmulator) -> None:
    with pytest.raises(ServiceRequestError, match="CERTIFICATE_VERIFY_FAILED"):
        list(BatchClient(secured.endpoint, Credential(token()), retry_total=0).list_pools())


def test_the_key_of_the_certificate_is_its_owner_s(secured: BatchEmulator) -> None:
    assert stat.S_IMODE(os.stat(secured.root / "emulator-key.pem").st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (token(aud="https://batch.core.windows.net"), "wrong audience or resource 'https://batch.core.windows.net'"),
        (token(aud="https://management.azure.com/"), "allowed audiences 'https://batch.core.windows.net/'"),
        (token(exp=time.time() - 3600), "has expired"),
        (token(exp=None), "has expired"),
        (token(nbf=time.time() + 3600), "not valid yet"),
        (token(iss="https://sts.windows.net/other/"), "wrong issuer"),
        ("opaque", "not a JSON Web Token"),
        ("a.b.c", "cannot be decoded"),
        (token(exp=float("nan")), "has expired"),
        (token(exp=float("inf")), "has expired"),
        (token(ec.generate_private_key(ec.SECP256R1())), "is not its issuer's"),
        (f"{token().rpartition('.')[0]}.{token(oid='other').rpartition('.')[2]}", "is not its issuer's"),
        (token("a secret that nobody has, long enough", "HS256"), "is not signed with one of RS256, ES256"),
        (unsigned(typ="JWT", alg="none"), "is not signed with one of"),
        (unsigned(typ="JWT", alg="HS256"), "is not signed with one of"),
        (unsigned(), "is not signed with one of"),
        (nested(), "is not its issuer's"),
        (f"{token().rpartition('.')[0]}.", "not a JSON Web Token"),
    ],
)
def test_tokens_that_do_not_hold(secured: BatchEmulator, text: str, detail: str) -> None:
    with pytest.raises(ClientAuthenticationError) as caught:
        list(client(secured, Credential(text)).list_pools())
    answer = caught.value.response
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    body = json.loads(answer.text())
    assert body["code"] == "AuthenticationFailed"
    values = {item["key"]: item["value"] for item in body["values"]}
    assert detail in values["AuthenticationErrorDetail"]
    assert text not in answer.text()


def test_a_job_submitter_uses_pools_and_may_not_change_them(secured: BatchEmulator) -> None:
    owner, submitter = (client(secured, Credential(token(oid=oid))) for oid in ("owner", "submitter"))
    pool = models.BatchPoolCreateOptions(
        id="shared", vm_size="Emulated_C1", virtual_machine_configuration=Lab.machine(), target_dedicated_nodes=0
    )
    with pytest.raises(HttpResponseError) as caught:
        submitter.create_pool(pool)
    assert (caught.value.status_code, json.loads(caught.value.response.text())["code"]) == (
        403,
        "InsufficientAccountPermissions",
    )
    owner.create_pool(pool)
    assert submitter.get_pool("shared").id == "shared"
    job = models.BatchJobCreateOptions(id="job", pool_info=models.BatchPoolInfo(pool_id="shared"))
    submitter.create_job(job)
    submitter.create_task("job", models.BatchTaskCreateOptions(id="task", command_line="true"))
    with pytest.raises(HttpResponseError, match="InsufficientAccountPermissions"):
        submitter.begin_resize_pool("shared", models.BatchPoolResizeOptions(target_dedicated_nodes=1))
    assert owner.get_pool("shared").target_dedicated_nodes == 0


def test_a_token_may_name_what_else_the_subscription_has(secured: BatchEmulator) -> None:
    owner = client(secured, Credential(token()))
    subnet = "/subscriptions/s/resourceGroups/g/…/subnets/n"
    own = models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(virtual_machine_image_id="/subscriptions/s/…/images/i"),
        node_agent_sku_id="batch.node.ubuntu 24.04",
    )
    owner.create_pool(
        models.BatchPoolCreateOptions(
            id="own",
            vm_size="Emulated_C1",
            virtual_machine_configuration=own,
            network_configuration=models.NetworkConfiguration(subnet_id=subnet),
            target_dedicated_nodes=0,
        )
    )
    assert owner.get_pool("own").network_configuration.subnet_id == subnet
    log = (secured.root / "emulator.log").read_text()
    assert "pool own: its subnet exists in Azure only" in log
    assert "pool own: its image (/subscriptions/s/…/images/i) exists in Azure only" in log


def test_an_account_that_knows_no_signer_takes_no_token(lab: Lab) -> None:
    """Or whoever reaches the port could have programs run as the emulator's user."""
    status, _, body = lab.raw("GET", "/pools", sign=lambda _: f"Bearer {token()}")
    assert status == 401
    assert "this account has no signer" in body.decode()


def test_a_signer_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    for name in ("missing", "text"):
        with pytest.raises(ValueError, match=f"{name} is no PEM file of a certificate or a public key"):
            BatchEmulator(token_signer=tmp_path / name)


def test_an_account_without_shared_keys(tmp_path: Path, signer: Path) -> None:
    with BatchEmulator(tls=True) as maker:
        certfile, keyfile = (tmp_path / name for name in ("cert.pem", "key.pem"))
        certfile.write_bytes((maker.root / "emulator-cert.pem").read_bytes())
        keyfile.write_bytes((maker.root / "emulator-key.pem").read_bytes())
    options = {"refuse_shared_key": True, "token_signer": signer}
    with BatchEmulator(certfile=certfile, keyfile=keyfile, **options) as emulator:
        assert emulator.certificate == certfile
        key = AzureNamedKeyCredential(emulator.account_name, emulator.account_key)
        with pytest.raises(HttpResponseError) as caught:
            list(client(emulator, key).list_pools())
        assert caught.value.status_code == 403
        assert "SharedKey is not allowed" in caught.value.response.text()
        assert list(client(emulator, Credential(token(iss="https://sts.windows.net/any/"))).list_pools()) == []
        context = ssl.create_default_context(cafile=str(certfile))
        assert context.get_ca_certs()


def test_options_say_what_is_wrong_with_them() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        BatchEmulator(no_such_option=1)
    with pytest.raises(ValueError, match="pool_quota is -1"):
        BatchEmulator(pool_quota=-1)
    with pytest.raises(ValueError, match="clock_rate is 0"):
        BatchEmulator(clock_rate=0)
    given = Options(failing_sizes={"Standard_F2": 1}, job_submitters=("a", "b"), refuse_shared_key=True)
    flags = ["--failing-sizes", "standard_f2=1", "--refuse-shared-key", "--job-submitters", "a"]
    assert given.arguments() == [*flags, "--job-submitters", "b"]
    assert Options().arguments() == []
