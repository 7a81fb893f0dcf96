"""Who is served when: a job or two at a time, a few wait, the rest come again later."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar

from skinmm.serve.problems import ProblemError

T = TypeVar("T")


class Desk:
    """A bounded queue before the threads that answer.

    Attributes:
        taken: places that requests hold.
    """

    def __init__(self, places: int, seconds: int | float, lanes: int = 1) -> None:
        """Opens it.

        Args:
            places: requests at a time, those that run included.
            seconds: that a request may take, its upload included.
            lanes: how many run at a time (see `CasePredictor.lanes`).
        """
        self._places, self._seconds, self._lanes = places, seconds, lanes
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="predict")
        self._last = 1.0  # seconds that the last job took
        self.taken = 0

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self.taken >= self._places

    @asynccontextmanager
    async def place(self) -> "AsyncIterator[Place]":
        """A place in the queue, for as long as the request lasts and its job runs.

        Raises:
            ProblemError: no place is free, or the time is over.
        """
        if self.full:
            wait = {"Retry-After": str(math.ceil(self.taken * self._last / self._lanes))}
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS, "all places are taken: try again", wait
            )
        self.taken += 1
        place = Place(self._run)
        try:
            async with asyncio.timeout(self._seconds):
                yield place
        except TimeoutError:
            raise self._late(place) from None
        finally:
            self._free(place.job)

    def close(self) -> None:
        """Lets what runs end and drops those that wait."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Callable[[], T]) -> "Future[T]":
        def timed() -> T:
            start = time.monotonic()
            try:
                return job()
            finally:
                self._last = time.monotonic() - start

        return self._threads.submit(timed)

    def _free(self, job: "Future[Any] | None") -> None:
        """Gives the place back, once nothing works for it any more."""
        if job is None or job.done() or job.cancel():
            self.taken -= 1
            return
        loop = asyncio.get_running_loop()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._left))

    def _left(self) -> None:
        self.taken -= 1

    def _late(self, place: "Place") -> ProblemError:
        limit = f"within {self._seconds:g} seconds"
        if place.job is None:
            return ProblemError(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive {limit}")
        wait = {"Retry-After": str(math.ceil(self._seconds))}
        return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, f"no answer {limit}: try again", wait)


class Place:
    """A request's place in the queue."""

    def __init__(self, submit: Callable[[Callable[[], Any]], "Future[Any]"]) -> None:
        """Takes what hands a job to the thread."""
        self._submit = submit
        self.job: Future[Any] | None = None

    async def run(self, job: Callable[[], T]) -> T:
        """Runs a job when its turn comes, and waits for it."""
        self.job = self._submit(job)
        return await asyncio.wrap_future(self.job)
