"""Tables, batch by batch: images are read, and the networks look at them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from skinmm.errors import InputError
from skinmm.images.dicom_headers import COLUMNS, completed, lacking
from skinmm.predict.batch import Batch, Part
from skinmm.predict.ensemble import Panel
from skinmm.predict.images import ImageFolder, Images, Seen, look
from skinmm.predict.reader import as_trained, canonical_patients
from skinmm.vocabulary import Table

AHEAD: Final = 3
"""Batches whose images are read before the networks are asked."""
Submit = Callable[..., "Future[Seen]"]
T = TypeVar("T")


def looked(
    panel: Panel,
    tables: Iterable[Table],
    images: str | Path | Images | None,
    batch_size: int,
    workers: int,
) -> Iterator[Part]:
    """Tables whose rows the networks have looked at (see `Predictor.stream`).

    Up to `panel.lanes` batches are looked at side by side; the answers come in order.
    """
    folder = ImageFolder(images) if isinstance(images, str | Path) else images
    readers = ThreadPoolExecutor(workers) if workers else None
    lanes = ThreadPoolExecutor(panel.lanes) if panel.lanes > 1 else None
    submit, ask = (pool.submit if pool else _done for pool in (readers, lanes))
    ahead: deque[Batch] = deque()
    asked: deque[Future[list[Part]]] = deque()
    waiting = 2 * panel.lanes if lanes else 0  # what is told meanwhile lets no lane wait
    try:
        for batch in _begun(panel, tables, folder, submit, batch_size):
            ahead.append(batch)
            if len(ahead) > AHEAD:
                asked.append(ask(_ended, panel, ahead.popleft()))
            if len(asked) > waiting:
                yield from asked.popleft().result()
        for batch in ahead:
            asked.append(ask(_ended, panel, batch))
        for answer in asked:
            yield from answer.result()
    finally:
        for pool in (readers, lanes):
            if pool:
                pool.shutdown(cancel_futures=True)


def _part_of(table: Table, panel: Panel) -> Part:
    """A table that nobody has looked at yet.

    Raises:
        InputError: no column that names images, although a member needs them.
    """
    table = as_trained(table, panel.names)
    patients = canonical_patients(table, panel.columns, needs_image=panel.needs_image)
    for name, unknown in panel.unknown(patients.cells).items():
        patients.cells[name][unknown] = None
        patients.unknown[name] += int(unknown.sum())
    return Part(patients, panel.width)


def _begun(
    panel: Panel, tables: Iterable[Table], folder: Images | None, submit: Submit, batch_size: int
) -> Iterator[Batch]:
    """Batches whose images are being read; each table ends a batch."""
    for table in tables:
        part = _part_of(table, panel)
        if folder is None and panel.needs_image:
            raise InputError("these models need images: name their folder, images=DIR")
        wanted = lacking(part.cells, COLUMNS)
        look_at = partial(
            look,
            needs_image=panel.needs_image,
            finder=panel.finder if lacking(part.cells, panel.measured).any() else None,
        )
        for start in range(0, max(part.size, 1), batch_size):
            rows = slice(start, start + batch_size)
            wishes = zip(part.cells["image_id"][rows], wanted[rows].tolist(), strict=True)
            seen = [submit(look_at, name, wish, folder, panel.views) for name, wish in wishes]
            yield Batch(part, rows, seen, last=rows.stop >= part.size)


def _ended(panel: Panel, batch: Batch) -> list[Part]:
    """Lets the networks look at a batch; the last one of a table gives all its rows."""
    part, seen = batch.part, [each.result() for each in batch.seen]
    rows = {name: cells[batch.rows] for name, cells in part.cells.items()}
    if any(one.record for one in seen):
        rows |= completed(rows, [one.record for one in seen], panel.measured)
        part.cells["patient_id"][batch.rows] = rows["patient_id"]
    part.errors[batch.rows] = [one.error for one in seen]
    part.missing[batch.rows] = panel.lacking(rows, [bool(one.pictures) for one in seen])
    good = np.flatnonzero([not one.error for one in seen])
    if len(good):
        kept = {name: cells[good] for name, cells in rows.items()}
        pictures = [seen[row].pictures for row in good]
        part.seen[batch.rows.start + good] = panel.look(kept, pictures)
    return [part] if batch.last else []


def _done(call: Callable[..., T], *args: Any) -> "Future[T]":
    """A call that is made at once: without a thread, as for a single row."""
    future: Future[T] = Future()
    future.set_result(call(*args))
    return future
