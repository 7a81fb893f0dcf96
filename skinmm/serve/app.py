"""REST API: `create_app` combines the predictor, the request queue, the store and middleware."""

from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

import skinmm
from skinmm.errors import InputError
from skinmm.predict.explain import NOTICE, Case, CasePredictor, Explanation, heat_map_to_png
from skinmm.serve import responses
from skinmm.serve.cases import NAMES, CaseRecorder, case_routes
from skinmm.serve.forms import (
    BatchForm,
    body_limit,
    case_form,
    describe_form,
    read_batch,
    read_case,
    to_case,
)
from skinmm.serve.middleware import METRICS_TYPE, Keys, Metrics, ServiceMiddleware, get_user
from skinmm.serve.queue import RequestQueue
from skinmm.serve.responses import REFUSALS, ProblemError

SCHEMA: Final = "/v1/openapi.json"
Answer = tuple[dict[str, Any], Explanation | None]


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

    Args:
        predictor: predictor of single cases.
        queue: request queue; closed when the application ends.
        keys: accepted API keys; None: everyone may connect.
        hosts: accepted host names; None: any.
        batch: rows of a batch at most.
        framed: allow other sites to show the page in a frame.
        recorder: recorder of cases, whose store is closed when the application ends; None: cases
            are not stored.
    """
    recorder = recorder or CaseRecorder(predictor, None)
    metrics = Metrics(lambda: queue.taken)
    app = FastAPI(
        title="skinmm",
        version=skinmm.__version__,
        description=f"The probability that a skin lesion is malignant. {NOTICE}",
        lifespan=_lifespan(queue, recorder),
        responses=REFUSALS,
        openapi_url=SCHEMA,
        docs_url=None,  # their pages load scripts from other sites
        redoc_url=None,
    )
    limits = {"hosts": hosts, "body_limit": body_limit, "framed": framed}
    app.add_middleware(ServiceMiddleware, keys=keys, metrics=metrics, **limits)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    _Endpoints(predictor, queue, metrics, recorder, batch).mount(app)
    if recorder.store is not None:
        app.state.store = recorder.store
        app.include_router(case_routes)
    return app


def _lifespan(
    queue: RequestQueue, recorder: CaseRecorder
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the context that closes and deletes everything when the application ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()
        if hasattr(app.state, "uploads"):  # the page may have uploads that were never submitted
            app.state.uploads.cleanup()
        if recorder.store is not None:
            recorder.store.close()

    return lifespan


@dataclass
class _Endpoints:
    """Handlers of the paths; the first line of each docstring appears in the API description."""

    predictor: CasePredictor
    queue: RequestQueue
    metrics: Metrics
    recorder: CaseRecorder
    batch: int

    def __post_init__(self) -> None:
        needs_image = self.predictor.needs_image
        self.form = case_form(self.recorder.columns, needs_image=needs_image)

    def mount(self, app: FastAPI) -> None:
        """Add the paths to an application."""
        case, batch = describe_form(self.form), describe_form(BatchForm)
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
        """Predict one lesion and explain what moved its probability.

        Each input has a Shapley value; a heat map shows the regions of the image that raise the
        probability.
        """
        row, explanation = await self._answer(request, self.predictor.predict_and_explain)
        return JSONResponse(_to_prediction(row) | _to_json(explanation))

    async def _answer(self, request: Request, predict: Callable[[Case], Answer]) -> Answer:
        """Read the form of one lesion, predict it in a thread and record the case."""
        async with self.queue.slot() as slot:
            case = await read_case(request, self.form)

            def job() -> Answer:
                row, explanation = predict(case)
                self.recorder.record(get_user(request.scope), [row], [case])
                return row, explanation

            return await slot.run(job)

    async def predict_batch(self, request: Request) -> Response:
        """Predict a table of lesions."""
        async with self.queue.slot() as slot:
            rows, files = await read_batch(request, self.batch)

            def job() -> list[dict[str, Any]]:
                predictions = self.predictor.predict_table(rows, files)
                cases = [to_case(row, files) for row in rows]
                self.recorder.record(get_user(request.scope), predictions, cases)
                return predictions

            try:
                predictions = await slot.run(job)
            except InputError as error:
                raise ProblemError.unusable(str(error)) from None
        self.metrics.count_decisions(row["decision"] for row in predictions)
        return JSONResponse({"rows": predictions, "notice": NOTICE})

    async def model(self) -> Response:
        """Return the model card."""
        return JSONResponse(self.predictor.card)

    async def alive(self) -> Response:
        """Return whether the process is alive."""
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        """Return whether a request would be accepted."""
        if self.queue.is_full:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "the queue is full")
        return JSONResponse({"status": "ready"})

    async def read_metrics(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(self.metrics.to_text(), media_type=METRICS_TYPE)


def _to_prediction(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a single lesion without its names; refuse one with an error."""
    if row["error"]:
        raise ProblemError.unusable(row["error"])
    return {name: cell for name, cell in row.items() if name not in NAMES}


def _to_json(explanation: Explanation | None) -> dict[str, Any]:
    if explanation is None:
        return {}
    contributions, heat = explanation.contributions, explanation.heat
    return {
        "record": explanation.record,
        "start": contributions.start,
        "added": contributions.added,
        "share_of_image": contributions.share("image"),
        "heat_map_png": None if heat is None else b64encode(heat_map_to_png(heat)).decode(),
    }


async def _refuse_route(_: Request, error: Exception) -> Response:
    """Refuse an unknown path or method."""
    status = HTTPStatus(getattr(error, "status_code", HTTPStatus.BAD_REQUEST))
    headers = getattr(error, "headers", None)
    detail = str(getattr(error, "detail", status.phrase))
    return ProblemError(status, detail, headers).to_response()


async def _refuse_parameters(_: Request, error: Exception) -> Response:
    """Refuse invalid parameters without repeating the values that were sent."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    reasons = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems]
    return ProblemError.unusable("; ".join(reasons)[:500]).to_response()
