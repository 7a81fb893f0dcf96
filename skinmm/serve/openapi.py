"""What the API's description says of each path, with examples."""

from collections.abc import Sequence
from typing import Any, Final

from skinmm.vocabulary import SEXES, SITES

_PROBABILITIES: Final = {"benign": 0.82, "malignant": 0.18}
_PREDICTION: Final[dict[str, Any]] = {
    "malignancy": 0.18,
    "decision": "refer",
    "threshold": 0.12,
    "ood": 0.4,
    "probabilities": _PROBABILITIES,
    "prediction_set": ["benign", "malignant"],
    "missing": ["site"],
    "unknown": [],
    "notice": "Research use only. ...",
}
_EXPLANATION: Final = {
    **_PREDICTION,
    "record": {"age": 55.0, "sex": "female"},
    "start": 0.21,
    "added": {"age": 0.02, "sex": -0.01, "image": -0.04},
    "share_of_image": 0.57,
    "heat_map_png": "iVBORw0KGgo...",
}
_ELSE: Final = "another word counts as missing, and is listed in `unknown`"
_COLUMNS: Final[dict[str, dict[str, Any]]] = {
    name: {"type": "string", "description": f"{words}; {_ELSE}", "examples": [example]}
    for name, words, example in (
        ("age", "years, 0 to 120", "55"),
        ("sex", ", ".join(SEXES), SEXES[0]),
        ("site", ", ".join(SITES), SITES[4]),
    )
} | {
    "patient_id": {"type": "string", "description": "whose case it is, in the case store"},
}
_FILE: Final = {"type": "string", "format": "binary"}
_REFUSALS: Final = {
    400: "not a form",
    401: "no key, or a wrong one",
    404: "there is no such thing",
    408: "the request came too slowly",
    413: "too many bytes or pixels",
    415: "another kind of body",
    421: "called by a name that is not its own",
    422: "something in the form cannot be used",
    429: "all places are taken; Retry-After says when to come again",
    503: "no answer in time",
}


def predict(form: dict[str, Any]) -> dict[str, Any]:
    """Of /v1/predict."""
    return _post("Predict one lesion", form, _PREDICTION)


def explain(form: dict[str, Any]) -> dict[str, Any]:
    """Of /v1/explain."""
    what = "Predict one lesion, and say what moved its probability: each input's Shapley value, "
    what += "and where the image speaks for malignancy (an 8-bit PNG, a pixel a place)"
    return _post(what, form, _EXPLANATION)


def batch(most: int) -> dict[str, Any]:
    """Of /v1/predict/batch."""
    properties = {
        "table": {**_FILE, "description": f"CSV as predict.py takes it, at most {most} rows"},
        "images": {"type": "array", "items": _FILE, "description": "the files that it names"},
    }
    row = {"image_id": "a.jpg", "patient_id": "1", "error": "", **_PREDICTION}
    answer = {"rows": [row], "notice": _PREDICTION["notice"]}
    return _post("Predict a table of lesions", _form(properties, ["table"]), answer)


def _get(summary: str, example: Any, media: str = "application/json") -> dict[str, Any]:
    content = {media: {"example": example}}
    return {"summary": summary, "responses": {200: {"content": content, "description": "done"}}}


MODEL: Final = _get("The model card", {"classes": ["benign", "malignant"], "threshold": 0.12})
HEALTH: Final = _get("Is the process alive?", {"status": "alive"})
READY: Final = _get("Would a request be taken?", {"status": "ready"})
METRICS: Final = _get("Counts for Prometheus", "skinmm_requests_total 1.0", "text/plain")


def case(columns: Sequence[str], *, needs_image: bool) -> dict[str, Any]:
    """The form of one lesion."""
    properties = {"image": {**_FILE, "description": "JPEG, PNG or DICOM"}}
    properties |= {name: _COLUMNS.get(name, {"type": "string"}) for name in columns}
    frame = {"type": "integer", "minimum": 1, "description": "of a DICOM file with several"}
    return _form({**properties, "frame": frame}, ["image"] if needs_image else [])


def _form(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    schema |= {"required": required} if required else {}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _post(summary: str, body: dict[str, Any], example: Any) -> dict[str, Any]:
    return {
        "summary": summary.partition(",")[0],
        "description": summary,
        "openapi_extra": {"requestBody": body},
        "responses": {**_get("", example)["responses"], **_problems(*_REFUSALS)},
    }


def _problems(*statuses: int) -> dict[int, dict[str, Any]]:
    return {
        status: {"description": _REFUSALS[status], "content": {"application/problem+json": {}}}
        for status in statuses
    }


def _stored(summary: str, example: Any, media: str = "application/json") -> dict[str, Any]:
    """Of a path that needs the case store."""
    found = _get(summary, example, media)
    return {**found, "responses": {**found["responses"], **_problems(401, 404, 413, 421, 422, 503)}}


_CASE: Final = {
    "number": 12,
    "at": "2026-01-31T12:00:00.000+00:00",
    "who": "dermatology",
    "patient": "P7",
    "model": "9f86d081...",
    "record": {"age": 55.0, "sex": "female"},
    "result": {"malignancy": 0.18, "decision": "refer"},
    "verdict": "benign",
    "verdict_at": "2026-02-28T12:00:00.000+00:00",
    "verdict_who": "pathology",
}
_EVENT: Final = {"number": 1, "at": _CASE["at"], "who": "dermatology", "action": "predict"}
_TABLE: Final = "image_id,patient_id,target,p_benign,p_malignant"
CASES: Final = _stored("Cases in order, of a patient or of all", {"cases": [_CASE]})
CASE: Final = _stored("One case", _CASE)
IMAGE: Final = _stored("The image of a case, if kept", "", "application/octet-stream")
VERDICT: Final = _stored("What a clinician found in the end", _CASE)
FORGET: Final = _stored("Delete all cases of a patient", {"deleted": [12]})
FORGET_ONE: Final = _stored("Delete one case", {"deleted": [12]})
EXPORT: Final = _stored("All cases as skinmm report reads them", _TABLE, "text/csv")
AUDIT: Final = _stored("Who did what with which cases", {"audit": [{**_EVENT, "cases": [12]}]})
