"""What is made of a finished output: a row per patient, and the competition's file."""

import csv
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd
from PIL import Image

from skinmm.errors import InputError
from skinmm.files import atomic_write
from skinmm.images.source import Source
from skinmm.predict.attribution import IMAGE, MOST_COLUMNS, RECORD
from skinmm.predict.batch import PredictionTable
from skinmm.predict.explain import Explainer, Explanation, decode_for_display, overlay
from skinmm.predict.images import ImageFolder, strip_image_suffix

Rows = Iterable[pd.DataFrame]
LISTED: Final = 20
"""Lesions of a patient that are named, those of the highest risk first."""


@dataclass
class _Patient:
    """What a patient's rows say.

    `lesions` holds (malignancy, image) of the highest risks, `decisions` the reasons for each
    decision that any row had.
    """

    lesions: list[tuple[float, str]] = field(default_factory=list)
    decisions: dict[str, list[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    images: int = 0

    def row(self) -> dict[str, Any]:
        """Decided by the worst: malignant before refer, and what was not predicted is referred."""
        decisions = {*self.decisions} | ({"refer"} if self.failures else set())
        decided = next(name for name in ("malignant", "refer", "benign") if name in decisions)
        reasons = self.decisions.get(decided, [])
        return {
            "decision": decided,
            "malignancy": self.lesions[0][0] if self.lesions else None,
            "images": self.images,
            "lesions": "|".join(lesion[1] for lesion in self.lesions),
            "reasons": "; ".join([*reasons, *self.failures][:LISTED]),
        }


def write_patient_summary(rows: Rows, path: Path) -> None:
    """Writes a row per patient, the highest risk first; a row of nobody's is a patient's own.

    `decision` is malignant if any lesion is, else refer if any is or could not be predicted;
    `malignancy` is the highest; `lesions` names the images, the highest risk first; `reasons` says
    what speaks for the decision, lesion by lesion.

    Args:
        rows: an output, in parts, as text.
        path: CSV to write.
    """
    patients: dict[str, _Patient] = {}
    for table in rows:
        for row in table.to_dict("records"):
            patient = patients.setdefault(row["patient_id"] or row["image_id"], _Patient())
            patient.images += 1
            if row["error"]:
                patient.failures.append(row["error"])
                continue
            lesion = (float(row["malignancy"]), row["image_id"])
            patient.lesions = sorted([*patient.lesions, lesion], key=lambda one: -one[0])[:LISTED]
            reasons = patient.decisions.setdefault(row["decision"], [])
            if (reason := _reason(row)) and len(reasons) < LISTED:
                reasons.append(reason)
    made = pd.DataFrame({"patient_id": name, **each.row()} for name, each in patients.items())
    ordered = made.sort_values("malignancy", ascending=False, kind="stable", na_position="last")
    _write(ordered, path)


def write_submission(rows: Rows, path: Path) -> None:
    """Writes `image_name,target`: the probability of malignancy of every image.

    Args:
        rows: an output, in parts, as text.
        path: CSV to write.
    """
    _write((_submitted(table) for table in rows), path)


def _submitted(table: pd.DataFrame) -> pd.DataFrame:
    names = [strip_image_suffix(os.path.basename(cell)) for cell in table["image_id"]]  # noqa: PTH119
    return pd.DataFrame({"image_name": names, "target": table["malignancy"]})


def _reason(row: Mapping[Hashable, Any]) -> str:
    """Why a lesion was decided as it was; nothing where it is plainly benign."""
    malignancy, threshold = float(row["malignancy"]), float(row["threshold"])
    reasons = []
    if malignancy >= threshold:
        reasons.append(f"malignancy {malignancy:.3g} reaches {threshold:.3g}")
    if row["decision"] == "refer" and row["prediction_set"]:
        reasons.append(f"prediction set {row['prediction_set']}")
    if row["ood"] and float(row["ood"]) > 1:
        reasons.append(f"unlike validation ({float(row['ood']):.3g})")
    if reasons and row["missing"]:
        reasons.append(f"without {row['missing'].replace('|', ', ')}")
    return f"{row['image_id']}: {', '.join(reasons)}" if reasons else ""


def _write(tables: pd.DataFrame | Iterator[pd.DataFrame], path: Path) -> None:
    """Under a temporary name, then renamed."""
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        parts = [tables] if isinstance(tables, pd.DataFrame) else tables
        for number, table in enumerate(parts):
            table.to_csv(
                file, index=False, header=number == 0, float_format="%.9g", lineterminator="\n"
            )


TABLE: Final = "explanations.csv"
SIDE: Final = 480  # pixels of a picture's longer side at most


class ExplanationWriter(AbstractContextManager["ExplanationWriter"]):
    """A folder with a heat map over each picture, and a table of what each input added.

    Of the table's columns `start` and those that begin with `added_` sum up to `explained`, the
    row's probability of malignancy.
    """

    def __init__(
        self, folder: Path, explainers: Sequence[Explainer], images: ImageFolder, done: int = 0
    ) -> None:
        """Opens the folder.

        Args:
            folder: made where it is missing.
            explainers: of the checkpoints.
            images: where the rows' images are.
            done: rows that an earlier job finished; what is there of later ones is made again.
        """
        self._folder, self._explainers, self._images = folder, explainers, images
        self._columns = sorted({name for each in explainers for name in each.columns})
        parts = self._columns if len(self._columns) <= MOST_COLUMNS else [RECORD]
        added = [f"added_{name}" for name in (IMAGE, *parts)]
        names = ("row", "image_id", "picture", "explained", "start", *added)
        header = [*names, "share_of_image", "share_of_record", "error"]
        self._row = done
        folder.mkdir(parents=True, exist_ok=True)
        path, fresh = folder / TABLE, folder / f".{TABLE}.new"
        self._file = fresh.open("w", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._file, header, lineterminator="\n")
        self._table.writeheader()
        if done and path.is_file():
            self._table.writerows(_rows(path, done))
        self._flush()  # what the earlier job wrote is nowhere else once it is replaced
        fresh.replace(path)

    def __exit__(self, *_: object) -> None:
        """Closes the table."""
        self._file.close()

    def add(self, predicted: PredictionTable) -> None:
        """Explains rows that were predicted.

        Raises:
            OSError: they cannot be written.
        """
        names, errors = (predicted.columns[name] for name in ("image_id", "error"))
        for place, (name, error) in enumerate(zip(names, errors, strict=True)):
            known = ("patient_id", *self._columns)
            record = {column: predicted.cells[column][place] for column in known}
            try:
                said = {"error": error} if error else self._explained(name, record)
            except (OSError, InputError) as lost:
                said = {"error": " ".join(str(lost).split())}
            except Exception as lost:  # whatever is wrong with it, the other rows go on
                said = {"error": f"{type(lost).__name__}: {' '.join(str(lost).split())}"}
            self._table.writerow({"row": self._row + 1, "image_id": name, **said})
            self._row += 1
        self._flush()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _explained(self, name: str, record: dict[str, Any]) -> dict[str, Any]:
        path = self._images.find(name)
        source = Source(b"") if path is None else self._images.read(path)
        image = source.data or None
        each = [one.explain(image, record, source.frame, path or "") for one in self._explainers]
        reasons = Explanation.mean(each)
        found = reasons.contributions
        share = found.share(IMAGE)
        parts = {f"added_{input_}": f"{value:.9g}" for input_, value in found.added.items()}
        return {
            "picture": self._drawn(name, source, reasons),
            "explained": f"{found.start + sum(found.added.values()):.9g}",
            "start": f"{found.start:.9g}",
            **parts,
            "share_of_image": "" if share is None else f"{share:.9g}",
            "share_of_record": "" if share is None else f"{1 - share:.9g}",
        }

    def _drawn(self, name: str, source: Source, reasons: Explanation) -> str:
        """The name of the picture that was written, if there is anything to draw."""
        if reasons.heat is None:
            return ""
        picture = f"{self._row + 1:07d}_{strip_image_suffix(Path(name).name)[:100]}.png"
        seen = (
            decode_for_display(source.data, source.frame, SIDE)
            if reasons.seen is None
            else reasons.seen
        )
        Image.fromarray(overlay(seen, reasons.heat)).save(self._folder / picture, "png")
        return picture


def _rows(path: Path, most: int) -> Iterator[dict[str, str]]:
    """The first rows of a table that an earlier job left."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from islice(csv.DictReader(file), most)
