"""The adapters: one contract for every dataset, and the included cohort."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from miniature_cohorts import POSITIVE, WRITERS, load, load_table

from skinmm.cli.main import main
from skinmm.config import DataConfig
from skinmm.data.cohorts import (
    ADAPTERS,
    list_classes,
    list_positive_classes,
    load_cohort,
    require_images,
)
from skinmm.data.cohorts.tables import CANONICAL, CohortTable
from skinmm.data.splits import split
from skinmm.errors import InputError
from skinmm.images.source import read_source
from skinmm.vocabulary import CLASSES, SEXES, SITES


@pytest.mark.parametrize("error", [KeyError("age"), AttributeError("x"), ValueError("y")])
def test_a_mistake_in_a_user_s_adapter_is_shown_with_its_traceback(
    error: Exception,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clinic(data: DataConfig) -> CohortTable:
        assert data.name == "clinic"
        raise error

    monkeypatch.setitem(ADAPTERS._included, "clinic", clinic)
    page = f"output={tmp_path}/page.html"
    assert main(["explore", "data.name=clinic", f"data.root={tmp_path}", page]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert any(line.strip().startswith("raise error") for line in lines)
    assert "in the adapter of data=clinic" in lines
    assert lines[-1].startswith(f"error: {type(error).__name__}: ")


def test_an_adapter_that_lacks_a_column_is_refused_with_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_cohort(DataConfig()).rows

    def clinic(data: DataConfig) -> CohortTable:
        return CohortTable(rows.drop(columns=["path", "site"]).assign(source=data.name))

    monkeypatch.setitem(ADAPTERS._included, "clinic", clinic)
    match = (
        "data=clinic returned rows without path, site; it has to return the columns image_id, path"
    )
    with pytest.raises(InputError, match=match):
        load_cohort(DataConfig(name="clinic", root=str(tmp_path)))


def test_every_dataset_is_here_in_miniature() -> None:
    assert list(WRITERS) == list(ADAPTERS)


@pytest.fixture(params=ADAPTERS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    WRITERS[request.param](tmp_path)
    return request.param, tmp_path


def test_every_adapter_yields_the_canonical_table(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    table = load(name, root)
    assert tuple(table.columns[: len(CANONICAL)]) == CANONICAL
    assert table["image_id"].is_unique
    assert table.index.equals(pd.RangeIndex(len(table)))
    assert table[["patient_id", "path", "target", "diagnosis"]].notna().all(axis=None)
    assert set(table["target"]) == {0, 1}
    assert set(table["sex"].dropna()) <= set(SEXES)
    assert set(table["site"].dropna()) <= set(SITES)
    assert table["age"].dropna().between(0, 120).all()
    assert [table[name].dtype.kind for name in ("age", "width", "height", "target")] == [*"fffi"]


def test_every_adapter_says_where_bytes_are(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    table = require_images(load_table(name, root), "error").rows
    for location in table["path"].iloc[:5]:
        assert Path(location.partition("#")[0]).is_absolute()
        data, frame = read_source(location)
        assert data.startswith((b"\xff\xd8", b"\x89PNG")) or name == "image_folder"
        assert frame is None


def test_every_adapter_serves_diagnoses(dataset: tuple[str, Path]) -> None:
    name, root = dataset
    positive = POSITIVE.get(name, [])
    data = DataConfig(name=name, root=str(root), target="diagnosis", positive=positive)
    table = load_cohort(data).rows
    classes = list_classes(table, data)
    assert set(classes) == set(table["target"])
    if name not in {"image_folder", "csv", "tfrecord", *POSITIVE}:
        assert set(classes) <= set(CLASSES)
        assert list(classes) == sorted(classes, key=CLASSES.index)
    assert set(list_positive_classes(classes, data)) < set(classes)


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "demo"])
def test_every_adapter_names_what_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        load(name, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"data={name} needs data.root=DIR"):
        load_cohort(DataConfig(name=name))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"table": 3}, "data 'csv': table must be text, not 3"),
        ({"columns": {"age": ["years"]}}, "must be pairs, such as {age: years}"),
        ({"columns": "age"}, "columns=age: must be pairs, such as {age: years}"),
    ],
)
def test_an_option_of_another_type_is_refused(
    args: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_cohort(DataConfig(name="csv", root=str(tmp_path), args=args))


def test_an_unknown_dataset_or_option_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data 'siim'; choose from demo, siim_isic"):
        load("siim", tmp_path)
    with pytest.raises(InputError, match="no argument 'fold'; it has: duplicates, folds"):
        load("siim_isic", tmp_path, args={"fold": "public"})
    with pytest.raises(InputError, match="folds=kaggle: choose from stratified, public"):
        load("siim_isic", tmp_path, args={"folds": "kaggle"})


def test_the_demo_matches_its_readme() -> None:
    table = load_cohort(DataConfig(name="demo")).rows
    assert len(table) == 700
    assert table["target"].sum() == 142
    complete = table[["age", "sex", "site"]].notna().all(axis=1)
    assert (complete.sum(), table["target"][complete].sum()) == (622, 126)
    text = (Path(table["path"][0]).parents[1] / "README.md").read_text()
    for count in table[["age", "sex", "site", "lesion_id"]].isna().sum():
        assert f"| {count} |" in text
    size = sum(Path(path).stat().st_size for path in table["path"])
    assert size <= 6_000_000


def test_a_test_fraction_is_held_out() -> None:
    table = load_cohort(DataConfig(name="demo", args={"test_fraction": 0.2})).rows
    assert (table["part"] == "test").mean() == pytest.approx(0.2, abs=0.01)
    part = split(table, 5, 1, 0)["part"]
    np.testing.assert_array_equal(part == "test", table["part"] == "test")
    assert (part == "val").mean() == pytest.approx(0.8 / 5, abs=0.01)


def test_the_cohort_table_is_plain_data() -> None:
    table = load_cohort(DataConfig(name="demo")).rows
    columns = table.astype(object).where(table.notna(), None).to_dict("list")
    assert json.loads(json.dumps(columns)) == columns
