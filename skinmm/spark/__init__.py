"""Apache Spark: prediction and packing on a cluster."""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from skinmm.errors import InputError, one_line

ATTEMPTS: Final = 4
"""Attempts at a task before the job fails; a local Spark makes only one by default."""


@contextmanager
def spark_session(master: str) -> Iterator[Any]:
    """Start a session on local[N] or a cluster, whose settings come from spark-defaults.conf."""
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
            hint = "Spark does not start; it needs Java 17 or later, and a master that it knows"
            raise InputError(f"master={master}: {hint} ({one_line(error)})") from error
        try:
            yield session
        except PythonException as error:
            reason = str(error).strip().splitlines()[-1]  # the last line of its traceback
            raise RuntimeError(f"on a Python worker of Spark: {reason}") from error
        finally:
            session.stop()


@contextmanager
def ignore_pandas_warning() -> Iterator[None]:
    """Ignore PySpark's warning about pandas 3, which no call here passes to Spark."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet", FutureWarning)
        yield
