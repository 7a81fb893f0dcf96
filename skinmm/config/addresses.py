"""Network addresses that settings name."""

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
    """Refuse a URL of another protocol than HTTP, one with secrets, or plain HTTP to others.

    `refusal` is the message about a user, password or query in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url={parts.scheme}://...: not an address of https://")
    if parts.username or parts.password or parts.query:
        raise InputError(refusal)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InputError(f"url=http://{parts.hostname}: patients' data need https")
