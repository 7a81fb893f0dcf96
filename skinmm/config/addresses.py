"""Checks of network addresses in settings."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from skinmm.errors import InputError


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def require_private(url: str, refusal: str) -> None:
    """Refuse a URL that is not HTTP(S), contains a secret, or sends plain HTTP to another machine.

    `refusal` is the message about a user, password or query in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url={parts.scheme}://...: must start with https://")
    if parts.username or parts.password or parts.query:
        raise InputError(refusal)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InputError(f"url=http://{parts.hostname}: patients' data need https")
