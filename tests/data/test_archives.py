"""Adapters of datasets with several images per lesion, their licences, and MILK10k's files."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from miniature_cohorts import MILK_CLASSES, WRITERS, load, load_table

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort
from skinmm.data.lesions import group_lesions
from skinmm.errors import InputError
from skinmm.predict.extra_outputs import SUMMARIES

MILK = {"target": "diagnosis", "positive": ["bcc", "sccka"]}


def by_lesion(name: str, root: Path, **settings: Any) -> Any:
    WRITERS[name](root)
    data = DataConfig(name=name, root=str(root), unit="lesion", **settings)
    return group_lesions(load_cohort(data).rows, data)[0].set_index("image_id")


def test_milk10k_joins_both_images_and_their_scores(tmp_path: Path) -> None:
    columns = ["age", "skin_tone_class", "MONET_hair_clinical", "MONET_hair_dermoscopic"]
    rows = by_lesion("milk10k", tmp_path, columns=columns, **MILK)
    assert rows["target"].tolist() == ["bcc", "inf", "sccka"]
    assert rows.loc["IL_2", columns].tolist() == [70, 3, 0.20, 0.21]
    assert rows.loc["IL_2", "images"] == "ISIC_5|ISIC_4"
    assert rows.loc["IL_2", "image_views"] == "dermoscopic|clinical"
    assert [Path(p).stem for p in rows.loc["IL_2", "paths"].split("|")] == ["ISIC_5", "ISIC_4"]
    assert rows["licence"].unique().tolist() == ["CC-BY-NC|CC-BY-NC"]
    assert rows["site"].unique().tolist() == ["head/neck"]


def test_milk10k_images_may_be_in_one_folder(tmp_path: Path) -> None:
    WRITERS["milk10k"](tmp_path)
    for file in [*tmp_path.rglob("*.jpg")]:
        file.rename(tmp_path / "MILK10k_Training_Input" / file.name)
    assert load("milk10k", tmp_path, **MILK)["path"].notna().all()


def test_derm7pt_has_its_published_parts_and_pairs(tmp_path: Path) -> None:
    rows = by_lesion(
        "derm7pt",
        tmp_path,
        target="diagnosis",
        positive=["mel"],
        columns=["sex", "site", "pigment_network"],
    )
    assert rows["target"].tolist() == ["nv", "mel", "misc"]
    assert rows["part"].where(rows["part"].notna(), None).tolist() == [None, "val", "test"]
    assert rows["image_views"].unique().tolist() == ["dermoscopic|clinical"]
    assert [p.rpartition("/")[2] for p in rows["paths"].iloc[0].split("|")] == ["I1.jpg", "I0.jpg"]
    assert rows["pigment_network"].tolist() == ["typical", "atypical", "absent"]


def test_midas_joins_the_distances_of_a_lesion(tmp_path: Path) -> None:
    rows = by_lesion("midas", tmp_path, columns=["age", "sex", "site", "length_mm"])
    assert rows["images"].tolist() == ["I2|I1|I0", "I3", "I4"]
    assert rows["image_views"].tolist() == ["dermoscopic|clinical|overview", "dermoscopic", ""]
    assert rows["target"].tolist() == [1, 0, 0]
    assert rows["diagnosis"].tolist() == ["bcc", "nv", "df"]
    assert rows["patient_id"].tolist() == ["1", "1", "2"]
    assert rows["site"].tolist() == ["torso", "head/neck", "head/neck"]
    assert rows["length_mm"].tolist() == [6, 3, 2]
    assert load_table("midas", tmp_path).notes == ("1 images of controls left out",)
    file = tmp_path / "release_midas.csv"
    unknown = "6,3,I6.jpeg,no,dscope,nose,,,female,50,,no,,,4,4,scc\n"
    file.write_text(f"{file.read_text().rstrip()}\n{unknown}")
    with pytest.raises(InputError, match=r"the target is empty or unknown in 1 row, e\.g\. I6"):
        load_table("midas", tmp_path)
    other = unknown.replace("I6", "I7").replace("nose,", "nose,melanocytic tumor - re-excision")
    file.write_text(f"{file.read_text().rstrip()}\n{other}")
    assert load_table("midas", tmp_path, missing="drop").rows["target"].tolist() == [1, 1, 1, 0, 0]


def test_isic_archive_reads_diagnoses_sites_and_sizes(tmp_path: Path) -> None:
    WRITERS["isic_archive"](tmp_path)
    cohort = load_table("isic_archive", tmp_path)
    rows: Any = cohort.rows.set_index("image_id")
    assert rows["target"].tolist() == [0, 0, 1, 1]
    assert rows["diagnosis"].tolist() == ["nv", "nv", "mel", "bcc"]
    assert rows["site"].fillna("").tolist() == ["torso", "torso", "", "head/neck"]
    assert rows.loc["I2", ["width", "height"]].tolist() == [133, 133]
    assert cohort.notes[0] == "1 images of other types left out: 'RCM: mosaic' (1)"


def test_licences_select_images(tmp_path: Path) -> None:
    WRITERS["isic_archive"](tmp_path)
    cohort = load_table("isic_archive", tmp_path, licences=["CC-0"])
    assert cohort.rows["image_id"].tolist() == ["I0", "I3"]
    assert "2 images with other licences left out: 'CC-BY' (1), 'CC-BY-NC' (1)" in cohort.notes
    with pytest.raises(InputError, match=r"no image with CC-ZERO; the images have 'CC-0' .2., 'CC"):
        load("isic_archive", tmp_path, licences=["CC-ZERO"])
    with pytest.raises(InputError, match="data=demo states no licences; remove the setting"):
        load_cohort(DataConfig(licences=["CC-0"]))


def output(lesions: list[str]) -> pd.DataFrame:
    names = ["bcc", "akiec", *(n.lower() for n in MILK_CLASSES.split(",")[2:])]
    cells = {f"p_{name}": "0.1" for name in names} | {f"half_{name}": "0.2" for name in names}
    return pd.DataFrame(
        {"image_id": lesions, **cells, "half_nv": "0.7", "lesion_id": lesions, "images": lesions}
    )


@pytest.mark.realdata
def test_the_submission_has_the_form_of_the_sample(skinmm_data: Path) -> None:
    sample = pd.read_csv(skinmm_data / "milk10k" / "MILK10k_Sample_Submit.csv")
    (rows,) = SUMMARIES["submission"][1]([output(sample["lesion_id"].tolist())])
    assert rows.columns.tolist() == sample.columns.tolist()
    assert rows["lesion_id"].tolist() == sample["lesion_id"].tolist()
    assert set(rows["NV"]) == {0.7}
    assert rows.dtypes.iloc[1:].eq("float64").all()


@pytest.mark.realdata
def test_milk10k_of_the_official_tables(skinmm_data: Path) -> None:
    data = DataConfig(
        "milk10k",
        str(skinmm_data / "milk10k"),
        unit="lesion",
        columns=["age", "MONET_hair_clinical"],
        target="diagnosis",
        positive=["akiec", "bcc", "mal_oth", "mel", "sccka"],
    )
    rows = group_lesions(load_cohort(data).rows, data)[0]
    counts = rows["target"].value_counts().to_dict()
    assert counts == {
        "bcc": 2522,
        "nv": 746,
        "bkl": 544,
        "sccka": 473,
        "mel": 450,
        "akiec": 303,
        "df": 52,
        "inf": 50,
        "vasc": 47,
        "ben_oth": 44,
        "mal_oth": 9,
    }
    assert rows["MONET_hair_clinical"].notna().all()
