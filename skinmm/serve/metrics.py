"""Counts for Prometheus: how many, how long and what was decided, never of whom."""

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
