"""Entra tokens: whether a bearer token is one, and says what a token for this account says.

Nothing here knows Microsoft's keys: whoever plays Entra for a test signs with a key of its own, and the emulator is
told the public half of it (``token_signer``). Without, no token is taken at all: whoever may use the account may run
programs as the user who started the emulator. The form (a JWT of three parts), the signature, the audience, the times,
and the issuer where one is configured are checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import errors, times
from .options import Options

#: What a clock may be off, as Microsoft's own libraries allow.
SKEW_SECONDS = 300.0
#: Entra's own, and that of the keys that the emulator makes for itself.
_ALGORITHMS = ("RS256", "ES256")


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks: the holder of the account's key, or of a token."""

    token: bool
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def object_id(self) -> str:
        return str(self.claims.get("oid", ""))


def check(token: str, options: Options, signer: Any) -> Principal:
    """Return who the token is for.

    Parameters
    ----------
    token : str
    options : Options
    signer : public key or None
        Of `tls.read_public_key`; None: no token is taken.

    Raises
    ------
    BatchError
        401 `AuthenticationFailed`, with the detail that the service gives.
    """
    claims = _claims(token, signer)
    audience = claims.get("aud")
    # exactly: https://github.com/Azure/azure-sdk-for-net/issues/8026
    if audience != options.token_audience:
        raise errors.token_refused(
            f"The access token has been obtained from wrong audience or resource '{audience}'. It should exactly match "
            f"(including forward slash) with one of the allowed audiences '{options.token_audience}'"
        )
    now = times.now().timestamp()
    expires, begins = _moment(claims.get("exp")), _moment(claims.get("nbf", 0))
    if expires is None or expires < now - SKEW_SECONDS:
        raise errors.token_refused("The access token has expired.")
    if begins is None or begins > now + SKEW_SECONDS:
        raise errors.token_refused("The access token is not valid yet.")
    issuer = claims.get("iss")
    if options.token_issuer is not None and issuer != options.token_issuer:
        raise errors.token_refused(
            f"The access token is from the wrong issuer '{issuer}'. It must match one of the tenants "
            f"'{options.token_issuer}' associated with the subscription."
        )
    return Principal(token=True, claims=claims)


def _moment(value: Any) -> float | None:
    """Return a claim's seconds since the epoch; None where it is no number of them."""
    return value if isinstance(value, (int, float)) and abs(value) < math.inf else None


def _claims(token: str, signer: Any) -> dict[str, Any]:
    import jwt

    token = token.strip()
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise errors.token_refused("The access token is not a JSON Web Token of three parts.")
    if signer is None:
        raise errors.token_refused("The signature of the access token cannot be checked: this account has no signer.")
    only_signature = {"verify_aud": False, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
    only_signature |= {"verify_iss": False, "verify_sub": False, "verify_jti": False}
    try:
        found: dict[str, Any] = jwt.decode(token, signer, algorithms=list(_ALGORITHMS), options=only_signature)  # type: ignore[arg-type]
    except jwt.InvalidSignatureError:
        raise errors.token_refused("The signature of the access token is not its issuer's.") from None
    except jwt.InvalidAlgorithmError:
        reason = f"The access token is not signed with one of {', '.join(_ALGORITHMS)}."
        raise errors.token_refused(reason) from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise errors.token_refused("The access token cannot be decoded.") from None
    return found
