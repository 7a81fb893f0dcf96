"""Bounded request queue: a few jobs run at a time, a few wait, further requests are refused."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar

from skinmm.serve.responses import ProblemError

T = TypeVar("T")


class RequestQueue:
    """Bounded queue in front of the prediction threads.

    Attributes:
        taken: slots in use.
    """

    def __init__(self, slots: int, seconds: int | float, threads: int = 1) -> None:
        """Start the threads.

        Args:
            slots: requests at a time, running ones included.
            seconds: time limit of a request, upload included.
            threads: jobs that run at a time.
        """
        self._slots, self._seconds, self._workers = slots, seconds, threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._last = 1.0  # seconds that the last job took
        self.taken = 0

    @property
    def is_full(self) -> bool:
        """Return whether the next request would be refused."""
        return self.taken >= self._slots

    @asynccontextmanager
    async def slot(self) -> "AsyncIterator[Slot]":
        """Occupy a slot until the request ends and its job has stopped.

        Raises:
            ProblemError: no slot is free, or the time limit is exceeded.
        """
        if self.is_full:
            wait = {"Retry-After": str(math.ceil(self.taken * self._last / self._workers))}
            raise ProblemError(
                HTTPStatus.TOO_MANY_REQUESTS, "the queue is full: try again later", wait
            )
        self.taken += 1
        slot = Slot(self._submit)
        try:
            async with asyncio.timeout(self._seconds):
                yield slot
        except TimeoutError:
            raise self._late(slot) from None
        finally:
            self._free(slot.job)

    def close(self) -> None:
        """Wait for running jobs and cancel waiting ones."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _submit(self, job: Callable[[], T]) -> "Future[T]":
        def timed() -> T:
            start = time.monotonic()
            try:
                return job()
            finally:
                self._last = time.monotonic() - start

        return self._threads.submit(timed)

    def _free(self, job: "Future[Any] | None") -> None:
        """Free a slot, after its job has stopped if that cannot be cancelled."""
        if job is None or job.done() or job.cancel():
            self.taken -= 1
            return
        loop = asyncio.get_running_loop()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free, None))

    def _late(self, slot: "Slot") -> ProblemError:
        limit = f"within {self._seconds:g} seconds"
        if slot.job is None:
            return ProblemError(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive {limit}")
        wait = {"Retry-After": str(math.ceil(self._seconds))}
        return ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, f"no answer {limit}: try again", wait)


class Slot:
    """Slot of a request in the queue."""

    def __init__(self, submit: Callable[[Callable[[], Any]], "Future[Any]"]) -> None:
        """Store the function that submits a job to the threads."""
        self._submit = submit
        self.job: Future[Any] | None = None

    async def run(self, job: Callable[[], T]) -> T:
        """Run a job in a thread and wait for its result."""
        self.job = self._submit(job)
        return await asyncio.wrap_future(self.job)
