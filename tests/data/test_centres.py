"""Sources (centres): where they come from, splits by source, and the source as a shortcut."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom
from micro_runs import micro_config, table_cohort
from miniature_cohorts import ham10000, isic_2019, load, siim_isic, write
from sklearn.metrics import roc_auc_score

from skinmm.config import DataConfig, ExtraCohort
from skinmm.data.cohorts import load_cohort
from skinmm.data.datamodule import LesionData, count_folds
from skinmm.data.shortcuts import compute_source_auroc
from skinmm.data.sources import leave_one_source_out, list_sources
from skinmm.data.splits import find_components, split
from skinmm.errors import InputError
from skinmm.evaluation.sources import WithinSourceAuroc
from skinmm.images.source import hash_institution

FOLDER = os.environ.get("SKINMM_DATA", "")
OFFICIAL = "lesion_id,image_id,dx,dataset\n" + "".join(
    f"H{n // 2},I{n},{'mel' if n else 'nv'},{name}\n"
    for n, name in enumerate(("rosendahl", "vidir_modern") * 2)
)


def centres(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    """Two images a patient; centre c has the most malignant patients."""
    rng = np.random.default_rng(seed)
    patient = np.arange(rows) // 2
    source = rng.choice(["a", "b", "c"], patient.max() + 1)[patient]
    share = pd.Series(source).map({"a": 0.1, "b": 0.3, "c": 0.6}).to_numpy()
    table = {
        "image_id": [f"I{row}" for row in range(rows)],
        "patient_id": [f"P{number}" for number in patient],
        "target": (rng.random(rows) < share).astype(int),
        "source": source,
        "cohort": "made",
    }
    return pd.DataFrame(table)


def clinic(root: Path, header: str, column: list[str]) -> DataConfig:
    data = table_cohort(root)
    file = root / "cohort.csv"
    pd.read_csv(file).assign(**{header: column}).to_csv(file, index=False)
    return data


def test_the_official_table_of_ham10000_names_the_sources(tmp_path: Path) -> None:
    ham10000(tmp_path)
    assert load("ham10000", tmp_path)["source"].tolist() == ["ham10000"] * 4
    write(tmp_path, "HAM10000_metadata", OFFICIAL)
    table = load("ham10000", tmp_path)
    assert table["source"].tolist() == ["rosendahl", "vidir_modern"] * 2
    assert set(table["cohort"]) == {"ham10000"}
    (tmp_path / "HAM10000_metadata.csv").unlink()
    assert load("ham10000", tmp_path)["source"].tolist() == table["source"].tolist()


def test_the_name_of_a_lesion_names_the_archive_of_isic_2019(tmp_path: Path) -> None:
    isic_2019(tmp_path)
    table = load("isic_2019", tmp_path).set_index("image_id")
    assert table["source"].dropna().to_dict() == {"J2": "BCN"}
    write(tmp_path, "HAM10000_metadata", OFFICIAL.replace("I", "J"))
    table = load("isic_2019", tmp_path).set_index("image_id")
    assert table["source"].dropna().to_dict() == {
        "J0": "rosendahl",
        "J2": "rosendahl",
        "J3": "vidir_modern",
    }


@pytest.mark.parametrize("header", ["attribution", "Source", "hospital"])
def test_a_column_of_one_s_own_is_the_source(tmp_path: Path, header: str) -> None:
    names = ["North", "", "unknown", *["South "] * 117]
    data = clinic(tmp_path, header, names)
    if header == "hospital":
        assert set(load_cohort(data).rows["source"]) == {"csv"}
        data = replace(data, args={"columns": {"source": header}})
    source = load_cohort(data).rows["source"]
    assert source[source.notna()].tolist() == ["North", *["South"] * 117]
    assert source.isna().tolist() == [False, True, True, *[False] * 117]


def test_an_extra_cohort_has_its_own_name_and_the_centres_that_it_shares(tmp_path: Path) -> None:
    ham10000(tmp_path / "a")
    ham10000(tmp_path / "b")
    for folder in "ab":
        write(tmp_path, f"{folder}/HAM10000_metadata", OFFICIAL)
    file = tmp_path / "b" / "HAM10000_metadata.csv"
    file.write_text(file.read_text().replace(",I0,", ",I9,"))
    extra = [ExtraCohort(name="ham10000", root=str(tmp_path / "b"))]
    table = load("ham10000", tmp_path / "a", extra=extra)
    assert table["cohort"].tolist() == ["ham10000"] * 4 + ["ham10000 (2)"]


def test_dicom_headers_name_the_institution_by_a_hash(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    (tmp_path / "train").mkdir()
    names = ["North Hospital", " north  HOSPITAL", "", "South"]
    for number, name in enumerate(names):
        header = dicom(np.zeros((2, 2), np.uint8), InstitutionName=name)
        (tmp_path / "train" / f"I{number}.dcm").write_bytes(header)
    north = "institution " + hashlib.sha256(b"north hospital").hexdigest()[:8]
    source = load("siim_isic", tmp_path, format="dicom")["source"]
    assert source.tolist() == [north, north, None, hash_institution("south")]
    assert set(load("siim_isic", tmp_path)["source"]) == {"siim_isic"}, "JPEG files have no header"


def test_the_test_part_of_a_fold_is_one_source() -> None:
    table = centres()
    for number, name in enumerate(list_sources(table)):
        parts = leave_one_source_out(table, 5, number, 0)
        assert set(parts.loc[parts["part"] == "test", "source"]) == {name}
        assert ((parts["source"] == name) == (parts["part"] == "test")).all()
        others = parts[parts["source"] != name]
        assert (others["part"] == "val").mean() == pytest.approx(1 / 5, abs=0.03)
        assert others.groupby("patient_id")["part"].nunique().max() == 1
    assert parts["fold"].tolist() == table["source"].map({"a": 0, "b": 1, "c": 2}).tolist()


def test_patients_of_two_sources_are_not_trained_on() -> None:
    table = centres()
    table.loc[::10, "patient_id"] = "everywhere"
    parts = leave_one_source_out(table, 5, 0, 0)
    shared = find_components(table) == find_components(table)[0]
    assert set(parts["part"][shared & (table["source"] != "a")]) == {"unused"}
    assert set(parts["part"][table["source"] == "a"]) == {"test"}


def test_added_rows_of_the_source_under_test_are_not_trained_on() -> None:
    table = centres()
    table["part"] = ["train"] * 60 + [None] * (len(table) - 60)
    parts = leave_one_source_out(table, 5, 2, 0)
    added = parts[:60]
    linked = added["patient_id"].isin(parts["patient_id"][60:])
    assert (
        added["part"][~linked] == np.where(added["source"][~linked] == "c", "unused", "train")
    ).all()
    assert (added["fold"] == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "a"}, "all rows are of the source a; two or more are needed"),
        ({"source": [None, *["a", "b"] * 60][:120]}, "1 of 120 rows have no source"),
        ({"part": ["test", *[None] * 119]}, "the cohort fixes its parts"),
    ],
)
def test_what_cannot_be_split_by_source_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"data.split=source: {message}"):
        list_sources(centres(120).assign(**change))


def test_a_source_without_malignant_rows_is_refused(tmp_path: Path) -> None:
    data = clinic(tmp_path, "source", ["North"] * 60 + ["South"] * 60)
    config = micro_config("tabular_only", data=replace(data, split="source", fold=1))
    assert count_folds(config) == 2
    module = LesionData(config, frozenset({"record"}))
    module.setup()
    assert set(module.cohort["source"].iloc[module.rows("test")]) == {"South"}
    with pytest.raises(InputError, match=r"data.fold=2: must be 0 to 1; .* each of North, South"):
        LesionData(
            replace(config, data=replace(config.data, fold=2)), frozenset({"record"})
        ).setup()
    file = tmp_path / "cohort.csv"
    pd.read_csv(file).assign(target=lambda t: t["target"].where(t["source"] == "North", 0)).to_csv(
        file
    )
    with pytest.raises(InputError, match="none of the 60 rows of source South is malignant"):
        LesionData(config, frozenset({"record"})).setup()


def test_the_source_is_probed_from_training_to_test_rows() -> None:
    table = split(centres(2000), 5, 0, 0)
    train, test = (table[table["part"] == part] for part in ("train", "test"))
    share = test["source"].map(train.groupby("source")["target"].mean())
    assert compute_source_auroc(table) == roc_auc_score(test["target"], share)
    one = table["source"].where((table["part"] != "test") | (table["source"] == "a"), "a")
    assert compute_source_auroc(table.assign(source=one)) is None


@pytest.mark.realdata
@pytest.mark.skipif(not FOLDER, reason="SKINMM_DATA does not name the real cohorts")
def test_the_source_of_ham10000_ranks_malignancy_only_between_sources() -> None:
    data = DataConfig(name="ham10000", root=str(Path(FOLDER) / "ham10000"))
    rows = load_cohort(data).rows
    assert rows["source"].value_counts().to_dict() == {
        "vidir_molemax": 3954,
        "vidir_modern": 3363,
        "rosendahl": 2259,
        "vienna_dias": 439,
    }
    target = rows["target"].to_numpy() == 1
    score = rows["target"].groupby(rows["source"]).transform("mean").to_numpy()
    assert roc_auc_score(target, score) == pytest.approx(0.783, abs=0.001)
    codes = np.arange(len(rows))
    within = WithinSourceAuroc(score, target, codes, rows["source"].to_numpy(object))
    assert within(np.ones((1, len(rows)), np.int64)) == pytest.approx([0.5])
    assert compute_source_auroc(split(rows, 5, 0, 0)) == pytest.approx(0.783, abs=0.02)
