"""Checkpoints in, calibrated probabilities out: the one predictor behind every way to predict."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Shaped, UInt8

from skinmm.data.dataset import read_image
from skinmm.errors import InputError
from skinmm.evaluation.thresholds import mean_threshold
from skinmm.predict.member import Member, View
from skinmm.predict.reader import ImageFolder, canonical_patients, patient_ids

Pictures = dict[View, list[UInt8[np.ndarray, "size size 3"] | None]]


class Predictor:
    """One or several checkpoints that share classes; several are calibrated singly, then averaged.

    Attributes:
        classes: names, in the order of the probabilities.
        positive: the classes that count as malignant.
        threshold: of the decision; the mean of the members' on the logit scale.
        inputs: what any member looks at, of {image, record}.
        columns: record columns that any member uses.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        """Takes the models, which stay on their device.

        Raises:
            InputError: no member, or they have other classes or other positive classes.
        """
        if not members:
            raise InputError("no checkpoint given")
        first = members[0].card
        for member in members[1:]:
            if (member.card.classes, member.card.positive) != (first.classes, first.positive):
                raise InputError(
                    f"the checkpoints do not predict the same: {', '.join(first.classes)} "
                    f"(malignant: {', '.join(first.positive)}) against "
                    f"{', '.join(member.card.classes)} ({', '.join(member.card.positive)})"
                )
        self._members = members
        self._views = {member.view for member in members if member.view is not None}
        self.classes = list(first.classes)
        self.positive = list(first.positive)
        self.threshold = mean_threshold([member.threshold for member in members]).value
        self.inputs = frozenset[str]().union(*(member.inputs for member in members))
        self.columns = sorted({name for member in members for name in member.encoder.columns})

    @classmethod
    def from_checkpoints(
        cls, paths: Iterable[str | Path], accelerator: str = "auto"
    ) -> "Predictor":
        """Loads checkpoints.

        Args:
            paths: files that training wrote.
            accelerator: auto, cpu or gpu.

        Raises:
            CheckpointError: a file is missing, truncated or not ours.
            InputError: no path, members that do not fit together, or no GPU.
        """
        device = _device(accelerator)
        return cls([Member.load(Path(path), device) for path in paths])

    def predict(
        self,
        table: pd.DataFrame,
        images: str | Path | ImageFolder | None = None,
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
            images: folder of the images; not needed where the models use the record alone.
            probabilities: calibrated, or raw: the networks' own.
            threshold: of the decision; None: the checkpoints'.
            batch_size: rows per forward pass.
            workers: threads that decode.
            unknown: counts, by column, the cells that held no known value and became missing.

        Returns:
            A row per input row, in order: image_id, patient_id, target (if the table has one),
            p_<class>, malignancy, decision, threshold, error. A row that cannot be predicted has
            no probabilities and its reason in `error`.

        Raises:
            InputError: no image column or no folder although the models need images.
        """
        patients = canonical_patients(table, self.columns, needs_image="image" in self.inputs)
        if unknown is not None:
            unknown.update(patients.unknown)
        folder = images if isinstance(images, ImageFolder | None) else ImageFolder(Path(images))
        if folder is None and self._views:
            raise InputError("these models need images: name their folder, images=DIR")
        values = np.full((len(table), len(self.classes)), np.nan)
        errors = np.full(len(table), "", dtype=object)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            for start in range(0, len(table), batch_size):
                rows = slice(start, start + batch_size)
                batch = patients.table.iloc[rows]
                pictures, errors[rows] = self._pictures(batch["image_id"], folder, pool)
                good = np.flatnonzero(errors[rows] == "")
                if len(good):
                    calibrated = probabilities == "calibrated"
                    values[start + good] = self._mean(batch, pictures, good, calibrated=calibrated)
        limit = self.threshold if threshold is None else threshold
        return self._output(table, patients.table, values, errors, limit)

    def _pictures(
        self, names: "pd.Series[Any]", folder: ImageFolder | None, pool: ThreadPoolExecutor
    ) -> tuple[Pictures, Shaped[np.ndarray, " b"]]:
        """A batch's pictures as every member wants them, and what is wrong with those missing."""
        errors = np.full(len(names), "", dtype=object)
        pictures: Pictures = {}
        for view in self._views:
            outcomes = list(pool.map(_picture, names, repeat(folder), repeat(view)))
            pictures[view] = [picture for picture, _ in outcomes]
            errors = np.where(errors == "", [error for _, error in outcomes], errors)
        return pictures, errors

    def _mean(
        self,
        batch: pd.DataFrame,
        pictures: Pictures,
        good: Shaped[np.ndarray, " g"],
        *,
        calibrated: bool,
    ) -> Float64[np.ndarray, "g classes"]:
        """The members' mean for the rows of a batch that can be predicted."""
        table = batch.iloc[good]
        total = np.zeros((len(good), len(self.classes)))
        for member in self._members:
            wanted = pictures[member.view] if member.view else None
            images = None if wanted is None else np.stack([wanted[row] for row in good])
            total += member.probabilities(table, images, calibrated=calibrated)
        return total / len(self._members)

    def _output(
        self,
        given: pd.DataFrame,
        table: pd.DataFrame,
        values: Float64[np.ndarray, "n classes"],
        errors: Shaped[np.ndarray, " n"],
        threshold: float,
    ) -> pd.DataFrame:
        output = pd.DataFrame({"image_id": table["image_id"], "patient_id": patient_ids(table)})
        if "target" in given.columns:
            output["target"] = given["target"].to_numpy()
        for column, name in enumerate(self.classes):
            output[f"p_{name}"] = values[:, column]
        columns = [self.classes.index(name) for name in self.positive]
        malignancy = np.clip(values[:, columns].sum(axis=1), 0, 1)
        output["malignancy"] = malignancy
        decided = np.where(malignancy >= threshold, "malignant", "benign")
        output["decision"] = np.where(np.isnan(malignancy), "", decided)
        output["threshold"] = threshold
        output["error"] = errors
        return output


def _picture(
    name: str, folder: ImageFolder | None, view: View
) -> tuple[UInt8[np.ndarray, "size size 3"] | None, str]:
    """Reads one image, or says why not; whatever is wrong with it, the other rows go on."""
    if not name:
        return None, "no image named, and this model needs one"
    path = folder.find(name) if folder else None
    if path is None:
        return None, f"image {name} not found"
    try:
        return read_image(str(path), view.size, view.icc), ""
    except (OSError, InputError) as error:
        return None, " ".join(str(error).split())
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _device(accelerator: str) -> torch.device:
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise InputError("accelerator=gpu: no GPU is available here; use accelerator=cpu")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")
