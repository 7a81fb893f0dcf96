"""Compare the rate of `skinmm predict-spark` on this machine's cores with `predict.py`.

    SKINMM_DATA=DIR python benchmarks/spark.py CHECKPOINT [ROWS [ROUNDS]]

Both are whole commands in alternation, on ROWS of HAM10000 and on a quarter of them. The difference
gives the rate, the rest is the start, for Spark that of the JVM and of its Python workers.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import pandas as pd

HAM: Final = Path(os.environ["SKINMM_DATA"]) / "ham10000"
CODE: Final = "import sys; from skinmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
SHARE: Final = 4


def seconds(command: str, rows: int, given: list[str], folder: Path) -> float:
    """Return the seconds of a command."""
    source = folder / "in.parquet"
    table = pd.read_csv(HAM / "HAM10000_metadata.csv")
    there = table["image_id"].map(lambda name: (HAM / "jpeg" / f"{name}.jpg").is_file())
    table[there].head(rows).to_parquet(source, index=False)
    output = folder / f"{command}.parquet"
    cores = len(os.sched_getaffinity(0))
    master = [f"master=local[{cores}]"] if command == "predict-spark" else []
    arguments = [command, *given, f"input={source}", f"output={output}", "overwrite=true", *master]
    start = perf_counter()
    subprocess.run([sys.executable, "-c", CODE, *arguments], check=True)  # noqa: S603
    return perf_counter() - start


def main(checkpoint: Path, rows: int, rounds: int) -> None:
    """Print the rates, start-up times and ratio of each round, and compare the predictions."""
    given = [f"checkpoint={checkpoint}", f"images={HAM / 'jpeg'}", "accelerator=cpu"]
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {rows} rows")
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(rounds):
            rates = []
            for command in ("predict", "predict-spark"):
                few, all_ = (
                    seconds(command, each, given, folder) for each in (rows // SHARE, rows)
                )
                rates.append((rows - rows // SHARE) / (all_ - few))
                start = all_ - rows / rates[-1]
                print(f"{command}: {rates[-1]:.1f} rows/s after {start:.1f} s")
            ratios.append(rates[1] / rates[0])
        one, other = (
            pd.read_parquet(folder / f"{command}.parquet").sort_values(
                "image_id", ignore_index=True
            )
            for command in ("predict", "predict-spark")
        )
    print(
        f"Spark / predict.py: {median(ratios):.2f} ({', '.join(f'{each:.2f}' for each in ratios)})"
    )
    columns = [str(column) for column in one if str(column).startswith("p_")]
    worst = float((one[columns] - other[columns]).abs().to_numpy().max())
    same = [
        column for column in ("image_id", "decision", "error") if one[column].equals(other[column])
    ]
    print(f"largest difference of a probability: {worst:.1g}; equal: {', '.join(same)}")


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[2:]]
    main(Path(sys.argv[1]).absolute(), *(numbers + [2000, 3][len(numbers) :]))
