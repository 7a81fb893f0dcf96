"""Tables, batch by batch: images are read, and the networks look at them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from skinmm.errors import InputError
from skinmm.images.source import COLUMNS, fill_empty_cells, has_empty_cell
from skinmm.predict.batch import Batch, TableBatch
from skinmm.predict.ensemble import Ensemble
from skinmm.predict.images import ImageFolder, Images, LoadedRow, look
from skinmm.predict.reader import canonical_patients, rename_training_columns
from skinmm.vocabulary import Table

AHEAD: Final = 3
"""Batches whose images are read before the networks are asked."""
Submit = Callable[..., "Future[LoadedRow]"]
T = TypeVar("T")


def looked(
    ensemble: Ensemble,
    tables: Iterable[Table],
    images: str | Path | Images | None,
    batch_size: int,
    workers: int,
) -> Iterator[TableBatch]:
    """Tables whose rows the networks have looked at (see `Predictor.stream`).

    Up to `ensemble.lanes` batches are looked at side by side; the answers come in order.
    """
    folder = ImageFolder(images) if isinstance(images, str | Path) else images
    readers = ThreadPoolExecutor(workers) if workers else None
    lanes = ThreadPoolExecutor(ensemble.lanes) if ensemble.lanes > 1 else None
    submit, ask = (pool.submit if pool else _done for pool in (readers, lanes))
    ahead: deque[Batch] = deque()
    asked: deque[Future[list[TableBatch]]] = deque()
    waiting = 2 * ensemble.lanes if lanes else 0  # what is told meanwhile lets no lane wait
    try:
        for batch in _begun(ensemble, tables, folder, submit, batch_size):
            ahead.append(batch)
            if len(ahead) > AHEAD:
                asked.append(ask(_ended, ensemble, ahead.popleft()))
            if len(asked) > waiting:
                yield from asked.popleft().result()
        for batch in ahead:
            asked.append(ask(_ended, ensemble, batch))
        for answer in asked:
            yield from answer.result()
    finally:
        for pool in (readers, lanes):
            if pool:
                pool.shutdown(cancel_futures=True)


def _part_of(table: Table, ensemble: Ensemble) -> TableBatch:
    """A table that nobody has looked at yet.

    Raises:
        InputError: no column that names images, although a member needs them.
    """
    table = rename_training_columns(table, ensemble.names)
    patients = canonical_patients(table, ensemble.columns, needs_image=ensemble.needs_image)
    for name, unknown in ensemble.unknown(patients.cells).items():
        patients.cells[name][unknown] = None
        patients.unknown[name] += int(unknown.sum())
    return TableBatch(patients, ensemble.width)


def _begun(
    ensemble: Ensemble,
    tables: Iterable[Table],
    folder: Images | None,
    submit: Submit,
    batch_size: int,
) -> Iterator[Batch]:
    """Batches whose images are being read; each table ends a batch."""
    for table in tables:
        part = _part_of(table, ensemble)
        if folder is None and ensemble.needs_image:
            raise InputError("these models need images: name their folder, images=DIR")
        wanted = has_empty_cell(part.cells, COLUMNS)
        look_at = partial(
            look,
            needs_image=ensemble.needs_image,
            finder=ensemble.finder if has_empty_cell(part.cells, ensemble.measured).any() else None,
        )
        for start in range(0, max(part.size, 1), batch_size):
            rows = slice(start, start + batch_size)
            wishes = zip(part.cells["image_id"][rows], wanted[rows].tolist(), strict=True)
            seen = [submit(look_at, name, wish, folder, ensemble.views) for name, wish in wishes]
            yield Batch(part, rows, seen, last=rows.stop >= part.size)


def _ended(ensemble: Ensemble, batch: Batch) -> list[TableBatch]:
    """Lets the networks look at a batch; the last one of a table gives all its rows."""
    part, seen = batch.part, [each.result() for each in batch.seen]
    rows = {name: cells[batch.rows] for name, cells in part.cells.items()}
    if any(one.record for one in seen):
        rows |= fill_empty_cells(rows, [one.record for one in seen], ensemble.measured)
        part.cells["patient_id"][batch.rows] = rows["patient_id"]
    part.errors[batch.rows] = [one.error for one in seen]
    part.missing[batch.rows] = ensemble.lacking(rows, [bool(one.pictures) for one in seen])
    good = np.flatnonzero([not one.error for one in seen])
    if len(good):
        kept = {name: cells[good] for name, cells in rows.items()}
        pictures = [seen[row].pictures for row in good]
        part.seen[batch.rows.start + good] = ensemble.look(kept, pictures)
    return [part] if batch.last else []


def _done(call: Callable[..., T], *args: Any) -> "Future[T]":
    """A call that is made at once: without a thread, as for a single row."""
    future: Future[T] = Future()
    future.set_result(call(*args))
    return future
