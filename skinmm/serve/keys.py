"""API keys: hashes in a file, compared in constant time."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from skinmm.errors import InputError

_LINE: Final = re.compile(r"([0-9a-fA-F]{64})(\s.*)?")
HOW: Final = "make one: openssl rand -hex 32 | tee key.txt | tr -d '\\n' | sha256sum >> keys.txt"


class Keys:
    """The keys that open the service. A key is long and random, so a plain hash protects it."""

    def __init__(self, digests: frozenset[bytes]) -> None:
        """Takes SHA-256 digests."""
        self._digests = digests

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Reads a file as `sha256sum` writes it: a hash a line, what follows it is a comment.

        Raises:
            InputError: no such file, no key in it, or a line that holds none.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"keys={path}: cannot be read ({error}); {HOW}") from error
        digests = set()
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None:
                raise InputError(f"keys={path}: line {number} is no SHA-256 sum; {HOW}")
            digests.add(bytes.fromhex(found[1]))
        if not digests:
            raise InputError(f"keys={path}: the file holds no key; {HOW}")
        return cls(frozenset(digests))

    def open(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings a key: as bearer, in X-API-Key, or as a browser's password."""
        key = _brought(headers)
        if key is None:
            return False
        digest = hashlib.sha256(key).digest()
        # Every hash is compared: how long it takes says nothing about which was near.
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _brought(headers: Mapping[str, str]) -> bytes | None:
    plain = headers.get("x-api-key")
    if plain is not None:
        return plain.encode()
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None
    return None
