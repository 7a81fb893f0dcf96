"""Several members that judge the same rows: each looks and is calibrated alone, then the mean."""

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation.predictions import BINARY
from skinmm.predict.images import Pictures
from skinmm.predict.model import CalibratedModel
from skinmm.vocabulary import CONVERTERS, Columns, is_missing


class EnsembleOutput(NamedTuple):
    """The members' means, a row each, NaN where nothing was judged.

    Attributes:
        raw: the networks' own probabilities.
        calibrated: as the checkpoints' calibrations say.
        votes: the share of prediction sets that hold each class; NaN where no member makes sets.
        ood: how unlike validation; NaN where no member knows.
    """

    raw: Float64[np.ndarray, "n classes"]
    calibrated: Float64[np.ndarray, "n classes"]
    votes: Float64[np.ndarray, "n classes"]
    ood: Float64[np.ndarray, " n"]

    @classmethod
    def none(cls, rows: int, classes: int) -> "EnsembleOutput":
        """Of rows that nobody judged."""
        raw, calibrated, votes = np.full((3, rows, classes), np.nan)
        return cls(raw, calibrated, votes, np.full(rows, np.nan))

    def put(self, rows: Int64[np.ndarray, " g"], given: "EnsembleOutput") -> None:
        """Writes what was judged of some rows."""
        for own, part in zip(self, given, strict=True):
            own[rows] = part


class Ensemble:
    """Members that predict the same.

    Attributes:
        members: in order.
        columns: record columns that any of them uses.
        names: columns of tables like those of training, and what the members call them.
        inputs: what any of them looks at, of {image, record}.
        needs_image: whether one cannot do without.
        views: how they want images.
        finder: what measures lesions for them, if anything does.
        measured: the columns that it measures.
        width: how many numbers they keep of a row that they looked at.
        lanes: batches that are worth being looked at side by side.
    """

    def __init__(self, members: Sequence[CalibratedModel]) -> None:
        """Takes the members.

        Raises:
            InputError: none, or they do not fit together.
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
            rules = [each.config.evaluation.call for each in (members[0], member)]
            if rules[0] != rules[1] and tuple(first.classes) != BINARY:
                raise InputError(
                    "the checkpoints call classes by different rules: "
                    f"evaluation.call={' against '.join(rules)}; predict with each alone"
                )
        finders = {member.finder for member in members if member.measured}
        if len(finders) > 1:
            raise InputError(
                "the checkpoints measure lesions with different segmenters: predict with each alone"
            )
        self.members = members
        self.columns = sorted({name for member in members for name in member.columns})
        self.names = {
            theirs: name
            for member in members
            if member.config.data.name == "csv"
            for name, theirs in (member.config.data.args.get("columns") or {}).items()
            if name in {"image_id", "patient_id", "lesion_id", *self.columns}
        }
        self.inputs = frozenset[str]().union(*(member.inputs for member in members))
        self.needs_image = any(member.needs_image for member in members)
        self._wishes = [member.view for member in members]
        self.views = {view for view in self._wishes if view is not None}
        self.finder = next(iter(finders), None)
        self.measured = sorted({name for member in members for name in member.measured})
        self._ends = np.cumsum([member.width for member in members])
        self.width = int(self._ends[-1])
        self.lanes = min(member.backend.lanes for member in members)

    def look(self, rows: Columns, pictures: Sequence[Pictures]) -> Float64[np.ndarray, "g width"]:
        """What each member sees of rows that can be predicted, side by side."""
        seen = []
        for member, view in zip(self.members, self._wishes, strict=True):
            images = None
            shown = np.array([view is None or view in each for each in pictures])
            if view is not None:
                nothing = np.zeros((view.size, view.size, 3), np.uint8)
                images = np.stack([each.get(view, nothing) for each in pictures])
            seen.append(member.look(rows, images, shown))
        return np.hstack(seen)

    def unknown(self, rows: Columns) -> dict[str, Bool[np.ndarray, " n"]]:
        """By further column of the record, the cells of which no member has learnt anything."""
        found = {}
        for name in self.columns:
            if name in CONVERTERS:  # these have a vocabulary, whatever training has shown
                continue
            users = [each.encoder for each in self.members if name in each.columns]
            strange = np.logical_and.reduce([each.unknown(name, rows[name]) for each in users])
            if strange.any():
                found[name] = strange
        return found

    def lacking(self, rows: Columns, shown: Sequence[bool]) -> list[str]:
        """What the members would have used, a row each, with `|` between."""
        absent = [bool(self.views) and not there for there in shown]
        blank = [absent, *([is_missing(cell) for cell in rows[name]] for name in self.columns)]
        names = ("image", *self.columns)
        return ["|".join(compress(names, row)) for row in zip(*blank, strict=True)]

    def judge(self, seen: Float64[np.ndarray, "g width"]) -> EnsembleOutput:
        """The members' means for rows that were seen."""
        shares = np.split(seen, self._ends[:-1], -1)
        opinions = [member.judge(own) for member, own in zip(self.members, shares, strict=True)]
        raw, calibrated, sets, ood = map(_mean_of_known, zip(*opinions, strict=True))
        nothing = np.full(len(seen), np.nan)
        return EnsembleOutput(
            raw,
            calibrated,
            np.broadcast_to(nothing[:, None], raw.shape) if sets is None else sets,
            nothing if ood is None else ood,
        )


def _mean_of_known(parts: Sequence[Shaped[np.ndarray, "..."] | None]) -> Any:
    """The mean of what members say, over those that do."""
    known = [part for part in parts if part is not None]
    return np.mean(known, axis=0) if known else None
