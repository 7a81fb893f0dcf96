"""Apache Spark, started for one command and ended with it."""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from skinmm.config import one_line
from skinmm.errors import InputError

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
