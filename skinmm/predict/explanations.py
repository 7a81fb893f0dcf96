"""`predict.py explain=DIR`: why each row has its probability, row by row as they are predicted."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Final

from PIL import Image

from skinmm.errors import InputError
from skinmm.explain import IMAGE, MOST_COLUMNS, RECORD
from skinmm.images.source import Source
from skinmm.predict.images import ImageFolder, bare
from skinmm.predict.overlay import overlay
from skinmm.predict.parts import Predicted
from skinmm.predict.reasons import Explainer, Reasons, shown

TABLE: Final = "explanations.csv"
SIDE: Final = 480  # pixels of a picture's longer side at most


class Explanations(AbstractContextManager["Explanations"]):
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

    def add(self, predicted: Predicted) -> None:
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
        reasons = Reasons.mean(each)
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

    def _drawn(self, name: str, source: Source, reasons: Reasons) -> str:
        """The name of the picture that was written, if there is anything to draw."""
        if reasons.heat is None:
            return ""
        picture = f"{self._row + 1:07d}_{bare(Path(name).name)[:100]}.png"
        seen = shown(source.data, source.frame, SIDE) if reasons.seen is None else reasons.seen
        Image.fromarray(overlay(seen, reasons.heat)).save(self._folder / picture, "png")
        return picture


def _rows(path: Path, most: int) -> Iterator[dict[str, str]]:
    """The first rows of a table that an earlier job left."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from islice(csv.DictReader(file), most)
