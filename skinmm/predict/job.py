"""`predict.py`: predict a table of patients chunk by chunk, and write a table of predictions."""

import os
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd
from tqdm import tqdm

from skinmm import __version__
from skinmm.config import PredictConfig, keys_with
from skinmm.config.checkpoints import announce_included, find_checkpoints
from skinmm.config.commands import EmbedConfig, SimilarConfig
from skinmm.config.cores import count_cores
from skinmm.data.lesions import SEPARATOR, name_spread_columns
from skinmm.data.relative import PatientStatistics
from skinmm.errors import InputError, list_words, print_error, print_line, warn
from skinmm.evaluation.predictions import DECISIONS
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images.finder import describe_folders
from skinmm.predict.ensemble import Ensemble
from skinmm.predict.extra_outputs import check_summary_paths, open_extra_outputs
from skinmm.predict.inputs import (
    ImageFolder,
    contains_records,
    count_rows,
    describe_missing_columns,
    fingerprint,
    read_input,
    rename_training_columns,
)
from skinmm.predict.lesions import fill_from_headers, sort_by_lesion
from skinmm.predict.pipeline import TableBatch, count_patients
from skinmm.predict.predictor import PredictionTable, Predictor, load_predictor
from skinmm.predict.writer import OutputTable, find_format
from skinmm.vocabulary import COLUMN_NAMES, match_columns

CHUNK: Final = 256  # rows written at a time, rounded up to whole batches
MAX_WORKERS: Final = 8
MAX_WORDS: Final = 1000  # unknown values in memory
CONCURRENCY: Final = 4  # batches at a time; each needs about 200 MB
PROBED_ROWS: Final = 32  # one of these must have its image next to the table, if no folder is named


def predict_file(config: PredictConfig) -> int:
    """Run a prediction job.

    Returns:
        Exit status: 0, or 3 if some rows could not be predicted; the output contains the reasons.
    """
    input_state = fingerprint(config.input)
    check_paths(config)
    checkpoints = find_checkpoints(config.checkpoint)
    announce_included(checkpoints)
    images = ImageFolder(find_image_folder(config))
    predictor = load_predictor(config, checkpoints, CONCURRENCY)
    output = OutputTable(
        Path(config.output),
        _describe_job(config, predictor, input_state),
        resume=config.resume,
        overwrite=config.overwrite,
    )
    if not output.rows and "image" in predictor.inputs:
        require_images(config, images, predictor.ensemble.column_names)
    extra_outputs = open_extra_outputs(config, predictor, checkpoints, images, output.rows)
    words = Counter[tuple[str, str]]()
    with output, extra_outputs as extras:
        for predictions in _predict_chunks(config, predictor, images, skip=output.rows):
            _require_unchanged(config.input, input_state)
            for extra in extras:
                extra.add(predictions)
            output.write(predictions.table, predictions.unknown)
            words = Counter(dict((words + predictions.unread).most_common(MAX_WORDS)))
        _require_unchanged(config.input, input_state)
        if not output.rows:
            raise InputError(f"input={config.input}: the table has no rows")
        for extra in extras:
            extra.finish(output.read())
    for name, count in output.unknown.items():
        texts = Counter({text: n for (column, text), n in words.items() if column == name})
        listed = f": {list_words(texts)}" if texts else ""
        print_error(f"{name}: {count} unknown values treated as missing{listed}")
    status = print_summary(output.decisions, config.output, predictor.backend)
    for extra in extras:
        print_line(f"{extra.label}: {extra.path}")
    return status


def check_paths(config: PredictConfig) -> None:
    """Raise InputError if an output is not writable, or two settings have the same path."""
    path = Path(config.output)
    if path.exists() and Path(config.input).exists() and path.samefile(config.input):
        raise InputError(f"output={path} is the input itself; choose another path")
    find_format(path)
    check_summary_paths(config)


def find_image_folder(config: PredictConfig | EmbedConfig | SimilarConfig) -> str:
    """Return the folder of the images: by default the input folder, or the folder of the table."""
    if config.images:
        return config.images
    is_folder = Path(config.input).is_dir()
    return config.input if is_folder else os.path.dirname(config.input) or "."  # noqa: PTH120


def require_images(
    config: PredictConfig | EmbedConfig | SimilarConfig,
    images: ImageFolder,
    column_names: dict[str, str] | None = None,
) -> None:
    """Raise InputError if none of the first images is found; only warn if a folder is given.

    A table with URLs or absolute paths of images is accepted.
    """
    if Path(config.input).is_dir() or "://" in (config.images or ""):
        return
    for table in islice(read_input(config.input, PROBED_ROWS), 1):
        renamed = rename_training_columns(table, column_names or {})
        cells = TableBatch(renamed, [], needs_image=False).cells["image_id"]
        names = [name.strip() for cell in cells if cell for name in cell.split(SEPARATOR)]
        has_paths = any("://" in name or Path(name).is_absolute() for name in names)
        if names and not has_paths and not any(_has_image(images, name) for name in names):
            folder = Path(config.images or Path(config.input).parent)
            listed = f"; {describe_folders(folder)}" if "://" not in config.input else ""
            text = f"none of the first {len(names)} images, such as {names[0]!r}, is"
            if config.images:
                warn(f"{text} in images={folder}{listed}")
                return
            raise InputError(
                f"{text} next to {config.input}; name their folder, images=DIR{listed}"
            )


def _require_inputs(
    config: PredictConfig, names: Sequence[str], ensemble: Ensemble, table: pd.DataFrame
) -> None:
    """Raise InputError if a table has no input, or images but no column known as that of images."""
    columns_of_table = {*names, *match_columns(names, ensemble.columns).values()}
    if "image_id" in columns_of_table:
        return
    has_images = config.images or table.head(50).map(_is_image_name).any(axis=None)
    if columns_of_table & {*ensemble.columns} and not (has_images and "image" in ensemble.inputs):
        return
    raise InputError(
        f"input={config.input}: no image column; rename it to one of "
        f"{', '.join(COLUMN_NAMES['image_id'][:5])} "
        f"(it has: {', '.join(map(str, names))})"
    )


def _is_image_name(cell: object) -> bool:
    return str(cell).lower().endswith(IMAGE_SUFFIXES)


def _has_image(images: ImageFolder, name: str) -> bool:
    try:
        return images.find(name) is not None
    except InputError:
        return True


def count_workers(setting: int | None) -> int:
    """Return the number of decoding threads: by default one per core, at most `MAX_WORKERS`."""
    return min(count_cores(), MAX_WORKERS) if setting is None else setting


def _describe_job(config: PredictConfig, predictor: Predictor, input_state: str) -> dict[str, Any]:
    """Return the settings that determine the output rows, by name."""
    decisive = keys_with(PredictConfig, "decides_rows")
    settings = {name: value for name, value in asdict(config).items() if name in decisive}
    return settings | {
        "the input's content": input_state,
        "version": __version__,
        "checkpoint": predictor.identity,
        "backend": predictor.backend,
    }


def _predict_chunks(
    config: PredictConfig, predictor: Predictor, images: ImageFolder, skip: int
) -> Iterator[PredictionTable]:
    has_views = predictor.ensemble.has_views
    tables = _read_tables(config, predictor, 0 if has_views else skip)
    if has_views:
        folder = Path(config.output).absolute().parent
        named = name_lesions(tables, predictor, images)
        tables = sort_by_lesion(named, predictor.columns, folder, skip)
    with closing(tables):
        yield from predictor.stream(
            tables,
            images,
            probabilities=config.probabilities,
            threshold=config.threshold,
            batch_size=config.batch_size,
            workers=count_workers(config.workers),
            patients=_read_patients(config, predictor.ensemble),
        )


def _read_patients(config: PredictConfig, ensemble: Ensemble) -> PatientStatistics | None:
    """Read the input a first time, if `data.relative` of a model needs the rows of each patient."""
    if not ensemble.relative:
        return None
    path = Path(config.input)
    if "://" not in config.input and not (path.is_file() or path.is_dir()):
        raise InputError(
            f"input={config.input}: cannot be read twice, as data.relative needs; use a file"
        )
    patients = count_patients(ensemble, read_input(config.input, CHUNK))
    if not patients.codes:
        warn("no row names a patient, so the columns of data.relative are missing")
    return patients


def name_lesions(
    tables: Iterable[pd.DataFrame], predictor: Predictor, images: ImageFolder | None
) -> Iterator[pd.DataFrame]:
    """Yield tables with canonical names, and with the lesions that DICOM headers name."""
    for table in tables:
        named = rename_training_columns(table, predictor.ensemble.column_names)
        if images:
            named = fill_from_headers(named, predictor.columns, images)
        yield pd.DataFrame(named)


def _read_tables(config: PredictConfig, predictor: Predictor, skip: int) -> Generator[pd.DataFrame]:
    """Yield the input as tables, with a progress bar and a warning about missing columns.

    The first batch is a table of its own, so that the first results are written early.
    """
    chunk = config.batch_size * -(-CHUNK // config.batch_size)
    is_terminal = sys.stderr.isatty()
    total = count_rows(config.input) if is_terminal else None
    ensemble = predictor.ensemble
    expected = [name for name in ensemble.columns if name not in ensemble.measured_columns]
    is_warned = contains_records(Path(config.input))
    with tqdm(
        total=total, initial=skip, unit=" rows", desc="predicting", disable=not is_terminal
    ) as bar:
        for number, table in enumerate(read_input(config.input, chunk, skip)):
            first = 0 if number else config.batch_size
            names = [*rename_training_columns(table, ensemble.column_names)]
            if ensemble.has_views:
                names = name_spread_columns(names, expected)
            _require_inputs(config, names, ensemble, table)
            yield from (part for part in (table.iloc[:first], table.iloc[first:]) if len(part))
            # A table that is refused gets no warning.
            if not is_warned and (line := describe_missing_columns(names, expected)):
                tqdm.write(line, file=sys.stderr)
            is_warned = True
            bar.update(len(table))


def _require_unchanged(source: str, state: str) -> None:
    """Raise InputError if an input file changed during the job."""
    if not Path(source).is_dir() and fingerprint(source) != state:
        raise InputError(f"input={source} changed while it was read; overwrite=true starts again")


def print_summary(decisions: Mapping[str, int], path: str, backend: str) -> int:
    """Print the number of rows per decision, "" for errors, and return the exit status."""
    rows, failed = sum(decisions.values()), decisions.get("", 0)
    if failed:
        print_error(f"{failed} of {rows} rows not predicted; see the column error")
    counts = [f"{decisions[name]} {name}" for name in DECISIONS if decisions.get(name)]
    parts = f": {', '.join(counts)}" if counts else ""
    print_line(
        f"predictions: {path} ({rows} {'row' if rows == 1 else 'rows'}{parts}; by {backend})"
    )
    return 3 if failed else 0
