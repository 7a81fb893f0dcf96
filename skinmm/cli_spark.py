"""The commands that leave the work of dealing out rows to Apache Spark."""

from pathlib import Path

from skinmm.cli_hydra import refused, run
from skinmm.config import SparkConfig


def predict_spark(argv: list[str]) -> int:
    """Predicts a list of any length on Apache Spark, Parquet in and out."""
    if {"-m", "--multirun"} & set(argv):
        return refused("skinmm predict-spark makes one table; start it once for each")
    return run(argv, "predict_spark", SparkConfig, _predict_spark)


def _predict_spark(config: SparkConfig, _: Path) -> int:
    from skinmm.spark import predict_spark as predicted

    return predicted(config)
