"""Addresses of servers: checks, tokens and redirects."""

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
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
    """Raise InputError if a URL is not HTTP(S), has a secret, or is plain HTTP to another machine.

    `refusal` is the message about a user, password or query in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("url must start with https://, or http:// for this machine")
    if parts.username or parts.password or parts.query:
        raise InputError(refusal)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InputError(f"url=http://{parts.hostname}: patients' data need https")


class Token:
    """Bearer token of a server, from an environment variable, or from a file for every request.

    Attributes:
        name: environment variable of the token.
        file: environment variable of its file, which takes precedence.
    """

    def __init__(self, name: str) -> None:
        self.name, self.file = name, f"{name}_FILE"

    def __call__(self, request: Any) -> Any:
        """Add the token to a request; as the `auth` of a session, it also disables .netrc."""
        file = os.environ.get(self.file)
        token = Path(file).read_text("utf-8") if file else os.environ.get(self.name, "")
        if token.strip():
            request.headers["Authorization"] = f"Bearer {token.strip()}"
        return request

    def advise(self) -> str:
        """Return why the server may refuse the token, and what to do."""
        name = self.file if os.environ.get(self.file) else self.name
        if os.environ.get(name):
            return f"the token is wrong or expired: renew {name}"
        return f"a token is missing (no user and password): set {self.name} or {self.file}"


def refuse_redirect(response: Any, **_: Any) -> None:
    """Refuse redirects, as a hook: a redirected POST becomes a GET, which stores nothing."""
    import requests

    if 300 <= response.status_code < 400:  # noqa: PLR2004
        raise requests.TooManyRedirects


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
