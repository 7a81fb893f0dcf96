"""Data that cannot be trained on: named in one line, without a traceback, and nothing written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from micro_runs import micro_config, table_cohort
from quick_runs import ROOT, files_in, metrics_of, predictions_of, quick_train

from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.models.checkpoint import load_card
from skinmm.training.leak_guard import audit_split

Captured = pytest.CaptureFixture[str]
DEMO = ROOT / "skinmm" / "demo"


def demo_table() -> pd.DataFrame:
    return pd.read_csv(DEMO / "cohort.csv")


def with_csv(table: pd.DataFrame, *overrides: str) -> Callable[[Path], list[str]]:
    """A cohort of records alone, from a table."""

    def prepare(root: Path) -> list[str]:
        table.to_csv(root / "cohort.csv", index=False)
        return ["data=csv", f"data.root={root}", "fusion=tabular_only", *overrides]

    return prepare


def with_folders(count: int, *classes: str) -> Callable[[Path], list[str]]:
    """A folder of pictures for each class."""

    def prepare(root: Path) -> list[str]:
        files = sorted((DEMO / "images").iterdir())
        for number, name in enumerate(classes):
            (root / name).mkdir()
            for file in files[number * count : (number + 1) * count]:
                shutil.copy(file, root / name)
        return ["data=image_folder", f"data.root={root}", "fusion=image_only"]

    return prepare


def few_malignant() -> pd.DataFrame:
    table = demo_table()
    malignant = table["target"] == 1
    return pd.concat([table[~malignant].head(60), table[malignant].head(2)])


def in_two_parts() -> pd.DataFrame:
    """Parts fixed by the table, the first patient in two of them."""
    table = demo_table().head(90)
    table["part"] = np.resize(["train", "val", "test"], len(table))
    table["target"] = np.arange(len(table)) // 3 % 2
    del table["diagnosis"]  # which the new targets would contradict
    table["patient_id"] = [f"P{max(row, 1)}" for row in range(len(table))]
    return table


def without_patients(root: Path) -> list[str]:
    table = demo_table().rename(columns={"image_id": "image_name"})
    table.to_csv(root / "train.csv", index=False)
    return ["data=siim_isic", f"data.root={root}"]


def misspelt(root: Path) -> list[str]:
    overrides = with_folders(3, "nv", "mel")(root)
    name = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(DEMO / "images" / "ISIC_0000000.jpg", root / "nv" / name)
    return overrides


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no root": (lambda _: ["data=siim_isic"], "data=siim_isic needs data.root=DIR"),
    "no root of its own": (
        lambda _: ["data.extra=[{name:isic_2019}]"],
        "data.extra: isic_2019 needs its own root, data.extra=[{name:isic_2019,root:DIR}]",
    ),
    "missing root": (
        lambda root: ["data=siim_isic", f"data.root={root / 'nowhere'}"],
        "nowhere: no such folder",
    ),
    "missing table": (
        lambda root: ["data=siim_isic", f"data.root={root}"],
        "train.csv",
    ),
    "missing column": (without_patients, "train.csv: no column patient_id; it has image_name"),
    "unknown column": (with_csv(demo_table(), "data.columns=[age,height]"), "height"),
    "a column in another language": (
        with_csv(demo_table().rename(columns={"sex": "sexus"}), "data.columns=[age,sex]"),
        "data.columns: no column 'sex'; did you mean 'sexus'? the table has image_id",
    ),
    "empty cohort": (with_csv(demo_table().head(0)), "cohort.csv"),
    "single class": (
        with_csv(demo_table().drop(columns="diagnosis").assign(target=0)),
        "every row has the same target, 0",
    ),
    "too few patients": (with_csv(demo_table().tail(3).assign(target=[0, 1, 0])), "data.folds"),
    "a fold without a positive": (
        with_csv(few_malignant()),
        "no malignant row among the 12 of part",
    ),
    "no images": (
        lambda root: with_csv(demo_table())(root)[:2],
        "700 of 700 images are not on disk, e.g. ISIC_0000000",
    ),
    "one class folder": (with_folders(3, "nv"), "two or more folders, one per class"),
    "fewer rows than classes": (
        lambda root: [
            *with_folders(16, "nv", "mel", "bkl")(root),
            "data.target=diagnosis",
            "data.limit=2",
        ],
        "data.limit=2: must be at least the number of classes (3)",
    ),
    "a file name that is not UTF-8": (
        misspelt,
        "the file name is not UTF-8; rename the file",
    ),
    "a root that is not UTF-8": (
        lambda root: ["data=csv", f"data.root={root}/\udce9"],
        "\\udce9': a name that is not UTF-8; rename the file or folder",
    ),
    "unknown malignancy": (with_folders(3, "apples", "pears"), "data.positive=[...]"),
    "a patient in two parts": (
        with_csv(in_two_parts()),
        "the split leaks: 1 patient (P1) in two parts",
    ),
    "unknown adapter": (lambda _: ["data.name=nonsense"], "unknown data 'nonsense'; choose from "),
    "unknown model": (lambda _: ["model.name=resnet5x"], "resnet5x"),
    "missing weights": (lambda _: ["model.pretrained=nowhere.pt"], "nowhere.pt: no such file"),
    "optimizer": (
        lambda _: ["optimizer=sgd", "optimizer.args.momentum=-1"],
        "optimizer 'sgd': Invalid momentum value: -1",
    ),
    "all folds of a fixed test part": (
        lambda _: ["data.fold=all", "+data.args.test_fraction=0.2", "fusion=tabular_only"],
        "this dataset has a fixed one",
    ),
    "folds of a split by source": (
        lambda _: ["data.fold=all", "data.split=source", "data.folds=4"],
        "data.folds=4: data.split=source has a fold for each source; leave data.folds out",
    ),
    "one source": (
        lambda _: ["data.fold=all", "data.split=source", "fusion=tabular_only"],
        "data.split=source: all rows are of the source demo; two or more are needed",
    ),
    "no GPU": (lambda _: ["trainer.accelerator=gpu"], "no GPU is available here; use trainer=cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    case: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    prepare, message = BAD[case]
    root = tmp_path / "data"
    root.mkdir()
    assert quick_train(tmp_path / "run", *prepare(root)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_from_any_process(
    workers: int, tmp_path: Path, capsys: Captured
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    overrides = with_folders(12, "nv", "mel")(root)
    for picture in (root / "nv").iterdir():
        picture.write_bytes(picture.read_bytes()[:300])
    assert quick_train(tmp_path / "run", *overrides, f"trainer.workers={workers}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 12 of 24 images cannot be used: ISIC_00")
    assert line.endswith("set data.missing=drop to leave them out")
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_an_encoder_fitted_on_test_rows_is_refused(tmp_path: Path) -> None:
    config = micro_config(data=table_cohort(tmp_path))
    data = LesionData(config, frozenset({"record"}))
    data.setup()
    assert audit_split(data, config)["leaks"] == []
    patient = data.cohort["patient_id"].iloc[data.rows("train")[0]]
    data.cohort.loc[data.cohort["patient_id"] == patient, "part"] = "test"
    with pytest.raises(InputError, match="leaks: the record encoder was fitted on 2 rows"):
        audit_split(data, config)


def test_training_names_the_columns_that_are_not_used(tmp_path: Path) -> None:
    config = micro_config("tabular_only", data=table_cohort(tmp_path))
    file = tmp_path / "cohort.csv"
    pd.read_csv(file).rename(columns={"patient_id": "Fall"}).to_csv(file, index=False)
    data = LesionData(config, frozenset({"record"}))
    data.setup()
    line = "no column patient_id or lesion_id: every image counts as a patient; columns not used: "
    mapping = (
        "columns: image_id <- image_name, patient_id <- (none), lesion_id <- (none), "
        "age <- age_approx, sex <- sex, site <- anatom_site_general_challenge, "
        "diagnosis <- (none), target <- target, source <- (none)"
    )
    assert audit_split(data, config)["notes"] == [mapping, f"{line}Fall"]
    assert data.notes == (mapping, f"{line}Fall")


def test_a_leak_may_be_allowed_and_is_recorded(tmp_path: Path, capsys: Captured) -> None:
    overrides = with_csv(in_two_parts(), "data.allow_leaks=true")(tmp_path)
    assert quick_train(tmp_path / "run", *overrides) == 0
    assert "WARNING: the split leaks (data.allow_leaks): 1 patient (P1)" in capsys.readouterr().err
    audit = yaml.safe_load((tmp_path / "run" / "audit.json").read_text())
    assert audit["allow_leaks"] is True
    assert audit["leaks"] == ["1 patient (P1) in two parts"]


def test_other_classes_need_data_positive(tmp_path: Path) -> None:
    root = tmp_path / "data (1) = ä"
    root.mkdir()
    overrides = with_folders(16, "plain", "odd", "mel")(root)
    target = ["data.target=diagnosis", "data.positive=[melanoma,odd]", "evaluation.resamples=0"]
    run = tmp_path / "run"
    assert quick_train(run, *overrides, *target) == 0
    rows, metrics = predictions_of(run), metrics_of(run)
    classes = ["mel", "odd", "plain"]
    names = [f"{kind}_{name}" for kind in ("p", "raw") for name in classes]
    later = ["decision", "prediction_set", "ood", "called"]
    assert rows.columns.tolist() == ["image_id", "patient_id", "unit", "target", *names, *later]
    assert set(rows["target"]) <= set(classes)
    assert (metrics["classes"], metrics["positive"]) == (classes, ["mel", "odd"])
    card, _ = load_card(run / "checkpoints" / "best.ckpt")
    assert (card.classes, card.positive) == (classes, ["mel", "odd"])
    assert "report.html" in files_in(run)
