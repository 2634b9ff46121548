"""Types of single values: secrets, texts that may carry one, Azure's resource ids, and how a secret is masked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

#: What stands in place of a secret, as pydantic writes it.
MASK = "**********"

#: Parts of a text that are secrets: a password or token in a URL, a SAS' signature, a key in a command line.
_SECRETS = (
    re.compile(r"(?<=://)[^/@\s]+(?=@)"),
    re.compile(r"(?<=[?&;]sig=)[^&\s'\"]+", re.IGNORECASE),
    re.compile(r"(?<=AccountKey=)[^;,\s'\"]+|(?<=SharedAccessSignature=)[^;,\s'\"]+", re.IGNORECASE),
    re.compile(
        r"(?:(?<=password=)|(?<=passwd=)|(?<=token=)|(?<=secret=)|(?<=api_key=)|(?<=apikey=))[^&;,\s'\"]+",
        re.IGNORECASE,
    ),
)


def scrub(text: str) -> str:
    """Return `text` with the secrets masked that can be told from their form.

    >>> scrub("git+https://me:token@host/repo.git")
    'git+https://**********@host/repo.git'
    """
    for pattern in _SECRETS:
        text = pattern.sub(MASK, text)
    return text


def revealed(info: SerializationInfo) -> bool:
    """Whether the one who serialises asked for secrets: ``context={"secrets": True}``."""
    return isinstance(info.context, dict) and info.context.get("secrets") is True


def _secret_json(value: Any, info: SerializationInfo) -> Any:
    if not isinstance(value, SecretStr):
        return value
    return value.get_secret_value() if revealed(info) else MASK


def _link_json(value: Any, info: SerializationInfo) -> Any:
    return value if revealed(info) or not isinstance(value, str) else scrub(value)


def _no_mask(value: Any) -> Any:
    # What a masked value shows is easily pasted back; it would fail as a wrong key much later.
    if value == MASK:
        raise ValueError("this is a masked value, not the secret itself")
    return value


#: A secret: masked in every repr, text, JSON and error.
Secret = Annotated[
    SecretStr,
    BeforeValidator(_no_mask),
    Field(min_length=1),
    PlainSerializer(_secret_json, return_type=str, when_used="json"),
]
#: A text that may carry a secret: a URL with a token or a SAS, a command with a password. `scrub` masks it.
Link = Annotated[str, Field(min_length=1), PlainSerializer(_link_json, return_type=str, when_used="json")]
Text = Annotated[str, Field(min_length=1)]


def blank_is_none(value: Any) -> Any:
    """doAzureParallel writes ``""`` (and R's empty list ``{}`` or ``[]``) for what is not set."""
    return None if value in ("", {}, []) else value


Blank = BeforeValidator(blank_is_none)


@dataclass(frozen=True)
class Matching:
    """Metadata of a text that matches `pattern` as a whole; the error says what is `expected`."""

    pattern: str
    expected: str
    ignore_case: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        compiled = re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0)

        def check(value: str) -> str:
            if not compiled.fullmatch(value):
                raise ValueError(f"expected {self.expected}")
            return value

        return no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        if not self.ignore_case:
            found["pattern"] = f"^(?:{self.pattern})$"
        return found


def _arm(kind: str, example: str) -> Matching:
    return Matching(
        f"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/{kind}",
        f"a resource id as /subscriptions/…/resourceGroups/…/providers/{example}",
        ignore_case=True,
    )


SubnetId = Annotated[
    str,
    _arm(
        r"Microsoft\.(?:Classic)?Network/virtualNetworks/[^/]+/subnets/[^/]+",
        "Microsoft.Network/virtualNetworks/…/subnets/…",
    ),
]
IdentityId = Annotated[
    str,
    _arm(
        r"Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+", "Microsoft.ManagedIdentity/userAssignedIdentities/…"
    ),
]
ImageId = Annotated[
    str,
    _arm(
        r"Microsoft\.Compute/(?:galleries/[^/]+/images/[^/]+(?:/versions/[^/]+)?|images/[^/]+)",
        "Microsoft.Compute/galleries/…/images/…/versions/…",
    ),
]
BatchAccountId = Annotated[str, _arm(r"Microsoft\.Batch/batchAccounts/[^/]+", "Microsoft.Batch/batchAccounts/…")]
StorageAccountId = Annotated[
    str,
    _arm(r"Microsoft\.(?:Classic)?Storage/storageAccounts/[^/]+", "Microsoft.Storage/storageAccounts/…"),
]
