"""Apache Spark: prediction and packing on a cluster."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from glob import escape
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final

import pandas as pd

from skinmm.config.checkpoints import find_checkpoints
from skinmm.config.commands import PredictSparkConfig
from skinmm.data.pack import pack
from skinmm.data.packed import Encoder, Manifest, PackError, PackSettings, Shard, write_shard
from skinmm.errors import InputError, one_line
from skinmm.images.source import read_source
from skinmm.predict import Predictor
from skinmm.predict.inputs import ImageFolder
from skinmm.predict.job import name_lesions, print_summary
from skinmm.predict.lesions import name_rows, sort_by_lesion
from skinmm.predict.pipeline import require_single_rows
from skinmm.predict.predictor import load_predictor
from skinmm.predict.writer import number_columns, to_arrow

ATTEMPTS: Final = 4
"""Attempts at a task before the job fails; a local Spark makes only one by default."""


@contextmanager
def spark_session(master: str) -> Iterator[Any]:
    """Start a session on local[N] or on a cluster configured in spark-defaults.conf."""
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
        # Stay private to this machine: no web page, and ports on the loopback interface only.
        builder = builder.config("spark.ui.enabled", "false")
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with ignore_pandas_warning():
        try:
            session = builder.master(master).getOrCreate()
        except (PySparkException, FileNotFoundError) as error:
            hint = "Spark does not start; it needs Java 17 or later and a valid master"
            raise InputError(f"master={master}: {hint} ({one_line(error)})") from error
        try:
            yield session
        except PythonException as error:
            reason = str(error).strip().splitlines()[-1]  # the last line of its traceback
            raise RuntimeError(f"a Python worker of Spark failed: {reason}") from error
        finally:
            session.stop()


@contextmanager
def ignore_pandas_warning() -> Iterator[None]:
    """Ignore PySpark's warning about pandas 3, which does not apply here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet", FutureWarning)
        yield


_LESION: Final = "_skinmm_lesion"
TASK_ROWS: Final = 1024
"""Rows per task, which are predicted again if their worker dies."""


def predict_spark(config: PredictSparkConfig) -> int:
    """Run a prediction job on Spark; return the exit status: 3 if some rows were not predicted."""
    paths = find_checkpoints(config.checkpoint)
    predictor = load_predictor(config, paths)
    require_single_rows(predictor.ensemble.members, "skinmm predict-spark", allow_views=True)
    with (
        spark_session(config.master) as session,
        TemporaryDirectory() as folder,
        _translate_errors(config),
    ):
        names = _send_files(session.sparkContext, paths, Path(folder))
        counts = _predict_table(session, config, predictor, names)
    return print_summary(counts, config.output, predictor.backend)


def _predict_table(
    session: Any, config: PredictSparkConfig, predictor: Predictor, names: Sequence[str]
) -> dict[str, int]:
    """Predict and write the table; return the row count of each decision ("" for errors)."""
    records = str(max(256, config.batch_size))
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", records)
    table = session.read.parquet(config.input)
    rows = table.count()
    if not rows:
        raise InputError(f"input={config.input}: the table has no rows")
    # Predict an empty table here, so that a missing column or folder is reported at once.
    empty = predictor.predict(pd.DataFrame(columns=table.columns, dtype=object), config.images)
    numeric = number_columns(empty)
    kinds = {name: "double" if name in numeric else "string" for name in empty}
    schema = ", ".join(f"`{name}` {kind}" for name, kind in kinds.items())
    tasks = max(session.sparkContext.defaultParallelism, -(-rows // TASK_ROWS))
    with ignore_pandas_warning():
        if predictor.ensemble.has_views:
            table = _distribute_lesions(table, config, names, tasks)
        else:
            table = table.repartition(tasks)
        predictions = table.mapInArrow(_build_task(config, names), schema)
    predictions.write.mode("overwrite" if config.overwrite else "error").parquet(config.output)
    counts = session.read.parquet(config.output).groupBy("decision").count().collect()
    return {row["decision"]: row["count"] for row in counts}


def _distribute_lesions(
    table: Any, config: PredictSparkConfig, names: Sequence[str], tasks: int
) -> Any:
    """Distribute the table such that all rows of a lesion are in one task; add `_LESION`."""

    def add_lesions(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa

        predictor, images = _load_models(config, names)
        for batch in batches:
            (frame,) = name_lesions([_to_frame(batch)], predictor, images)
            lesions = pa.array(name_rows(frame, predictor.columns), pa.string())
            yield pa.RecordBatch.from_arrays(
                [*batch.columns, lesions], [*batch.schema.names, _LESION]
            )

    from pyspark.sql.types import StringType, StructType

    schema = StructType([*table.schema.fields]).add(_LESION, StringType())
    return table.mapInArrow(add_lesions, schema).repartition(tasks, _LESION)


def _to_frame(batch: Any) -> pd.DataFrame:
    return pd.DataFrame(batch.to_pydict(), dtype=object).drop(columns=_LESION, errors="ignore")


@contextmanager
def _translate_errors(config: PredictSparkConfig) -> Iterator[None]:
    from pyspark.errors import AnalysisException

    messages = {
        "PATH_NOT_FOUND": f"input={config.input}: no such file or folder",
        "PATH_ALREADY_EXISTS": f"output={config.output} exists; choose another path or set "
        "overwrite=true",
    }
    try:
        yield
    except AnalysisException as error:
        raise InputError(messages.get(str(error.getCondition()), one_line(error))) from error


def _send_files(context: Any, paths: Sequence[Path], folder: Path) -> list[str]:
    """Send checkpoints and exported models to every executor; return the checkpoint names."""
    names = [f"{number}_model" for number in range(len(paths))]
    for path, name in zip(paths, names, strict=True):
        for file in (path, *path.parent.glob(f"{escape(path.stem)}*.onnx")):
            suffix = file.name.removeprefix(path.stem)
            context.addFile(str(copyfile(file, folder / f"{name}{suffix}")))
    return [f"{name}{path.suffix}" for name, path in zip(names, paths, strict=True)]


def _build_task(
    config: PredictSparkConfig, names: Sequence[str]
) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function that a Python worker calls with Arrow batches of rows."""

    def predict(batches: Iterator[Any]) -> Iterator[Any]:
        tables: Iterator[pd.DataFrame] = map(_to_frame, batches)
        predictor, images = _load_models(config, names)
        if predictor.ensemble.has_views:
            named = name_lesions(tables, predictor, images)
            tables = sort_by_lesion(named, predictor.columns, Path(gettempdir()))
        for predictions in predictor.stream(
            tables,
            images,
            probabilities=config.probabilities,
            threshold=config.threshold,
            batch_size=config.batch_size,
            workers=config.workers,
        ):
            yield from to_arrow(predictions.table).to_batches()

    return predict


def _load_models(
    config: PredictSparkConfig, names: Sequence[str]
) -> tuple[Predictor, ImageFolder | None]:
    return _load(tuple(names), config.images, config.accelerator, config.referral, config.backend)


@cache
def _load(
    names: Sequence[str], images: str | None, accelerator: str, referral: bool, backend: str
) -> tuple[Predictor, ImageFolder | None]:
    """Load the models once per Python worker."""
    from pyspark import SparkFiles

    paths = [SparkFiles.get(name) for name in names]
    predictor = Predictor.from_checkpoints(
        paths, accelerator, referral=referral, backend=backend, uncalibrated=True
    )  # the driver refused what it may not predict with
    return predictor, ImageFolder(images) if images else None


def pack_spark(
    table: pd.DataFrame, out: Path, settings: PackSettings, master: str, *, overwrite: bool = False
) -> Manifest:
    """Pack a cohort (see `skinmm.data.pack.pack`) into a folder accessible to all executors."""
    with spark_session(master) as session:
        write_shards = partial(_write_shards, session.sparkContext)
        return pack(
            table, out, read_source, settings, overwrite=overwrite, write_shards=write_shards
        )


def _write_shards(
    context: Any, pending: Mapping[str, pd.DataFrame], out: Path, encoder: Encoder
) -> Iterator[tuple[str, Shard]]:
    """Write each shard in a task of its own; report errors after all tasks."""
    jobs = [(out.absolute() / name, rows) for name, rows in pending.items()]
    if not jobs:
        return
    shards = context.parallelize(jobs, len(jobs)).map(partial(_write_shard, encoder)).collect()
    yield from (pair for pair in zip(pending, shards, strict=True) if isinstance(pair[1], Shard))
    if errors := [shard for shard in shards if not isinstance(shard, Shard)]:
        raise PackError(f"{len(errors)} of {len(jobs)} shards not packed: {errors[0]}")


def _write_shard(encoder: Encoder, job: tuple[Path, pd.DataFrame]) -> Shard | str:
    """Write a shard, or return the error, because a second attempt would fail too."""
    file, rows = job
    try:
        return write_shard(file, rows, partial(map, encoder))
    except (PackError, OSError) as error:
        return str(error)
