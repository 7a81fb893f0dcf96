"""Images grouped to lesions: words of views, choice of images, contradictions, record columns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lesion_cohorts import PICTURES, lesion_config, lesion_table, write_lesions
from micro_runs import micro_config, read_data

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort
from skinmm.data.datamodule import LesionData
from skinmm.data.lesions import (
    choose_views,
    explode_images,
    group_lesions,
    name_spread_columns,
    parse_view,
)
from skinmm.errors import InputError

BOTH = frozenset({"image", "record"})
LAST = max(path.stem for path in PICTURES.glob("*.jpg"))


def load(root: Path, table: pd.DataFrame, **settings: object) -> pd.DataFrame:
    write_lesions(root, table)
    data = lesion_config(root, **settings)
    return group_lesions(load_cohort(data).rows, data)[0]


def read(root: Path, table: pd.DataFrame, **settings: object) -> LesionData:
    write_lesions(root, table)
    return read_data(micro_config("concat", lesion_config(root, **settings)), BOTH)


@pytest.mark.parametrize(
    ("word", "view"),
    [
        ("clinical: close-up", "clinical"),
        ("Dermoscopic", "dermoscopic"),
        ("TBP tile: close-up", "clinical"),
        ("TBP tile: overview", "overview"),
        ("derm", "dermoscopic"),
        ("6in", "clinical"),
        ("1ft", "overview"),
        ("histopathology", None),
    ],
)
def test_words_of_public_data_sets(word: str, view: str | None) -> None:
    assert parse_view(word) == view


def test_the_first_image_of_each_view_precedes_the_second_of_any() -> None:
    views = ["clinical", "clinical", None, "dermoscopic", "dermoscopic", "overview"]
    assert choose_views(views, 6) == [3, 0, 5, 2, 4, 1]
    assert choose_views(views, 2) == [3, 0]


def test_rows_of_a_lesion_become_one_row(tmp_path: Path) -> None:
    table = lesion_table(12)
    rows = load(tmp_path, table.sample(frac=1, random_state=0))
    assert sorted(rows["image_id"]) == sorted(table["lesion_id"].unique())
    lesion: Any = rows.set_index("image_id").loc["L5"]
    own = table[table["lesion_id"] == "L5"]
    assert lesion["images"].split("|") == own["image"].tolist()
    assert lesion["image_views"] == "dermoscopic|clinical|overview"
    assert [Path(path).stem for path in lesion["paths"].split("|")] == own["image"].tolist()
    assert (lesion["age"], lesion["patient_id"]) == (own["age"].iloc[0], "P2")
    exploded = explode_images(rows)
    assert sorted(exploded["image_id"]) == sorted(table["image"])
    assert all(
        Path(p).stem == n for p, n in zip(exploded["path"], exploded["image_id"], strict=True)
    )


def test_images_beyond_the_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    data = read(tmp_path, lesion_table(30), views=2)
    assert "10 lesions have more than 2 images: 2 of each are used (data.views)" in data.notes
    assert set(data.cohort["image_views"]) == {"dermoscopic", "dermoscopic|clinical"}


def test_a_column_of_one_view_is_that_image_s_cell(tmp_path: Path) -> None:
    columns = ["shade_clinical", "shade_dermoscopic"]
    rows: Any = load(tmp_path, lesion_table(6), columns=columns).set_index("image_id")
    assert rows.loc["L4", columns].tolist() == [round(4 / 7 + 1, 2), round(4 / 7, 2)]
    assert np.isnan(rows.loc["L3", "shade_clinical"])


def test_spread_columns_count_as_present() -> None:
    names = ["isic_id", "image_type", "hair", "sex"]
    expected = ["isic_id", "sex", "hair_clinical", "hair_dermoscopic"]
    columns = ["sex", "hair_clinical", "hair_dermoscopic", "age"]
    assert name_spread_columns(names, columns) == expected


def test_image_columns_are_images_of_the_row(tmp_path: Path) -> None:
    names = lesion_table(12)["image"]
    wide = pd.DataFrame(
        {
            "image_clinical": names[:4],
            "image_dermoscopic": [*names[4:7], None],
            "diagnosis": ["mel", "nv", "mel", "nv"],
        }
    )
    write_lesions(tmp_path, names.to_frame())
    wide.to_csv(tmp_path / "cohort.csv", index=False)
    data = lesion_config(tmp_path)
    rows = group_lesions(load_cohort(data).rows, data)[0]
    assert rows["images"].tolist() == [
        *(f"{names[k + 4]}|{names[k]}" for k in range(3)),
        names[3],
    ]
    assert rows["image_views"].iloc[0] == "dermoscopic|clinical"
    wide.loc[1, "image_dermoscopic"] = f"{names[1]}.jpg"
    wide.to_csv(tmp_path / "cohort.csv", index=False)
    message = "row 3: two image columns name one file, "
    with pytest.raises(InputError, match=message + names[1]):
        load_cohort(data)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "target",
            0,
            r"1 lesions .* contradict each other: L3 \(target: 1, 0\); correct them",
        ),
        ("age", 99, r"L3 \(age: 60.0, 99.0\)"),
        ("patient_id", "P9", r"L3 \(patient_id: P1, P9\)"),
        (
            "view",
            "radiograph",
            "column view: not a view: 'radiograph' .1.; allowed: dermoscopic, clin",
        ),
    ],
)
def test_contradictions_and_unknown_words_are_refused(
    column: str, value: Any, message: str, tmp_path: Path
) -> None:
    table = lesion_table(6)
    table = pd.concat([table, table[table["lesion_id"] == "L3"].assign(image=LAST)])
    table = table.reset_index(drop=True).astype({column: object})
    table.loc[len(table) - 1, column] = value
    with pytest.raises(InputError, match=message):
        load(tmp_path, table)
    if column != "view":
        assert "L3" not in load(tmp_path, table, missing="drop")["image_id"].tolist()


def test_a_missing_value_contradicts_nothing(tmp_path: Path) -> None:
    table = lesion_table(6).astype({"age": float})
    table.loc[table["view"] == "dermoscopic", ["age", "patient_id"]] = None
    rows = load(tmp_path, table).set_index("image_id")
    assert (rows.loc["L4", "age"], rows.loc["L4", "patient_id"]) == (70, "P2")


def test_no_split_separates_lesions_of_duplicate_images(tmp_path: Path) -> None:
    table = lesion_table(60).drop(columns="patient_id")
    image = {lesion: rows["image"].iloc[-1] for lesion, rows in table.groupby("lesion_id")}
    table["duplicate_of"] = None
    for lesion in range(0, 60, 2):
        own = table["image"] == image[f"L{lesion}"]
        table.loc[own, "duplicate_of"] = image[f"L{lesion + 1}"]
    parts = read(tmp_path, table).cohort.set_index("image_id")["part"]
    assert all(parts[f"L{n}"] == parts[f"L{n + 1}"] for n in range(0, 60, 2))


def test_samplers_count_lesions_and_samples_have_the_images_in_order(tmp_path: Path) -> None:
    table = lesion_table(60)
    data = read(tmp_path, table)
    assert len(data.cohort) == 60
    assert len(data.training_targets) == len(data.rows("train"))
    batch = next(iter(data.evaluation_loader("test")))
    test = data.cohort.iloc[data.rows("test")]
    assert batch["image"].shape == (len(test), 3, 3, 32, 32)
    counts = [len(names.split("|")) for names in test["images"]]
    assert (batch["has_image"] > 0).sum(dim=1).tolist() == counts
    assert batch["has_image"][:, 0].unique().tolist() == [2]
    single = replace(micro_config("concat", DataConfig("csv", root=str(tmp_path))))
    images = read_data(single, BOTH)
    rows = images.cohort.set_index("image_id")
    for place, names in enumerate(test["images"]):
        for view, name in enumerate(names.split("|")):
            row = rows.index.get_loc(name)
            loader = images.build_loader(images.build_dataset(np.array([row])), [(0, None)], 1)
            assert torch.equal(next(iter(loader))["image"][0], batch["image"][place, view])


def test_withheld_views_leave_one(tmp_path: Path) -> None:
    write_lesions(tmp_path, lesion_table(60))
    config = micro_config("concat", lesion_config(tmp_path))
    config = replace(config, model=replace(config.model, drop_views=0.9))
    data = read_data(config, BOTH)
    (types,) = (batch["has_image"] for batch in [next(iter(data.train_dataloader()))])
    present = (types > 0).sum(dim=1)
    assert present.min() == 1
    assert present.float().mean() < 1.5
    whole = next(iter(data.evaluation_loader("val")))["has_image"]
    assert (whole > 0).sum(dim=1).max() == 3
