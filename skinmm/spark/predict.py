"""Apache Spark, started for one command and ended with it."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, Final

import pandas as pd

from skinmm.config import PredictSparkConfig
from skinmm.errors import InputError, one_line
from skinmm.evaluation.predictions import DECISIONS
from skinmm.predict import Predictor
from skinmm.predict.inputs import ImageFolder
from skinmm.predict.job import find_checkpoints
from skinmm.predict.writer import number_columns, to_arrow

ATTEMPTS: Final = 4
"""At a part of the work, before the job fails; a local Spark would make one only."""


@contextmanager
def spark_session(master: str) -> Iterator[Any]:
    """A session, ended with the block.

    Args:
        master: local[N], or the URL of a cluster, whose settings come from spark-defaults.conf.

    Raises:
        InputError: PySpark or Java is not there, or the cluster cannot be reached.
        RuntimeError: what a Python worker failed of, in the block.
    """
    try:
        from pyspark.errors import PySparkException, PythonException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise InputError("Spark needs PySpark and Java 17: pip install 'skinmm[spark]'") from error
    builder = SparkSession.builder.appName("skinmm").config("spark.log.level", "ERROR")
    builder = builder.config("spark.ui.showConsoleProgress", str(sys.stderr.isatty()).lower())
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        master = re.sub(r"^local\[([^,\]]+)\]$", rf"local[\1,{ATTEMPTS}]", master)
        # Nobody else's business: no page, and no port but this machine's own.
        builder = builder.config("spark.ui.enabled", "false")
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with warnings.catch_warnings():  # of pandas 3, with which nothing here hands Spark tables
        warnings.filterwarnings("ignore", "PySpark does not yet", FutureWarning)
        try:
            session = builder.master(master).getOrCreate()
        except (PySparkException, FileNotFoundError) as error:
            hint = "Spark does not start; it needs Java 17 or later, and a master that it knows"
            raise InputError(f"master={master}: {hint} ({one_line(error)})") from error
        try:
            yield session
        except PythonException as error:
            reason = str(error).strip().splitlines()[-1]  # the end of its traceback
            raise RuntimeError(f"on a Python worker of Spark: {reason}") from error
        finally:
            session.stop()


PART: Final = 1024
"""Rows that are run again when what predicts them dies."""


def predict_spark(config: PredictSparkConfig) -> int:
    """Runs a prediction job on Spark.

    Returns:
        The exit status: 0, or 3 when some rows could not be predicted; the output says why.

    Raises:
        InputError: Spark or Java is not there, a missing checkpoint, table, folder or column, or
            an output in the way.
    """
    paths = find_checkpoints(config.checkpoint)
    predictor = Predictor.from_checkpoints(
        paths, config.accelerator, referral=config.referral, backend=config.backend
    )
    with (
        spark_session(config.master) as session,
        TemporaryDirectory() as folder,
        _explained(config),
    ):
        names = _sent(session.sparkContext, paths, predictor.identity, Path(folder))
        counts = _predicted(session, config, predictor, names)
    rows, failed = sum(counts.values()), counts.get("", 0)
    decided = ", ".join(f"{counts[name]} {name}" for name in DECISIONS if name in counts)
    print(f"predictions: {config.output} ({rows} rows: {decided}; by {predictor.backend})")  # noqa: T201
    if failed:
        reason = f"{failed} of {rows} rows not predicted; see the column error"
        print(reason, file=sys.stderr)  # noqa: T201
    return 3 if failed else 0


def _predicted(
    session: Any, config: PredictSparkConfig, predictor: Predictor, names: Sequence[str]
) -> dict[str, int]:
    """Has the table predicted and written; how many rows have each decision, "" for failed ones."""
    records = max(256, config.batch_size)
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(records))
    table = session.read.parquet(config.input)
    rows = table.count()
    if not rows:
        raise InputError(f"input={config.input}: the table has no rows")
    # As every part will be asked: what is wrong with the columns or the folder shows now.
    said = predictor.predict(pd.DataFrame(columns=table.columns, dtype=object), config.images)
    parts = max(session.sparkContext.defaultParallelism, -(-rows // PART))
    with warnings.catch_warnings():  # pandas 3: Spark warns of what is not used here
        warnings.filterwarnings("ignore", "PySpark does not yet", FutureWarning)
        predicted = table.repartition(parts).mapInArrow(_task(config, names), _schema(said))
    predicted.write.mode("overwrite" if config.overwrite else "error").parquet(config.output)
    found = session.read.parquet(config.output).groupBy("decision").count().collect()
    return {row["decision"]: row["count"] for row in found}


@contextmanager
def _explained(config: PredictSparkConfig) -> Iterator[None]:
    from pyspark.errors import AnalysisException

    known = {
        "PATH_NOT_FOUND": f"input={config.input}: no such file or folder",
        "PATH_ALREADY_EXISTS": f"output={config.output} exists; choose another, or overwrite=true",
    }
    try:
        yield
    except AnalysisException as error:
        raise InputError(known.get(str(error.getCondition()), one_line(error))) from error


def _schema(said: pd.DataFrame) -> str:
    floats = number_columns(said)
    return ", ".join(f"`{name}` {'double' if name in floats else 'string'}" for name in said)


def _sent(context: Any, paths: Sequence[Path], digests: Sequence[str], folder: Path) -> list[str]:
    """Gives every executor the checkpoints and exported models; their names there."""
    for path, digest in zip(paths, digests, strict=True):
        files = {".ckpt": path, ".onnx": path.with_suffix(".onnx")}
        for suffix, file in files.items():
            if file.is_file():
                context.addFile(str(copyfile(file, folder / f"{digest}{suffix}")))
    return [f"{digest}.ckpt" for digest in digests]


def _task(
    config: PredictSparkConfig, names: Sequence[str]
) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """What a Python worker does with a part of the rows, as Arrow batches."""

    def predicted(batches: Iterator[Any]) -> Iterator[Any]:
        tables = (pd.DataFrame(batch.to_pydict(), dtype=object) for batch in batches)
        predictor, folder = _loaded(
            tuple(names), config.images, config.accelerator, config.referral, config.backend
        )
        for each in predictor.stream(
            tables,
            folder,
            probabilities=config.probabilities,
            threshold=config.threshold,
            batch_size=config.batch_size,
            workers=config.workers,
        ):
            yield from to_arrow(each.table).to_batches()

    return predicted


@cache
def _loaded(
    names: Sequence[str], images: str | None, accelerator: str, referral: bool, backend: str
) -> tuple[Predictor, ImageFolder | None]:
    """Once in the life of a Python worker, which serves many parts."""
    from pyspark import SparkFiles

    paths = [SparkFiles.get(name) for name in names]
    predictor = Predictor.from_checkpoints(paths, accelerator, referral=referral, backend=backend)
    return predictor, ImageFolder(images) if images else None
