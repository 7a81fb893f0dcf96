"""ASGI middleware around the service: API keys, host names, body limits, headers, metrics."""

import base64
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skinmm.errors import InputError
from skinmm.serve.forms import body_limit
from skinmm.serve.responses import ProblemError

_KEY_LINE: Final = re.compile(r"([0-9a-fA-F]{64})(\s.*)?")
_USER: Final = "skinmm.user"
_ANYONE: Final = "anyone"
_RESERVED: Final = (_ANYONE, "skinmm feedback")  # names that the audit trail uses itself
KEY_HELP: Final = (
    "create one: openssl rand -hex 32 | tee key.txt | tr -d '\\n' | sha256sum >> keys.txt"
)
_COUNTED: Final = (
    *("/v1/predict", "/v1/predict/batch", "/v1/explain", "/v1/model"),
    *("/v1/cases", "/v1/audit", "/healthz", "/readyz", "/metrics"),
)
_PUBLIC: Final = ("/healthz", "/readyz")
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
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


@dataclass(frozen=True)
class Keys:
    """API keys by name, stored as SHA-256 digests; keys are random, so an unsalted hash is safe."""

    names: Mapping[bytes, str]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read a file in the format of `sha256sum`: a digest and an optional name per line."""
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
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if "x-api-key" in headers:
            key = headers["x-api-key"].encode()
        elif scheme.lower() == "bearer":
            key = value.strip().encode()
        elif scheme.lower() == "basic":
            try:
                key = base64.b64decode(value, validate=True).partition(b":")[2]
            except ValueError:
                return None
        else:
            return None
        digest = hashlib.sha256(key).digest()
        # Compare with every digest: the time taken must not depend on which one is similar.
        names = [name for stored, name in self.names.items() if hmac.compare_digest(digest, stored)]
        return names[0] if names else None


def get_user(request: Request) -> str:
    """Return the name of the API key of a request, `anyone` if none is required."""
    return str(request.scope.get(_USER, _ANYONE))


class Metrics:
    """Prometheus metrics: requests, seconds and decisions; no patient data.

    Args:
        slots_taken: returns the number of requests in the queue; called whenever metrics are read.
    """

    def __init__(self, slots_taken: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        kw = {"registry": self.registry}
        self._requests = Counter("skinmm_requests", "Requests answered", ["path", "status"], **kw)
        self._seconds = Histogram("skinmm_request_seconds", "Time to answer", ["path"], **kw)
        self._decisions = Counter("skinmm_decisions", "Lesions predicted", ["decision"], **kw)
        slots = Gauge("skinmm_places_taken", "Requests in the queue", **kw)
        slots.set_function(slots_taken)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a response."""
        path = "/v1/cases" if path.startswith("/v1/cases") else path
        # Unknown paths share one label: each label is a time series, and clients choose the path.
        path = path if path in _COUNTED else "page"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_decisions(self, decisions: Iterable[str]) -> None:
        """Count the decisions of predictions; an empty decision is a failed prediction."""
        for decision in decisions:
            self._decisions.labels(decision or "none").inc()


@dataclass(frozen=True)
class ServiceMiddleware:
    """ASGI middleware that refuses, limits, measures and completes every request.

    Attributes:
        keys: accepted keys; None: everyone may connect.
        hosts: accepted host names, so that no web page can reach a service on the visitor's own
            machine under another name (DNS rebinding); None: any.
        framed: allow other sites to show the page in a frame.
        images: images of a lesion at most.
    """

    app: ASGIApp
    keys: Keys | None
    hosts: Collection[str] | None
    metrics: Metrics
    framed: bool = False
    images: int = 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"]
        is_page = not path.startswith("/v1/") and path not in (*_PUBLIC, "/metrics")
        page_policy = _PAGE_POLICY if self.framed else f"{_PAGE_POLICY}; frame-ancestors 'none'"
        policy = page_policy if is_page else _API_POLICY
        status, start = 0, time.monotonic()

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS | {"content-security-policy": policy})
            await send(message)

        try:
            self._authorize(scope)
            limit = body_limit(path, self.images)
            await self.app(scope, _limit_body(scope, receive, limit), respond)
        except ClientDisconnect:
            pass
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else _log_unexpected(error)
            if not status:
                await problem.to_response()(scope, receive, respond)
        finally:
            self.metrics.count_request(path, status, time.monotonic() - start)

    def _authorize(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        try:
            host = urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            host = None
        if self.hosts is not None and host not in self.hosts:
            raise ProblemError(421, f"unknown host name; use {' or '.join(sorted(self.hosts))}")
        if scope["method"] not in _SAFE and _is_cross_site(headers):
            raise ProblemError(403, "the request comes from a page of another site")
        if self.keys is None or scope["path"] in _PUBLIC:
            return
        if user := self.keys.find_user(headers):
            scope[_USER] = user
            return
        raise ProblemError(
            401,
            "missing or wrong API key: send Authorization: Bearer KEY, or KEY as the password",
            {"WWW-Authenticate": 'Basic realm="skinmm", charset="UTF-8"'},
        )


def _is_cross_site(headers: Headers) -> bool:
    """Return whether a browser sent a request for a page of another site."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    hosts = ((origin or "").partition("://")[2], headers.get("host", ""))
    # Browsers leave out the default port, which a proxy may state.
    return origin is not None and len({re.sub(":(80|443)$", "", host) for host in hosts}) > 1


def _limit_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Return a receive function that refuses a body longer than `limit` bytes."""
    too_long = ProblemError(
        413, f"the request is longer than {limit:,} bytes", {"Connection": "close"}
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
    return ProblemError(500, "internal error; the service's log has its location")
