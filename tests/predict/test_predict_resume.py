"""A job that is killed, or whose disk or input fails it, loses nothing that was written."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from quick_runs import ROOT, best, cohort_of, files_in

from skinmm.cli import main
from skinmm.predict import job

Said = pytest.CaptureFixture[str]
COLUMNS = ["image_id", "age", "sex", "site", "patient_id", "target"]


def patients(run: Path, path: Path, times: int) -> Path:
    table = pd.concat([cohort_of(run)[COLUMNS]] * times, ignore_index=True)
    table.to_csv(path, index=False)
    return path


def overrides(checkpoint: Path, source: Path, output: Path, pictures: Path) -> list[str]:
    given = {"checkpoint": checkpoint, "input": source, "output": output, "images": pictures}
    return [*(f"{name}={value}" for name, value in given.items()), "backend=torch"]


def kill_after(arguments: list[str], partial: Path, size: int) -> bool:
    """Starts the command, kills it once its rows take more bytes; False where it ended before."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "predict.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        while running.poll() is None:
            if partial.exists() and partial.stat().st_size > size:
                running.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
    return running.returncode == -signal.SIGKILL


def written(run: Path, pictures: Path, folder: Path, times: int, kills: int) -> tuple[bytes, bytes]:
    """What a job gives that is killed at random rows and resumed, and one that was not."""
    source = patients(run, folder / "in.csv", times)
    assert main.predict(overrides(best(run), source, folder / "whole.csv", pictures)) == 0
    whole = (folder / "whole.csv").read_bytes()
    output, partial = folder / "out.csv", folder / ".out.csv.partial"
    arguments = [*overrides(best(run), source, output, pictures), "resume=true"]
    draws = sorted(random.Random(0).uniform(0, len(whole) * 0.9) for _ in range(kills))  # noqa: S311
    killed = sum(kill_after(arguments, partial, int(size)) for size in draws)
    assert killed >= kills - 1  # the last may be too late
    assert main.predict(arguments) == 0
    assert files_in(folder) == {"in.csv", "whole.csv", "out.csv"}
    return output.read_bytes(), whole


def test_a_killed_job_resumed_equals_one_that_was_not(
    both: Path, pictures: Path, tmp_path: Path
) -> None:
    resumed, whole = written(both, pictures, tmp_path, times=8, kills=1)
    assert resumed == whole


@pytest.mark.slow
def test_ten_times_killed(both: Path, pictures: Path, tmp_path: Path) -> None:
    resumed, whole = written(both, pictures, tmp_path, times=60, kills=10)
    assert resumed == whole


def stopped(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, source: Path, *, change: bool
) -> int:
    """Runs the command up to its second chunk, and changes its input or ends it there."""
    refuse, seen = job._require_unchanged, []

    def hook(name: str, before: str) -> None:
        seen.append(name)
        if len(seen) == 2 and change:
            source.write_text(source.read_text() + "ISIC_0000000,,,,,\n")
        elif len(seen) == 2:
            raise KeyboardInterrupt
        refuse(name, before)

    with monkeypatch.context() as patched:
        patched.setattr(job, "_require_unchanged", hook)
        return main.predict(arguments)


def test_an_input_that_changes_is_refused(
    both: Path, pictures: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = patients(both, tmp_path / "in.csv", 4), tmp_path / "out.csv"
    arguments = overrides(best(both), source, output, pictures)
    assert stopped(arguments, monkeypatch, source, change=True) == 2
    kept, changed = capsys.readouterr().err.splitlines()
    assert kept == "32 rows are saved; run the same command with resume=true to continue"
    assert "in.csv changed while it was read; overwrite=true starts again" in changed
    assert main.predict([*arguments, "resume=true"]) == 2
    assert "the input's content changed since 32 rows" in capsys.readouterr().err
    assert main.predict(arguments) == 2
    assert "an interrupted job left 32 rows; resume=true continues" in capsys.readouterr().err
    assert main.predict([*arguments, "overwrite=true"]) == 0
    assert len(pd.read_csv(output)) == 561


def test_an_interrupted_job_counts_all_its_rows_when_resumed(
    both: Path, pictures: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    table = pd.concat([cohort_of(both)[COLUMNS]] * 4, ignore_index=True).astype(object)
    table.loc[3, "image_id"], table.loc[5, "sex"] = "nowhere", "divers"
    table.to_csv(source, index=False)
    arguments = overrides(best(both), source, output, pictures)
    assert stopped(arguments, monkeypatch, source, change=False) == 130
    assert main.predict([*arguments, "resume=true", "threshold=0.3"]) == 2
    assert "threshold changed since 32 rows" in capsys.readouterr().err
    assert main.predict([*arguments, "resume=true"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "sex: 1 unknown values treated as missing",  # which the first part of the job read
        "1 of 560 rows not predicted; see the column error",
    ]
    assert pd.read_csv(output)["image_id"].tolist() == table["image_id"].tolist()


def test_images_that_went_away_do_not_keep_a_job_from_going_on(
    both: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    table = cohort_of(both)[COLUMNS].head(64)
    table.to_csv(source, index=False)
    for name in table["image_id"][:32]:
        shutil.copy(pictures / f"{name}.jpg", tmp_path)
    arguments = overrides(best(both), source, output, pictures)
    arguments = [item for item in arguments if not item.startswith("images=")]
    assert stopped(arguments, monkeypatch, source, change=False) == 130
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    assert main.predict([*arguments, "resume=true"]) == 3
    assert (pd.read_csv(output)["error"].isna() == ([True] * 32 + [False] * 32)).all()


def test_one_per_cent_of_damaged_files_changes_no_other_row(
    both: Path, pictures: Path, tmp_path: Path
) -> None:
    folder, rng = tmp_path / "images", random.Random(0)  # noqa: S311
    shutil.copytree(pictures, folder)
    names = sorted(path.name for path in folder.iterdir())
    damaged = rng.sample(names, len(names) // 100)
    for name in damaged:
        content = bytearray((folder / name).read_bytes())
        cut = rng.randrange(len(content) // 2)
        (folder / name).write_bytes(content[:cut] if rng.random() < 0.5 else rng.randbytes(500))
    pd.DataFrame({"image": names}).to_csv(tmp_path / "in.csv", index=False)
    for output, images in (("good", pictures), ("bad", folder)):
        arguments = overrides(best(both), tmp_path / "in.csv", tmp_path / f"{output}.csv", images)
        assert main.predict(arguments) == (3 if output == "bad" else 0)
    good, bad = (
        pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, dtype=str)
        for name in ("good", "bad")
    )
    failed = bad["image_id"].isin(damaged)
    assert (bad["error"] != "").tolist() == failed.tolist()
    same, others = good[~failed], bad[~failed]
    assert (same["decision"] == others["decision"]).all()
    difference = same["p_malignant"].astype(float) - others["p_malignant"].astype(float)
    assert difference.abs().max() < 1e-6
