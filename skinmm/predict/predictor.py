"""Checkpoints in, calibrated probabilities out: the one predictor behind every way to predict."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Shaped, UInt8

from skinmm.data.dataset import picture
from skinmm.data.headers import completed, header_record, lacking, may_be_dicom
from skinmm.data.source import read_source
from skinmm.data.vocabulary import is_missing, patients_of
from skinmm.errors import InputError
from skinmm.evaluation.predictions import set_names
from skinmm.evaluation.thresholds import mean_threshold
from skinmm.evaluation.uncertainty import decide
from skinmm.predict.member import Member, View
from skinmm.predict.reader import ImageFolder, canonical_patients

HALF: Final = 0.5
"""Of several prediction sets: a class that at least half of them hold is kept, so that at most
twice the stated share is missed (Gasparin and Ramdas 2024, arXiv:2401.09379)."""

Pictures = Mapping[View, UInt8[np.ndarray, "_ _ 3"]]


class _Seen(NamedTuple):
    """What reading one row's image gave: pictures, the DICOM header's record, or an error."""

    pictures: Pictures
    record: Mapping[str, Any]
    error: str


class Predictor:
    """One or several checkpoints that share classes; several are calibrated singly, then averaged.

    Attributes:
        classes: names, in the order of the probabilities.
        positive: the classes that count as malignant.
        threshold: of the decision; the mean of the members' on the logit scale.
        inputs: what any member looks at, of {image, record}.
        columns: record columns that any member uses.
        referral: decide `refer` where the prediction set does not name the side that the threshold
            calls alone, or a row is unlike those of validation; else the threshold decides alone.
    """

    def __init__(self, members: Sequence[Member], *, referral: bool = True) -> None:
        """Takes the models, which stay on their device.

        Args:
            members: checkpoints that predict the same.
            referral: as the attribute.

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
        self.referral = referral
        self._needs_image = any(member.needs_image for member in members)
        self._views = {member.view for member in members if member.view is not None}
        self.classes = list(first.classes)
        self._names = [f"p_{name}" for name in self.classes]
        self.positive = list(first.positive)
        self.threshold = mean_threshold([member.threshold for member in members]).value
        self.inputs = frozenset[str]().union(*(member.inputs for member in members))
        self.columns = sorted({name for member in members for name in member.encoder.columns})

    @classmethod
    def from_checkpoints(
        cls, paths: Iterable[str | Path], accelerator: str = "auto", *, referral: bool = True
    ) -> "Predictor":
        """Loads checkpoints.

        Args:
            paths: files that training wrote.
            accelerator: auto, cpu or gpu.
            referral: as the attribute.

        Raises:
            CheckpointError: a file is missing, truncated or not ours.
            InputError: no path, members that do not fit together, or no GPU.
        """
        device = _device(accelerator)
        return cls([Member.load(Path(path), device) for path in paths], referral=referral)

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
            images: folder of the images; where the models use the record alone, only the headers
                of DICOM files are read, for what the table lacks.
            probabilities: calibrated, or raw: the networks' own.
            threshold: of the decision, on these probabilities; None: the checkpoints', on the
                calibrated ones.
            batch_size: rows per forward pass.
            workers: threads that decode.
            unknown: counts, by column, the cells that held no known value and became missing.

        Returns:
            A row per input row, in order: image_id, patient_id, target (if the table has one),
            p_<class>, malignancy, decision, threshold, error, prediction_set (classes with `|`
            between; for several checkpoints those in at least half of the sets), ood (1 is the
            limit; for several checkpoints the mean) and missing (what the models use and the row
            lacks, with `|` between). A row that cannot be predicted has no probabilities and its
            reason in `error`.

        Raises:
            InputError: no image column or no folder although a model needs images.
        """
        patients = canonical_patients(table, self.columns, needs_image=self._needs_image)
        if unknown is not None:
            unknown.update(patients.unknown)
        folder = images if isinstance(images, ImageFolder | None) else ImageFolder(Path(images))
        if folder is None and self._needs_image:
            raise InputError("these models need images: name their folder, images=DIR")
        values = np.full((len(table), 3 * len(self.classes) + 1), np.nan)
        errors, missing = np.full((2, len(table)), "", dtype=object)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            for start in range(0, len(table), batch_size):
                rows = slice(start, start + batch_size)
                batch = patients.table.iloc[rows]
                look = partial(
                    _look, folder=folder, views=self._views, needs_image=self._needs_image
                )
                seen = list(pool.map(look, batch["image_id"], lacking(batch)))
                batch = completed(batch, [one.record for one in seen])
                patients.table.loc[batch.index, "patient_id"] = batch["patient_id"]
                errors[rows] = [one.error for one in seen]
                missing[rows] = [
                    "|".join(self._lacking(one, record))
                    for one, record in zip(seen, batch.to_dict("records"), strict=True)
                ]
                good = np.flatnonzero(errors[rows] == "")
                if len(good):
                    pictures = [seen[row].pictures for row in good]
                    values[start + good] = self._mean(batch.iloc[good], pictures)
        output = pd.DataFrame(
            {"image_id": patients.table["image_id"], "patient_id": patients_of(patients.table)}
        )
        if "target" in table.columns:
            output["target"] = table["target"].to_numpy()
        said = self._said(values, errors, probabilities, threshold)
        return pd.concat([output, said.assign(missing=missing)], axis=1)

    def _lacking(self, seen: _Seen, record: Mapping[str, Any]) -> list[str]:
        """What the models would have used."""
        image = ["image"] if self._views and not seen.pictures else []
        used = self.columns if "record" in self.inputs else []
        return image + [name for name in used if is_missing(record[name])]

    def _mean(
        self, table: pd.DataFrame, pictures: Sequence[Pictures]
    ) -> Float64[np.ndarray, "g columns"]:
        """The members' means for rows that can be predicted.

        Raw and calibrated probabilities, the share of prediction sets that hold each class, and the
        unfamiliarity, side by side.
        """
        opinions = []
        for member in self._members:
            view = member.view
            images = None
            shown = np.array([view is None or view in each for each in pictures])
            if view is not None:
                nothing = np.zeros((view.size, view.size, 3), np.uint8)
                images = np.stack([each.get(view, nothing) for each in pictures])
            opinions.append(member.judge(table, images, shown))
        means = [_mean_of_known(part, len(table)) for part in zip(*opinions, strict=True)]
        sets = np.broadcast_to(means[2], means[1].shape)
        return np.hstack([means[0], means[1], sets, means[3]])

    def _said(
        self,
        values: Float64[np.ndarray, "n columns"],
        errors: Shaped[np.ndarray, " n"],
        probabilities: str,
        threshold: float | None,
    ) -> pd.DataFrame:
        """The columns from the probabilities on."""
        raw, calibrated, votes, ood = np.split(values, len(self.classes) * np.arange(1, 4), axis=1)
        shown = raw if probabilities == "raw" else calibrated
        columns: dict[str, Any] = dict(zip(self._names, shown.T, strict=True))
        columns["malignancy"] = self._malignancy(shown)
        limit = self.threshold if threshold is None else threshold
        called = self._malignancy(calibrated if threshold is None else shown) >= limit
        sets = votes >= HALF if np.isfinite(votes).any() else None
        positive = np.isin(self.classes, self.positive)
        checks = (sets, ood[:, 0]) if self.referral else (None, None)
        decision = decide(called, positive, *checks)
        columns["decision"] = np.where(errors == "", decision, "")
        columns |= {"threshold": limit, "error": errors}
        written = "" if sets is None else set_names(sets, self.classes)
        columns["prediction_set"] = np.where(errors == "", written, "")
        return pd.DataFrame(columns | {"ood": ood[:, 0]})

    def _malignancy(self, values: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, " n"]:
        columns = [self.classes.index(name) for name in self.positive]
        return np.clip(values[:, columns].sum(axis=1), 0, 1)


def _mean_of_known(
    parts: Sequence[Shaped[np.ndarray, "..."] | None], rows: int
) -> Float64[np.ndarray, "g columns"]:
    """The mean of what members say, over those that do; NaN where none does."""
    known = [part.reshape(rows, -1) for part in parts if part is not None]
    return np.mean(known, axis=0) if known else np.full((rows, 1), np.nan)


def _look(
    name: str,
    wanted: bool,
    folder: ImageFolder | None,
    views: Collection[View],
    *,
    needs_image: bool,
) -> _Seen:
    """Reads one image once, or says why not; whatever is wrong with it, the other rows go on."""
    if not (views or wanted):
        return _Seen({}, {}, "")
    path = folder.find(name) if folder else None
    if path is None:
        lost = f"image {name} not found" if views and name and folder else ""
        needed = "no image named, and this model needs one" if needs_image else ""
        return _Seen({}, {}, lost or needed)
    wanted = wanted and may_be_dicom(path)
    if not (views or wanted):
        return _Seen({}, {}, "")
    try:
        source = read_source(path)
        record = header_record(path, source.data) if wanted else {}
        return _Seen({view: picture(source, view.size, view.icc) for view in views}, record, "")
    except (OSError, InputError) as error:
        return _Seen({}, {}, " ".join(str(error).split()))
    except Exception as error:
        return _Seen({}, {}, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _device(accelerator: str) -> torch.device:
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise InputError("accelerator=gpu: no GPU is available here; use accelerator=cpu")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")
