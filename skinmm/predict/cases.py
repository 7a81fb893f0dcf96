"""Prediction and explanation of single cases, for services and DICOM results."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from skinmm import __version__
from skinmm.config import name_relative
from skinmm.config.commands import InferenceConfig
from skinmm.data.lesions import SEPARATOR, name_spread_columns
from skinmm.errors import InputError
from skinmm.images.source import FRAME
from skinmm.predict.backends import PRECISION, OnnxBackend, read_precision
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.explain import Explainer, Explanation, explain_case
from skinmm.predict.inputs import (
    InMemoryImages,
    describe_missing_columns,
    rename_training_columns,
)
from skinmm.predict.lesions import group_rows
from skinmm.predict.loading import CaseImage
from skinmm.predict.pipeline import canonical_record, known_values
from skinmm.predict.predictor import Predictor, load_predictor
from skinmm.vocabulary import is_missing, match_columns

NOTICE: Final = (
    "Research use only. This is not a medical device and must not be used to decide on a "
    "patient's care."
)


class Case(NamedTuple):
    """One lesion: its images, at most one unless the model combines views, and its record."""

    images: Sequence[CaseImage]
    record: Mapping[str, str]


class CasePredictor:
    """Prediction and explanation of single cases.

    PyTorch computes the explanations, also if another backend predicts.

    Attributes:
        predictor: the models.
        needs_image: whether a case without an image is refused.
        max_images: images of a case at most.
        has_views: whether a case is a lesion with images of several views.
        concurrency: cases to predict at the same time: 2 with ONNX Runtime, so that one is decoded
            while the network runs on the other, and 1 with torch, which uses all threads for one.
        side: longest side of the network's input in pixels; 0 without an image branch.
        card: the model card, for /v1/model.
        reference: distributions of the first checkpoint (see `skinmm.evaluation.drift`).
    """

    def __init__(self, config: InferenceConfig, checkpoints: Sequence[Path]) -> None:
        self.predictor = load_predictor(config, checkpoints)
        self._explainers = Explainer.for_predictor(self.predictor, checkpoints, config.accelerator)
        self._lock = Lock()  # explanations add hooks to a network that torch may predict with
        self._is_shared = "torch" in self.predictor.backend
        self.concurrency = 2 if self.predictor.backend == OnnxBackend.name else 1
        members = [explainer.member for explainer in self._explainers]
        self.needs_image = any(member.needs_image for member in members)
        ensemble = self.predictor.ensemble
        self.has_views = ensemble.has_views
        self.max_images = ensemble.max_views if ensemble.has_views else 1
        self.side = max((member.view.size for member in members if member.view), default=0)
        self.card = build_card(self.predictor, members)
        self.reference = members[0].card.inputs

    def predict(self, case: Case) -> dict[str, Any]:
        """Predict one case, with the columns of `predict.py`; a case without inputs is an error."""
        files, cells = {}, []
        for number, image in enumerate(case.images):
            name = str(number + 1) if self.has_views else "image"
            files[name] = image.data
            cells.append(name if image.frame is None else f"{name}{FRAME}{image.frame}")
        row = {**case.record, "image": SEPARATOR.join(cells)}
        if self.has_views:
            row["view"] = SEPARATOR.join(image.view for image in case.images)
        prediction = self.predict_table([row], files)[0]
        inputs = {*self.predictor.columns, *({"image"} & self.predictor.inputs)}
        if not prediction["error"] and inputs <= {*prediction["missing"]}:
            unknown = "".join(f"{name} was not recognised; " for name in prediction["unknown"])
            prediction["error"] = (
                f"nothing to predict from: {unknown}choose an image or enter a value"
            )
        return prediction

    def predict_table(
        self, rows: Sequence[Mapping[str, str]], files: Mapping[str, bytes]
    ) -> list[dict[str, Any]]:
        """Predict several rows; a model with views predicts rows of the same lesion once."""
        with self._lock if self._is_shared else nullcontext():
            (predictions,) = self.predictor.stream(
                [_to_table(rows)],
                InMemoryImages(files),
                batch_size=8,
                workers=2 if len(rows) > 1 else 0,
            )
        columns = [cells.tolist() for cells in predictions.columns.values()]
        return [
            self._format(cells, dict(zip(predictions.columns, values, strict=True)))
            for cells, values in zip(
                self._list_cells(rows), zip(*columns, strict=True), strict=True
            )
        ]

    def list_cases(
        self, rows: Sequence[Mapping[str, str]], files: Mapping[str, bytes]
    ) -> list[Case]:
        """Return one `Case` for each prediction of `predict_table`."""
        images, cases = InMemoryImages(files), []
        for cells in self._list_cells(rows):
            names, views = [cells.get("image_id") or ""], [""]
            if self.has_views:
                names, views = (cells[name].split(SEPARATOR) for name in ("image_id", "view"))
            pictures = []
            for name, view in zip(names, views, strict=True):
                with suppress(InputError):  # two images of one name: the prediction has the error
                    if location := images.find(name):
                        pictures.append(CaseImage(*images.read(location), view=view))
            cases.append(Case(pictures, {n: c for n, c in cells.items() if n != "view"}))
        return cases

    def describe_columns(self, rows: Sequence[Mapping[str, str]]) -> str:
        """Describe missing and unused columns of a table; "" if there are none."""
        ensemble = self.predictor.ensemble
        names = [*rename_training_columns(_to_table(rows[:1]), ensemble.column_names)]
        expected = [name for name in ensemble.columns if name not in ensemble.measured_columns]
        return describe_missing_columns(name_spread_columns(names, expected), expected)

    def _list_cells(self, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """Return the cells of each prediction by canonical name."""
        columns = self.predictor.columns
        table = rename_training_columns(_to_table(rows), self.predictor.ensemble.column_names)
        if self.has_views:
            lesions = group_rows(table, columns, self.max_images).table
            cells = lesions.to_numpy(object)
            return [dict(zip(map(str, lesions), row, strict=True)) for row in cells]
        names = [str(name) for name in table]
        canonical = match_columns(names, columns)
        keys = [canonical.get(name, name) for name in names]
        lines = zip(*(table[name] for name in names), strict=True)
        return [dict(zip(keys, line, strict=True)) for line in lines]

    def predict_and_explain(self, case: Case) -> tuple[dict[str, Any], Explanation | None]:
        """Predict and explain one case; the explanation is None if the row has an error."""
        row = self.predict(case)
        if row["error"]:
            return row, None
        with self._lock:
            return row, explain_case(self._explainers, case.images, case.record)

    def record_of(self, case: Case) -> tuple[str | None, dict[str, Any]]:
        """Return patient (None if unknown) and parsed record of a case."""
        columns = self.predictor.columns
        row = canonical_record(columns, case.images, case.record)
        values = known_values(row, columns)
        for member in self.predictor.ensemble.members:
            values |= member.encoder.read_numbers(values)
        return row["patient_id"][0], values

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


def _to_table(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name) for row in rows], object) for name in names}


def build_card(predictor: Predictor, members: Sequence[CalibratedModel]) -> dict[str, Any]:
    """Return the model card of a predictor as plain data."""
    band = predictor.band
    return {
        "skinmm": __version__,
        "intended_use": NOTICE,
        "classes": predictor.classes,
        "positive": predictor.positive,
        "inputs": sorted(predictor.inputs),
        "columns": predictor.columns,
        "relative": name_relative(predictor.ensemble.relative),
        "images": predictor.ensemble.max_views if predictor.ensemble.has_views else 1,
        "threshold": predictor.threshold,
        "referral": predictor.referral,
        "band": band and {"low": band.low.value, "high": band.high.value},
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
                "band": member.card.band,
                "prediction_sets": member.card.conformal,
                "knows_unfamiliar": member.ood_detector is not None,
                "test": member.card.summary,
                PRECISION: read_precision(runner.backend),
            }
            for member, runner in zip(members, predictor.ensemble.members, strict=True)
        ],
    }
