"""Checkpoints in, calibrated probabilities out: the one predictor behind every way to predict."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation.predictions import BINARY, format_sets
from skinmm.evaluation.referral import decide
from skinmm.evaluation.thresholds import average_thresholds, predict_classes
from skinmm.predict.batch import PredictionTable, TableBatch
from skinmm.predict.ensemble import Ensemble, EnsembleOutput
from skinmm.predict.images import Images
from skinmm.predict.model import CalibratedModel
from skinmm.predict.pipeline import looked
from skinmm.vocabulary import Table

HALF: Final = 0.5
"""Of several prediction sets: a class that at least half of them hold is kept, so that at most
twice the stated share is missed (Gasparin and Ramdas 2024, arXiv:2401.09379)."""


class Predictor:
    """One or several checkpoints that share classes; several are calibrated singly, then averaged.

    Attributes:
        ensemble: the members.
        classes: names, in the order of the probabilities.
        positive: the classes that count as malignant.
        threshold: of the decision; the mean of the members' on the logit scale.
        inputs: what any member looks at, of {image, record}.
        columns: record columns that any member uses.
        needs_image: whether a row without an image cannot be predicted.
        backend: what runs the networks, torch or onnx, or both.
        identity: SHA-256 of every checkpoint, in order.
        referral: decide `refer` where the prediction set does not name the side that the threshold
            calls alone, or a row is unlike those of validation; else the threshold decides alone.
    """

    def __init__(self, members: Sequence[CalibratedModel], *, referral: bool = True) -> None:
        """Takes the models, which stay on their device.

        Args:
            members: checkpoints that predict the same.
            referral: as the attribute.

        Raises:
            InputError: no member, or they do not fit together: other classes, other positive
                classes, or another rule by which one of several classes is called.
        """
        self.ensemble = Ensemble(members)
        self.referral = referral
        self.backend = " and ".join(sorted({member.backend.name for member in members}))
        self.identity = [member.digest for member in members]
        self.columns, self.inputs = self.ensemble.columns, self.ensemble.inputs
        self.needs_image = self.ensemble.needs_image
        card = members[0].card
        self.classes, self.positive = list(card.classes), list(card.positive)
        self._malignant = np.isin(self.classes, self.positive)
        self.threshold = average_thresholds([member.threshold for member in members]).value
        self._shares = np.mean([member.shares for member in members], axis=0)

    @classmethod
    def from_checkpoints(
        cls,
        paths: str | Path | Iterable[str | Path],
        accelerator: str = "auto",
        *,
        referral: bool = True,
        backend: str = "auto",
        lanes: int = 1,
    ) -> "Predictor":
        """Loads checkpoints.

        Args:
            paths: files that training wrote, or one.
            accelerator: auto, cpu or gpu.
            referral: as the attribute.
            backend: torch, onnx, or auto: onnx on the CPU for a checkpoint that has an exported
                model beside it.
            lanes: batches that ONNX Runtime is to look at side by side: faster for long tables,
                slower for a single row, and each takes memory.

        Raises:
            CheckpointError: a file is missing, truncated or not ours.
            InputError: no path, members that do not fit together, no GPU, or no exported model.
        """
        device = device_of(accelerator)
        files = [paths] if isinstance(paths, str | Path) else paths
        members = [CalibratedModel.load(Path(path), device, backend, lanes) for path in files]
        return cls(members, referral=referral)

    def predict(
        self,
        table: pd.DataFrame,
        images: str | Path | Images | None = None,
        *,
        probabilities: str = "calibrated",
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 2,
        unknown: Counter[str] | None = None,
    ) -> pd.DataFrame:
        """Predicts every row of a table.

        Args:
            table: a row per image: an image column and any of patient_id, sex, age, site under
                their usual names.
            images: folder of the images; where the models use the record alone, only the headers
                of DICOM files are read, for what the table lacks.
            probabilities: calibrated, or raw: the networks' own.
            threshold: of the decision, on these probabilities; None: the checkpoints', on the
                calibrated ones.
            batch_size: rows per forward pass.
            workers: threads that decode; 0: the caller's own.
            unknown: counts, by column, the cells that held no known value and became missing.

        Returns:
            A row per input row, in order: image_id, patient_id, target (if the table has one),
            p_<class>, malignancy, decision, threshold, error, prediction_set (classes with `|`
            between; for several checkpoints those in at least half of the sets), ood (1 is the
            limit; for several checkpoints the mean), missing (what the models use and the row
            lacks, with `|` between) and, unless the classes are benign and malignant, called (a
            class, by the rule that `evaluation.call` of training names; of several checkpoints,
            which share it, by the mean of what they divide by). A row that cannot be predicted has
            no probabilities and its reason in `error`.

        Raises:
            InputError: no image column or no folder although a model needs images.
        """
        stream = self.stream(
            [table],
            images,
            probabilities=probabilities,
            threshold=threshold,
            batch_size=batch_size,
            workers=workers,
        )
        (predicted,) = stream
        if unknown is not None:
            unknown.update(predicted.unknown)
        return predicted.table

    def stream(
        self,
        tables: Iterable[Table],
        images: str | Path | Images | None = None,
        *,
        probabilities: str = "calibrated",
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 2,
    ) -> Iterator[PredictionTable]:
        """Predicts tables one after another, as `predict` does each.

        While the networks look at a batch, the images of the next ones are decoded, over the ends
        of tables too; no more than `looking.AHEAD` batches are held.

        Raises:
            InputError: as `predict`.
        """
        for part in looked(self.ensemble, tables, images, batch_size, workers):
            yield self._told(part, probabilities, threshold, batch_size)

    def _told(
        self, part: TableBatch, probabilities: str, threshold: float | None, batch_size: int
    ) -> PredictionTable:
        """What is made of a part that was looked at."""
        verdicts = EnsembleOutput.none(part.size, len(self.classes))
        for start in range(0, part.size, batch_size):
            rows = slice(start, start + batch_size)
            good = np.flatnonzero(part.errors[rows] == "")
            if len(good):
                verdicts.put(start + good, self.ensemble.judge(part.seen[rows][good]))
        cells = zip(part.cells["patient_id"], part.cells["lesion_id"], strict=True)
        owners = [next((name for name in names if not pd.isna(name)), "") for names in cells]
        columns = {"image_id": part.cells["image_id"], "patient_id": np.array(owners, object)}
        if part.patients.target is not None:
            columns["target"] = part.patients.target
        columns |= self._said(verdicts, part.errors, probabilities, threshold)
        columns["missing"] = part.missing
        if tuple(self.classes) != BINARY:
            named = np.array(self.classes, object)[
                predict_classes(verdicts.calibrated, self._shares)
            ]
            columns["called"] = np.where(part.errors == "", named, "")
        return PredictionTable(columns, part.cells, part.patients.unknown)

    def _said(
        self,
        verdicts: EnsembleOutput,
        errors: Shaped[np.ndarray, " n"],
        probabilities: str,
        threshold: float | None,
    ) -> dict[str, np.ndarray]:
        """The columns from the probabilities on."""
        shown = verdicts.raw if probabilities == "raw" else verdicts.calibrated
        columns = {f"p_{name}": shown[:, i] for i, name in enumerate(self.classes)}
        columns["malignancy"] = self._malignancy(shown)
        limit = self.threshold if threshold is None else threshold
        called = self._malignancy(verdicts.calibrated if threshold is None else shown) >= limit
        sets = verdicts.votes >= HALF if np.isfinite(verdicts.votes).any() else None
        checks = (sets, verdicts.ood) if self.referral else (None, None)
        fine = errors == ""
        columns["decision"] = np.where(fine, decide(called, self._malignant, *checks), "")
        columns |= {"threshold": np.full(len(errors), limit), "error": errors}
        written = "" if sets is None else format_sets(sets, self.classes)
        columns["prediction_set"] = np.where(fine, written, "")
        return columns | {"ood": verdicts.ood}

    def _malignancy(self, values: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, " n"]:
        return np.clip(values[:, self._malignant].sum(axis=1), 0, 1)


def device_of(accelerator: str) -> torch.device:
    """Where `accelerator` has torch run.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise InputError("accelerator=gpu: no GPU is available here; use accelerator=cpu")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")
