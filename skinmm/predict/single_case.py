"""Uploaded cases through the predictor; what they brought is gone when the call returns."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

import skinmm
from skinmm.images.source import FRAME
from skinmm.predict import Predictor
from skinmm.predict.backends import OnnxBackend, TorchBackend
from skinmm.predict.explain import Explainer, Explanation, canonical_record, known_values
from skinmm.predict.images import InMemoryImages
from skinmm.predict.model import CalibratedModel
from skinmm.vocabulary import is_missing

NOTICE: Final = (
    "Research use only. This is not a medical device and must not be used to decide on a "
    "patient's care."
)
_FILE: Final = "image"  # what a file is called here, whatever it was called there


class Case(NamedTuple):
    """One lesion as it was sent.

    Attributes:
        image: the file's bytes, if there is one.
        record: cells by column, as typed.
        frame: which frame of a DICOM file with several, from 1.
    """

    image: bytes | None
    record: Mapping[str, str]
    frame: int | None = None


class CasePredictor:
    """What a checkpoint, or several, say of single patients.

    Attributes:
        predictor: what predicts.
        needs_image: whether a case without an image is refused.
        gpu: whether a network runs on one.
        lanes: how many cases are worth being judged at a time: 2 by ONNX Runtime, of which one is
            read and told while the other's network runs; torch's threads would hinder each other.
        side: the longest side of the square that a network looks at, in pixels; 0 of none.
        card: what /v1/model tells.
        reference: how inputs and answers were distributed (see `skinmm.evaluation.drift`), of the
            first checkpoint.
    """

    def __init__(
        self,
        checkpoints: Sequence[Path],
        accelerator: str = "auto",
        *,
        referral: bool = True,
        backend: str = "auto",
    ) -> None:
        """Loads checkpoints.

        Args:
            checkpoints: files that training wrote; several are averaged.
            accelerator: auto, cpu or gpu.
            referral: as the predictor's.
            backend: what predicts: auto, torch or onnx; torch explains.

        Raises:
            CheckpointError: a file is missing, truncated or not ours.
            InputError: checkpoints that do not fit together, or no GPU.
        """
        self.predictor = Predictor.from_checkpoints(
            checkpoints, accelerator, referral=referral, backend=backend
        )
        self._explainers = Explainer.for_predictor(self.predictor, checkpoints, accelerator)
        self._explaining = Lock()  # it hooks into the network, and torch predicts with the same one
        networks = [member.backend for member in self.predictor.ensemble.members]
        self.gpu = any(each.device.type == "cuda" for each in networks)
        self.lanes = 2 if self.predictor.backend == OnnxBackend.name else 1
        members = [each.member for each in self._explainers]
        self._shared = TorchBackend.name in {each.name for each in networks}
        self.needs_image = any(member.needs_image for member in members)
        self.side = max((member.view.size for member in members if member.view), default=0)
        self.card = _card(self.predictor, members)
        self.reference = members[0].card.inputs

    def predict(self, case: Case) -> dict[str, Any]:
        """One lesion's row, as `predict.py` writes it."""
        return self.predict_cases([case])[0]

    def predict_cases(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """The rows of lesions that have nothing to do with each other."""
        names = [f"{_FILE}{number or ''}" for number in range(len(cases))]
        both = [*zip(names, cases, strict=True)]
        rows = [{**case.record, "image": _cell(name, case)} for name, case in both]
        files = {name: case.image for name, case in both if case.image is not None}
        return self.predict_table(rows, files)

    def predict_table(
        self, rows: Sequence[Mapping[str, str]], files: Mapping[str, bytes]
    ) -> list[dict[str, Any]]:
        """Several lesions' rows, in order.

        Args:
            rows: cells by column name, as in the table that `predict.py` takes.
            files: images by their plain names (see `skinmm.serve.forms.check_name`).

        Raises:
            InputError: rows without an image column, although the model needs one.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        table = {name: np.array([row.get(name) for row in rows], object) for name in names}
        with self._explaining if self._shared else nullcontext():
            (said,) = self.predictor.stream(
                [table], InMemoryImages(files), batch_size=8, workers=2 if len(rows) > 1 else 0
            )
        by_column = [cells.tolist() for cells in said.columns.values()]
        answers = [
            dict(zip(said.columns, row, strict=True)) for row in zip(*by_column, strict=True)
        ]
        return [self._answer(cells, row) for cells, row in zip(rows, answers, strict=True)]

    def predict_and_explain(self, case: Case) -> tuple[dict[str, Any], Explanation | None]:
        """A lesion row and its explanation; none when the row holds an error."""
        row = self.predict(case)
        if row["error"]:
            return row, None
        told = (case.image, case.record, case.frame)
        with self._explaining:
            return row, Explanation.mean([each.explain(*told) for each in self._explainers])

    def record_of(self, case: Case) -> tuple[str | None, dict[str, Any]]:
        """Whose a case is, if that was said, and what is known of it, as the models read it."""
        columns = self.predictor.columns
        row = canonical_record(columns, case.image, case.record)
        return row["patient_id"][0], known_values(row, columns)

    def _answer(self, cells: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        classes = self.predictor.classes
        listed = {name: _listed(row[name]) for name in ("prediction_set", "missing")}
        plain = {name: None if pd.isna(value) else value for name, value in row.items()}
        probabilities = {name: plain.pop(f"p_{name}") for name in classes}
        lost = [name for name in listed["missing"] if name in self.predictor.columns]
        unknown = [name for name in lost if not is_missing(cells.get(name))]
        return {
            **plain,
            "probabilities": None if plain["error"] else probabilities,
            **listed,
            "unknown": unknown,
            "notice": NOTICE,
        }


def _cell(name: str, case: Case) -> str:
    """The cell that names a case's image and its frame."""
    named = name if case.frame is None else f"{name}{FRAME}{case.frame}"
    return "" if case.image is None else named


def _listed(names: str) -> list[str]:
    return names.split("|") if names else []


def _card(predictor: Predictor, members: Sequence[CalibratedModel]) -> dict[str, Any]:
    """The model card."""
    return {
        "skinmm": skinmm.__version__,
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
                "knows_unfamiliar": member.familiarity is not None,
                "test": member.card.summary,
            }
            for member in members
        ],
    }
