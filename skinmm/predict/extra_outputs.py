"""Further outputs of a prediction job: a row per patient, a competition file, explanations."""

import csv
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd
from PIL import Image

from skinmm.config import PredictConfig
from skinmm.data.lesions import SEPARATOR
from skinmm.errors import InputError, require_new_output
from skinmm.files import atomic_write
from skinmm.images.finder import strip_suffix
from skinmm.predict.attribution import IMAGE, MAX_COLUMNS, name_inputs
from skinmm.predict.explain import Explainer, explain_case
from skinmm.predict.inputs import ImageFolder
from skinmm.predict.loading import CaseImage, describe_error
from skinmm.predict.predictor import PredictionTable, Predictor
from skinmm.predict.writer import require_output_file, to_csv
from skinmm.vocabulary import UNITS

Rows = Iterable[pd.DataFrame]
MAX_LESIONS: Final = 20
"""Lesions per patient that are named, in descending order of risk."""


@dataclass
class ExtraOutput:
    """Additional output of a prediction job; by default a CSV written at the end."""

    label: str
    path: Path
    summarize: Callable[[Rows], Rows] = iter

    def add(self, predictions: PredictionTable) -> None:
        """Process the next predictions."""

    def finish(self, rows: Rows) -> None:
        """Write the results that need the complete output, given as blocks of text."""
        with (
            atomic_write(self.path) as partial,
            partial.open("w", encoding="utf-8", newline="") as file,
        ):
            for number, table in enumerate(self.summarize(rows)):
                file.write(to_csv(table, header=number == 0))


@contextmanager
def open_extra_outputs(
    config: PredictConfig,
    predictor: Predictor,
    checkpoints: Sequence[Path],
    images: ImageFolder,
    rows_done: int,
) -> Iterator[list[ExtraOutput]]:
    """Open the extra outputs of a job, and close them at the end of the block."""
    extras = [
        ExtraOutput(label, Path(getattr(config, key)), summarize)
        for key, (label, summarize) in SUMMARIES.items()
        if getattr(config, key)
    ]
    if config.explain is None:
        yield extras
        return
    folder = Path(config.explain)
    if folder.is_file():
        raise InputError(f"explain={folder} is a file; name a folder")
    require_new_output("explain", folder, overwrite=config.overwrite or config.resume)
    explainers = Explainer.for_predictor(
        predictor, checkpoints, config.accelerator, config.probabilities
    )
    with ExplanationWriter(folder, explainers, images, rows_done) as writer:
        yield [*extras, writer]


def check_summary_paths(config: PredictConfig) -> None:
    """Raise InputError if a summary is not writable, or its path is that of another setting."""
    used = {Path(getattr(config, key)).absolute(): key for key in ("input", "output")}
    for key in SUMMARIES:
        if getattr(config, key):
            path = Path(getattr(config, key))
            if path.suffix.lower() != ".csv":
                raise InputError(f"{key}={path}: name a file that ends in .csv")
            if other := used.get(path.absolute()):
                raise InputError(f"{key}={path}: {other} names the same file; choose another path")
            used[path.absolute()] = key
            require_output_file(key, path, overwrite=config.overwrite)


@dataclass
class _Patient:
    lesions: list[tuple[float, str]] = field(default_factory=list)  # malignancy and image
    reasons: dict[str, list[str]] = field(default_factory=dict)  # by decision
    errors: list[str] = field(default_factory=list)
    images: int = 0

    def add(self, row: Mapping[Hashable, Any]) -> None:
        self.images += str(row.get("images", "")).count("|") + 1
        if row["error"]:
            self.errors.append(row["error"])
            return
        lesion = (float(row["malignancy"]), row["image_id"])
        self.lesions = sorted([*self.lesions, lesion], key=lambda one: -one[0])[:MAX_LESIONS]
        reasons = self.reasons.setdefault(row["decision"], [])
        if (reason := _describe_reason(row)) and len(reasons) < MAX_LESIONS:
            reasons.append(reason)

    def to_row(self) -> dict[str, Any]:
        """Return the worst decision (malignant, refer, benign); errors count as refer."""
        decisions = {*self.reasons} | ({"refer"} if self.errors else set())
        decision = next(name for name in ("malignant", "refer", "benign") if name in decisions)
        reasons = [*self.reasons.get(decision, []), *self.errors]
        return {
            "decision": decision,
            "malignancy": self.lesions[0][0] if self.lesions else None,
            "images": self.images,
            "lesions": "|".join(lesion[1] for lesion in self.lesions),
            "reasons": "; ".join(reasons[:MAX_LESIONS]),
        }


def summarize_patients(rows: Rows) -> Rows:
    """Return one row per patient, or else lesion, or else image (`unit`), by descending risk.

    `decision` is malignant if any lesion is, else refer if any is or could not be predicted;
    `malignancy` is the highest; `lesions` names the images in descending order of risk; `reasons`
    has the reasons for the decision, lesion by lesion.
    """
    patients: dict[tuple[str, str], _Patient] = {}
    records = (row for table in rows for row in table.to_dict("records"))
    for number, row in enumerate(records, 1):
        unit = next((unit for unit in UNITS if row.get(f"{unit}_id")), "image")
        name = row[f"{unit}_id"] or f"row {number}"
        patients.setdefault((name, unit), _Patient()).add(row)
    table = pd.DataFrame(
        {"patient_id": name, **patient.to_row(), "unit": unit}
        for (name, unit), patient in patients.items()
    )
    yield table.sort_values("malignancy", ascending=False, kind="stable", na_position="last")


def _format_submission(rows: Rows) -> Rows:
    """Return `image_name,target`: the probability of malignancy of every image.

    Of a model of several classes by lesion: `lesion_id`, and a column for each class, as MILK10k
    asks for; `half_<class>`, where 0.5 is the cut, if `evaluation.half_cut` added it.
    """
    for table in rows:
        columns = sorted(map(str, table))
        prefix = "half_" if any(name.startswith("half_") for name in columns) else "p_"
        classes = [name for name in columns if name.startswith(prefix)]
        if "images" in table and len(classes) > 2:  # noqa: PLR2004
            scores = table[classes].set_axis([n.partition("_")[2].upper() for n in classes], axis=1)
            yield pd.concat([table["lesion_id"], scores.astype(float).fillna(0)], axis=1)
            continue
        names = [strip_suffix(os.path.basename(cell)) for cell in table["image_id"]]  # noqa: PTH119
        yield pd.DataFrame({"image_name": names, "target": table["malignancy"]})


def _describe_reason(row: Mapping[Hashable, Any]) -> str:
    """Return the reasons for a decision; empty for a benign lesion that is not referred."""
    malignancy, threshold = float(row["malignancy"]), float(row["threshold"] or "nan")
    reasons = []
    if malignancy >= threshold:
        reasons.append(f"malignancy {malignancy:.3g} reaches {threshold:.3g}")
    elif row["decision"] == "malignant":  # raw probabilities, decided by calibrated ones
        reasons.append("the calibrated probability reaches the threshold")
    if row["ood"] and float(row["ood"]) > 1:
        reasons.append(f"unlike development ({float(row['ood']):.3g})")
    elif row["decision"] == "refer":
        near = "" if reasons else f"malignancy {malignancy:.3g}, "
        reasons.append(f"{near}neither decision is safe")
    if reasons and row["missing"]:
        reasons.append(f"without {row['missing'].replace('|', ', ')}")
    return f"{row['image_id']}: {', '.join(reasons)}" if reasons else ""


SUMMARIES: Final[dict[str, tuple[str, Callable[[Rows], Rows]]]] = {
    "by_patient": ("patients", summarize_patients),
    "submission": ("submission", _format_submission),
}
"""Setting -> label of the file, and the function from the rows of the output to its rows."""
TABLE: Final = "explanations.csv"
SIMILAR_COLUMNS: Final = {
    **{f"similar_{name}": name for name in ("image_id", "diagnosis")},
    "similarity": "similarity",
}
"""Column of the table -> key of `Explanation.similar`, whose values have `|` between them."""
MAX_SIDE: Final = 480  # pixels of a picture's longer side


class ExplanationWriter(ExtraOutput, AbstractContextManager["ExplanationWriter"]):
    """Folder with a heat map over each image, and a table with the contribution of each input.

    In the table, `start` and the columns that begin with `added_` sum up to `explained`, the
    probability of malignancy of the row. For the images of a lesion, `picture` lists a heat map of
    each one that can be used, in the order of `added_image 1`, `added_image 2`, ...
    """

    def __init__(
        self, folder: Path, explainers: Sequence[Explainer], images: ImageFolder, done: int = 0
    ) -> None:
        super().__init__("explanations", folder)
        self._explainers, self._images = explainers, images
        self._columns = sorted({name for one in explainers for name in one.member.columns})
        self._has_views = any(one.has_views for one in explainers)
        views = explainers[0].member.config.data.views if self._has_views else None
        added = [f"added_{name}" for name in name_inputs(self._columns, views)]
        names = ("row", "image_id", "picture", "explained", "start", *added)
        similar = SIMILAR_COLUMNS if any(one.index for one in explainers) else {}
        errors = ["standard_error"] if len(added) > MAX_COLUMNS + 1 else []
        header = [*names, *errors, "share_of_image", "share_of_record", *similar, "error"]
        self._row = done
        folder.mkdir(parents=True, exist_ok=True)
        path, fresh = folder / TABLE, folder / f".{TABLE}.new"
        self._file = fresh.open("w", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._file, header, lineterminator="\n")
        self._table.writeheader()
        if done and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self._table.writerows(islice(csv.DictReader(file), done))
        self._flush()  # before the only copy of the earlier rows is replaced
        fresh.replace(path)

    def __exit__(self, *_: object) -> None:
        """Close the table."""
        self._file.close()

    def add(self, predictions: PredictionTable) -> None:
        """Explain predicted rows; errors are written to the table."""
        names, errors = (predictions.columns[name] for name in ("image_id", "error"))
        columns = {name: predictions.cells[name] for name in ("patient_id", *self._columns)}
        if self._has_views:
            columns |= {name: predictions.cells[name] for name in ("image_id", "view")}
        for row, (name, error) in enumerate(zip(names, errors, strict=True)):
            record = {column: cells[row] for column, cells in columns.items()}
            try:
                cells = {"error": error} if error else self._explain(name, record)
            except Exception as failure:  # the other rows continue
                cells = {"error": describe_error(failure)}
            self._table.writerow({"row": self._row + 1, "image_id": name, **cells})
            self._row += 1
        self._flush()

    def finish(self, rows: Rows) -> None:
        """Do nothing: rows are written when they are explained."""

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _explain(self, name: str, record: dict[str, Any]) -> dict[str, Any]:
        explanation = explain_case(self._explainers, self._read_images(name, record), record)
        contributions = explanation.contributions
        image = contributions.share(IMAGE)
        shares = {} if image is None else {"share_of_image": image, "share_of_record": 1 - image}
        numbers = {
            "explained": contributions.start + sum(contributions.added.values()),
            "start": contributions.start,
            **{f"added_{name}": value for name, value in contributions.added.items()},
            **shares,
        }
        if contributions.errors:
            numbers["standard_error"] = max(contributions.errors.values())
        pictures = []
        for number, drawing in enumerate(explanation.draw(MAX_SIDE)):
            suffix = f"_{number + 1}" if self._has_views else ""
            stem = f"{self._row + 1:07d}_{strip_suffix(Path(name).name)[:100]}{suffix}"
            pictures.append(f"{stem}.png")
            Image.fromarray(drawing).save(self.path / pictures[-1], "png")
        return {
            "picture": SEPARATOR.join(pictures),
            **{column: f"{number:.9g}" for column, number in numbers.items()},
            **{
                column: SEPARATOR.join(str(image[key]) for image in explanation.similar)
                for column, key in (SIMILAR_COLUMNS if explanation.similar else {}).items()
            },
        }

    def _read_images(self, name: str, record: dict[str, Any]) -> list[CaseImage]:
        """Read the images of a row; missing images of a lesion are left out."""
        pairs = [(name, "")]
        if self._has_views:
            names, views = (record.pop(key).split(SEPARATOR) for key in ("image_id", "view"))
            pairs = [*zip(names, views, strict=True)]
        images = []
        for image, view in pairs:
            try:
                location = self._images.find(image)
                if location is not None:
                    images.append(CaseImage(*self._images.read(location), location, view))
                    continue
            except (InputError, OSError):
                if not self._has_views:
                    raise
            if self._has_views:
                images.append(CaseImage(b"", view=view))  # cannot be used, but is counted
        return images
