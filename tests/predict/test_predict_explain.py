"""`predict.py explain=DIR`: what the service says of one lesion, for every row of a list."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom_from_jpeg
from PIL import Image
from quick_runs import best, cohort_of, files_in

from skinmm.cli import main
from skinmm.images.decode import decode_within
from skinmm.models.checkpoint import load_card
from skinmm.predict import extra_outputs
from skinmm.predict.explain import Explainer
from skinmm.predict.heat_maps import overlay
from skinmm.predict.inputs import ImageFolder
from skinmm.predict.loading import CaseImage
from skinmm.predict.predictor import PredictionTable, Predictor

Said = pytest.CaptureFixture[str]


def explained(run: Path, images: Path, table: pd.DataFrame, into: Path, *more: str) -> int:
    if not (into / "in.csv").is_file():
        table.to_csv(into / "in.csv", index=False)
    given = [f"checkpoint={best(run)}", f"input={into / 'in.csv'}", f"images={images}"]
    where = [f"output={into / 'out.csv'}", f"explain={into / 'why'}", "batch_size=2"]
    return main.predict([*given, *where, *more])


def why(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "why" / extra_outputs.TABLE, keep_default_na=False)


def test_each_row_gets_its_picture_and_what_each_input_added(
    both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    table = cohort_of(both)[["image_id", "age", "sex", "site"]].head(5).astype(object)
    table.loc[1, "image_id"], table.loc[2, "sex"] = "nowhere", None
    assert explained(both, pictures, table, tmp_path) == 3
    assert f"explanations: {tmp_path / 'why'}" in capsys.readouterr().out
    said, rows = pd.read_csv(tmp_path / "out.csv"), why(tmp_path)
    assert rows["row"].tolist() == [1, 2, 3, 4, 5]
    assert rows["error"].tolist() == ["", "image nowhere not found", "", "", ""]
    names = [f"{row:07d}_{name}.png" for row, name in enumerate(table["image_id"], 1)]
    assert rows["picture"].tolist() == [*names[:1], "", *names[2:]]
    assert files_in(tmp_path / "why") == {extra_outputs.TABLE, names[0], *names[2:]}
    good = rows["error"] == ""
    known = rows[good].replace("", 0).filter(regex="^(added_|start)").astype(float)
    added = [f"added_{name}" for name in ("image", "age", "sex", "site")]
    assert known.columns.tolist() == ["start", *added]
    np.testing.assert_allclose(known.sum(axis=1), said["malignancy"][good], atol=1e-6)
    assert rows["added_sex"][2] == ""
    shares = rows[good][["share_of_image", "share_of_record"]].astype(float)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    predictor = Predictor.from_checkpoints([best(both)], "cpu")
    (explainer,) = Explainer.for_predictor(predictor, [best(both)], "cpu")
    image = (pictures / f"{table['image_id'][0]}.jpg").read_bytes()
    (heat,) = explainer.explain([CaseImage(image)], dict(table.iloc[0])).heats
    drawn = np.asarray(Image.open(tmp_path / "why" / names[0]))
    np.testing.assert_array_equal(
        drawn, overlay(decode_within(image, extra_outputs.MAX_SIDE), heat)
    )
    assert explained(both, pictures, table, tmp_path) == 2
    assert explained(both, pictures, table, tmp_path, "overwrite=true") == 3


def test_a_model_of_images_alone_is_explained_by_the_image(
    larger: Path, pictures: Path, tmp_path: Path
) -> None:
    assert explained(larger, pictures, cohort_of(larger).head(1), tmp_path) == 0
    rows = why(tmp_path)
    assert rows.filter(regex="^added_").columns.tolist() == ["added_image"]
    assert rows["error"].tolist() == [""]


def test_a_job_that_was_killed_is_gone_on_with(
    both: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = cohort_of(both)[["image_id", "age"]].head(6)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert explained(both, pictures, table, whole) == 0
    real, seen = extra_outputs.ExplanationWriter._explain, []

    def dies(self: Any, name: str, record: Any) -> Any:
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(self, name, record)

    monkeypatch.setattr(extra_outputs.ExplanationWriter, "_explain", dies)
    assert explained(both, pictures, table, broken) == 130
    assert explained(both, pictures, table, broken, "resume=true") == 0
    for name in ("out.csv", f"why/{extra_outputs.TABLE}"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert files_in(broken / "why") == files_in(whole / "why")


def test_what_is_explained_is_what_is_predicted(both: Path, pictures: Path, tmp_path: Path) -> None:
    """The networks' own probabilities too, and whatever an image's name says of its header."""
    stream = (pictures / "ISIC_0000166.jpg").read_bytes()
    for name in ("a.dcm", "b.jpg"):  # by its name no DICOM file: its header is not read
        (tmp_path / name).write_bytes(dicom_from_jpeg(stream, PatientAge="081Y", PatientSex="M"))
    known = {"patient_id": "P", "age": 50, "sex": "male", "site": "torso"}
    (tmp_path / "c.dcm").write_bytes(stream)  # nor is one that nothing is wanted of
    table = pd.DataFrame([{"image_id": "a"}, {"image_id": "b"}, {"image_id": "c", **known}])
    assert explained(both, tmp_path, table, tmp_path, "probabilities=raw") == 0
    said = pd.read_csv(tmp_path / "out.csv")["malignancy"]
    assert said[0] != pytest.approx(said[1], abs=1e-4)
    np.testing.assert_allclose(why(tmp_path)["explained"], said, atol=1e-6)


def test_what_is_wrong_with_one_row_is_said_there(
    both: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = extra_outputs.ExplanationWriter._explain

    def fails(self: Any, name: str, *more: Any) -> Any:
        if name == table["image_id"][0]:
            raise RuntimeError("out of\nmemory")
        return real(self, name, *more)

    monkeypatch.setattr(extra_outputs.ExplanationWriter, "_explain", fails)
    table = cohort_of(both)[["image_id", "age"]].head(2)
    assert explained(both, pictures, table, tmp_path) == 0
    assert why(tmp_path)["error"].tolist() == ["RuntimeError: out of memory", ""]


def test_earlier_rows_are_there_before_new_ones_come(tmp_path: Path, pictures: Path) -> None:
    table, images = tmp_path / extra_outputs.TABLE, ImageFolder(pictures)
    with extra_outputs.ExplanationWriter(tmp_path, [], images) as first:
        nothing = {"image_id": np.array(["a", "b"]), "error": np.array(["lost", "lost"])}
        first.add(PredictionTable(nothing, {"patient_id": np.array([None, None])}, Counter()))
    before = table.read_bytes()
    with extra_outputs.ExplanationWriter(tmp_path, [], images, 2):
        assert table.read_bytes() == before  # what a kill would leave now


def test_a_model_of_the_record_alone_draws_nothing(records: Path, tmp_path: Path) -> None:
    table = cohort_of(records)[["age", "sex", "site"]].head(2)
    assert explained(records, tmp_path, table, tmp_path) == 0
    rows = why(tmp_path)
    assert rows["picture"].tolist() == ["", ""]
    assert rows["share_of_record"].tolist() == [1, 1]
    columns = load_card(best(records))[0].encoder["columns"]
    assert {f"added_{each['name']}" for each in columns} <= {*rows.columns}
