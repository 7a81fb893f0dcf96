"""Counts for Prometheus: how many, how long and what was decided, never of whom."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from http import HTTPStatus
from traceback import extract_tb
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skinmm.serve.forms import longest_body
from skinmm.serve.keys import Keys, let_in
from skinmm.serve.problems import ProblemError

PATHS: Final = (
    *("/v1/predict", "/v1/predict/batch", "/v1/explain", "/v1/model"),
    *("/v1/cases", "/v1/audit", "/healthz", "/readyz", "/metrics"),
)
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What a service counts."""

    def __init__(self, taken: Callable[[], float]) -> None:
        """Starts at zero.

        Args:
            taken: places in the queue, asked whenever the counts are read.
        """
        self._registry = CollectorRegistry()
        requests = ("Requests answered", ["path", "status"])
        self._requests = Counter("skinmm_requests", *requests, registry=self._registry)
        self._seconds = Histogram(
            "skinmm_request_seconds", "Time to answer", ["path"], registry=self._registry
        )
        self._decisions = Counter(
            "skinmm_decisions", "Lesions judged", ["decision"], registry=self._registry
        )
        places = Gauge("skinmm_places_taken", "Requests in the queue", registry=self._registry)
        places.set_function(taken)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        path = "/v1/cases" if path.startswith("/v1/cases") else path
        path = path if path in PATHS else "page"  # a name from outside would be a series of its own
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def decided(self, decisions: Iterable[str]) -> None:
        """Counts what was said of lesions; an empty decision is one that could not be predicted."""
        for decision in decisions:
            self._decisions.labels(decision or "none").inc()

    def text(self) -> bytes:
        """All counts, in Prometheus' text format."""
        return generate_latest(self._registry)


OPEN: Final = ("/healthz", "/readyz")
_API: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# Gradio's page is made of inline scripts; what matters is that nothing comes from elsewhere.
_PAGE: Final = (
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


class Guard:
    """ASGI middleware around the whole service."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys | None,
        hosts: Collection[str] | None,
        metrics: Metrics,
        framed: bool = False,
    ) -> None:
        """Wraps an application.

        Args:
            app: what answers.
            keys: None: everyone is let in.
            hosts: names it may be called by, so that no web page can reach a service on the
                visitor's own machine under another name (DNS rebinding); None: any.
            metrics: what is counted.
            framed: let other sites show the page in a frame.
        """
        self._app, self._keys, self._hosts, self._metrics = app, keys, hosts, metrics
        self._page = _PAGE + ("" if framed else "; frame-ancestors 'none'")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._page if _is_page(scope["path"]) else _API)
        start = time.monotonic()
        try:
            self._check(scope)
            await self._app(scope, _limited(scope, receive), answer)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else _unforeseen(error)
            if answer.status is None:
                await problem.response()(scope, receive, answer)
        finally:
            seconds = time.monotonic() - start
            self._metrics.request(scope["path"], answer.status or 0, seconds)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers) not in self._hosts:
            raise ProblemError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"called by a name that is not its own; use {' or '.join(sorted(self._hosts))}",
            )
        if self._keys is None or scope["path"] in OPEN:
            return
        if who := self._keys.who(headers):
            let_in(scope, who)
            return
        raise ProblemError(
            HTTPStatus.UNAUTHORIZED,
            "no key, or a wrong one: Authorization: Bearer KEY, or KEY as a browser's password",
            {"WWW-Authenticate": 'Basic realm="skinmm", charset="UTF-8"'},
        )


class _Answer:
    """Sends a response with the headers that every one has, and remembers its status."""

    def __init__(self, send: Send, policy: str) -> None:
        self._send, self._policy = send, policy
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, "content-security-policy": self._policy}.items():
                headers[name] = value
        await self._send(message)


def _is_page(path: str) -> bool:
    return not path.startswith("/v1/") and path not in (*OPEN, "/metrics")


def _host(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _limited(scope: Scope, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """The request's body, refused where it is said to be or becomes too long."""
    limit = longest_body(scope["path"])
    said = Headers(scope=scope).get("content-length", "0")
    if not said.isdecimal() or int(said) > limit:
        raise _too_long(limit)
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_long(limit)
        return message

    return counted


def _too_long(limit: int) -> ProblemError:
    return ProblemError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is longer than {limit:,} bytes",
        {"Connection": "close"},
    )


def _unforeseen(error: Exception) -> ProblemError:
    """An error that is ours; its text may hold what a patient sent, so only its place is logged."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "skinmm" in frame.filename]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    _LOG.error("%s at %s", type(error).__name__, where)
    detail = "an error of the service; its log says where"
    return ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, detail)
