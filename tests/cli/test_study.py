"""A study is one command: its arms are runs, and a table compares them."""

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from quick_runs import ROOT, metrics_of, quick_train
from sklearn.metrics import roc_auc_score

from skinmm.config import read_config
from skinmm.predict import Predictor

EMBEDDED = ROOT / "skinmm" / "demo"
PLAIN = "fusion=tabular_only"
ARMS = (
    PLAIN,
    "++study.arms={age:['data.columns=[age]'],all:[],focal:['loss=focal']}",
    "study.against=[all]",
)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studied")
    assert quick_train(folder, *ARMS) == 0
    return folder


def test_every_arm_is_a_run_of_its_own(studied: Path) -> None:
    assert {path.name for path in studied.iterdir()} == {
        *("age", "all", "focal"),
        *("compare.html", "compare.md"),
    }
    configs = {name: read_config(studied / name / "config.yaml") for name in ("age", "focal")}
    assert (configs["age"].data.columns, configs["age"].loss.name) == (["age"], "cross_entropy")
    assert (len(configs["focal"].data.columns), configs["focal"].loss.name) == (3, "focal")
    assert not configs["age"].study.arms


def test_the_arms_do_not_choose_their_number_of_processes(studied: Path) -> None:
    devices = {read_config(file).trainer.devices for file in studied.glob("*/config.yaml")}
    assert devices == {"auto" if torch.cuda.is_available() else 1}


def test_the_table_has_the_gain_of_each_arm(studied: Path) -> None:
    first, *tables = (studied / "compare.md").read_text(encoding="utf-8").split("\n\n")
    header, _, *rows = [line.strip("| ").split(" | ") for line in first.splitlines()]
    gain = header.index("AUROC minus all's")
    values = {row[0]: row for row in rows}
    assert [*values] == ["age", "all", "focal"]
    assert values["all"][gain] == ""
    found = {name: metrics_of(studied / name)["test"]["metrics"]["auroc"] for name in values}
    difference = found["age"]["value"] - found["all"]["value"]
    assert float(values["age"][gain].split()[0]) == pytest.approx(difference, abs=6e-4)
    assert [table.split(" | ")[1] for table in tables] == [
        "Prevalence",
        "Correction",
        "Columns missing",
    ]


def test_a_second_start_runs_only_unfinished_arms(
    studied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (studied / "age" / "metrics.json").stat().st_mtime_ns
    whole = json.loads((studied / "focal" / "metrics.json").read_text(encoding="utf-8"))
    (studied / "focal" / "metrics.json").unlink()
    (studied / "age" / "report.html").unlink()  # killed before it
    assert quick_train(studied, *ARMS) == 0
    assert "study: focal" in (said := capsys.readouterr().out)
    assert "study: age" not in said
    assert (studied / "age" / "report.html").is_file()
    assert (studied / "age" / "metrics.json").stat().st_mtime_ns == before
    assert metrics_of(studied / "focal")["test"] == whole["test"]


def test_a_second_start_keeps_the_batch_that_an_arm_chose(tmp_path: Path) -> None:
    arms = "++study.arms={age:['data.columns=[age]'],all:[]}"
    argv = [PLAIN, arms, "trainer.batch_size=auto"]
    assert quick_train(tmp_path, *argv) == 0
    before = (tmp_path / "all" / "config.yaml").read_text()
    assert "batch_size: auto" not in before
    (tmp_path / "all" / "metrics.json").unlink()
    assert quick_train(tmp_path, *argv) == 0
    after = (tmp_path / "all" / "config.yaml").read_text()
    assert [line for line in after.splitlines() if "resume:" not in line] == [
        line for line in before.splitlines() if "resume:" not in line
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((*ARMS, "-m"), "remove -m"),
        ((*ARMS, "study.arms={}"), "with ~study.arms.NAME; arms: age, all, focal"),
        ((*ARMS, "study.arms={ }"), "with ~study.arms.NAME; arms: age, all, focal"),
        ((*ARMS, "+study.arms={}"), "with ~study.arms.NAME; arms: age, all, focal"),
        (("++study.arms={a:['loss=none'],b:[]}",), "unknown loss 'none'"),
        (("++study.arms={a:[]}",), "study.arms: a study compares two or more runs"),
        ((*ARMS, "study.against=[b]"), "study.against=['b']: choose from age, all, focal"),
    ],
)
def test_an_invalid_study_is_refused(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick_train(tmp_path, PLAIN, *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "keys"),
    [
        (("seed=7", "sampler=weighted"), "sampler.name, sampler.args.power, seed;"),
        (("++study.arms.age=['data.columns=[sex]']",), "data.columns;"),
    ],
)
def test_an_arm_of_other_settings_is_not_resumed(
    more: tuple[str, ...], keys: str, studied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (studied / "compare.md").read_bytes()
    assert quick_train(studied, *ARMS, *more) == 2
    assert f"age was started with other values of {keys}" in capsys.readouterr().err
    assert (studied / "compare.md").read_bytes() == before


def test_different_test_rows_are_reported(studied: Path, tmp_path: Path) -> None:
    for name in ("age", "all"):
        shutil.copytree(studied / name, tmp_path / name)
    judged = tmp_path / "age" / "predictions" / "test.csv"
    pd.read_csv(judged, dtype=str)[:-20].to_csv(judged, index=False)
    arms = "++study.arms={age:['data.columns=[age]'],all:[]}"
    assert quick_train(tmp_path, PLAIN, arms) == 0
    text = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert (
        "The systems were evaluated on different images. The differences are computed on the 120"
        in text
    )


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A study of two cohorts that share 100 images, a patient and a lesion, and its overrides."""
    home = tmp_path_factory.mktemp("crossed")
    table = pd.read_csv(EMBEDDED / "cohort.csv", dtype=str)
    table["patient_id"] = table["lesion_id"] = table["image_id"]
    known = table.copy()
    for row, name in ((450, "patient_id"), (451, "lesion_id")):
        known[name] = known[name].where(known.index != row, table["image_id"][0])
    for name, rows in (("one", table[:400]), ("other", known[300:])):
        (home / name).mkdir()
        rows.to_csv(home / name / "cohort.csv", index=False)
        (home / name / "images").symlink_to(EMBEDDED / "images")
    arms = ",".join(f"{name}:['data.root={home / name}']" for name in ("one", "other"))
    outside = ("++study.arms={" + arms + "}", "study.outside=true", "data=csv", "data.limit=32")
    assert quick_train(home / "run", "fusion=concat", *outside) == 0
    return home / "run", ("fusion=concat", *outside)


def test_models_are_evaluated_on_the_cohorts_of_other_arms(
    crossed: tuple[Path, tuple[str, ...]],
) -> None:
    folder, _ = crossed
    table = pd.read_csv(EMBEDDED / "cohort.csv", dtype=str)
    predicted = pd.read_csv(folder / "outside" / "one_on_other.csv")
    strangers = table["image_id"].drop([*range(400), 450, 451])
    assert [Path(cell).stem for cell in predicted["image_id"]] == [*strangers]
    lines = (folder / "compare.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [tuple(row[:2]) for row in cells] == [*product(("one", "other"), repeat=2)]
    expected = roc_auc_score(predicted["target"], predicted["malignancy"])
    assert float(cells[1][3].split()[0]) == pytest.approx(expected, abs=6e-4)
    assert cells[1][2] == f"{predicted['target'].sum()} of 298"


def test_an_interrupted_prediction_resumes_and_a_new_checkpoint_predicts_again(
    crossed: tuple[Path, tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, overrides = crossed
    output = folder / "outside" / "one_on_other.csv"
    whole, real = pd.read_csv(output), Predictor.stream
    output.unlink()

    def dies(*args: Any, **options: Any) -> Iterator[Any]:
        for place, each in enumerate(real(*args, **options)):
            if place == 1:
                raise KeyboardInterrupt
            yield each

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "stream", dies)
        assert quick_train(folder, *overrides) == 130
    assert "rows are saved" in capsys.readouterr().err
    assert quick_train(folder, *overrides) == 0
    pd.testing.assert_frame_equal(pd.read_csv(output), whole)
    best = Path("checkpoints", "best.ckpt")
    shutil.copy(folder / "other" / best, folder / "one" / best)
    cohort = (folder / "other" / "cohort.csv").read_text(encoding="utf-8")
    lost = cohort.replace(whole["image_id"].iloc[-1], "lost.jpg")
    (folder / "other" / "cohort.csv").write_text(lost, encoding="utf-8")
    assert quick_train(folder, *overrides) == 3
    again = pd.read_csv(output)
    assert (again["malignancy"] != whole["malignancy"]).all()
    assert again["error"].notna().tolist() == [False] * 297 + [True]


def test_cohorts_in_containers_are_not_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(EMBEDDED / "cohort.csv", dtype=str)[:40]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    with h5py.File(tmp_path / "images.hdf5", "w") as file:
        for name in table["image_id"]:
            file[name] = np.zeros(1, np.uint8)
    boxed = f"'data=csv','data.root={tmp_path}'"
    arms = "++study.arms={plain:[],boxed:[" + boxed + "]}"
    assert quick_train(tmp_path / "run", arms, "study.outside=true") == 2
    assert "arm boxed: study.outside=true needs images that are files" in capsys.readouterr().err
    assert not (tmp_path / "run" / "plain").exists()
