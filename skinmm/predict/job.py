"""`predict.py`: a list of patients in, their predictions out, a chunk at a time."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd
from tqdm import tqdm

from skinmm import __version__
from skinmm.config import PredictConfig
from skinmm.errors import InputError
from skinmm.evaluation.predictions import DECISIONS
from skinmm.models.lesion_finder import MaskCheckpointError
from skinmm.predict.batch import PredictionTable
from skinmm.predict.explain import Explainer
from skinmm.predict.extra_outputs import ExplanationWriter, write_patient_summary, write_submission
from skinmm.predict.images import ImageFolder
from skinmm.predict.predictor import Predictor
from skinmm.predict.reader import (
    canonical_patients,
    contains_records,
    count_rows,
    describe_missing_columns,
    fingerprint,
    read_tables,
    rename_training_columns,
)
from skinmm.predict.writer import Output, check_place, format_of
from skinmm.segmentation.predict import write_masks

CHUNK: Final = 256  # rows that are written at a time, about: whole batches
MAX_WORKERS: Final = 8
LANES: Final = 4  # batches at a time: each holds some 200 MB
FIRST: Final = 32  # rows of which one has its image beside the table, where no folder is named
DECIDING: Final = (
    "input",
    "images",
    "probabilities",
    "threshold",
    "referral",
    "batch_size",
    "accelerator",
    "explain",
)
"""Settings that decide about the rows: a job is only gone on with if they are the same."""


def predict_file(config: PredictConfig) -> int:
    """Runs a prediction job; with a checkpoint that draws masks, the output is a folder of them.

    Returns:
        The exit status: 0, or 3 when some rows could not be predicted; the output says why.

    Raises:
        InputError: a missing checkpoint, table, folder or column, an output in the way, or an input
            that changed.
        OSError: the output cannot be written; the rows so far are kept.
    """
    before, path = fingerprint(config.input), Path(config.output)
    _check_places(config)
    paths, images = find_checkpoints(config.checkpoint), ImageFolder(_folder(config))
    try:
        predictor = Predictor.from_checkpoints(
            paths,
            config.accelerator,
            referral=config.referral,
            backend=config.backend,
            lanes=LANES,
        )
    except MaskCheckpointError:
        if len(paths) > 1 or config.explain:
            raise
        _check_images(config, images, begun=config.resume and path.is_dir())
        return write_masks(config, paths[0], images, _workers(config.workers))
    job = {name: value for name, value in asdict(config).items() if name in DECIDING}
    job |= {"the input's content": before, "version": __version__}
    job |= {"checkpoint": predictor.identity, "backend": predictor.backend}
    output = Output(path, job, resume=config.resume, overwrite=config.overwrite)
    _check_images(config, images, predictor, begun=output.rows > 0)
    with output, _explanations(predictor, config, paths, images, output.rows) as explanations:
        for predicted in _predicted(predictor, config, images, output.rows):
            _refuse_changed(config.input, before)
            if explanations:
                explanations.add(predicted)
            output.write(predicted.table, predicted.unknown)
        _refuse_changed(config.input, before)
        if not output.rows:
            raise InputError(f"input={config.input}: the table has no rows")
        if config.by_patient:
            write_patient_summary(output.finished(), Path(config.by_patient))
        if config.submission:
            write_submission(output.finished(), Path(config.submission))
    _tell(output, config, predictor.backend)
    return 3 if output.decisions[""] else 0


def _predicted(
    predictor: Predictor, config: PredictConfig, images: ImageFolder, done: int
) -> Iterator[PredictionTable]:
    """The rows after those that are done, a chunk at a time."""
    wanted = _wanted(predictor, config.input)

    @cache  # the line is said once
    def tell(*names: str) -> None:
        if line := describe_missing_columns(names, wanted):
            tqdm.write(line, file=sys.stderr)

    def tables() -> Iterator[pd.DataFrame]:
        left = read_tables(config.input, _chunk(config.batch_size), done)
        for table in _watched(left, config.input, done, config.batch_size):
            yield table
            tell(
                *rename_training_columns(table, predictor.ensemble.names)
            )  # not of a table that is refused

    yield from predictor.stream(
        tables(),
        images,
        probabilities=config.probabilities,
        threshold=config.threshold,
        batch_size=config.batch_size,
        workers=_workers(config.workers),
    )


def _wanted(predictor: Predictor, source: str) -> list[str]:
    """The record columns that a table is to have, unless it is a folder with records of its own."""
    if contains_records(Path(source)):
        return []
    return [name for name in predictor.columns if name not in predictor.ensemble.measured]


def _explanations(
    predictor: Predictor,
    config: PredictConfig,
    paths: Sequence[Path],
    images: ImageFolder,
    done: int,
) -> AbstractContextManager[ExplanationWriter | None]:
    """What explains the rows after those that are done, where that is wished for."""
    if config.explain is None:
        return nullcontext()
    folder = Path(config.explain)
    again = config.overwrite or config.resume
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not again):
        raise InputError(f"explain={folder}: name a new or an empty folder, or overwrite=true")
    wish = config.accelerator, config.probabilities
    explainers = Explainer.for_predictor(predictor, paths, *wish)
    return ExplanationWriter(folder, explainers, images, done)


def find_checkpoints(wish: Any) -> list[Path]:
    """The files that a path, a pattern or a list of either names, in order, each once.

    Raises:
        InputError: a name or pattern that matches no file.
    """
    names = [wish] if isinstance(wish, str) else list(wish or [])
    found: dict[Path, None] = {}
    for name in map(str, names):
        # A file of that very name comes before what its brackets might match.
        paths = [name] if Path(name).exists() else sorted(glob.glob(name))  # noqa: PTH207
        if not paths:
            raise InputError(f"checkpoint={name}: no such file, and as a pattern it matches none")
        found.update(dict.fromkeys(map(Path, paths)))
    return list(found)


def _chunk(batch_size: int) -> int:
    return batch_size * -(-CHUNK // batch_size)


def _watched(
    tables: Iterable[pd.DataFrame], source: str, done: int, first: int
) -> Iterator[pd.DataFrame]:
    """The tables, with a bar of rows, rate and time left where a person looks on.

    The first batch comes alone, so that something is there to be looked at soon.
    """
    watched = sys.stderr.isatty()
    total = count_rows(source) if watched else None
    with tqdm(
        total=total, initial=done, unit=" rows", desc="predicting", disable=not watched
    ) as bar:
        for table in tables:
            for part in (table.iloc[:first], table.iloc[first:]):
                if len(part):
                    yield part
            first = 0
            bar.update(len(table))


def _refuse_changed(source: str, before: str) -> None:
    """A folder was listed at once, so that it may change."""
    if not Path(source).is_dir() and fingerprint(source) != before:
        raise InputError(f"input={source} changed while it was read; overwrite=true starts again")


def _check_places(config: PredictConfig) -> None:
    """Refuses places that are in use, or each other."""
    path = Path(config.output)
    if path.exists() and Path(config.input).exists() and path.samefile(config.input):
        raise InputError(f"output={path} is the input itself; choose another")
    format_of(path)
    seen = {Path(config.input).absolute(): "input", path.absolute(): "output"}
    for name in ("by_patient", "submission"):
        if place := getattr(config, name):
            if Path(place).suffix.lower() != ".csv":
                raise InputError(f"{name}={place}: name a file that ends in .csv")
            if twin := seen.get(Path(place).absolute()):
                raise InputError(f"{name}={place} is the {twin} as well; choose another")
            seen[Path(place).absolute()] = name
            check_place(name, Path(place), overwrite=config.overwrite)


def _check_images(
    config: PredictConfig, images: ImageFolder, predictor: Predictor | None = None, *, begun: bool
) -> None:
    """Refuses a new job whose table names images that are not beside it, where no folder is named.

    A table that says itself where its images are is not refused.
    """
    blind = predictor and "image" not in predictor.inputs
    if begun or blind or config.images or Path(config.input).is_dir():
        return
    names = predictor.ensemble.names if predictor else {}
    for table in islice(read_tables(config.input, FIRST), 1):
        told = rename_training_columns(table, names)
        cells = canonical_patients(told, [], needs_image=False).cells["image_id"]
        wanted = [name for name in cells if name]
        placed = any("://" in name or Path(name).is_absolute() for name in wanted)
        if wanted and not placed and not any(map(images.find, wanted)):
            raise InputError(
                f"none of the first {len(wanted)} images is beside {config.input}: name their "
                "folder, images=DIR"
            )


def _folder(config: PredictConfig) -> str:
    if config.images:
        return config.images
    return config.input if Path(config.input).is_dir() else os.path.dirname(config.input) or "."  # noqa: PTH120


def _workers(wish: int | None) -> int:
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if wish is None else wish


def _tell(output: Output, config: PredictConfig, backend: str) -> None:
    """Says what was counted: decisions (none for a row that failed), and unknown values."""
    for name, count in output.unknown.items():
        if count:
            print(f"{name}: {count} unknown values treated as missing", file=sys.stderr)  # noqa: T201
    failed = output.decisions[""]
    if failed:
        reason = f"{failed} of {output.rows} rows not predicted; see the column error"
        print(reason, file=sys.stderr)  # noqa: T201
    counts = [f"{output.decisions[name]} {name}" for name in DECISIONS if output.decisions[name]]
    decided = f": {', '.join(counts)}" if counts else ""
    print(f"predictions: {config.output} ({output.rows} rows{decided}; by {backend})")  # noqa: T201
    others = {"patients": config.by_patient, "submission": config.submission}
    for name, path in (others | {"explanations": config.explain}).items():
        if path:
            print(f"{name}: {path}")  # noqa: T201
