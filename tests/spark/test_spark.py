"""Work on Spark: what a command on one machine gives, also when what does it is killed."""

import json
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
from dicom_files import dicom_from_jpeg
from lesion_cohorts import lesion_table, write_lesions
from quick_runs import best, quick_train

from skinmm.cli import main as cli

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


def begun(*command: str) -> "subprocess.Popen[str]":
    """A command on two cores, on its way."""
    code = "import sys; from skinmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    typed = [sys.executable, "-c", code, *command, "master=local[2]"]
    return subprocess.Popen(typed, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(folder: Path, pattern: str, started: "subprocess.Popen[str]") -> None:
    deadline = monotonic() + 300
    while not [*folder.glob(pattern)] and started.poll() is None:
        assert monotonic() < deadline
        sleep(0.01)


def kill_workers(started: "subprocess.Popen[str]") -> list[int]:
    killed = [*workers_below(started.pid)]
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    return killed


@needs_spark
def test_killed_workers_change_nothing(both: Path, pictures: Path, tmp_path: Path) -> None:
    """Rows that cannot be predicted are kept with their reasons."""
    cohort = pd.read_csv(pictures.parent / "cohort.csv", dtype={"image_id": str})
    table = pd.concat([cohort[["image_id", "age", "sex", "site"]]] * TIMES)
    table["patient_id"] = [f"P{number}" for number in range(len(table))]
    table.iloc[[5, 2000], 0] = "nowhere"
    table.to_parquet(tmp_path / "in.parquet", index=False)
    given = [f"checkpoint={best(both)}", f"input={tmp_path / 'in.parquet'}", f"images={pictures}"]
    out = tmp_path / "spark"
    started = begun("predict-spark", *given, f"output={out}")
    wait_for(out, "_temporary/0/task_*", started)
    killed = kill_workers(started)
    told, said = started.communicate(timeout=300)
    assert started.returncode == 3, said
    assert killed
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
        "input=nameless.parquet": "the table has no image column; rename it to image_name, image",
        "images=nowhere": "images=nowhere: no such folder",
        "output=there": "output=there exists; choose another path or set overwrite=true",
    }
    good = [f"checkpoint={best(both)}", "input=in.parquet", f"images={pictures}", "output=new"]
    good.append("master=local[1]")
    calls = []
    for each in wrong:
        calls.append([item for item in good if item.partition("=")[0] != each.partition("=")[0]])
        calls[-1].append(each)
    code = (
        f"from skinmm.cli.main import main; print([main(['predict-spark', *x]) for x in {calls}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str([2] * len(wrong))
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == len(wrong)
    for line, message in zip(said, wrong.values(), strict=True):
        assert line.startswith(f"error: {message}")
    assert not (tmp_path / "new").exists()


@needs_spark
def test_why_a_worker_failed_is_said() -> None:
    code = """
from skinmm.spark import spark_session
with spark_session("local[1]") as session:
    session.sparkContext.parallelize([0]).map(lambda number: 1 / number).collect()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "RuntimeError: a Python worker of Spark failed: ZeroDivisionError: division by zero"
    assert done.stderr.splitlines()[-1] == said


def contents(pack: Path) -> dict[str, bytes | dict[str, object]]:
    """Of every file; without the shards' times, which an index holds."""
    files = {path.name: path.read_bytes() for path in pack.iterdir()}
    indices = {name: json.loads(files[name]) for name in files if name.endswith(".names.json")}
    return files | {name: index | {"mtime_ns": 0} for name, index in indices.items()}


@needs_spark
def test_a_pack_is_the_same_whoever_writes_and_dies(pictures: Path, tmp_path: Path) -> None:
    """Workers are killed within a shard; one that cannot be packed does not hold up the others."""
    folder, out, one = tmp_path / "images", tmp_path / "spark", tmp_path / "one"
    folder.mkdir()
    sources = sorted(pictures.glob("*.jpg"))
    names = [f"I{number:04d}" for number in range(1100)]
    for number, name in enumerate(names):
        (folder / f"{name}.jpg").symlink_to(sources[number % len(sources)])
    pd.DataFrame({"image_id": names, "target": [0, 1] * 550}).to_csv(
        tmp_path / "cohort.csv", index=False
    )
    (folder / "I1099.jpg").unlink()
    (folder / "I1099.jpg").write_bytes(b"nothing")
    given = ["data=csv", f"data.root={tmp_path}", "size=64"]
    started = begun("pack-spark", *given, f"out={out}")
    wait_for(out, "shard-00000*.part", started)
    assert kill_workers(started)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 2, said
    assert "Python worker exited unexpectedly" in said
    assert said.splitlines()[-1].startswith("error: 1 of 2 shards not packed: image I1099 (")
    (first,) = out.glob("*.tfrec")
    (folder / "I1099.jpg").unlink()
    (folder / "I1099.jpg").symlink_to(sources[0])
    written = first.stat().st_mtime_ns
    again = begun("pack-spark", *given, f"out={out}")
    told, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert told == f"packed 1,100 images; to use them: data=packed data.root={out}\n"
    assert first.stat().st_mtime_ns == written
    assert cli.main(["pack", *given, f"out={one}"]) == 0
    assert contents(out) == contents(one)


def test_one_job_at_a_time(capsys: Said) -> None:
    assert cli.main(["pack-spark", "-m", "out=a"]) == 2
    assert "skinmm pack-spark does not accept -m" in capsys.readouterr().err
    assert cli.main(["predict-spark", "-m", "checkpoint=a", "input=b"]) == 2
    assert "skinmm predict-spark does not accept -m" in capsys.readouterr().err


@needs_spark
def test_the_rows_of_a_lesion_are_predicted_together(tmp_path: Path) -> None:
    table = lesion_table(75)
    write_lesions(tmp_path, table)
    run = tmp_path / "run"
    data = ("data=csv", f"data.root={tmp_path}", "data.unit=lesion", "data.columns=[age,sex]")
    assert quick_train(run, *data, "trainer.workers=0") == 0
    shuffled = table.sample(frac=1, random_state=0).drop(columns=["shade", "target"])
    shuffled.to_parquet(tmp_path / "in.parquet", index=False, row_group_size=10)
    given = [f"checkpoint={best(run)}", f"input={tmp_path / 'in.parquet'}"]
    given.append(f"images={tmp_path / 'images'}")
    out = tmp_path / "spark"
    started = begun("predict-spark", *given, f"output={out}")
    told, said = started.communicate(timeout=300)
    assert started.returncode == 0, said
    assert told.startswith(f"predictions: {out} (75 rows: ")
    assert cli.predict([*given, f"output={tmp_path / 'one.parquet'}"]) == 0
    one, spark = (
        pd.read_parquet(place).sort_values("lesion_id", ignore_index=True)
        for place in (tmp_path / "one.parquet", out)
    )
    for rows in (one, spark):  # the order of views of one kind is that of the rows
        rows["images"] = [sorted(cell.split("|")) for cell in rows["images"]]
    pd.testing.assert_frame_equal(spark, one, atol=1e-6, rtol=1e-6)
    folder = tmp_path / "study"
    folder.mkdir()
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())[:4]):
        header = {"SeriesInstanceUID": f"1.2.{number // 2}"}
        (folder / f"{number}.dcm").write_bytes(dicom_from_jpeg(path.read_bytes(), **header))
    headless = pd.DataFrame(
        {"image": [f"{n}.dcm" for n in (2, 0, 3, 1)], "age": 50.0, "sex": "male"}
    )
    headless.to_parquet(tmp_path / "dicom.parquet", index=False)
    given = [given[0], f"input={tmp_path / 'dicom.parquet'}", f"images={folder}"]
    assert cli.predict([*given, f"output={tmp_path / 'two.parquet'}"]) == 0
    started = begun("predict-spark", *given, f"output={tmp_path / 'spark2'}")
    assert started.wait(timeout=300) == 0
    for place in (tmp_path / "two.parquet", tmp_path / "spark2"):
        rows = pd.read_parquet(place)
        assert sorted(rows["lesion_id"]) == ["1.2.0", "1.2.1"]
        images = sorted(sorted(cell.split("|")) for cell in rows["images"])
        assert images == [["0.dcm", "1.dcm"], ["2.dcm", "3.dcm"]]
