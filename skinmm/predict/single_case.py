"""Prediction and explanation of single cases in memory, for the web service and DICOM results."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from skinmm import __version__
from skinmm.images.source import FRAME
from skinmm.predict.backends import OnnxBackend, TorchBackend
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.explain import Explainer, Explanation, canonical_record, known_values
from skinmm.predict.inputs import InMemoryImages
from skinmm.predict.predictor import Predictor
from skinmm.vocabulary import is_missing

NOTICE: Final = (
    "Research use only. This is not a medical device and must not be used to decide on a "
    "patient's care."
)


class Case(NamedTuple):
    """One lesion: the bytes of its image, record cells by column, and a DICOM frame from 1."""

    image: bytes | None
    record: Mapping[str, str]
    frame: int | None = None


class CasePredictor:
    """Predicts and explains single cases.

    Attributes:
        predictor: the models.
        needs_image: whether a case without an image is refused.
        lanes: cases to predict at the same time. With ONNX Runtime 2, of which one decodes while
            the network runs on the other; torch already uses all threads for one.
        side: longest side of the network's input in pixels; 0 without an image branch.
        card: the model card, for /v1/model.
        reference: distributions of inputs and outputs of the first checkpoint (see
            `skinmm.evaluation.drift`).
    """

    def __init__(
        self,
        checkpoints: Sequence[Path],
        accelerator: str = "auto",
        *,
        referral: bool = True,
        backend: str = "auto",
    ) -> None:
        """Load checkpoints, see `Predictor.from_checkpoints`; torch computes the explanations."""
        self.predictor = Predictor.from_checkpoints(
            checkpoints, accelerator, referral=referral, backend=backend
        )
        self._explainers = Explainer.for_predictor(self.predictor, checkpoints, accelerator)
        self._lock = Lock()  # explanations add hooks to a network that torch may predict with
        backends = [member.backend for member in self.predictor.ensemble.members]
        self._is_shared = any(isinstance(backend, TorchBackend) for backend in backends)
        self.lanes = 2 if self.predictor.backend == OnnxBackend.name else 1
        members = [explainer.member for explainer in self._explainers]
        self.needs_image = any(member.needs_image for member in members)
        self.side = max((member.view.size for member in members if member.view), default=0)
        self.card = _build_card(self.predictor, members)
        self.reference = members[0].card.inputs

    def predict(self, case: Case) -> dict[str, Any]:
        """Predict one case, with the columns of `predict.py`."""
        cell = "image" if case.frame is None else f"image{FRAME}{case.frame}"
        row = {**case.record, "image": "" if case.image is None else cell}
        return self.predict_table([row], {} if case.image is None else {"image": case.image})[0]

    def predict_table(
        self, rows: Sequence[Mapping[str, str]], files: Mapping[str, bytes]
    ) -> list[dict[str, Any]]:
        """Predict several lesions."""
        names = dict.fromkeys(name for row in rows for name in row)
        table = {name: np.array([row.get(name) for row in rows], object) for name in names}
        with self._lock if self._is_shared else nullcontext():
            (predictions,) = self.predictor.stream(
                [table], InMemoryImages(files), batch_size=8, workers=2 if len(rows) > 1 else 0
            )
        columns = [cells.tolist() for cells in predictions.columns.values()]
        return [
            self._format(cells, dict(zip(predictions.columns, values, strict=True)))
            for cells, values in zip(rows, zip(*columns, strict=True), strict=True)
        ]

    def predict_and_explain(self, case: Case) -> tuple[dict[str, Any], Explanation | None]:
        """Predict and explain one case; the explanation is None if the row has an error."""
        row = self.predict(case)
        if row["error"]:
            return row, None
        args = (case.image, case.record, case.frame)
        with self._lock:
            return row, Explanation.mean([one.explain(*args) for one in self._explainers])

    def record_of(self, case: Case) -> tuple[str | None, dict[str, Any]]:
        """Return the patient of a case, if known, and the record as the models read it."""
        columns = self.predictor.columns
        row = canonical_record(columns, case.image, case.record)
        return row["patient_id"][0], known_values(row, columns)

    def _format(self, cells: Mapping[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        """Convert a row of the output to JSON types."""
        lists = {n: row[n].split("|") if row[n] else [] for n in ("prediction_set", "missing")}
        values = {name: None if pd.isna(value) else value for name, value in row.items()}
        probabilities = {name: values.pop(f"p_{name}") for name in self.predictor.classes}
        missing = [name for name in lists["missing"] if name in self.predictor.columns]
        return {
            **values,
            "probabilities": None if values["error"] else probabilities,
            **lists,
            "unknown": [name for name in missing if not is_missing(cells.get(name))],
            "notice": NOTICE,
        }


def _build_card(predictor: Predictor, members: Sequence[CalibratedModel]) -> dict[str, Any]:
    return {
        "skinmm": __version__,
        "intended_use": NOTICE,
        "classes": predictor.classes,
        "positive": predictor.positive,
        "inputs": sorted(predictor.inputs),
        "columns": predictor.columns,
        "threshold": predictor.threshold,
        "referral": predictor.referral,
        "members": [
            {
                "sha256": member.digest,
                "model": member.config.model.name,
                "image_size": member.config.model.image_size,
                "fusion": member.config.fusion.name,
                "initialisation": member.card.initialisation,
                "trained_on": member.config.data.name,
                "preprocess": member.card.preprocess,
                "prior": member.card.prior,
                "calibration": member.calibration.method if member.card.calibration else None,
                "threshold": member.card.threshold,
                "prediction_sets": member.card.conformal,
                "knows_unfamiliar": member.ood_detector is not None,
                "test": member.card.summary,
            }
            for member in members
        ],
    }
