"""Cases of the API: kept where a store was named, found again, judged, forgotten."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from http import HTTPStatus
from typing import Annotated, Any, Final, ParamSpec, TypeVar

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from skinmm.predict.single_case import Case, CasePredictor
from skinmm.serve import openapi
from skinmm.serve.keys import who_asked
from skinmm.serve.problems import ProblemError
from skinmm.serve.store import LAST, NewCase, Store, StoreError
from skinmm.vocabulary import normalise_name

PATIENT: Final = "patient_id"
MAX_NAME: Final = 100
P = ParamSpec("P")
T = TypeVar("T")
Number = Annotated[int, Path(ge=1, le=LAST, description="of the case")]
After = Annotated[int, Query(ge=0, le=LAST, description="the last number that was seen")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Patient = Annotated[str, Query(min_length=1, max_length=MAX_NAME)]


class Verdict(BaseModel):
    """What a clinician found.

    Attributes:
        verdict: one of the model's classes; None: nothing yet, after all.
    """

    verdict: str | None


def answered(call: Callable[P, T]) -> Callable[P, T]:
    """A store that does not answer is no error of the request's."""

    @wraps(call)
    def guarded(*args: P.args, **named: P.kwargs) -> T:
        try:
            return call(*args, **named)
        except StoreError:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE, "the case store does not answer: try again"
            ) from None

    return guarded


class Book:
    """Where cases are written down: in a store, or nowhere."""

    def __init__(
        self, service: CasePredictor, store: Store | None, *, images: bool = False
    ) -> None:
        """Takes the store, and whether images are kept too.

        Raises:
            StoreError: the store does not answer.
        """
        self._service, self.store, self._images = service, store, images
        self.model = ",".join(service.predictor.identity)
        if store is not None:
            store.register(self.model, service.card | {"inputs": service.reference})

    @property
    def columns(self) -> list[str]:
        """The fields of one lesion's form."""
        return [*self._service.predictor.columns, *([PATIENT] if self.store else [])]

    @answered
    def keep(self, who: str, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
        """Writes predicted rows down, each of which then says its `case`; all, or none.

        Raises:
            ProblemError: a patient's name that cannot be kept, or no answer of the store.
        """
        if self.store is None:
            return
        both = [(row, case) for row, case in zip(rows, cases, strict=True) if not row["error"]]
        new = [self._new(row, case) for row, case in both]
        for (row, _), number in zip(both, self.store.keep(who, self.model, new), strict=True):
            row["case"] = number

    def _new(self, row: Mapping[str, Any], case: Case) -> NewCase:
        name, record = self._service.record_of(case)  # a row may name the lesion instead
        patient = checked(name) if name else None
        image = case.image if self._images else None
        result = {name: cell for name, cell in row.items() if name not in NAMES}
        return NewCase(patient, record, result, image)


NAMES: Final = ("image_id", PATIENT, "error")


def checked(name: str) -> str:
    """A patient's name as it is kept.

    Raises:
        ProblemError: too long, or signs that cannot be printed.
    """
    name = normalise_name(name)
    if len(name) > MAX_NAME or not name.isprintable():
        raise ProblemError.unusable(f"a {PATIENT} has at most {MAX_NAME} printable signs")
    return name


class CasePaths:
    """What answers the paths that need a store."""

    def __init__(self, store: Store) -> None:
        """Takes the store."""
        self._store = store

    def mount(self, app: FastAPI) -> None:
        """Adds the paths to an application."""
        app.get("/v1/cases", **openapi.CASES)(self.cases)
        app.delete("/v1/cases", **openapi.FORGET)(self.forget)
        app.get("/v1/cases.csv", **openapi.EXPORT)(self.export)
        app.get("/v1/cases/{number}", **openapi.CASE)(self.case)
        app.delete("/v1/cases/{number}", **openapi.FORGET_ONE)(self.forget_one)
        app.get("/v1/cases/{number}/image", **openapi.IMAGE)(self.image)
        app.put("/v1/cases/{number}/verdict", **openapi.VERDICT)(self.verdict)
        app.get("/v1/audit", **openapi.AUDIT)(self.audit)

    @answered
    def cases(
        self,
        request: Request,
        after: After = 0,
        limit: Limit = 100,
        patient_id: Patient | None = None,
    ) -> Response:
        """GET /v1/cases."""
        who, patient = who_asked(request.scope), patient_id and checked(patient_id)
        found = self._store.find(who, patient=patient, after=after, limit=limit)
        return JSONResponse({"cases": found})

    @answered
    def forget(self, request: Request, patient_id: Patient) -> Response:
        """DELETE /v1/cases."""
        patient = checked(patient_id)
        numbers = self._store.forget(who_asked(request.scope), patient=patient)
        return JSONResponse({"deleted": numbers})

    @answered
    def forget_one(self, request: Request, number: Number) -> Response:
        """DELETE /v1/cases/NUMBER: also of a case that names no patient."""
        numbers = self._store.forget(who_asked(request.scope), number=number)
        if not numbers:
            raise ProblemError(HTTPStatus.NOT_FOUND, f"there is no case {number}")
        return JSONResponse({"deleted": numbers})

    @answered
    def export(self, request: Request) -> Response:
        """GET /v1/cases.csv."""
        table = self._store.table(who_asked(request.scope))
        return Response(table.to_csv(index=False, float_format="%.9g"), media_type="text/csv")

    def case(self, request: Request, number: Number) -> Response:
        """GET /v1/cases/NUMBER."""
        return JSONResponse(find_case(self._store, who_asked(request.scope), number))

    @answered
    def image(self, request: Request, number: Number) -> Response:
        """GET /v1/cases/NUMBER/image."""
        data = self._store.image(who_asked(request.scope), number)
        if data is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, f"no image of a case {number} was kept")
        return Response(data, media_type="application/octet-stream")

    def verdict(self, request: Request, number: Number, said: Verdict) -> Response:
        """PUT /v1/cases/NUMBER/verdict."""
        who = who_asked(request.scope)
        judge(self._store, who, find_case(self._store, who, number), said.verdict)
        return JSONResponse(find_case(self._store, who, number))

    @answered
    def audit(self, after: After = 0, limit: Limit = 100) -> Response:
        """GET /v1/audit."""
        return JSONResponse({"audit": self._store.trail(after=after, limit=limit)})


@answered
def find_case(store: Store, who: str, number: int) -> dict[str, Any]:
    """One case.

    Raises:
        ProblemError: there is none of that number.
    """
    found = store.find(who, number=min(number, LAST))
    if not found:
        raise ProblemError(HTTPStatus.NOT_FOUND, f"there is no case {number}")
    return found[0]


@answered
def judge(store: Store, who: str, case: Mapping[str, Any], verdict: str | None) -> None:
    """Writes a verdict down.

    Raises:
        ProblemError: it is not among the classes of the model that was asked.
    """
    classes = [*case["result"]["probabilities"]]
    if verdict is not None and verdict not in classes:
        raise ProblemError.unusable(f"a verdict is {', '.join(classes)}, or null: none yet")
    store.judge(who, case["number"], verdict)
