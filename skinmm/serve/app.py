"""REST API and its bounded request queue; `create_app` combines them with store and middleware."""

import asyncio
import math
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

import skinmm
from skinmm.errors import InputError
from skinmm.predict.cases import NOTICE, Case, CasePredictor
from skinmm.predict.explain import Explanation
from skinmm.predict.heat_maps import heat_map_to_png
from skinmm.serve import responses
from skinmm.serve.cases import NAMES, CaseRecorder, case_routes
from skinmm.serve.forms import (
    BatchForm,
    CaseForm,
    LesionForm,
    Rows,
    case_form,
    read_batch,
    read_case,
)
from skinmm.serve.middleware import Keys, Metrics, ServiceMiddleware, get_user
from skinmm.serve.responses import REFUSALS, ProblemError

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
R = TypeVar("R")
T = TypeVar("T")
Answer = tuple[dict[str, Any], Explanation | None]
_Batch = tuple[Rows, dict[str, bytes]]


class RequestQueue:
    """Bounded queue in front of the prediction threads.

    `slots` limits the requests, running ones included, `seconds` each request with its upload, and
    `threads` the jobs that run at a time.

    Attributes:
        taken: slots in use.
    """

    def __init__(self, slots: int, seconds: int | float, threads: int = 1) -> None:
        self._slots, self._seconds, self._workers = slots, seconds, threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._last = 1.0  # seconds that the last job took
        self.taken = 0

    @property
    def is_full(self) -> bool:
        """Return whether the next request would be refused."""
        return self.taken >= self._slots

    async def run(
        self,
        read: Callable[[], Awaitable[R]],
        job: Callable[[R], T],
        record: Callable[[R, T], None] = lambda *_: None,
    ) -> T:
        """Read a request, run its job in a thread, record and return the result.

        Nothing is recorded after the time limit, as users then send the request again; what is
        being recorded at that moment is returned late.

        Raises:
            ProblemError: no slot is free, or the time limit is exceeded.
        """
        if self.is_full:
            wait = {"Retry-After": str(math.ceil(self.taken * self._last / self._workers))}
            raise ProblemError(429, "the queue is full: try again later", wait)
        self.taken += 1
        future, decided = None, Lock()  # whoever locks it first: the thread records, or we give up

        def run(request: R) -> T:
            result = self._measure(job, request)
            if decided.acquire(blocking=False):
                record(request, result)
            return result

        try:
            async with asyncio.timeout(self._seconds):
                request = await read()
                future = self._threads.submit(run, request)
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future is not None and not decided.acquire(blocking=False):
                return await asyncio.wrap_future(future)
            limit = f"within {self._seconds:g} seconds"
            if future is None:
                raise ProblemError(408, f"the request did not arrive {limit}") from None
            wait = {"Retry-After": str(math.ceil(self._seconds))}
            raise ProblemError(503, f"no result {limit}: try again", wait) from None
        finally:
            self._free(future)

    def close(self) -> None:
        """Wait for running jobs and cancel waiting ones."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _measure(self, job: Callable[[R], T], request: R) -> T:
        start = time.monotonic()
        try:
            return job(request)
        finally:
            self._last = time.monotonic() - start

    def _free(self, job: "Future[Any] | None") -> None:
        """Free the slot of a job, after the job has stopped."""
        if job is None or job.done() or job.cancel():
            self.taken -= 1
            return
        loop = asyncio.get_running_loop()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free, None))


def create_app(
    predictor: CasePredictor,
    queue: RequestQueue,
    *,
    keys: Keys | None = None,
    hosts: Collection[str] | None = None,
    batch: int = 32,
    framed: bool = False,
    recorder: CaseRecorder | None = None,
) -> FastAPI:
    """Return the API as an ASGI application; `skinmm.serve.page` mounts the page on it.

    Without keys everyone may connect, without hosts any host name is accepted, and without a
    recorder cases are not stored. The queue and the store of the recorder are closed when the
    application ends. `framed` allows other sites to show the page in a frame.
    """
    recorder = recorder or CaseRecorder(predictor, None)
    metrics = Metrics(lambda: queue.taken)
    limit = predictor.max_images if predictor.has_views else None
    form = case_form(recorder.columns, needs_image=predictor.needs_image, max_images=limit)

    app = FastAPI(
        title="skinmm",
        version=skinmm.__version__,
        description=f"The probability that a skin lesion is malignant. {NOTICE}",
        lifespan=_close_at_end,
        responses=REFUSALS,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their pages load scripts from other sites
        redoc_url=None,
    )
    limits = {"hosts": hosts, "framed": framed, "images": predictor.max_images}
    app.add_middleware(ServiceMiddleware, keys=keys, metrics=metrics, **limits)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    app.state.predictor, app.state.queue, app.state.recorder = predictor, queue, recorder
    _Endpoints(predictor, queue, metrics, recorder, form, batch).mount(app)
    if recorder.store is not None:
        app.include_router(case_routes)
    return app


@asynccontextmanager
async def _close_at_end(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.queue.close()
    if hasattr(app.state, "uploads"):  # the page may have uploads that were never submitted
        app.state.uploads.cleanup()
    if (store := app.state.recorder.store) is not None:
        store.close()


@dataclass
class _Endpoints:
    """Handlers of the paths; the first line of each docstring appears in the API description."""

    predictor: CasePredictor
    queue: RequestQueue
    metrics: Metrics
    recorder: CaseRecorder
    form: type[CaseForm | LesionForm]
    batch: int

    def mount(self, app: FastAPI) -> None:
        contents = (
            {"multipart/form-data": {"schema": form.model_json_schema()}}
            for form in (self.form, BatchForm)
        )
        case, batch = (
            {"requestBody": {"required": True, "content": content}} for content in contents
        )
        predicted, explained = responses.Prediction, responses.Explanation
        app.post("/v1/predict", response_model=predicted, openapi_extra=case)(self.predict)
        app.post("/v1/explain", response_model=explained, openapi_extra=case)(self.explain)
        app.post("/v1/predict/batch", response_model=responses.Batch, openapi_extra=batch)(
            self.predict_batch
        )
        app.get("/v1/model", response_model=dict[str, Any])(self.model)
        app.get("/healthz", response_model=dict[str, str])(self.alive)
        app.get("/readyz", response_model=dict[str, str])(self.ready)
        app.get("/metrics", response_class=Response)(self.read_metrics)

    async def predict(self, request: Request) -> Response:
        """Predict one lesion."""
        row, _ = await self._answer(request, lambda case: (self.predictor.predict(case), None))
        self.metrics.count_decisions([row["decision"]])
        return JSONResponse(_to_prediction(row))

    async def explain(self, request: Request) -> Response:
        """Predict one lesion and explain its probability.

        Each input has a Shapley value; a heat map shows the regions of the image that raise the
        probability.
        """
        row, explanation = await self._answer(request, self.predictor.predict_and_explain)
        content = _to_prediction(row)
        if explanation is not None:
            contributions = explanation.contributions
            names = [image.name for image in explanation.images]
            maps = [b64encode(heat_map_to_png(heat)).decode() for heat in explanation.heats]
            content |= {
                "record": explanation.record,
                "start": contributions.start,
                "added": contributions.added,
                "standard_errors": contributions.errors,
                "share_of_image": contributions.share("image"),
                "heat_map_png": maps[0] if len(maps) == 1 else None,
                "similar": [*explanation.similar],
            }
            if self.predictor.has_views:
                content["views"] = {i.name: i.view or None for i in explanation.images}
                content["heat_maps_png"] = dict(zip(names, maps, strict=bool(maps)))
        return JSONResponse(content)

    async def _answer(self, request: Request, predict: Callable[[Case], Answer]) -> Answer:
        """Read the form of one lesion, predict it in a thread and record the case."""

        def record(case: Case, answer: Answer) -> None:
            self.recorder.record(get_user(request), [answer[0]], [case])

        read = partial(read_case, request, self.form, self.predictor.max_images)
        return await self.queue.run(read, predict, record)

    async def predict_batch(self, request: Request) -> Response:
        """Predict a table of lesions."""

        def job(form: _Batch) -> tuple[list[dict[str, Any]], str]:
            return self.predictor.predict_table(*form), self.predictor.describe_columns(form[0])

        def record(form: _Batch, answer: tuple[list[dict[str, Any]], str]) -> None:
            cases = self.predictor.list_cases(*form)
            self.recorder.record(get_user(request), answer[0], cases)

        try:
            read = partial(read_batch, request, self.batch)
            predictions, note = await self.queue.run(read, job, record)
        except InputError as error:
            raise ProblemError.unusable(str(error)) from None
        self.metrics.count_decisions(row["decision"] for row in predictions)
        notes = [note] if note else []
        return JSONResponse({"rows": predictions, "notes": notes, "notice": NOTICE})

    async def model(self) -> Response:
        """Return the model card."""
        return JSONResponse(self.predictor.card)

    async def alive(self) -> Response:
        """Return whether the process is alive."""
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        """Return whether a request would be accepted."""
        if self.queue.is_full:
            raise ProblemError(503, "the queue is full")
        return JSONResponse({"status": "ready"})

    async def read_metrics(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(self.metrics.registry), media_type=_METRICS_TYPE)


def _to_prediction(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a single lesion without its names; refuse one with an error."""
    if row["error"]:
        raise ProblemError.unusable(row["error"])
    return {name: cell for name, cell in row.items() if name not in NAMES}


async def _refuse_route(_: Request, error: HTTPException) -> Response:
    """Answer an unknown path or method."""
    return ProblemError(error.status_code, str(error.detail), error.headers).to_response()


async def _refuse_parameters(_: Request, error: RequestValidationError) -> Response:
    """Answer invalid parameters without repeating the submitted values."""
    reasons = [f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors()]
    return ProblemError.unusable("; ".join(reasons)[:500]).to_response()
