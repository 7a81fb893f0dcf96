"""Predictor: calibrated probabilities and decisions for tables of patients."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Shaped

from skinmm.config.checkpoints import find_checkpoint
from skinmm.config.commands import InferenceConfig
from skinmm.data.relative import PatientStatistics
from skinmm.errors import InputError, warn
from skinmm.evaluation.call_rules import (
    average_rules,
    cut_at_half,
    restore_rule,
    threshold_scores,
)
from skinmm.evaluation.conformal import sets_agree
from skinmm.evaluation.predictions import BINARY, REFER, format_sets
from skinmm.evaluation.referral import decide
from skinmm.evaluation.thresholds import (
    average_bands,
    average_thresholds,
)
from skinmm.predict.embedder import Embedder
from skinmm.predict.ensemble import CalibratedModel, Ensemble, ModelOutput, load_models
from skinmm.predict.inputs import Images
from skinmm.predict.pipeline import TableBatch, run_pipeline
from skinmm.vocabulary import Table

MIN_VOTES: Final = 0.5
"""A class is in the union of several prediction sets if at least this share contains it; then at
most twice the stated share is missed (Gasparin and Ramdas 2024, arXiv:2401.09379)."""


class PredictionTable(NamedTuple):
    """Predictions of one table.

    Attributes:
        columns: columns of the output.
        cells: canonical rows of the input, by column.
        unread: number of input cells with an unknown value, by column and text.
    """

    columns: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    unread: Counter[tuple[str, str]]

    @property
    def unknown(self) -> Counter[str]:
        """Number of input cells with an unknown value, by column."""
        return Counter(name for name, _ in self.unread.elements())

    @property
    def table(self) -> pd.DataFrame:
        """Output table."""
        return pd.DataFrame(self.columns)


class Predictor:
    """Predictor of one checkpoint or of several, which are calibrated and then averaged.

    Args:
        members: models with the same classes, malignant classes and rule to call a class.

    Attributes:
        ensemble: the models.
        classes: names, in the order of the probabilities.
        positive: classes that count as malignant.
        threshold: threshold of the decision; the mean of the members' on the logit scale. None: a
            member was never calibrated, so every row is referred.
        inputs: inputs of the models, of {image, record}.
        columns: record columns of the models.
        needs_image: whether a row without an image cannot be predicted.
        backend: what runs the networks: torch, onnx, or both.
        identity: SHA-256 of every checkpoint file, in order.
        band: probabilities around the threshold that are referred, the mean of the members' on the
            logit scale; None if a checkpoint has none: the prediction sets decide as when it was
            made.
        referral: decide `refer` if the probability is in the band, or the out-of-distribution score
            is above 1; False: decide by the threshold alone.
    """

    def __init__(self, members: Sequence[CalibratedModel], *, referral: bool = True) -> None:
        self.ensemble = Ensemble(members)
        self.referral = referral
        self.backend = " and ".join(sorted({member.backend.name for member in members}))
        self.identity = list(dict.fromkeys(member.digest for member in members))
        self.columns, self.inputs = self.ensemble.columns, self.ensemble.inputs
        self.needs_image = self.ensemble.needs_image
        card = members[0].card
        self.classes, self.positive = list(card.classes), list(card.positive)
        self._is_malignant = np.isin(self.classes, self.positive)
        thresholds = [member.threshold for member in members if member.threshold]
        is_calibrated = len(thresholds) == len(members)
        self.threshold = average_thresholds(thresholds).value if is_calibrated else None
        bands = [member.band for member in members if member.band is not None]
        self.band = average_bands(bands) if len(bands) == len(members) else None
        self.call = average_rules(
            [
                restore_rule(m.card.call, m.config.evaluation.call, m.card.prior["deployed"])
                for m in members
            ]
        )
        self.half_cut = all(member.config.evaluation.half_cut for member in members)

    @classmethod
    def from_checkpoints(
        cls,
        paths: str | Path | Iterable[str | Path],
        accelerator: str = "auto",
        *,
        referral: bool = True,
        backend: str = "auto",
        concurrency: int = 1,
        uncalibrated: bool = False,
    ) -> "Predictor":
        """Load checkpoints.

        Args:
            paths: one or several run folders, checkpoints or ensembles.
            accelerator: auto, cpu or gpu.
            referral: see the attribute.
            backend: torch, onnx, or auto: onnx on the CPU if there is an exported model next to
                the checkpoint.
            concurrency: batches that ONNX Runtime runs at the same time: faster for long tables,
                slower for a single row, and each needs memory.
            uncalibrated: accept checkpoints without calibration; then every row is referred.
        """
        device = select_device(accelerator)
        files = map(Path, [paths] if isinstance(paths, str | Path) else paths)
        loaded = [
            load_models(path, device, backend, concurrency, uncalibrated=uncalibrated)
            for path in map(find_checkpoint, files)
        ]
        predictor = cls([*chain.from_iterable(loaded)], referral=referral)
        if predictor.threshold is None:
            warn("a checkpoint was never calibrated; all its decisions are refer")
        return predictor

    def predict(
        self,
        table: pd.DataFrame,
        images: str | Path | Images | None = None,
        *,
        probabilities: str = "calibrated",
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 2,
    ) -> pd.DataFrame:
        """Predict every row of a table.

        Args:
            table: one row per image, with an image column and any of patient_id, sex, age, site
                under their usual names.
            images: folder of the images. Models of the record alone read only the headers of
                DICOM files, for values that the table lacks.
            probabilities: calibrated, or raw: the probabilities of the networks.
            threshold: threshold of the decision on these probabilities; None: that of the
                checkpoints, on calibrated probabilities.
            batch_size: rows per forward pass.
            workers: threads that decode images; 0: decode in the calling thread.

        Returns:
            One row per input row, in order: image_id, patient_id, target (if the table has one),
            p_<class>, malignancy, decision, threshold, error, prediction_set (classes separated by
            `|`; for several checkpoints the classes in at least half of their sets), ood (1 is the
            limit; for several checkpoints the mean), missing (inputs of the models that the row
            lacks, separated by `|`), called (unless the classes are benign and malignant: a class,
            by the rule `evaluation.call` of training; for several checkpoints by the mean of their
            class shares) and lesion_id. A row that cannot be predicted has no probabilities, and
            the reason in `error`. Of models trained with `data.unit=lesion`: one row per lesion, in
            the order of their first images; `image_id` and `lesion_id` name the lesion, `images`
            lists the images used, and `missing` those that cannot be read.
        """
        (prediction,) = self.stream(
            [table],
            images,
            probabilities=probabilities,
            threshold=threshold,
            batch_size=batch_size,
            workers=workers,
        )
        return prediction.table

    def stream(
        self,
        tables: Iterable[Table],
        images: str | Path | Images | None = None,
        *,
        probabilities: str = "calibrated",
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 2,
        patients: PatientStatistics | None = None,
    ) -> Iterator[PredictionTable]:
        """Predict tables one after another; see `predict`.

        While the networks run on a batch, the images of the next batches are decoded, also across
        tables; no more than `pipeline.PREFETCH` batches are in memory. The rows of a lesion have
        to be in one table (see `lesions.sort_by_lesion`). So do those of a patient for models with
        `data.relative`, unless `patients` is the result of `count_patients` for all tables.
        """
        for batch in run_pipeline(self.ensemble, tables, images, batch_size, workers, patients):
            yield self._to_predictions(batch, probabilities, threshold)

    def embed(
        self,
        table: pd.DataFrame,
        images: str | Path | Images | None = None,
        *,
        batch_size: int = 32,
        workers: int = 2,
    ) -> pd.DataFrame:
        """Return the embeddings of images by the one PyTorch network; see `Embedder`."""
        embedder = Embedder.from_model(self.ensemble.members)
        return next(embedder.embed([table], images, batch_size=batch_size, workers=workers))

    def _to_predictions(
        self, batch: TableBatch, probabilities: str, threshold: float | None
    ) -> PredictionTable:
        """Return the table of a batch: probabilities, decisions, prediction sets, errors."""
        output = self.ensemble.calibrate(batch.scores)  # NaN in rows with errors
        is_good = batch.errors == ""
        cells, has_views = batch.cells, self.ensemble.has_views
        names = (cells[column] for column in ("patient_id", "lesion_id"))
        patients, lesions = (np.where(pd.isna(name), "", name) for name in names)
        columns = {"image_id": lesions if has_views else cells["image_id"], "patient_id": patients}
        if batch.target is not None:
            columns["target"] = batch.target
        values = output.raw if probabilities == "raw" else output.calibrated
        columns |= {f"p_{name}": values[:, i] for i, name in enumerate(self.classes)}
        columns["malignancy"] = self._malignancy(values)
        chosen = self.threshold if threshold is None else threshold
        limit = np.nan if chosen is None else chosen
        compared = output.calibrated if threshold is None else values
        sets = _to_sets(output)
        is_above = self._malignancy(compared) >= limit
        decision = self.decide(is_above, output)
        if self.threshold is None:
            decision[:] = REFER
        columns["decision"] = np.where(is_good, decision, "")
        written = limit if compared is values else np.nan  # it is not one of raw probabilities
        columns |= {"threshold": np.full(batch.size, written), "error": batch.errors}
        set_column = "" if sets is None else format_sets(sets, self.classes)
        columns["prediction_set"] = np.where(is_good, set_column, "")
        columns["ood"] = np.full(batch.size, np.nan) if output.ood is None else output.ood
        columns["missing"] = batch.missing
        if tuple(self.classes) != BINARY:
            scores = self.call.score(output.calibrated)
            index = scores.argmax(axis=1)
            columns["called"] = np.where(is_good, np.array(self.classes, object)[index], "")
        else:
            index = is_above.astype(np.int64)
            scores = threshold_scores(self._malignancy(compared), limit)
        if self.half_cut:
            halves = cut_at_half(scores, index)
            columns |= {f"half_{name}": halves[:, i] for i, name in enumerate(self.classes)}
        columns["lesion_id"] = lesions
        if has_views:
            columns["images"] = cells["image_id"]
        return PredictionTable(columns, cells, Counter(batch.unread))

    def decide(
        self, called: Bool[np.ndarray, " n"], output: ModelOutput
    ) -> Shaped[np.ndarray, " n"]:
        """Return the decision for each row; `called` marks the rows above the threshold."""
        if not self.referral:
            return decide(called, None, None)
        is_safe = None
        if self.band is not None:
            is_safe = self.band.is_safe(called, self._malignancy(output.calibrated))
        elif (sets := _to_sets(output)) is not None:
            is_safe = sets_agree(called, self._is_malignant, sets)
        return decide(called, is_safe, output.ood)

    def _malignancy(self, values: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, " n"]:
        return np.clip(values[:, self._is_malignant].sum(axis=1), 0, 1)


def _to_sets(output: ModelOutput) -> Bool[np.ndarray, "n classes"] | None:
    """Return the prediction set of each row: the classes in at least half of the members' sets."""
    return None if output.votes is None else output.votes >= MIN_VOTES


def load_predictor(
    config: InferenceConfig, paths: Sequence[Path], concurrency: int = 1
) -> Predictor:
    """Load checkpoints with the settings of a command."""
    return Predictor.from_checkpoints(
        paths,
        config.accelerator,
        referral=config.referral,
        backend=config.backend,
        concurrency=concurrency,
        uncalibrated=config.uncalibrated,
    )


def select_device(accelerator: str) -> torch.device:
    """Return torch's device for a setting `accelerator`: auto, cpu or gpu."""
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise InputError("accelerator=gpu: no GPU is available here; use accelerator=cpu")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")
