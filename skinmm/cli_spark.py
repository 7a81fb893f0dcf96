"""The commands that leave the work to Apache Spark, which deals it out."""

from pathlib import Path

from skinmm.cli_data import PACKED, to_pack
from skinmm.cli_hydra import once
from skinmm.config import PackSparkConfig, SparkConfig


def predict_spark(argv: list[str]) -> int:
    """Predicts a list of any length on Apache Spark, Parquet in and out."""
    return once(
        argv, "predict_spark", SparkConfig, _predict_spark, "skinmm predict-spark makes one table"
    )


def pack_spark(argv: list[str]) -> int:
    """Packs a cohort as `pack` does, its shards written on Apache Spark."""
    return once(
        argv, "pack_spark", PackSparkConfig, _pack_spark, "skinmm pack-spark takes one cohort"
    )


def _predict_spark(config: SparkConfig, _: Path) -> int:
    from skinmm.spark.predict import predict_spark as predicted

    return predicted(config)


def _pack_spark(config: PackSparkConfig, _: Path) -> int:
    from skinmm.spark.pack import pack_spark as packed

    table, settings = to_pack(config)
    packed(table, Path(config.out), settings, config.master, overwrite=config.overwrite)
    print(PACKED.format(images=len(table), out=config.out))  # noqa: T201
    return 0
