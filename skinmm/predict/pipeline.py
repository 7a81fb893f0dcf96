"""Prediction pipeline: decodes images in advance while the networks run."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float64

from skinmm.config import name_relative
from skinmm.data.relative import PatientStatistics, compare_rows
from skinmm.errors import InputError, warn
from skinmm.images.source import (
    COLUMNS,
    fill_empty_cells,
    has_empty_cell,
    may_be_dicom,
    read_header_record,
)
from skinmm.predict.ensemble import CalibratedModel, Ensemble
from skinmm.predict.inputs import ImageFolder, Images, rename_training_columns
from skinmm.predict.lesions import group_rows
from skinmm.predict.loading import CaseImage, LoadedRow, load_lesion, load_row
from skinmm.vocabulary import (
    CONVERTERS,
    Columns,
    Table,
    count_table_rows,
    format_cell,
    is_missing,
    match_columns,
    normalise_name,
    parse_column,
)

PREFETCH: Final = 3
"""Batches whose images are decoded before the networks run on them."""
Submit = Callable[..., "Future[LoadedRow]"]
T = TypeVar("T")


class TableBatch:
    """Rows of one table in prediction; its columns may have any recognised names.

    Attributes:
        cells: canonical rows by column: `image_id` (the input cell unchanged, "" where empty),
            `patient_id`, `lesion_id` and the columns of the models.
        unread: column and text of each cell with an unknown value, which became missing.
        target: the column of targets, or else of diagnoses, without blanks around cells, or None.
        size: number of rows.
        scores: scores of the ensemble; NaN until the networks ran.
        errors: why a row cannot be predicted; empty otherwise.
        missing: inputs that a row lacks.
        limited: number of lesions with more images than the models use.
    """

    def __init__(
        self, table: Table, columns: Sequence[str], *, needs_image: bool, score_width: int = 0
    ) -> None:
        names = match_columns(table.keys(), columns)
        public_names = {canonical: public for public, canonical in names.items()}
        if needs_image and "image_id" not in public_names:
            raise InputError(
                "the table has no image column; rename it to image_name, image_id, image or path "
                f"(it has: {', '.join(map(str, table.keys()))})"
            )
        self.size, self.limited = count_table_rows(table), 0
        self.unread: list[tuple[str, str]] = []
        self.target = None
        if label := public_names.get("target") or public_names.get("diagnosis"):
            cells = np.asarray(table[label], object).tolist()
            self.target = np.array([_convert("target", cell) for cell in cells], object)
        self.cells = {}
        for name in ("image_id", "patient_id", "lesion_id", *columns):
            public = public_names.get(name, name)
            self.cells[name] = np.full(self.size, None, dtype=object)
            if public in table:
                cells = np.asarray(table[public], object)
                # Lists and structs of Parquet become text, which counts as an unknown value.
                texts = [cell if isinstance(cell, Hashable) else str(cell) for cell in cells]
                self.cells[name] = np.array(texts, object)
            if name in CONVERTERS:
                raw = self.cells[name]
                self.cells[name], is_unknown = parse_column(raw, name)
                self.unread += [(name, str(cell)) for cell in raw[is_unknown]]
            else:
                self.cells[name] = np.array([_convert(name, c) for c in self.cells[name]], object)
        self.scores = np.full((self.size, score_width), np.nan)
        self.errors, self.missing = np.full((2, self.size), "", dtype=object)


def _convert(name: str, cell: Any) -> Any:
    if name == "image_id":
        return "" if pd.isna(cell) else format_cell(cell)
    if name in ("patient_id", "lesion_id"):
        return None if is_missing(cell) else normalise_name(cell)
    return cell.strip() or None if isinstance(cell, str) else cell


def canonical_record(
    columns: Sequence[str], images: Sequence[CaseImage], record: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return a record with canonical values; missing ones are filled from DICOM headers."""
    table = {name: np.array([record.get(name)], object) for name in ("patient_id", *columns)}
    row = TableBatch(table, columns, needs_image=False).cells
    for image in images:
        if may_be_dicom(image.path) and has_empty_cell(row, COLUMNS).any():
            header = read_header_record(image.path, BytesIO(image.data))
            row |= fill_empty_cells(row, [header])
    return row


def known_values(row: Columns, columns: Sequence[str]) -> dict[str, Any]:
    """Return the values of a record that are not missing."""
    return {name: row[name].tolist()[0] for name in columns if not is_missing(row[name][0])}


def run_pipeline(
    ensemble: Ensemble,
    tables: Iterable[Table],
    images: str | Path | Images | None,
    batch_size: int,
    workers: int,
    patients: PatientStatistics | None = None,
) -> Iterator[TableBatch]:
    """Run the networks on tables, `ensemble.concurrency` batches at once, with results in order.

    `patients` has the rows of all tables, for `data.relative`; by default those of each table.
    """
    images = ImageFolder(images) if isinstance(images, str | Path) else images
    decoders = ThreadPoolExecutor(workers) if workers else None
    runners = ThreadPoolExecutor(ensemble.concurrency) if ensemble.concurrency > 1 else None
    submit, start = (pool.submit if pool else _call_now for pool in (decoders, runners))
    loading: deque[_Step] = deque()
    running: deque[Future[list[TableBatch]]] = deque()
    # Twice as many as run, so that no runner waits while the caller uses a result.
    max_running = 2 * ensemble.concurrency if runners else 0
    try:
        for step in _submit(ensemble, tables, images, submit, batch_size, patients):
            loading.append(step)
            if len(loading) > PREFETCH:
                running.append(start(_collect, ensemble, loading.popleft()))
            if len(running) > max_running:
                yield from running.popleft().result()
        for step in loading:
            running.append(start(_collect, ensemble, step))
        for batches in running:
            yield from batches.result()
    finally:
        for pool in (decoders, runners):
            if pool:
                pool.shutdown(cancel_futures=True)


_Step = tuple[TableBatch, slice, "list[Future[LoadedRow]]"]  # rows of one table and their images


def _submit(
    ensemble: Ensemble,
    tables: Iterable[Table],
    images: Images | None,
    submit: Submit,
    batch_size: int,
    patients: PatientStatistics | None,
) -> Iterator[_Step]:
    """Start to load images batch by batch; a batch never mixes rows of two tables."""
    limited = 0
    for table in tables:
        batch = _read_batch(table, ensemble)
        limited += batch.limited
        _refuse_cells(batch, ensemble)
        if ensemble.relative:
            numbers = _read_numbers(batch, ensemble)
            columns = patients.compare(*numbers[:2]) if patients else compare_rows(*numbers)
            batch.cells |= dict(zip(name_relative(ensemble.relative), columns.T, strict=True))
        for name, unseen in ensemble.unseen_cells(batch.cells).items():
            batch.unread += [(name, str(text)) for text in batch.cells[name][unseen]]
            batch.cells[name][unseen] = None
        if images is None and ensemble.needs_image:
            raise InputError("these models need images: name their folder, images=DIR")
        read_header = has_empty_cell(batch.cells, COLUMNS)
        measures = has_empty_cell(batch.cells, ensemble.measured_columns).any()
        load = partial(
            load_lesion if ensemble.has_views else load_row,
            needs_image=ensemble.needs_image,
            finder=ensemble.finder if measures else None,
        )
        for start in range(0, max(batch.size, 1), batch_size):
            rows = slice(start, start + batch_size)
            names: Iterable[Any] = batch.cells["image_id"][rows]
            if ensemble.has_views:
                names = zip(names, batch.cells["view"][rows], strict=True)
            cells = zip(names, read_header[rows].tolist(), strict=True)
            futures = [submit(load, *pair, images, ensemble.views) for pair in cells]
            yield batch, rows, futures
    if limited:
        count = ensemble.max_views
        warn(f"{limited} lesions have more than {count} images: {count} of each are used")


def _read_batch(table: Table, ensemble: Ensemble) -> TableBatch:
    """Return the rows of a table; grouped by lesion if the models combine views."""
    table = rename_training_columns(table, ensemble.column_names)
    options: dict[str, Any] = {
        "needs_image": ensemble.needs_image,
        "score_width": ensemble.score_width,
    }
    if not ensemble.has_views:
        return TableBatch(table, ensemble.columns, **options)
    grouped = group_rows(table, ensemble.columns, ensemble.max_views)
    batch = TableBatch(grouped.table, ensemble.columns, **options)
    batch.cells["view"] = grouped.table["view"].to_numpy(object)
    batch.unread += grouped.unread
    for row, error in grouped.errors.items():
        batch.errors[row] = error
    batch.limited = grouped.limited
    return batch


def count_patients(ensemble: Ensemble, tables: Iterable[Table]) -> PatientStatistics:
    """Return the statistics of patients in several tables, for the columns of `data.relative`."""
    patients = PatientStatistics(len(ensemble.relative))
    for table in tables:
        batch = _read_batch(table, ensemble)
        _refuse_cells(batch, ensemble)
        patients.add(*_read_numbers(batch, ensemble))
    return patients


def _read_numbers(
    batch: TableBatch, ensemble: Ensemble
) -> tuple[list[str | None], Float64[np.ndarray, "n columns"], list[str]]:
    """Return the patient of each row, or else its lesion, the columns to compare, the images."""
    names = zip(batch.cells["patient_id"], batch.cells["lesion_id"], strict=True)
    columns = [e.parse(name, batch.cells[name]) for name, e in ensemble.relative.items()]
    patients = [patient or lesion for patient, lesion in names]
    return patients, np.stack(columns, axis=1), batch.cells["image_id"].tolist()


def _refuse_cells(batch: TableBatch, ensemble: Ensemble) -> None:
    """Set the error of rows with an ambiguous number or one not in the unit of training."""
    for member in ensemble.members:  # one column may be numbers in one model and words in another
        for name in [n for n in member.columns if n in batch.cells and n not in CONVERTERS]:
            for row, reason in member.encoder.refuse(name, batch.cells[name]).items():
                batch.errors[row] = batch.errors[row] or reason
                batch.cells[name][row] = None


def _collect(ensemble: Ensemble, step: _Step) -> list[TableBatch]:
    """Run the networks on the loaded rows; return the table once its last row is predicted."""
    batch, rows, futures = step
    loaded = [future.result() for future in futures]
    cells = {name: column[rows] for name, column in batch.cells.items()}
    if any(row.record for row in loaded):
        batch.unread += [
            (name, word)
            for number, row in enumerate(loaded)
            for name, word in row.record.get("unknown", {}).items()
            if name in cells and is_missing(cells[name][number])
        ]
        cells |= fill_empty_cells(cells, [row.record for row in loaded], ensemble.measured_columns)
        batch.cells["patient_id"][rows] = cells["patient_id"]
    batch.errors[rows] = [
        refused or row.error for refused, row in zip(batch.errors[rows], loaded, strict=True)
    ]
    missing = ensemble.missing_inputs(cells, [bool(row.pixels) for row in loaded])
    lost = [[f"image {name}" for name in row.lost] for row in loaded]
    batch.missing[rows] = [
        "|".join(filter(None, (text, *names))) for text, names in zip(missing, lost, strict=True)
    ]
    good = np.flatnonzero(batch.errors[rows] == "")
    if len(good):
        records = {name: column[good] for name, column in cells.items()}
        chosen = [loaded[row] for row in good]
        types = [row.types for row in chosen] if ensemble.has_views else None
        scores = ensemble.run(records, [row.pixels for row in chosen], types)
        batch.scores[rows.start + good] = scores
    return [batch] if rows.stop >= batch.size else []


def _call_now(call: Callable[..., T], *args: Any) -> "Future[T]":
    """Call a function without a thread, which is faster for a single row."""
    future: Future[T] = Future()
    future.set_result(call(*args))
    return future


def require_single_rows(
    members: Sequence[CalibratedModel], feature: str, *, allow_views: bool = False
) -> None:
    """Raise InputError if models need several images or, for `data.relative`, several rows."""
    for member in members:
        if {*member.config.data.relative} & {*member.columns}:
            raise InputError(
                f"{feature}: not available for a checkpoint trained with data.relative, as the "
                "rows of a patient have to be in one table; use predict.py, or train without it"
            )
        if member.config.data.unit == "lesion" and not allow_views:
            raise InputError(
                f"{feature}: not available for a checkpoint trained with data.unit=lesion; use one "
                "trained with data.unit=image"
            )
