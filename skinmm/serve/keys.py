"""API keys: hashes in a file, compared in constant time."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, MutableMapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from skinmm.errors import InputError

_LINE: Final = re.compile(r"([0-9a-fA-F]{64})(\s.*)?")
_WHO: Final = "skinmm.who"
ANYONE: Final = "anyone"
RESERVED: Final = (ANYONE, "skinmm feedback")
"""Names that the audit trail gives to others."""
HOW: Final = "make one: openssl rand -hex 32 | tee key.txt | tr -d '\\n' | sha256sum >> keys.txt"


class Keys:
    """The keys that open the service. A key is long and random, so a plain hash protects it."""

    def __init__(self, names: Mapping[bytes, str]) -> None:
        """Takes SHA-256 digests, and what each key is called."""
        self._names = dict(names)

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Reads a file as `sha256sum` writes it: a hash a line, what follows it is its name.

        A key without a name is called by the first signs of its hash.

        Raises:
            InputError: no such file, no key in it, or a line that holds none or a name twice.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"keys={path}: cannot be read ({error}); {HOW}") from error
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None:
                raise InputError(f"keys={path}: line {number} is no SHA-256 sum; {HOW}")
            name = (found[2] or "").strip(" \t-*")
            name = name or found[1][:8].lower()
            if name in (*names.values(), *RESERVED):
                raise InputError(f"keys={path}: line {number}: the name {name!r} is taken")
            names[bytes.fromhex(found[1])] = name
        if not names:
            raise InputError(f"keys={path}: the file holds no key; {HOW}")
        return cls(names)

    def who(self, headers: Mapping[str, str]) -> str | None:
        """The name of the key that a request brings; None: none, or a wrong one.

        It comes as bearer, in X-API-Key, or as a browser's password.
        """
        key = _brought(headers)
        if key is None:
            return None
        digest = hashlib.sha256(key).digest()
        # Every hash is compared: how long it takes says nothing about which was near.
        same = [name for known, name in self._names.items() if hmac.compare_digest(digest, known)]
        return same[0] if same else None


def let_in(scope: MutableMapping[str, Any], who: str) -> None:
    """Remembers who asks."""
    scope[_WHO] = who


def who_asked(scope: Mapping[str, Any]) -> str:
    """The name of the key that opened, or that none was needed."""
    return str(scope.get(_WHO, ANYONE))


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
