"""Memory of `predict.py` on tables of 100 thousand, 1 million and 10 million rows.

A model of the record alone, trained on the included cohort, so that reading and writing are most of
the work. Each table is a process of its own; memory is the most that process ever had.

    python benchmarks/predict_memory.py [ROWS ...]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
ROWS: Final = (100_000, 1_000_000, 10_000_000)
BATCH: Final = 2048
TRAINING: Final = (
    "fusion=tabular_only",
    "trainer=debug",
    "trainer.progress=false",
    "evaluation.resamples=0",
    "report.explain=false",
)
SITES: Final = ("torso", "head/neck", "lower extremity", "upper extremity", "")


def write_table(path: Path, rows: int) -> None:
    """Write a table of patients in every combination of age, sex and site."""
    with path.open("w", encoding="utf-8") as file:
        file.write("image_id,patient_id,age,sex,site\n")
        for row in range(rows):
            sex, site = ("male", "female")[row % 2], SITES[row // 2 % len(SITES)]
            file.write(f"I{row:08d},P{row // 4:07d},{20 + row % 71},{sex},{site}\n")


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its peak memory in MB."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def main(sizes: Sequence[int]) -> None:
    """Train the model and print a row per size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["train.py", *TRAINING, f"hydra.run.dir={folder}/run"])
        print("| rows | input, MB | output, MB | seconds | rows/s | peak memory, MB |")
        print("|---:|---:|---:|---:|---:|---:|")
        for rows in sizes:
            table, output = folder / "patients.csv", folder / "predictions.csv"
            write_table(table, rows)
            settings = [
                f"checkpoint={folder}/run/checkpoints/best.ckpt",
                f"input={table}",
                f"output={output}",
            ]
            settings += [f"batch_size={BATCH}", "workers=0", "accelerator=cpu", "overwrite=true"]
            seconds, memory = run(["predict.py", *settings])
            written = sum(1 for _ in output.open("rb")) - 1
            if written != rows:
                raise SystemExit(f"{written} of {rows} rows written")
            megabytes = [path.stat().st_size / 1e6 for path in (table, output)]
            figures = [rows, *megabytes, seconds, rows / seconds, memory]
            print(f"| {' | '.join(f'{figure:,.0f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or ROWS)
