"""A study is one command: its arms are runs, and a table compares them."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from quick_runs import ROOT, metrics_of, quick_train
from sklearn.metrics import roc_auc_score

from skinmm.config import read_config

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


def test_the_table_names_what_each_arm_gains(studied: Path) -> None:
    first, *tables = (studied / "compare.md").read_text(encoding="utf-8").split("\n\n")
    header, _, *rows = [line.strip("| ").split(" | ") for line in first.splitlines()]
    gain = header.index("AUROC minus all's")
    values = {row[0]: row for row in rows}
    assert [*values] == ["age", "all", "focal"]
    assert values["all"][gain] == ""
    found = {name: metrics_of(studied / name)["test"]["metrics"]["auroc"] for name in values}
    difference = found["age"]["value"] - found["all"]["value"]
    assert float(values["age"][gain].split()[0]) == pytest.approx(difference, abs=6e-4)
    assert [table.split(" | ")[1] for table in tables] == ["Correction", "Columns missing"]


def test_a_second_start_makes_only_what_is_not_there(
    studied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (studied / "age" / "metrics.json").stat().st_mtime_ns
    whole = json.loads((studied / "focal" / "metrics.json").read_text(encoding="utf-8"))
    (studied / "focal" / "metrics.json").unlink()
    assert quick_train(studied, *ARMS) == 0
    assert "study: focal" in (said := capsys.readouterr().out)
    assert "study: age" not in said
    assert (studied / "age" / "metrics.json").stat().st_mtime_ns == before
    assert metrics_of(studied / "focal")["test"] == whole["test"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((*ARMS, "-m"), "leave -m out"),
        (("++study.arms={a:['loss=none'],b:[]}",), "unknown loss 'none'"),
        (("++study.arms={a:[]}",), "study.arms: there is one"),
        ((*ARMS, "study.against=[b]"), "study.against=['b']: choose from age, all, focal"),
    ],
)
def test_what_is_no_study_is_refused(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick_train(tmp_path, PLAIN, *more) == 2
    assert message in capsys.readouterr().err


def test_models_are_judged_on_the_other_arms_cohorts(tmp_path: Path) -> None:
    table = pd.read_csv(EMBEDDED / "cohort.csv", dtype=str)
    for name, rows in (("one", table[:400]), ("other", table[300:])):
        (tmp_path / name).mkdir()
        rows.to_csv(tmp_path / name / "cohort.csv", index=False)
        (tmp_path / name / "images").symlink_to(EMBEDDED / "images")
    arms = ",".join(f"{name}:['data.root={tmp_path / name}']" for name in ("one", "other"))
    folder = tmp_path / "run"
    outside = ("++study.arms={" + arms + "}", "study.outside=true", "data=csv", "data.limit=32")
    assert quick_train(folder, "fusion=concat", *outside) == 0
    predicted = pd.read_csv(folder / "outside" / "one_on_other.csv")
    assert [Path(cell).stem for cell in predicted["image_id"]] == [*table["image_id"][400:]]
    lines = (folder / "compare.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [tuple(row[:2]) for row in cells] == [*product(("one", "other"), repeat=2)]
    expected = roc_auc_score(predicted["target"], predicted["malignancy"])
    assert float(cells[1][3].split()[0]) == pytest.approx(expected, abs=6e-4)
    assert cells[1][2] == f"{predicted['target'].sum()} of 300"
