"""Checks of network addresses."""

import socket
from contextlib import suppress
from ipaddress import ip_address
from threading import Event, Thread
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from skinmm.errors import InputError

PROBE_SECONDS: Final = 2.0  # for a connection to the model hub, whose client retries for a minute


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
        raise InputError("url must start with https://, or http:// for this machine")
    if parts.username or parts.password or parts.query:
        raise InputError(refusal)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InputError(f"url=http://{parts.hostname}: patients' data need https")


def is_reachable(endpoint: str) -> bool:
    """Return whether the hub, or the proxy to it, accepts a connection within `PROBE_SECONDS`."""
    url = urlsplit(endpoint)
    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    if proxy:
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (url.hostname or "", url.port or (80 if url.scheme == "http" else 443))
    is_connected = Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, PROBE_SECONDS):
            is_connected.set()

    # In a thread, as the look-up of a name has no time limit; a daemon does not delay the exit.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return is_connected.is_set()
