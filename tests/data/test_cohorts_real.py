"""The real cohorts: counts that their own documentation states, and splits that hold on them."""

import csv
import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort, require_images
from skinmm.data.cohorts.tables import CohortTable
from skinmm.data.splits import split

FOLDER = os.environ.get("SKINMM_DATA", "")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER, reason="SKINMM_DATA does not name the real cohorts"),
]
ROOTS = {name: str(Path(FOLDER) / name) for name in ("siim_isic_2020", "ham10000", "isic_2017_cc0")}


@pytest.fixture(scope="module")
def siim() -> pd.DataFrame:
    return load_cohort(DataConfig(name="siim_isic", root=ROOTS["siim_isic_2020"])).rows


@pytest.fixture(scope="module")
def ham() -> pd.DataFrame:
    return load_cohort(DataConfig(name="ham10000", root=ROOTS["ham10000"])).rows


def test_siim_is_the_whole_cohort(siim: pd.DataFrame) -> None:
    assert len(siim) == 33_126
    assert siim["target"].sum() == 584
    assert siim["patient_id"].nunique() == 2056
    assert siim[["sex", "age", "site"]].isna().sum().tolist() == [65, 68, 527]
    with_images = require_images(CohortTable(siim), "drop").rows
    assert (len(with_images), with_images["target"].sum()) == (775, 405)


def test_siim_official_pairs_are_linked(siim: pd.DataFrame) -> None:
    linked = siim.dropna(subset="duplicate_of")
    assert len(linked) == 425
    assert linked["duplicate_of"].isin(siim["image_id"]).all()
    args = {"duplicates": "drop"}
    data = DataConfig(name="siim_isic", root=ROOTS["siim_isic_2020"], args=args)
    dropped = load_cohort(data).rows
    assert (len(dropped), dropped["target"].sum()) == (32_701, 581)


@pytest.mark.parametrize("seed", range(3))
def test_no_split_of_siim_parts_a_patient_or_a_pair(siim: pd.DataFrame, seed: int) -> None:
    table = split(siim, 5, 0, seed)
    fold = table.set_index("image_id")["fold"]
    pairs = siim.dropna(subset="duplicate_of")
    assert (fold[pairs["image_id"]].to_numpy() == fold[pairs["duplicate_of"]].to_numpy()).all()
    assert table.groupby("patient_id")["fold"].nunique().max() == 1
    assert table.groupby("lesion_id")["fold"].nunique().max() == 1
    counts = table.groupby("fold")["target"].agg(["size", "sum"])
    assert counts["size"].max() - counts["size"].min() <= 20
    assert counts["sum"].max() - counts["sum"].min() <= 3


def test_public_folds_are_patient_disjoint() -> None:
    args = {"folds": "public"}
    data = DataConfig(name="siim_isic", root=ROOTS["siim_isic_2020"], args=args)
    table = split(load_cohort(data).rows, 15, 3, 0)
    assert set(table.loc[table["part"] == "test", "public_fold"]) == {3}
    assert table.groupby("patient_id")["fold"].nunique().max() == 1


@pytest.mark.parametrize("seed", range(3))
def test_no_split_of_ham10000_parts_a_lesion(ham: pd.DataFrame, seed: int) -> None:
    table = split(ham, 5, 0, seed)
    assert (len(table), table["lesion_id"].nunique()) == (10_015, 7470)
    assert table.groupby("lesion_id")["part"].nunique().max() == 1


def test_ham10000_counts(ham: pd.DataFrame) -> None:
    counts = {
        "nv": 6705,
        "mel": 1113,
        "bkl": 1099,
        "bcc": 514,
        "akiec": 327,
        "vasc": 142,
        "df": 115,
    }
    assert ham["diagnosis"].value_counts().to_dict() == counts
    assert ham[["age", "sex", "site"]].isna().sum().tolist() == [57, 57, 234]
    assert ham["target"].sum() == 1113 + 514 + 327
    assert len(require_images(CohortTable(ham), "drop").rows) == 10_013


def test_isic_2017_as_one_table_a_part() -> None:
    data = DataConfig(name="isic_2017", root=ROOTS["isic_2017_cc0"], args={"folds": "public"})
    table = require_images(load_cohort(data), "error").rows
    assert table["part"].fillna("train").value_counts().to_dict() == {"train": 2000, "val": 150}
    assert table["target"].sum() == 374 + 30


def test_the_embedded_cohort_is_isic_2017() -> None:
    demo = load_cohort(DataConfig(name="demo")).rows.set_index("image_id")
    whole = load_cohort(DataConfig(name="isic_2017", root=ROOTS["isic_2017_cc0"])).rows
    whole = whole.set_index("image_id").loc[demo.index]
    for name in ("age", "sex", "site", "target", "diagnosis"):
        assert (
            demo[name].equals(whole[name])
            or (demo[name].fillna(-1) == whole[name].fillna(-1)).all()
        )
    for image_id in demo.index[::100]:
        paths = (demo.loc[image_id, "path"], whole.loc[image_id, "path"])
        assert len({Path(str(path)).read_bytes() for path in paths}) == 1


def test_the_demo_script_makes_the_embedded_cohort_again() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "make_demo.py"
    choose = runpy.run_path(str(script))["choose"]
    chosen = choose(pd.read_csv(Path(ROOTS["isic_2017_cc0"]) / "training.csv"))
    demo = load_cohort(DataConfig(name="demo")).rows
    assert chosen["image_id"].tolist() == demo["image_id"].tolist()


def test_reading_the_siim_table_costs_few_plain_readings() -> None:
    # About 5 alone; shape checks triple it.
    data = DataConfig(name="siim_isic", root=ROOTS["siim_isic_2020"])

    def read_plainly() -> None:
        with (Path(ROOTS["siim_isic_2020"]) / "train.csv").open(newline="") as file:
            list(csv.DictReader(file))

    def least_seconds(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        return min(seconds)

    assert least_seconds(lambda: load_cohort(data)) < 40 * least_seconds(read_plainly)
