"""Prediction on Spark: what a job on one machine gives, also when what predicts is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep

import pandas as pd
import pytest
from quick_runs import best

from skinmm import cli
from skinmm.cli_spark import predict_spark

needs_spark = pytest.mark.skipif(
    find_spec("pyspark") is None or find_spec("pyarrow") is None, reason="needs skinmm[spark]"
)
Said = pytest.CaptureFixture[str]
TIMES = 4
"""The cohort in a row: more parts of 1,024 rows than cores."""


def workers_below(root: int) -> Iterator[int]:
    """The Python workers, forked from Spark's own daemon, among the descendants of a process."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)] = int(status[1])
            names[int(place.name)] = (place / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
    for process, parent in parents.items():
        daemons = all(b"pyspark.daemon" in names.get(each, b"") for each in (process, parent))
        while parent in parents and parent != root:
            parent = parents[parent]
        if daemons and parent == root:
            yield process


@needs_spark
def test_killed_workers_change_nothing(both: Path, pictures: Path, tmp_path: Path) -> None:
    """Rows that cannot be predicted are kept with their reasons."""
    cohort = pd.read_csv(pictures.parent / "cohort.csv", dtype={"image_id": str})
    table = pd.concat([cohort[["image_id", "age", "sex", "site"]]] * TIMES)
    table["patient_id"] = [f"P{number}" for number in range(len(table))]
    table.iloc[[5, 2000], 0] = "nowhere"
    table.to_parquet(tmp_path / "in.parquet", index=False)
    given = [f"checkpoint={best(both)}", f"input={tmp_path / 'in.parquet'}", f"images={pictures}"]
    start = f"import sys; from skinmm.cli import main; sys.exit(main({['predict-spark', *given]}"
    out = tmp_path / "spark"
    started = subprocess.Popen(
        [sys.executable, "-c", f"{start} + ['output={out}', 'master=local[2]']))"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = monotonic() + 300
    while not [*out.glob("_temporary/0/task_*")] and started.poll() is None:
        assert monotonic() < deadline
        sleep(0.02)
    killed = [*workers_below(started.pid)]
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    told, said = started.communicate(timeout=300)
    assert started.returncode == 3, said
    assert len(killed) == 2
    assert "Python worker exited unexpectedly" in said
    assert told.startswith(f"predictions: {out} ({len(table)} rows: ")
    assert said.splitlines()[-1] == f"2 of {len(table)} rows not predicted; see the column error"
    assert cli.predict([*given, f"output={tmp_path / 'one.parquet'}"]) == 3
    one, spark = (
        pd.read_parquet(place).sort_values("patient_id", ignore_index=True)
        for place in (tmp_path / "one.parquet", out)
    )
    pd.testing.assert_frame_equal(spark, one, atol=1e-6, rtol=1e-6)


@needs_spark
def test_what_cannot_be_done_is_named(both: Path, pictures: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["ISIC_0000000"]})
    table.to_parquet(tmp_path / "in.parquet")
    table.head(0).to_parquet(tmp_path / "empty.parquet")
    table.rename(columns={"image": "file"}).to_parquet(tmp_path / "nameless.parquet")
    (tmp_path / "there").mkdir()
    wrong = {
        "master=mars": "master=mars: Spark does not start; it needs Java 17 or later",
        "input=nowhere.parquet": "input=nowhere.parquet: no such file or folder",
        "input=empty.parquet": "input=empty.parquet: the table has no rows",
        "input=nameless.parquet": "the table has no image column; call it image_name, image_id",
        "images=nowhere": "images=nowhere: no such folder",
        "output=there": "output=there exists; choose another, or overwrite=true",
    }
    good = [f"checkpoint={best(both)}", "input=in.parquet", f"images={pictures}", "output=new"]
    good.append("master=local[1]")
    calls = []
    for each in wrong:
        calls.append([item for item in good if item.partition("=")[0] != each.partition("=")[0]])
        calls[-1].append(each)
    code = f"from skinmm.cli import predict_spark; print([predict_spark(x) for x in {calls}])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str([2] * len(wrong))
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == len(wrong)
    for line, message in zip(said, wrong.values(), strict=True):
        assert line.startswith(f"error: {message}")
    assert not (tmp_path / "new").exists()


def test_one_job_at_a_time(capsys: Said) -> None:
    assert predict_spark(["-m", "checkpoint=a", "input=b"]) == 2
    assert "skinmm predict-spark makes one table" in capsys.readouterr().err
