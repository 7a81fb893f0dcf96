"""`predict.py`: a CSV of patients in, a CSV of predictions out, a chunk at a time."""

import glob
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from skinmm.config import PredictConfig
from skinmm.errors import InputError
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
    predictor = Predictor.from_checkpoints(checkpoints(config.checkpoint), config.accelerator)
    images = ImageFolder(_folder(config)) if "image" in predictor.inputs else None
    unknown: Counter[str] = Counter()
    rows = failed = 0
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
            rows, failed = rows + len(chunk), failed + int((predicted["error"] != "").sum())
        if rows == 0:
            raise InputError(f"input={source}: the table has no rows")
    _tell(output, rows, failed, unknown)
    return 3 if failed else 0


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


def _tell(output: Path, rows: int, failed: int, unknown: Counter[str]) -> None:
    for name, count in unknown.items():
        if count:
            print(f"{name}: {count} unknown values treated as missing", file=sys.stderr)  # noqa: T201
    if failed:
        reason = f"{failed} of {rows} rows not predicted; see the column error"
        print(reason, file=sys.stderr)  # noqa: T201
    print(f"predictions: {output} ({rows} rows)")  # noqa: T201
