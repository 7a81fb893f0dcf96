"""`predict.py`: a CSV of patients in, a CSV of predictions out, a chunk at a time."""

import glob
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from skinmm.config import PredictConfig
from skinmm.errors import InputError
from skinmm.evaluation.predictions import DECISIONS
from skinmm.predict.predictor import Predictor
from skinmm.predict.reader import ImageFolder, read_patients
from skinmm.predict.writer import CsvWriter

CHUNK: Final = 1024  # rows held at a time
MAX_WORKERS: Final = 8


def predict_file(config: PredictConfig) -> int:
    """Runs a prediction job.

    Returns:
        The exit status: 0, or 3 when some rows could not be predicted; the output says why.

    Raises:
        InputError: a missing checkpoint, table, folder or column, or an output in the way.
    """
    source, output = Path(config.input), Path(config.output)
    if not source.is_file():
        raise InputError(f"input={source}: no such file")
    if output.exists() and output.samefile(source):
        raise InputError(f"output={output} is the input itself; choose another")
    writer = CsvWriter(output, overwrite=config.overwrite)
    predictor = Predictor.from_checkpoints(
        checkpoints(config.checkpoint), config.accelerator, referral=config.referral
    )
    images = ImageFolder(_folder(config))
    unknown: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with writer:
        for chunk in read_patients(source, CHUNK):
            predicted = predictor.predict(
                chunk,
                images,
                probabilities=config.probabilities,
                threshold=config.threshold,
                batch_size=config.batch_size,
                workers=_workers(config.workers),
                unknown=unknown,
            )
            writer.write(predicted)
            counts.update(predicted["decision"])
        if not counts:
            raise InputError(f"input={source}: the table has no rows")
    _tell(output, counts, unknown)
    return 3 if counts[""] else 0


def checkpoints(wish: Any) -> list[Path]:
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


def _folder(config: PredictConfig) -> Path:
    return Path(config.images) if config.images else Path(config.input).parent


def _workers(wish: int | None) -> int:
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS) if wish is None else wish


def _tell(output: Path, counts: Counter[str], unknown: Counter[str]) -> None:
    """Says what was counted: decisions (none for a row that failed), and unknown values."""
    for name, count in unknown.items():
        if count:
            print(f"{name}: {count} unknown values treated as missing", file=sys.stderr)  # noqa: T201
    rows, failed = counts.total(), counts[""]
    if failed:
        reason = f"{failed} of {rows} rows not predicted; see the column error"
        print(reason, file=sys.stderr)  # noqa: T201
    decided = ", ".join(f"{counts[name]} {name}" for name in DECISIONS if counts[name])
    print(f"predictions: {output} ({rows} rows{f': {decided}' if decided else ''})")  # noqa: T201
