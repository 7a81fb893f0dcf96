"""A study is one command: its arms are runs, and a table compares them."""

import json
from pathlib import Path

import pytest
from quick_runs import metrics_of, quick_train

from skinmm.config import read_config

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
