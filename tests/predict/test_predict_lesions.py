"""Prediction by lesion: rows need not be adjacent, damaged images, bad input, constant memory."""

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom_from_jpeg
from lesion_cohorts import lesion_table, write_lesions
from pydicom.uid import DermoscopicPhotographyImageStorage
from quick_runs import best, predictions_of, quick_train

from skinmm.cli import main
from skinmm.config.remote_commands import ServeConfig
from skinmm.errors import InputError
from skinmm.evaluation.predictions import read_predictions
from skinmm.predict.backends import OnnxBackend
from skinmm.predict.cases import Case, CasePredictor
from skinmm.predict.lesions import group_rows, sort_by_lesion
from skinmm.predict.loading import CaseImage
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


def test_rows_without_names_are_counted_over_the_whole_input(tmp_path: Path) -> None:
    rows = pd.DataFrame({"lesion_id": None, "age": "50"}, range(600), dtype=object)
    tables = [*sort_by_lesion([rows[:500], rows[500:]], COLUMNS, tmp_path)]
    names = [name for table in tables for name in group_rows(table, COLUMNS, 4).table["lesion_id"]]
    assert names == [f"row {number + 1}" for number in range(600)]
    assert group_rows(rows[500:502], COLUMNS, 4).table["lesion_id"].tolist() == ["row 1", "row 2"]


def test_labels_of_a_lesion_must_agree() -> None:
    table = lesion_table(3).query("lesion_id == 'L2'").drop(columns="target")
    words = table.assign(diagnosis=["nevus", "nv", ""])
    assert group_rows(words, COLUMNS, 4).errors == {}
    wrong = group_rows(table.assign(diagnosis=["nevus", "mel", ""]), COLUMNS, 4).errors
    assert wrong == {0: "the images of the lesion contradict each other: diagnosis nv and mel"}


def test_a_limit_is_warned_about_once(
    predictor: Predictor, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = lesion_table(75).query("lesion_id in ('L2', 'L5')")
    rows = [table.assign(lesion_id=name, age=50, sex="male") for name in ("A", "B")]
    assert len(rows[0]) > 4
    [*predictor.stream(rows, root / "images", workers=0)]
    warning = "2 lesions have more than 4 images: 4 of each are used"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_folder_of_dicom_files_is_grouped_by_its_headers(
    run: Path, predictor: Predictor, root: Path, tmp_path: Path
) -> None:
    streams = [path.read_bytes() for path in sorted((root / "images").iterdir())[:5]]
    derm = {"SOPClassUID": DermoscopicPhotographyImageStorage}
    headers = [
        {"TrackingUID": "1.2.3", "SeriesInstanceUID": "1.9", **derm},
        {"TrackingUID": "1.2.3", "SeriesInstanceUID": "1.8"},
        {"SeriesInstanceUID": "1.7", "Modality": "DMS"},
        {"SeriesInstanceUID": "1.7"},
        {},
    ]
    folder = tmp_path / "study"
    folder.mkdir()
    for number, (stream, header) in enumerate(zip(streams, headers, strict=True)):
        data = dicom_from_jpeg(stream, PatientAge="050Y", PatientSex="M", **header)
        (folder / f"{number}.dcm").write_bytes(data)
    output = tmp_path / "out.csv"
    assert main.predict([f"checkpoint={best(run)}", f"input={folder}", f"output={output}"]) == 0
    rows = pd.read_csv(output, dtype=str)
    assert rows["lesion_id"].tolist() == ["1.2.3", "1.7", "4"]
    assert rows["images"].tolist() == ["0|1", "2|3", "4"]
    table = pd.DataFrame({"image": [f"{n}.dcm" for n in range(5)], "age": 50, "sex": "male"})
    table["lesion_id"] = ["1.2.3", "1.2.3", "1.7", "1.7", "4"]
    table["view"] = ["dermoscopic", "", "dermoscopic", "", ""]
    expected = predictor.predict(table, folder, workers=0)
    np.testing.assert_allclose(rows[P].astype(float), expected[P], atol=1e-6)


def test_a_folder_may_mix_dicom_files_without_lesions_and_other_images(
    run: Path, root: Path, tmp_path: Path
) -> None:
    first, second = (path.read_bytes() for path in sorted((root / "images").iterdir())[:2])
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(first)
    (folder / "b.dcm").write_bytes(dicom_from_jpeg(second))
    output = tmp_path / "out.csv"
    assert main.predict([f"checkpoint={best(run)}", f"input={folder}", f"output={output}"]) == 0
    rows = pd.read_csv(output, keep_default_na=False, dtype=str)
    assert rows["images"].tolist() == rows["lesion_id"].tolist() == ["a", "b"]
    assert rows["patient_id"].tolist() == rows["error"].tolist() == ["", ""]
    rows.assign(target=["0", "1"]).to_csv(output, index=False)
    assert set(read_predictions(output).list_units()) == {"lesion"}


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


def explain(run: Path, root: Path, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The table of explanations of a job, after a check that its values sum to the predictions."""
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / "in.csv", index=False)
    words = [f"checkpoint={best(run)}", f"input={folder / 'in.csv'}", f"images={root / 'images'}"]
    words += [f"output={folder / 'out.csv'}", f"explain={folder / 'why'}"]
    assert main.predict(words) == 0
    rows = pd.read_csv(folder / "why" / "explanations.csv", keep_default_na=False)
    numbers = rows.replace("", 0).filter(regex="^(added_|start)").astype(float)
    predicted = pd.read_csv(folder / "out.csv")["malignancy"]
    np.testing.assert_allclose(numbers.sum(axis=1), predicted, atol=1e-6)
    np.testing.assert_allclose(rows["explained"], predicted, atol=1e-6)
    return rows


def test_each_image_of_a_lesion_has_its_contribution_and_heat_map(
    run: Path, root: Path, tmp_path: Path
) -> None:
    table = lesion_table(75).query("lesion_id in ('L0', 'L1', 'L2')").sort_values("image")
    rows = explain(run, root, table, tmp_path)
    images = [f"added_image {number}" for number in (1, 2, 3, 4)]
    assert rows.filter(regex="^added_").columns.tolist() == [*images, "added_age", "added_sex"]
    counts = pd.read_csv(tmp_path / "out.csv")["images"].str.count(r"\|") + 1
    assert (rows[images] != "").sum(axis=1).tolist() == counts.tolist()
    pictures = [cell.split("|") for cell in rows["picture"]]
    assert [*map(len, pictures)] == counts.tolist()
    assert all((tmp_path / "why" / name).is_file() for row in pictures for name in row)
    shares = rows[["share_of_image", "share_of_record"]].astype(float)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_an_image_that_cannot_be_used_has_no_contribution(
    run: Path, root: Path, tmp_path: Path
) -> None:
    table = lesion_table(75).query("lesion_id == 'L2'")
    copy = tmp_path / "copy"
    write_lesions(copy, table)
    first = table["image"].iloc[0]
    (copy / "images" / f"{first}.jpg").write_bytes(b"no image")
    rows = explain(run, copy, table, tmp_path / "damaged")
    assert rows["added_image 1"].tolist() == [""]
    assert (rows[["added_image 2", "added_image 3"]] != "").all(axis=None)
    left = explain(run, root, table.iloc[1:], tmp_path / "without")
    np.testing.assert_allclose(
        rows[["added_image 2", "added_image 3"]].astype(float),
        left[["added_image 1", "added_image 2"]].astype(float),
        atol=1e-9,
    )


def test_equal_images_have_equal_contributions(run: Path, root: Path) -> None:
    predictor = CasePredictor(ServeConfig(accelerator="cpu"), [best(run)])
    files = [path.read_bytes() for path in sorted((root / "images").iterdir())[:2]]
    twice = [CaseImage(data, view="clinical") for data in (files[0], files[1], files[1])]
    row, explanation = predictor.predict_and_explain(Case(twice, {"age": "50"}))
    assert explanation is not None
    added = explanation.contributions.added
    assert added["image 2"] == pytest.approx(added["image 3"], abs=1e-9)
    total = explanation.contributions.start + sum(added.values())
    assert total == pytest.approx(row["malignancy"], abs=1e-6)
    np.testing.assert_allclose(explanation.heats[1], explanation.heats[2], atol=1e-6)
    assert max(heat.max() for heat in explanation.heats) in (0, pytest.approx(1))
    _, single = predictor.predict_and_explain(Case([], {"age": "50"}))
    assert single is None  # this model needs an image


def test_checkpoints_with_different_limits_are_refused(predictor: Predictor) -> None:
    (member,) = predictor.ensemble.members
    config = replace(member.config, data=replace(member.config.data, views=2))
    with pytest.raises(InputError, match=r"trained with data\.views=2 and 4; use one value"):
        Predictor([member, replace(member, config=config)])


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
