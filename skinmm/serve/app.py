"""The API: `create_app` puts the service, its queue and its guard together."""

from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

import skinmm
from skinmm.errors import InputError
from skinmm.predict.explain import Explanation, heat_map_to_png
from skinmm.predict.single_case import NOTICE, Case, CasePredictor
from skinmm.serve import openapi
from skinmm.serve.cases import NAMES, Book, CasePaths
from skinmm.serve.forms import named_case, read_batch, read_case
from skinmm.serve.keys import Keys, who_asked
from skinmm.serve.middleware import CONTENT_TYPE, Guard, Metrics
from skinmm.serve.problems import ProblemError
from skinmm.serve.queue import Desk
from skinmm.serve.together import MOST, Together

SCHEMA: Final = "/v1/openapi.json"


def create_app(
    service: CasePredictor,
    desk: Desk,
    *,
    keys: Keys | None = None,
    hosts: Collection[str] | None = None,
    batch: int = 32,
    framed: bool = False,
    book: Book | None = None,
) -> FastAPI:
    """The API as an ASGI application; the page is mounted on it by `skinmm.serve.page`.

    Args:
        service: what answers.
        desk: its queue; closed when the application ends.
        keys: who is let in; None: everyone.
        hosts: names by which it may be called; None: any.
        batch: patients of a batch at most.
        framed: let other sites show the page in a frame.
        book: where cases are kept; None: nowhere. The application closes it.
    """
    book, metrics = book or Book(service, None), Metrics(lambda: desk.taken)
    app = FastAPI(
        title="skinmm",
        version=skinmm.__version__,
        description=f"The probability that a skin lesion is malignant. {NOTICE}",
        lifespan=_lifespan(desk, book),
        openapi_url=SCHEMA,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Guard, keys=keys, hosts=hosts, metrics=metrics, framed=framed)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    Endpoints(service, desk, metrics, book, batch).mount(app)
    if book.store is not None:
        CasePaths(book.store).mount(app)
    return app


def _lifespan(desk: Desk, book: Book) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What is closed and deleted when the application ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()
        if hasattr(app.state, "uploads"):  # the page's, where something may not have been sent off
            app.state.uploads.cleanup()
        if book.store is not None:
            book.store.close()

    return lifespan


class Endpoints:
    """What answers each path."""

    def __init__(
        self, service: CasePredictor, desk: Desk, metrics: Metrics, book: Book, batch: int
    ) -> None:
        """Takes the parts."""
        self._service, self._desk, self._metrics, self._batch = service, desk, metrics, batch
        self._book = book
        self._together = Together(service, MOST if service.gpu else 1)

    def mount(self, app: FastAPI) -> None:
        """Adds the paths to an application."""
        form = openapi.case(self._book.columns, needs_image=self._service.needs_image)
        app.post("/v1/predict", **openapi.predict(form))(self.predict)
        app.post("/v1/explain", **openapi.explain(form))(self.explain)
        app.post("/v1/predict/batch", **openapi.batch(self._batch))(self.predict_batch)
        app.get("/v1/model", **openapi.MODEL)(self.model)
        app.get("/healthz", **openapi.HEALTH)(self.alive)
        app.get("/readyz", **openapi.READY)(self.ready)
        app.get("/metrics", **openapi.METRICS)(self.counts)

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict."""
        async with self._desk.place() as place:
            case = await self._case(request)
            with self._together.waiting(case) as ticket:

                def job() -> dict[str, Any]:
                    row = self._together.row(ticket)
                    self._book.keep(who_asked(request.scope), [row], [case])
                    return row

                row = await place.run(job)
        self._metrics.decided([row["decision"]])
        return JSONResponse(_predicted(row))

    async def explain(self, request: Request) -> Response:
        """POST /v1/explain."""
        async with self._desk.place() as place:
            case = await self._case(request)

            def job() -> tuple[dict[str, Any], Explanation | None]:
                row, reasons = self._service.predict_and_explain(case)
                self._book.keep(who_asked(request.scope), [row], [case])
                return row, reasons

            row, reasons = await place.run(job)
        return JSONResponse(_predicted(row) | _told(reasons))

    async def predict_batch(self, request: Request) -> Response:
        """POST /v1/predict/batch."""
        async with self._desk.place() as place:
            rows, files = await read_batch(request, self._batch)

            def job() -> list[dict[str, Any]]:
                said = self._service.predict_table(rows, files)
                cases = [named_case(row, files) for row in rows]
                self._book.keep(who_asked(request.scope), said, cases)
                return said

            try:
                said = await place.run(job)
            except InputError as error:
                raise ProblemError.unusable(str(error)) from None
        self._metrics.decided(row["decision"] for row in said)
        return JSONResponse({"rows": said, "notice": NOTICE})

    async def model(self) -> Response:
        """GET /v1/model."""
        return JSONResponse(self._service.card)

    async def alive(self) -> Response:
        """GET /healthz."""
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        """GET /readyz: whether a request would be taken."""
        if self._desk.full:
            raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "all places are taken")
        return JSONResponse({"status": "ready"})

    async def counts(self) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _case(self, request: Request) -> Case:
        columns, needed = self._book.columns, self._service.needs_image
        return await read_case(request, columns, needs_image=needed)


def _predicted(row: dict[str, Any]) -> dict[str, Any]:
    """A row of one lesion, which has no name.

    Raises:
        ProblemError: it could not be predicted.
    """
    if row["error"]:
        raise ProblemError.unusable(row["error"])
    return {name: cell for name, cell in row.items() if name not in NAMES}


def _told(reasons: Explanation | None) -> dict[str, Any]:
    if reasons is None:
        return {}
    found = reasons.contributions
    heat = None if reasons.heat is None else b64encode(heat_map_to_png(reasons.heat)).decode()
    return {
        "record": reasons.record,
        "start": found.start,
        "added": found.added,
        "share_of_image": found.share("image"),
        "heat_map_png": heat,
    }


async def _http_problem(_: Request, error: Exception) -> Response:
    """What the router refuses: no such path, or another method."""
    status = HTTPStatus(getattr(error, "status_code", HTTPStatus.BAD_REQUEST))
    headers = getattr(error, "headers", None)
    return ProblemError(status, str(getattr(error, "detail", status.phrase)), headers).response()


async def _invalid(_: Request, error: Exception) -> Response:
    """What is not as the description says: which part, and why, without what was sent."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    reasons = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found]
    return ProblemError.unusable("; ".join(reasons)[:500]).response()
