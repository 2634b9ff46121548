"""Who asks: the holder of the account's key (SharedKey), or of an Entra token (Bearer; see `tokens`).

The string that SharedKey signs is that of
https://learn.microsoft.com/rest/api/batchservice/authenticate-requests-to-the-azure-batch-service: the verb, eleven
headers, the ``ocp-`` headers, the account with the path as it was sent, and the query.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import parse_qs

from . import errors, times, tls, tokens
from .options import Options
from .tokens import Principal

SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
#: How far a request's date may be off.
MAX_SKEW = timedelta(minutes=15)


class Authentication:
    """Checks the Authorization header: against one account's name and key, or the account's rules for tokens."""

    def __init__(self, account_name: str, account_key: str, options: Options | None = None) -> None:
        self.account_name = account_name
        self._key = base64.b64decode(account_key, validate=True)
        self._options = options or Options()
        named = self._options.token_signer
        self._signer = None if named is None else tls.read_public_key(named)

    def __repr__(self) -> str:
        return f"Authentication(account_name={self.account_name!r}, account_key='***')"

    def check(self, method: str, raw_path: str, raw_query: str, headers: Mapping[str, str]) -> Principal:
        """Return who asks, if the request is authentic.

        Raises
        ------
        BatchError
            401 without credentials or with a token that does not hold, 400 for a header of another form, 403 for a
            wrong signature or an old date, and where the account takes no shared key.
        """
        header = headers.get("authorization", "")
        if not header:
            raise errors.authentication_missing()
        scheme, _, credential = header.partition(" ")
        if scheme.lower() == "bearer":
            return tokens.check(credential, self._options, self._signer)
        account, separator, signature = credential.strip().partition(":")
        if scheme != "SharedKey" or not separator:
            raise errors.invalid_authentication_info("Expected 'SharedKey <account>:<signature>'.")
        if self._options.refuse_shared_key:
            raise errors.authentication_failed(
                "The specified type of authentication SharedKey is not allowed for this account."
            )
        if account != self.account_name:
            raise errors.authentication_failed(f"The account '{account}' is not served here.")
        self._check_date(headers)
        expected = self.signature(method, raw_path, raw_query, headers)
        try:
            given = base64.b64decode(signature, validate=True)
        except ValueError:  # no base64, or not even ASCII
            given = b""
        if not hmac.compare_digest(expected, given):
            signed = string_to_sign(self.account_name, method, raw_path, raw_query, headers)
            raise errors.authentication_failed(
                "The MAC signature found in the HTTP request is not the same as any computed signature. "
                f"Server used the following string to sign: '{signed}'."
            )
        return Principal(token=False)

    def holds_key(self, given: str) -> bool:
        """Whether this is the account's key itself."""
        return hmac.compare_digest(given.encode(), base64.b64encode(self._key))

    def signature(self, method: str, raw_path: str, raw_query: str, headers: Mapping[str, str]) -> bytes:
        signed = string_to_sign(self.account_name, method, raw_path, raw_query, headers)
        return hmac.new(self._key, signed.encode(), hashlib.sha256).digest()

    @staticmethod
    def _check_date(headers: Mapping[str, str]) -> None:
        text = headers.get("ocp-date") or headers.get("date")
        moment = times.parse_http_date(text) if text else None
        if moment is None:
            raise errors.authentication_failed("Neither ocp-date nor Date holds a date in RFC 1123 form.")
        if abs(times.now() - moment) > MAX_SKEW:
            raise errors.authentication_failed(f"The date header is too old or in the future: '{text}'.")


def string_to_sign(account: str, method: str, raw_path: str, raw_query: str, headers: Mapping[str, str]) -> str:
    lines = [method]
    for name in SIGNED_HEADERS:
        value = headers.get(name, "")
        if name == "content-length" and not value and method not in ("GET", "HEAD"):
            value = "0"
        lines.append(value)
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("ocp-") and headers[name]]
    lines.append(f"/{account}{raw_path}")
    query = parse_qs(raw_query)
    lines += [f"{name}:{query[name][0]}" for name in sorted(query) if query[name][0]]
    return "\n".join(lines)
