"""`skinmm pack-spark`: the shards of a pack written by Spark's workers, the rest as `skinmm pack`.

What a worker that dies leaves unfinished, another one writes; where Spark itself is killed, the
same call keeps the shards that are there. Executors write into the pack's folder, so they share it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from skinmm.data.pack import pack
from skinmm.data.packed import Encoder, Manifest, PackError, PackSettings, Shard, write_shard
from skinmm.images.source import read_source
from skinmm.spark.predict import spark_session


def pack_spark(
    table: pd.DataFrame, out: Path, settings: PackSettings, master: str, *, overwrite: bool = False
) -> Manifest:
    """Packs a cohort, or finishes a pack that was stopped.

    Args:
        table: canonical cohort table, every row with a path and a 0/1 or missing target.
        out: the folder; made where it is not there.
        settings: how images are packed.
        master: local[N], or the URL of a cluster.
        overwrite: replace a pack of other rows or settings.

    Raises:
        InputError: Spark or Java is not there, a row cannot be packed, the folder holds something
            else, or it cannot be written.
    """
    with spark_session(master) as session:
        write_shards = partial(_dealt, session.sparkContext)
        return pack(
            table, out, read_source, settings, overwrite=overwrite, write_shards=write_shards
        )


def _dealt(
    context: Any, pending: Mapping[str, pd.DataFrame], out: Path, encoder: Encoder
) -> Iterator[tuple[str, Shard]]:
    """A task a shard; what cannot be packed is said once all others are."""
    jobs = [(out.absolute() / name, rows) for name, rows in pending.items()]
    if not jobs:
        return
    wrong = []
    told = context.parallelize(jobs, len(jobs)).map(partial(_written, encoder)).collect()
    for name, shard in zip(pending, told, strict=True):
        if isinstance(shard, Shard):
            yield name, shard
        else:
            wrong.append(shard)
    if wrong:
        raise PackError(f"{len(wrong)} of {len(jobs)} shards not packed: {wrong[0]}")


def _written(encoder: Encoder, job: tuple[Path, pd.DataFrame]) -> Shard | str:
    """What a Python worker does with a shard; a reason where it cannot, as another could not."""
    file, rows = job
    try:
        return write_shard(file, rows, partial(map, encoder))
    except (PackError, OSError) as error:
        return str(error)
