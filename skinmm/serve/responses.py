"""Response bodies of the API: models that document the results, and RFC 9457 problem details."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

_PROBLEM_TYPE: Final = "application/problem+json"


class Problem(BaseModel):
    """Problem details of a refused request."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what was given, what is allowed, what to do next")


REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "description": description,
        "content": {_PROBLEM_TYPE: {"schema": Problem.model_json_schema()}},
    }
    for status, description in {
        400: "not a form",
        401: "missing or wrong API key",
        403: "sent by a page of another site",
        404: "not found",
        408: "the request arrived too slowly",
        413: "too many bytes or pixels",
        415: "unsupported type of body",
        421: "wrong host name",
        422: "invalid form or parameter",
        429: "the queue is full; Retry-After gives the seconds to wait",
        503: "no answer in time",
    }.items()
}
"""OpenAPI description of every refusal."""


class Prediction(BaseModel):
    """Prediction of one lesion."""

    malignancy: float | None = Field(description="probability, 0 to 1", examples=[0.18])
    decision: str = Field(description="malignant, benign or refer", examples=["refer"])
    threshold: float | None = Field(examples=[0.12])
    ood: float | None = Field(description="above 1: unlike the development images", examples=[0.4])
    probabilities: dict[str, float] | None = Field(examples=[{"benign": 0.82, "malignant": 0.18}])
    prediction_set: list[str] = Field(examples=[["benign", "malignant"]])
    called: str = Field("", description="predicted class of a model with several classes")
    missing: list[str] = Field(description="columns without a usable value", examples=[["site"]])
    unknown: list[str] = Field(description="missing columns whose value was not recognised")
    notice: str
    case: int | None = Field(None, description="number in the case store")


class SimilarImage(BaseModel):
    """Training image with an embedding similar to that of the lesion."""

    image_id: str = Field(examples=["ISIC_0000166"])
    diagnosis: str = Field(examples=["mel"])
    similarity: float = Field(description="cosine, -1 to 1", examples=[0.93])


class Explanation(Prediction):
    """Prediction of one lesion, with its explanation."""

    record: dict[str, Any] = Field(examples=[{"age": 55.0, "sex": "female"}])
    start: float = Field(description="probability without any input", examples=[0.21])
    added: dict[str, float] = Field(
        description="Shapley value of each input", examples=[{"age": 0.02, "image": -0.05}]
    )
    standard_errors: dict[str, float] = Field(
        description="of estimated Shapley values; empty if they are exact"
    )
    share_of_image: float | None = Field(description="share of the change", examples=[0.57])
    heat_map_png: str | None = Field(
        description="regions that raise the probability: 8-bit PNG in Base64; null for several"
    )
    similar: list[SimilarImage] = Field(
        description="most similar training images, if the checkpoint has an index of them"
    )
    views: dict[str, str | None] | None = Field(
        None, description="view of each used image of a lesion", examples=[{"image 1": "clinical"}]
    )
    heat_maps_png: dict[str, str] | None = Field(
        None, description="of each used image of a lesion, in one scale"
    )


class BatchRow(Prediction):
    """Prediction of one row of a table; values are null if `error` is not empty."""

    image_id: str | None = Field(examples=["a.jpg"])
    patient_id: str | None = Field(examples=["1"])
    lesion_id: str | None = Field(examples=["1-2"])
    images: str | None = Field(None, description="images of the lesion, with | between them")
    error: str


class Batch(BaseModel):
    """Predictions of a table."""

    rows: list[BatchRow]
    notes: list[str] = Field(description="columns that the table lacks, and that were not used")
    notice: str


class StoredCase(BaseModel):
    """Stored case."""

    number: int = Field(examples=[12])
    at: str = Field(description="UTC, ISO 8601", examples=["2026-01-31T12:00:00.000+00:00"])
    who: str = Field(description="name of the API key", examples=["dermatology"])
    patient: str | None = Field(examples=["P7"])
    model: str = Field(description="SHA-256 of the checkpoint")
    record: dict[str, Any] = Field(examples=[{"age": 55.0, "sex": "female"}])
    result: dict[str, Any] = Field(examples=[{"malignancy": 0.18, "decision": "refer"}])
    verdict: str | None = Field(description="confirmed diagnosis", examples=["benign"])
    verdict_at: str | None
    verdict_who: str | None


class AuditEvent(BaseModel):
    """Entry of the audit trail."""

    number: int
    at: str
    who: str
    action: str = Field(examples=["predict"])
    cases: list[int]
    detail: str | None


class ProblemError(Exception):
    """Refusal of a request.

    Attributes:
        status: HTTP status.
        detail: what was given, what is allowed, what to do next.
        headers: headers of the response.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = HTTPStatus(status), detail, dict(headers or {})

    @classmethod
    def unusable(cls, detail: str) -> "ProblemError":
        """Return a refusal with status 422."""
        return cls(422, detail)

    def to_response(self) -> JSONResponse:
        """Return the problem details as a response."""
        status = int(self.status)
        content = Problem(
            type="about:blank", title=self.status.phrase, status=status, detail=self.detail
        )
        return JSONResponse(content.model_dump(), status, self.headers, _PROBLEM_TYPE)
