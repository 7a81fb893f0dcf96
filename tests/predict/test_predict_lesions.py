"""Prediction by lesion: rows need not be adjacent, damaged images, bad input, constant memory."""

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lesion_cohorts import lesion_table, write_lesions
from quick_runs import best, predictions_of, quick_train

from skinmm.cli import main
from skinmm.errors import InputError
from skinmm.predict.backends import OnnxBackend
from skinmm.predict.explain import CasePredictor
from skinmm.predict.lesions import group_rows, sort_by_lesion
from skinmm.predict.predictor import Predictor

COLUMNS = ["age", "sex"]
P = "p_malignant"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_lesions(folder, lesion_table(75))
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = ("data=csv", f"data.root={root}", "data.unit=lesion", "data.columns=[age,sex]")
    assert quick_train(folder, *data, "views=gated", "trainer.workers=0") == 0
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor.from_checkpoints(run, "cpu")


def test_a_table_in_any_order_gives_the_predictions_of_training(
    run: Path, root: Path, tmp_path: Path
) -> None:
    expected = predictions_of(run).set_index("image_id")
    table = lesion_table(75).sample(frac=1, random_state=1)
    table.to_csv(tmp_path / "shuffled.csv", index=False)
    output = tmp_path / "predictions.csv"
    words = [f"checkpoint={best(run)}", f"input={tmp_path / 'shuffled.csv'}", "batch_size=4"]
    assert main.predict([*words, f"images={root / 'images'}", f"output={output}"]) == 0
    rows = pd.read_csv(output)
    assert rows["lesion_id"].tolist() == table["lesion_id"].drop_duplicates().tolist()
    rows = rows.set_index("image_id").loc[expected.index]
    np.testing.assert_allclose(rows[P], expected[P], atol=1e-5)
    assert rows["images"].tolist() == expected["images"].tolist()
    assert rows["missing"].isna().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "shuffled.csv"]


def test_other_images_decide_if_one_is_damaged(
    predictor: Predictor, root: Path, tmp_path: Path
) -> None:
    table = lesion_table(75).query("lesion_id in ('L2', 'L3')")
    for name in table["image"]:
        (tmp_path / f"{name}.jpg").write_bytes((root / "images" / f"{name}.jpg").read_bytes())
    broken = table["image"].tolist()[1]
    (tmp_path / f"{broken}.jpg").write_bytes(b"no image")
    rows = predictor.predict(table, tmp_path)
    assert rows["missing"].tolist() == [f"image {broken}", ""]
    assert rows["error"].tolist() == ["", ""]
    without = predictor.predict(table[table["image"] != broken], tmp_path)
    np.testing.assert_allclose(rows[P], without[P], atol=1e-6)
    for name in table["image"]:
        (tmp_path / f"{name}.jpg").write_bytes(b"no image")
    rows = predictor.predict(table, tmp_path)
    assert rows[P].isna().all()
    assert rows["error"].str.len().gt(0).all()


def test_image_columns_and_lists_of_images_are_the_same(predictor: Predictor, root: Path) -> None:
    table = lesion_table(75)
    table = table[table["lesion_id"].isin(["L1", "L4"])]
    expected = predictor.predict(table, root / "images")
    by_view = table.pivot(index="lesion_id", columns="view", values="image")
    wide = table.drop_duplicates("lesion_id").drop(columns=["image", "view"])
    wide["image_clinical"] = by_view["clinical: close-up"].to_numpy()
    wide["image_dermoscopic"] = by_view["dermoscopic"].to_numpy()
    rows = predictor.predict(wide.reset_index(drop=True), root / "images")
    pd.testing.assert_frame_equal(rows, expected)
    lists = table.drop_duplicates("lesion_id").assign(
        image=expected["images"].to_numpy(), view="dermoscopic|clinical"
    )
    pd.testing.assert_frame_equal(predictor.predict(lists, root / "images"), expected)


def test_images_of_unstated_views_and_rows_without_ids(predictor: Predictor, root: Path) -> None:
    table = lesion_table(75)
    unstated = predictor.predict(table.drop(columns="view"), root / "images", workers=0)
    assert (unstated["error"] == "").all()
    assert unstated["lesion_id"].tolist() == table["lesion_id"].drop_duplicates().tolist()
    stated = predictor.predict(table, root / "images", workers=0)
    assert not np.allclose(unstated[P], stated[P], atol=1e-6)
    without = predictor.predict(table.assign(image=None), root / "images", workers=0)
    assert without["error"].str.startswith("no image named").all()


def test_the_column_of_views_may_have_the_name_of_the_training_table(
    predictor: Predictor, root: Path
) -> None:
    member = predictor.ensemble.members[0]
    args = {"columns": {"view": "taken as"}}
    config = replace(member.config, data=replace(member.config.data, args=args))
    mapped = Predictor([replace(member, config=config)])
    table = lesion_table(75)
    expected = predictor.predict(table, root / "images", workers=0)
    renamed = mapped.predict(table.rename(columns={"view": "taken as"}), root / "images", workers=0)
    np.testing.assert_allclose(renamed[P], expected[P], atol=1e-6)


def test_bad_input_is_named(predictor: Predictor, root: Path) -> None:
    table = lesion_table(75).query("lesion_id == 'L5'").astype({"age": object})
    table.loc[table.index[0], "age"] = 77
    rows = predictor.predict(table, root / "images")
    message = "the images of the lesion contradict each other: age 77.0 and 30.0"
    assert rows["error"].tolist() == [message]
    twice = pd.concat([lesion_table(75).query("lesion_id == 'L0'")] * 2)
    rows = predictor.predict(twice, root / "images")
    assert rows["error"].tolist() == ["the lesion names an image twice"]


def test_unknown_words_count_as_unstated_and_further_images_are_left_out() -> None:
    table = lesion_table(6).assign(view=["radiograph", *lesion_table(6)["view"][1:]])
    grouped = group_rows(table, COLUMNS, 2)
    assert grouped.unread == [("view", "radiograph")]
    assert grouped.table["view"].tolist()[0] == ""
    assert grouped.table["image_id"].str.count(r"\|").max() == 1
    assert grouped.limited == 2


def shuffled(rows: int) -> Iterator[pd.DataFrame]:
    """Two rows per lesion, far from each other."""
    for start in range(0, rows, 1000):
        numbers = (np.arange(start, start + 1000) * 7919) % (rows // 2)
        yield pd.DataFrame({"lesion_id": [f"L{n}" for n in numbers], "age": "50", "sex": ""})


def test_the_rows_of_a_lesion_are_read_back_in_one_table(tmp_path: Path) -> None:
    rows = 6000
    expected = pd.concat(shuffled(rows))["lesion_id"].drop_duplicates().tolist()
    tables = [*sort_by_lesion(shuffled(rows), COLUMNS, tmp_path)]
    names = [table["lesion_id"].drop_duplicates().tolist() for table in tables]
    assert [name for part in names for name in part] == expected
    assert sum(map(len, tables)) == rows
    rest = pd.concat(sort_by_lesion(shuffled(rows), COLUMNS, tmp_path, skip=700))
    assert rest["lesion_id"].drop_duplicates().tolist() == expected[700:]
    assert not [*tmp_path.iterdir()]


def test_a_resumed_job_gives_the_same_file(run: Path, root: Path, tmp_path: Path) -> None:
    lesion_table(75).to_csv(tmp_path / "all.csv", index=False)
    words = [f"checkpoint={best(run)}", f"input={tmp_path / 'all.csv'}", "batch_size=8"]
    words += [f"images={root / 'images'}"]
    assert main.predict([*words, f"output={tmp_path / 'whole.csv'}"]) == 0
    whole = (tmp_path / "whole.csv").read_text()
    predictor = Predictor.from_checkpoints(run, "cpu")
    tables = sort_by_lesion([lesion_table(75)], predictor.columns, tmp_path, skip=70)
    rest = pd.concat(batch.table for batch in predictor.stream(tables, root / "images"))
    assert rest["lesion_id"].tolist() == whole.splitlines()[71:][0].split(",")[:1] + [
        f"L{n}" for n in range(71, 75)
    ]


def test_features_for_single_images_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="explanations and single cases: not available for a chec"):
        CasePredictor([best(run)], "cpu")


def test_an_exported_model_takes_any_number_of_views(
    run: Path, root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    out = tmp_path / "model.onnx"
    assert main.main(["export", f"checkpoint={best(run)}", f"out={out}", "rows=18"]) == 0
    (member,) = predictor.ensemble.members
    model = OnnxBackend(out)
    rng = np.random.default_rng(0)
    record = rng.normal(size=(4, member.encoder.dim)).astype(np.float32)
    for count in (1, 2, 3):
        image = rng.integers(0, 256, (4, count, 32, 32, 3), dtype=np.uint8)
        types = rng.integers(0, 5, (4, count))
        types[:, 0] = 2
        expected = member.backend(image, record, types)
        for values, exported in zip(expected, model(image, record, types), strict=True):
            np.testing.assert_allclose(exported, values, atol=1e-5)
    other = Predictor([replace(member, backend=model)])
    table = lesion_table(75)
    rows = [each.predict(table, root / "images", batch_size=5) for each in (predictor, other)]
    np.testing.assert_allclose(rows[1][P], rows[0][P], atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def sort(rows: int) -> int:
        for _ in sort_by_lesion(shuffled(rows), COLUMNS, tmp_path):
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    few = sort(20_000)
    assert sort(200_000) < few * 1.1
