"""Entra tokens: whether a bearer token says what a token for this account says.

The form (a JWT of three parts), the audience, the times, and the issuer where one is configured are checked.
**The signature is not**: nothing here knows Microsoft's keys, so anybody who can write JSON can make a token. The
emulator listens on loopback and guards nothing; this is for the client's ways to get, send and renew tokens.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import errors, times
from .options import Options

#: What a clock may be off, as Microsoft's own libraries allow.
SKEW_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks: the holder of the account's key, or of a token."""

    token: bool
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def object_id(self) -> str:
        return str(self.claims.get("oid", ""))


def check(token: str, options: Options) -> Principal:
    """Return who the token is for.

    Raises
    ------
    BatchError
        401 `AuthenticationFailed`, with the detail that the service gives.
    """
    claims = _claims(token)
    audience = claims.get("aud")
    # exactly: https://github.com/Azure/azure-sdk-for-net/issues/8026
    if audience != options.token_audience:
        raise errors.token_refused(
            f"The access token has been obtained from wrong audience or resource '{audience}'. It should exactly match "
            f"(including forward slash) with one of the allowed audiences '{options.token_audience}'"
        )
    now = times.now().timestamp()
    expires, begins = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(expires, (int, float)) or expires < now - SKEW_SECONDS:
        raise errors.token_refused("The access token has expired.")
    if not isinstance(begins, (int, float)) or begins > now + SKEW_SECONDS:
        raise errors.token_refused("The access token is not valid yet.")
    issuer = claims.get("iss")
    if options.token_issuer is not None and issuer != options.token_issuer:
        raise errors.token_refused(
            f"The access token is from the wrong issuer '{issuer}'. It must match one of the tenants "
            f"'{options.token_issuer}' associated with the subscription."
        )
    return Principal(token=True, claims=claims)


def _claims(token: str) -> dict[str, Any]:
    parts = token.strip().split(".")
    if len(parts) != 3 or not all(parts):
        raise errors.token_refused("The access token is not a JSON Web Token of three parts.")
    header, claims = (_decoded(part) for part in parts[:2])
    if not isinstance(header.get("alg"), str) or header["alg"].lower() == "none":
        raise errors.token_refused("The access token is not signed.")
    return claims


def _decoded(part: str) -> dict[str, Any]:
    try:
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error):
        found = None
    if not isinstance(found, dict):
        raise errors.token_refused("The access token cannot be decoded.")
    return found
