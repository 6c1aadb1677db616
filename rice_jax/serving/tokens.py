"""Tokens, one of which every request must show if the server has any."""

import base64
import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import Scope

from rice_jax.types import DataError

MIN_CHARACTERS = 16  # a shorter token can be guessed
# Programs send `Bearer`. A browser asks its user for `Basic`, and then sends it for the page and its pictures too; of
# several challenges in a header, it sees only the first.
CHALLENGE = 'Basic realm="rice_jax", charset="UTF-8", Bearer realm="rice_jax"'

logger = logging.getLogger(__name__)


def read_tokens(path: str | os.PathLike) -> list[bytes]:
    """Reads the tokens of a file, one on each line; empty lines do not count. Warns if every user can read it.

    Returns:
        The SHA-256 of each.

    Raises:
        DataError: there is none, or one is short or has other characters than a header may have; it is not shown.
        OSError: the file cannot be read.
    """
    if os.name == "posix" and Path(path).stat().st_mode & stat.S_IROTH:
        logger.warning("%s: every user of this machine can read it; restrict it by chmod 600", path)
    tokens = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if token := line.strip():
            if len(token) < MIN_CHARACTERS or not all(0x21 <= character <= 0x7E for character in token):
                raise DataError(
                    f"{path}:{number}: found a token of {len(token)} characters, expected {MIN_CHARACTERS} or more, "
                    "all of them ASCII and none a space, such as `openssl rand -hex 32` makes"
                )
            tokens.append(hashlib.sha256(token).digest())
    if not tokens:
        raise DataError(f"{path}: found no token, expected one on each line")
    return tokens


def require_token(scope: Scope, tokens: Sequence[bytes]) -> None:
    """Checks the header Authorization of a request, in a time that does not depend on the tokens.

    Args:
        scope: of the request.
        tokens: from `read_tokens`; () turns the check off.

    Raises:
        HTTPException: the request shows none of them (401).
    """
    given = hashlib.sha256(_given(Headers(scope=scope).get("authorization", ""))).digest()
    if tokens and not any([hmac.compare_digest(given, token) for token in tokens]):  # a list: all are compared
        detail = "found no token of this server, expected the header 'Authorization: Bearer TOKEN'"
        raise HTTPException(401, detail, {"WWW-Authenticate": CHALLENGE})


def _given(authorization: str) -> bytes:
    """The token in the header: that of `Bearer`, or the password of `Basic`."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
