"""Recording of cases in the case store, and the API routes that read, label and delete them."""

from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any, Final
from zipfile import ZipFile

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from skinmm.predict.cases import Case, CasePredictor
from skinmm.predict.loading import CaseImage
from skinmm.serve.middleware import get_user
from skinmm.serve.responses import AuditEvent, ProblemError, StoredCase
from skinmm.serve.store import MAX_NUMBER, NewCase, Store
from skinmm.vocabulary import normalise_name

PATIENT: Final = "patient_id"
NAMES: Final = ("image_id", PATIENT, "lesion_id", "images", "error")
MAX_NAME: Final = 100  # characters
Number = Annotated[int, Path(ge=1, le=MAX_NUMBER, description="number of the case")]
After = Annotated[int, Query(ge=0, le=MAX_NUMBER, description="last number already read")]
Limit = Annotated[int, Query(ge=1, le=1000, description="entries at most")]
Patient = Annotated[str, Query(min_length=1, max_length=MAX_NAME)]


class Verdict(BaseModel):
    """Confirmed diagnosis of a case."""

    verdict: str | None = Field(description="one of the model's classes; null: none yet")


class CaseRecorder:
    """Recorder of predicted cases in an optional store.

    The constructor registers the model in the store.

    Without a store nothing is recorded; images are recorded only if `images` is true.

    Attributes:
        columns: columns in the form of one lesion.
    """

    def __init__(
        self, predictor: CasePredictor, store: Store | None, *, images: bool = False
    ) -> None:
        self._predictor, self.store, self._images = predictor, store, images
        self._model = register_model(predictor, store) if store else ""
        self.columns = [*predictor.predictor.columns, *([PATIENT] if store else [])]

    def record(self, user: str, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
        """Store predicted rows in one transaction, and add the number `case` to each."""
        if self.store is None:
            return
        pairs = [pair for pair in zip(rows, cases, strict=True) if not pair[0]["error"]]
        new_cases = []
        for row, case in pairs:
            image = _pack_images(case.images) if self._images and case.images else None
            new_cases.append(build_case(self._predictor, row, case)._replace(image=image))
        numbers = self.store.add(user, self._model, new_cases)
        for (row, _), number in zip(pairs, numbers, strict=True):
            row["case"] = number


def register_model(predictor: CasePredictor, store: Store) -> str:
    """Store the card of a model, and return the name of the model."""
    model = ",".join(predictor.predictor.identity)
    store.register(model, predictor.card | {"inputs": predictor.reference})
    return model


def build_case(predictor: CasePredictor, row: dict[str, Any], case: Case) -> NewCase:
    """Return a prediction as a case to store, without its image."""
    name, record = predictor.record_of(case)
    result = {name: cell for name, cell in row.items() if name not in NAMES}
    return NewCase(check_patient(name) if name else None, record, result)


def _pack_images(images: Sequence[CaseImage]) -> bytes:
    """Return the file of one image, or a ZIP archive of several, with numbered names."""
    if len(images) == 1:
        return images[0].data
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        for number, image in enumerate(images):
            archive.writestr(f"{number + 1} {image.view or 'image'}", image.data)
    return file.getvalue()


def check_patient(name: str) -> str:
    """Return the canonical name of a patient; refuse a long one or unprintable characters."""
    name = normalise_name(name)
    if len(name) > MAX_NAME or not name.isprintable():
        raise ProblemError.unusable(f"{PATIENT}: at most {MAX_NAME} printable characters")
    return name


def read_case(store: Store, user: str, number: int) -> dict[str, Any]:
    """Return a stored case; refuse an unknown number."""
    cases = store.find(user, number=min(number, MAX_NUMBER))
    if not cases:
        raise ProblemError(404, f"there is no case {number}")
    return cases[0]


def set_verdict(store: Store, user: str, number: int, verdict: str | None) -> dict[str, Any]:
    """Store the diagnosis of a case (a class of its model, or None) and return the case."""
    classes = [*read_case(store, user, number)["result"]["probabilities"]]
    if verdict is not None and verdict not in classes:
        raise ProblemError.unusable(f"verdict must be {', '.join(classes)}, or null for none yet")
    store.set_verdict(user, number, verdict)
    return read_case(store, user, number)


async def _get_store(request: Request) -> Store:
    store: Store = request.app.state.recorder.store
    return store


CaseStore = Annotated[Store, Depends(_get_store)]
User = Annotated[str, Depends(get_user)]
case_routes = APIRouter(prefix="/v1")
"""Routes of an application whose recorder has a case store."""


@case_routes.get("/cases", response_model=dict[str, list[StoredCase]])
def list_cases(
    store: CaseStore,
    user: User,
    after: After = 0,
    limit: Limit = 100,
    patient_id: Patient | None = None,
) -> Response:
    """List all cases, or the cases of one patient, in order."""
    patient = patient_id and check_patient(patient_id)
    return JSONResponse({"cases": store.find(user, patient=patient, after=after, limit=limit)})


@case_routes.delete("/cases", response_model=dict[str, list[int]])
def delete_patient(store: CaseStore, user: User, patient_id: Patient) -> Response:
    """Delete all cases of a patient."""
    return JSONResponse({"deleted": store.delete(user, patient=check_patient(patient_id))})


@case_routes.get("/cases.csv", response_class=Response)
def export_cases(store: CaseStore, user: User) -> Response:
    """Export all cases as a CSV that `skinmm report` reads."""
    text = store.to_table(user).to_csv(index=False, float_format="%.9g")
    return Response(text, media_type="text/csv")


@case_routes.get("/cases/{number}", response_model=StoredCase)
def get_case(store: CaseStore, user: User, number: Number) -> Response:
    """Return one case."""
    return JSONResponse(read_case(store, user, number))


@case_routes.delete("/cases/{number}", response_model=dict[str, list[int]])
def delete_case(store: CaseStore, user: User, number: Number) -> Response:
    """Delete one case, with or without a patient."""
    numbers = store.delete(user, number=number)
    if not numbers:
        raise ProblemError(404, f"there is no case {number}")
    return JSONResponse({"deleted": numbers})


@case_routes.get("/cases/{number}/image", response_class=Response)
def get_image(store: CaseStore, user: User, number: Number) -> Response:
    """Return the image of a case, or a ZIP archive of several, if images are stored."""
    image = store.read_image(user, number)
    if image is None:
        raise ProblemError(404, f"no image is stored for case {number}")
    return Response(image, media_type="application/octet-stream")


@case_routes.put("/cases/{number}/verdict", response_model=StoredCase)
def put_verdict(store: CaseStore, user: User, number: Number, body: Verdict) -> Response:
    """Set the confirmed diagnosis of a case."""
    return JSONResponse(set_verdict(store, user, number, body.verdict))


@case_routes.get("/audit", response_model=dict[str, list[AuditEvent]])
def list_audit(store: CaseStore, after: After = 0, limit: Limit = 100) -> Response:
    """List the actions on cases, each with its API key."""
    return JSONResponse({"audit": store.read_audit(after=after, limit=limit)})
