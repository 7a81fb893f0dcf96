"""ASGI middleware around the service: API keys, host names, body limits, headers, metrics."""

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from pathlib import Path
from traceback import extract_tb
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skinmm.errors import InputError
from skinmm.serve.responses import ProblemError

_KEY_LINE: Final = re.compile(r"([0-9a-fA-F]{64})(\s.*)?")
_USER: Final = "skinmm.user"
_ANYONE: Final = "anyone"
_RESERVED: Final = (_ANYONE, "skinmm feedback")  # names that the audit trail uses itself
KEY_HELP: Final = (
    "create one: openssl rand -hex 32 | tee key.txt | tr -d '\\n' | sha256sum >> keys.txt"
)
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_COUNTED: Final = (
    *("/v1/predict", "/v1/predict/batch", "/v1/explain", "/v1/model"),
    *("/v1/cases", "/v1/audit", "/healthz", "/readyz", "/metrics"),
)
_PUBLIC: Final = ("/healthz", "/readyz")
_API_POLICY: Final = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# Gradio's page consists of inline scripts; the policy only excludes other origins.
_PAGE_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' "
    "blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: "
    "blob:; font-src 'self' data:; connect-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_LOG: Final = logging.getLogger("skinmm.serve")


class Keys:
    """API keys as SHA-256 digests: a key is long and random, so a plain hash protects it."""

    def __init__(self, names: Mapping[bytes, str]) -> None:
        """Store the name of each digest."""
        self._names = dict(names)

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read a file in the format of `sha256sum`: a digest and an optional name per line.

        Raises:
            InputError: the file is missing, has no key, an invalid line or a repeated name.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"keys={path}: cannot be read ({error}); {KEY_HELP}") from error
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _KEY_LINE.fullmatch(line)
            if match is None:
                raise InputError(
                    f"keys={path}: line {number} is not a SHA-256 digest of 64 hexadecimal "
                    f"characters; {KEY_HELP}"
                )
            name = (match[2] or "").strip(" \t-*") or match[1][:8].lower()
            if name in (*names.values(), *_RESERVED):
                raise InputError(f"keys={path}: line {number}: the name {name!r} is taken")
            names[bytes.fromhex(match[1])] = name
        if not names:
            raise InputError(f"keys={path}: the file has no key; {KEY_HELP}")
        return cls(names)

    def find_user(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of the key in a request's headers; None without a valid key.

        The key is a bearer token, the header X-API-Key or the password of basic authentication.
        """
        key = _sent_key(headers)
        if key is None:
            return None
        digest = hashlib.sha256(key).digest()
        # Compare with every digest: the time taken must not depend on which one is similar.
        names = [name for known, name in self._names.items() if hmac.compare_digest(digest, known)]
        return names[0] if names else None


def _sent_key(headers: Mapping[str, str]) -> bytes | None:
    key = headers.get("x-api-key")
    if key is not None:
        return key.encode()
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def set_user(scope: MutableMapping[str, Any], user: str) -> None:
    """Store the name of the API key in the scope of a request."""
    scope[_USER] = user


def get_user(scope: Mapping[str, Any]) -> str:
    """Return the name of the API key of a request, `anyone` if none is required."""
    return str(scope.get(_USER, _ANYONE))


class Metrics:
    """Prometheus metrics: requests, seconds and decisions; never anything about a patient."""

    def __init__(self, slots_taken: Callable[[], float]) -> None:
        """Create the metrics; `slots_taken` is called whenever they are read."""
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "skinmm_requests", "Requests answered", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "skinmm_request_seconds", "Time to answer", ["path"], registry=registry
        )
        self._decisions = Counter(
            "skinmm_decisions", "Lesions predicted", ["decision"], registry=registry
        )
        slots = Gauge("skinmm_places_taken", "Requests in the queue", registry=registry)
        slots.set_function(slots_taken)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a response."""
        path = "/v1/cases" if path.startswith("/v1/cases") else path
        # Unknown paths share one label: each label is a time series, and clients choose the path.
        path = path if path in _COUNTED else "page"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_decisions(self, decisions: Iterable[str]) -> None:
        """Count the decisions of predictions; an empty one is a failed prediction."""
        for decision in decisions:
            self._decisions.labels(decision or "none").inc()

    def to_text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class ServiceMiddleware:
    """ASGI middleware that refuses, limits, measures and completes every request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys | None,
        hosts: Collection[str] | None,
        metrics: Metrics,
        body_limit: Callable[[str], int],
        framed: bool = False,
    ) -> None:
        """Wrap an application.

        Args:
            app: application.
            keys: accepted keys; None: everyone may connect.
            hosts: accepted host names, so that no web page can reach a service on the visitor's
                own machine under another name (DNS rebinding); None: any.
            metrics: metrics to update.
            body_limit: returns the largest body of a path in bytes.
            framed: allow other sites to show the page in a frame.
        """
        self._app, self._keys, self._hosts, self._metrics = app, keys, hosts, metrics
        self._body_limit = body_limit
        self._page_policy = _PAGE_POLICY + ("" if framed else "; frame-ancestors 'none'")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"]
        is_page = not path.startswith("/v1/") and path not in (*_PUBLIC, "/metrics")
        answer = _Answer(send, self._page_policy if is_page else _API_POLICY)
        start = time.monotonic()
        try:
            self._authorize(scope)
            await self._app(scope, _limit_body(scope, receive, self._body_limit(path)), answer)
        except ClientDisconnect:
            pass
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else _log_unexpected(error)
            if answer.status is None:
                await problem.to_response()(scope, receive, answer)
        finally:
            self._metrics.count_request(path, answer.status or 0, time.monotonic() - start)

    def _authorize(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers) not in self._hosts:
            raise ProblemError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"unknown host name; use {' or '.join(sorted(self._hosts))}",
            )
        if self._keys is None or scope["path"] in _PUBLIC:
            return
        if user := self._keys.find_user(headers):
            set_user(scope, user)
            return
        raise ProblemError(
            HTTPStatus.UNAUTHORIZED,
            "missing or wrong API key: send Authorization: Bearer KEY, or KEY as the password",
            {"WWW-Authenticate": 'Basic realm="skinmm", charset="UTF-8"'},
        )


class _Answer:
    """Send function that adds the common headers and records the status."""

    def __init__(self, send: Send, policy: str) -> None:
        self._send = send
        self._headers = {**_HEADERS, "content-security-policy": policy}
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers[name] = value
        await self._send(message)


def _host(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _limit_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Return a receive function that refuses a body longer than `limit` bytes."""
    too_long = ProblemError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is longer than {limit:,} bytes",
        {"Connection": "close"},
    )
    declared = Headers(scope=scope).get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise too_long
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise too_long
        return message

    return limited


def _log_unexpected(error: Exception) -> ProblemError:
    """Log only the location of an error: its text may contain a patient's data."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "skinmm" in frame.filename]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    _LOG.error("%s at %s", type(error).__name__, where)
    return ProblemError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the service's log has its location"
    )
