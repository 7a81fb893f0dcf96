"""Checkpoints in, calibrated probabilities out: the one predictor behind every way to predict."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Shaped

from skinmm.data.headers import completed, lacking
from skinmm.data.vocabulary import is_missing
from skinmm.errors import InputError
from skinmm.evaluation.predictions import set_names
from skinmm.evaluation.thresholds import mean_threshold
from skinmm.evaluation.uncertainty import decide
from skinmm.predict.images import ImageFolder, Pictures, Seen, look
from skinmm.predict.member import Member
from skinmm.predict.parts import Batch, Part, Predicted
from skinmm.predict.reader import canonical_patients
from skinmm.predict.spool import Spool

HALF: Final = 0.5
"""Of several prediction sets: a class that at least half of them hold is kept, so that at most
twice the stated share is missed (Gasparin and Ramdas 2024, arXiv:2401.09379)."""

AHEAD: Final = 3
"""Batches whose images are read before the networks are asked."""


class Predictor:
    """One or several checkpoints that share classes; several are calibrated singly, then averaged.

    Attributes:
        classes: names, in the order of the probabilities.
        positive: the classes that count as malignant.
        threshold: of the decision; the mean of the members' on the logit scale.
        inputs: what any member looks at, of {image, record}.
        columns: record columns that any member uses.
        backend: what runs the networks, torch or onnx, or both.
        identity: SHA-256 of every checkpoint, in order.
        referral: decide `refer` where the prediction set does not name the side that the threshold
            calls alone, or a row is unlike those of validation; else the threshold decides alone.
        others: with how many others of its patient a row is compared at most; 0: with none.
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
        self.backend = " and ".join(sorted({member.backend.name for member in members}))
        self.identity = [member.digest for member in members]
        self.others = max(member.context.others if member.context else 0 for member in members)
        self._ends = np.cumsum([member.width for member in members])
        self._needs_image = any(member.needs_image for member in members)
        self._views = {member.view for member in members if member.view is not None}
        finders = {member.finder for member in members if member.measured}
        if len(finders) > 1:
            raise InputError(
                "the checkpoints measure lesions with different segmenters: predict with each alone"
            )
        self._finder = next(iter(finders), None)
        self._measured = sorted({name for member in members for name in member.measured})
        self.classes = list(first.classes)
        self._names = [f"p_{name}" for name in self.classes]
        self.positive = list(first.positive)
        self.threshold = mean_threshold([member.threshold for member in members]).value
        self.inputs = frozenset[str]().union(*(member.inputs for member in members))
        self.columns = sorted({name for member in members for name in member.encoder.columns})

    @classmethod
    def from_checkpoints(
        cls,
        paths: Iterable[str | Path],
        accelerator: str = "auto",
        *,
        referral: bool = True,
        backend: str = "auto",
    ) -> "Predictor":
        """Loads checkpoints.

        Args:
            paths: files that training wrote.
            accelerator: auto, cpu or gpu.
            referral: as the attribute.
            backend: torch, onnx, or auto: onnx on the CPU for a checkpoint that has an exported
                model beside it.

        Raises:
            CheckpointError: a file is missing, truncated or not ours.
            InputError: no path, members that do not fit together, no GPU, or no exported model.
        """
        device = _device(accelerator)
        members = [Member.load(Path(path), device, backend) for path in paths]
        return cls(members, referral=referral)

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
        """Predicts every row of a table; models that compare a patient's rows compare these.

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
        tables: Iterable[pd.DataFrame],
        images: str | Path | ImageFolder | None = None,
        *,
        probabilities: str = "calibrated",
        threshold: float | None = None,
        batch_size: int = 32,
        workers: int = 2,
    ) -> Iterator[Predicted]:
        """Predicts tables one after another, as `predict` does each.

        While the networks look at a batch, the images of the next ones are decoded, over the ends
        of tables too; no more than `AHEAD` batches are held.

        Raises:
            InputError: as `predict`.
        """
        for part in self._looked(tables, images, batch_size, workers):
            if not self.others:
                yield self._told(part, probabilities, threshold, batch_size)
                continue
            with Spool() as spool:
                spool.add(part)
                yield self._told(part, probabilities, threshold, batch_size, spool)

    def gather(
        self,
        tables: Iterable[pd.DataFrame],
        images: str | Path | ImageFolder | None,
        spool: Spool,
        *,
        batch_size: int = 32,
        workers: int = 2,
    ) -> None:
        """Looks at tables as if they were one, so that a patient's rows may lie far apart.

        Args:
            tables: the rows that the spool does not hold yet.
            images: as for `predict`.
            spool: is given what was seen.
            batch_size: as for `predict`; a divisor of the number of rows that the spool holds.
            workers: as for `predict`.

        Raises:
            InputError: as `predict`.
        """
        for part in self._looked(tables, images, batch_size, workers):
            spool.add(part)

    def stream_gathered(
        self,
        tables: Iterable[pd.DataFrame],
        spool: Spool,
        done: int = 0,
        *,
        probabilities: str = "calibrated",
        threshold: float | None = None,
        batch_size: int = 32,
    ) -> Iterator[Predicted]:
        """Predicts the tables again that `gather` looked at, without a look.

        Args:
            tables: the rows after those that are done.
            spool: all rows, as they were seen.
            done: how many rows are, a multiple of `batch_size`.
            probabilities: as for `predict`.
            threshold: as for `predict`.
            batch_size: as for `predict`.
        """
        for table in tables:
            patients = canonical_patients(table, self.columns, needs_image=self._needs_image)
            part = Part(table, patients, int(self._ends[-1]), done)
            spool.fill(part)
            yield self._told(part, probabilities, threshold, batch_size, spool)
            done += len(table)

    def _looked(
        self,
        tables: Iterable[pd.DataFrame],
        images: str | Path | ImageFolder | None,
        batch_size: int,
        workers: int,
    ) -> Iterator[Part]:
        """Tables whose rows the networks have looked at."""
        folder = images if isinstance(images, ImageFolder | None) else ImageFolder(images)
        ahead: deque[Batch] = deque()
        pool = ThreadPoolExecutor(max(workers, 1))
        try:
            for batch in self._begun(tables, folder, pool, batch_size):
                ahead.append(batch)
                if len(ahead) > AHEAD:
                    yield from self._ended(ahead.popleft())
            while ahead:
                yield from self._ended(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begun(
        self,
        tables: Iterable[pd.DataFrame],
        folder: ImageFolder | None,
        pool: ThreadPoolExecutor,
        batch_size: int,
    ) -> Iterator[Batch]:
        """Batches whose images are being read; each table ends a batch."""
        for table in tables:
            patients = canonical_patients(table, self.columns, needs_image=self._needs_image)
            if folder is None and self._needs_image:
                raise InputError("these models need images: name their folder, images=DIR")
            part = Part(table, patients, int(self._ends[-1]))
            wanted = lacking(patients.table)
            measuring = patients.table[self._measured].isna().any(axis=None)
            look_at = partial(
                look,
                needs_image=self._needs_image,
                finder=self._finder if measuring else None,
            )
            for start in range(0, max(len(table), 1), batch_size):
                rows = slice(start, start + batch_size)
                seen = [
                    pool.submit(look_at, name, wish, folder, self._views)
                    for name, wish in zip(
                        patients.table["image_id"].iloc[rows], wanted.iloc[rows], strict=True
                    )
                ]
                yield Batch(part, rows, seen, last=rows.stop >= len(table))

    def _ended(self, batch: Batch) -> Iterator[Part]:
        """Lets the networks look at a batch; the last one of a table gives all its rows."""
        part, seen = batch.part, [each.result() for each in batch.seen]
        rows = part.patients.table.iloc[batch.rows]
        if any(one.record for one in seen):
            rows = completed(rows, [one.record for one in seen], self._measured)
            part.patients.table.loc[rows.index, "patient_id"] = rows["patient_id"]
        part.errors[batch.rows] = [one.error for one in seen]
        part.missing[batch.rows] = self._lacking(seen, rows)
        good = np.flatnonzero([not one.error for one in seen])
        if len(good):
            pictures = [seen[row].pictures for row in good]
            part.seen[batch.rows.start + good] = self._seen(rows.iloc[good], pictures)
        if self.others:
            context = next(member for member in self._members if member.context)
            part.keys[batch.rows] = context.keys(rows)
        if batch.last:
            yield part

    def _told(
        self,
        part: Part,
        probabilities: str,
        threshold: float | None,
        batch_size: int,
        spool: Spool | None = None,
    ) -> Predicted:
        """What is made of a part that was looked at."""
        values = np.full((len(part.table), 3 * len(self.classes) + 1), np.nan)
        for start in range(0, len(values), batch_size):
            rows = slice(start, start + batch_size)
            good = np.flatnonzero(part.errors[rows] == "")
            if len(good):
                others = spool.others(part, rows, self.others) if spool else (None, None)
                given = (each if each is None else each[good] for each in others)
                values[start + good] = self._mean(part.seen[rows][good], *given)
        whole = part.patients.table
        patients = whole["patient_id"].fillna(whole["lesion_id"]).fillna("")
        output = pd.DataFrame({"image_id": whole["image_id"], "patient_id": patients})
        if "target" in part.table.columns:
            output["target"] = part.table["target"].to_numpy()
        said = self._said(values, part.errors, probabilities, threshold)
        output = pd.concat([output, said.assign(missing=part.missing)], axis=1)
        return Predicted(output, part.patients.unknown)

    def _lacking(self, seen: Sequence[Seen], table: pd.DataFrame) -> list[str]:
        """What the models would have used, a row each, with `|` between."""
        used = self.columns if "record" in self.inputs else []
        absent = [bool(self._views) and not one.pictures for one in seen]
        blank = [absent, *(table[name].map(is_missing) for name in used)]
        names = ("image", *used)
        return ["|".join(compress(names, row)) for row in zip(*blank, strict=True)]

    def _seen(
        self, table: pd.DataFrame, pictures: Sequence[Pictures]
    ) -> Float64[np.ndarray, "g seen"]:
        """What each member sees of rows that can be predicted, side by side."""
        seen = []
        for member in self._members:
            view = member.view
            images = None
            shown = np.array([view is None or view in each for each in pictures])
            if view is not None:
                nothing = np.zeros((view.size, view.size, 3), np.uint8)
                images = np.stack([each.get(view, nothing) for each in pictures])
            seen.append(member.look(table, images, shown))
        return np.hstack(seen)

    def _mean(
        self,
        seen: Float64[np.ndarray, "g seen"],
        others: Float64[np.ndarray, "g s seen"] | None,
        there: Bool[np.ndarray, "g s"] | None,
    ) -> Float64[np.ndarray, "g columns"]:
        """The members' means for rows that were seen, and others of their patients.

        Raw and calibrated probabilities, the share of prediction sets that hold each class, and the
        unfamiliarity, side by side.
        """
        shares = (
            [None] * len(self._members) if each is None else np.split(each, self._ends[:-1], -1)
            for each in (seen, others)
        )
        opinions = [
            member.judge(own, beside, there)
            for member, own, beside in zip(self._members, *shares, strict=True)
        ]
        means = [_mean_of_known(part, len(seen)) for part in zip(*opinions, strict=True)]
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


def _device(accelerator: str) -> torch.device:
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise InputError("accelerator=gpu: no GPU is available here; use accelerator=cpu")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")
