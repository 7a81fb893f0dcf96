"""Prediction files of other systems: read as meant, or refused by name with the setting to type."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from skinmm.cli.main import main
from skinmm.errors import InputError
from skinmm.evaluation.other_formats import TableFormat
from skinmm.evaluation.prediction_tables import list_systems
from skinmm.evaluation.predictions import Predictions, read_predictions

CLASSES = ["bcc", "mel", "nv"]
TARGET = np.array([0, 1, 2, 2, 1])
SCORES = np.random.default_rng(0).normal(size=(5, 3)).round(6)
P = softmax(SCORES, axis=1)
NAMES = np.array(CLASSES)
IMAGES = [f"i{row}" for row in range(5)]


def write(folder: Path, columns: dict[str, Any], name: str = "theirs.csv") -> Path:
    table = pd.DataFrame({"image": IMAGES, **columns})
    table.to_csv(folder / name, index=False)
    return folder / name


def by(pattern: str, values: np.ndarray = P, names: list[str] | None = None) -> dict[str, Any]:
    names = names or CLASSES
    return {pattern.format(names[i], k=i): values[:, i] for i in range(values.shape[1])}


ONE_HOT = by("{0}", np.eye(3)[TARGET])
LOUD = [name.upper() for name in CLASSES]


def require_same(read: Predictions, classes: list[str] = CLASSES) -> None:
    assert [name.lower() for name in read.classes] == classes
    np.testing.assert_allclose(read.probabilities, P, rtol=1e-6)
    assert read.target.tolist() == TARGET.tolist()


@pytest.mark.parametrize(
    "pattern", ["probability_class_{k}", "prob_{k}", "{k}", "p{k}", "logit_{k}", "Score {k}"]
)
def test_numbered_columns_need_the_names_of_the_classes(tmp_path: Path, pattern: str) -> None:
    path = write(tmp_path, {**by(pattern), "target": NAMES[TARGET]})
    require_same(read_predictions(path, form=TableFormat(classes=CLASSES)))
    for given in ([], ["mel", "nv"]):
        with pytest.raises(InputError, match=r"numbers its 3 classes .*classes=\[akiec,bcc,bkl,"):
            read_predictions(path, form=TableFormat(classes=given))


@pytest.mark.parametrize("pattern", ["{0}", "prob_{0}", "probability {0}", "p_{0}"])
@pytest.mark.parametrize("names", [CLASSES, LOUD])
def test_a_column_per_class_is_read(tmp_path: Path, pattern: str, names: list[str]) -> None:
    path = write(tmp_path, by(pattern, names=names))
    labels = write(tmp_path, {"dx": NAMES[TARGET]}, "labels.csv")
    require_same(read_predictions(path, labels))


def test_truth_may_be_one_hot_or_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, by("{0}", names=LOUD))
    truth = write(tmp_path, by("{0}", np.eye(3)[TARGET], LOUD), "truth.csv")
    require_same(read_predictions(path, truth))
    together = write(tmp_path, {**ONE_HOT, **by("prob_{0}")})
    require_same(read_predictions(together))
    numbers = write(tmp_path, {**by("{k}"), "target": TARGET})
    require_same(read_predictions(numbers, form=TableFormat(CLASSES)))
    both = write(tmp_path, {**ONE_HOT, "target": NAMES[TARGET[::-1]]}, "both.csv")
    read = read_predictions(path, both, form=TableFormat(CLASSES))
    assert read.target.tolist() == TARGET[::-1].tolist()
    two = write(tmp_path, by("{0}", np.eye(3)[TARGET] * [1, 1, 0], LOUD), "truth.csv")
    with pytest.raises(InputError, match=r"row 4: 0 of the classes BCC, MEL, NV are 1, where one"):
        read_predictions(path, two)


def test_unknown_classes_of_a_one_hot_truth_are_classes_of_the_predictions(tmp_path: Path) -> None:
    names = ["BCC", "MEL", "BEN_OTH"]
    lesions = pd.DataFrame({"lesion_id": IMAGES})
    columns = (by("{0}", P, names), by("{0}", np.eye(3)[TARGET], names))
    for name, values in zip(("theirs.csv", "truth.csv"), columns, strict=True):
        lesions.assign(**values).to_csv(tmp_path / name, index=False)
    read = read_predictions(tmp_path / "theirs.csv", tmp_path / "truth.csv")
    require_same(read, ["bcc", "mel", "ben_oth"])
    assert read.image_id.tolist() == read.patient_id.tolist() == IMAGES


def test_logits_are_read_on_request_only(tmp_path: Path) -> None:
    path = write(tmp_path, {**by("logit_{0}", SCORES), "target": NAMES[TARGET]})
    require_same(read_predictions(path, form=TableFormat(logits=True)))
    with pytest.raises(InputError, match=r"perhaps logits: logits=true takes their softmax"):
        read_predictions(path)
    path = write(tmp_path, {"score": SCORES[:, 1], "target": np.where(TARGET == 1, "sick", "well")})
    form = TableFormat(columns={"p_malignant": "score"}, logits=True)
    with pytest.raises(InputError, match=r"target '(sick|well)' is not one of 0, 1, benign"):
        read_predictions(path, form=form)
    for target in ((TARGET == 1).astype(int), TARGET == 1, np.where(TARGET == 1, "ja", "nein")):
        path = write(tmp_path, {"score": SCORES[:, 1], "target": target})
        found = read_predictions(path, form=form)
        np.testing.assert_allclose(found.malignancy, expit(SCORES[:, 1]))
        assert found.target.tolist() == (TARGET == 1).astype(int).tolist()


@pytest.mark.parametrize("unit", ["", "%"])
def test_percentages_are_refused_by_name(tmp_path: Path, unit: str) -> None:
    for values in (by("{0}", 100 * P), {"p_malignant": 100 * P[:, 1]}):
        text = {name: [f"{value:.1f}{unit}" for value in v] for name, v in values.items()}
        path = write(tmp_path, {**text, "target": NAMES[TARGET]})
        with pytest.raises(InputError, match="percentages are not read: divide the columns by 100"):
            read_predictions(path)


def test_decimal_commas_are_refused_by_name(tmp_path: Path) -> None:
    numbers = [f"{value:.3f}".replace(".", ",") for value in P[:, 1]]
    path = write(tmp_path, {"p_malignant": numbers, "target": (TARGET == 1).astype(int)})
    with pytest.raises(InputError, match=r"decimal commas are not read: write 0[.]5"):
        read_predictions(path)


def test_free_names_are_refused_once_with_the_setting_to_type(tmp_path: Path) -> None:
    columns = {"probability": P[:, 1], "label": (TARGET == 1).astype(int)}
    path = write(tmp_path, columns)
    setting = r"'columns=\{p_malignant: probability, target: label\}'"
    with pytest.raises(InputError, match=setting):
        read_predictions(path, form=TableFormat())
    form = TableFormat(columns={"p_malignant": "probability", "target": "label"})
    read = read_predictions(path, form=form)
    np.testing.assert_allclose(read.malignancy, P[:, 1])
    assert read.target.tolist() == [0, 1, 0, 0, 1]
    path.write_text(path.read_text().replace("image", "scan"))
    with pytest.raises(InputError, match=r"\{image_id: scan, p_malignant: probability, target: l"):
        read_predictions(path, form=TableFormat())
    with pytest.raises(InputError, match="rename 'scan' to image_id, 'probability' to p_malignant"):
        read_predictions(path)  # as `skinmm plan`, which has no columns=
    with pytest.raises(InputError, match=r"columns=\{\.\.\.: risk\}: .* has no such column; it"):
        read_predictions(path, form=TableFormat(columns={"p_malignant": "risk"}))
    path = write(tmp_path, {**columns, "p_malignant": P[:, 1]})
    with pytest.raises(
        InputError, match="cannot be read as p_malignant: there is a column p_malignant"
    ):
        read_predictions(path, form=form)


def test_the_suggested_setting_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "theirs.csv"
    rows = {'Score "a" (%)': P[:, 1], "Befund's": ["benign", "malignant"] * 2 + ["benign"]}
    pd.DataFrame({"Größe: Bild": [*"abcde"], **rows}).to_csv(path, index=False)
    given = ["report", str(path), f"output={tmp_path / 'page.html'}"]
    assert main(given) == 2
    _, _, setting = capsys.readouterr().err.partition("if this is what they mean: ")
    assert main([*given, *shlex.split(setting)]) == 0


def test_the_score_of_a_submission_is_called_target(tmp_path: Path) -> None:
    path = write(tmp_path, {"target": P[:, 1]})
    labels = write(tmp_path, {"target": (TARGET == 1).astype(int)}, "labels.csv")
    np.testing.assert_allclose(read_predictions(path, labels).malignancy, P[:, 1])
    with pytest.raises(InputError, match="has no probabilities"):
        read_predictions(path)
    sides = write(tmp_path, {"benign": 1 - P[:, 1], "malignant": P[:, 1]})
    np.testing.assert_allclose(read_predictions(sides, labels).malignancy, P[:, 1])


def test_one_of_several_systems_is_read(tmp_path: Path) -> None:
    columns = {**by("A-1:{k}"), **by("B:{k}", P[:, ::-1]), "dx": NAMES[TARGET]}
    path = write(tmp_path, columns)
    assert list_systems(path) == ["A-1", "B"]
    require_same(read_predictions(path, form=TableFormat(CLASSES, system="A-1")))
    reverse = read_predictions(path, form=TableFormat(CLASSES, system="B"))
    np.testing.assert_allclose(reverse.probabilities, P[:, ::-1], rtol=1e-6)
    with pytest.raises(InputError, match=r"has 2 systems \(A-1, B\): skinmm compare .*system=NAME"):
        read_predictions(path, form=TableFormat(CLASSES))
    with pytest.raises(InputError, match="has no system C; it has A-1, B"):
        read_predictions(path, form=TableFormat(CLASSES, system="C"))


def test_files_of_medmnist_are_read(tmp_path: Path) -> None:
    path, labels = tmp_path / "dermamnist_test.csv", tmp_path / "dermamnist.npz"
    pd.DataFrame(P).to_csv(path, header=False)  # as its evaluator does
    np.savez(labels, test_labels=TARGET[:, None])
    require_same(read_predictions(path, labels, form=TableFormat(CLASSES)))
    np.savez(labels, train_labels=TARGET)
    with pytest.raises(InputError, match="not a MedMNIST archive with test_labels"):
        read_predictions(path, labels, form=TableFormat(CLASSES))


def test_the_commands_read_the_tables_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = {"dx": NAMES[TARGET], "source": ["x", "y", "x", "y", "y"]}
    labels = write(tmp_path, truth, "labels.csv")
    path = write(tmp_path, {**by("One:{k}"), **by("Two:{k}", P[:, ::-1])})
    options = [f"labels={labels}", "classes=[bcc,mel,nv]", "overwrite=true"]
    page = tmp_path / "page.html"
    assert main(["compare", str(path), *options, f"output={page}"]) == 0
    assert re.search(r"System +One +Two", capsys.readouterr().out)
    text = page.read_text()
    for words in ("One minus Two", "as given", "Calibration slope", "AUROC by source"):
        assert words in text
    assert main(["report", str(path), *options, "system=Two", f"output={page}"]) == 0
    assert main(["report", str(path), *options, f"output={page}"]) == 2
    assert "has 2 systems (One, Two)" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "system=Two"]) == 2
    assert (
        "output, system, labels, positive, classes and columns are for prediction files"
        in capsys.readouterr().err
    )
    path = write(tmp_path, {"risk": P[:, 1], "truth": (TARGET == 1).astype(int)})
    columns = "columns={p_malignant: risk, target: truth}"
    assert main(["report", str(path), columns, f"output={tmp_path / 'other.html'}"]) == 0
    assert main(["report", str(path), "columns=risk", "output=x.html"]) == 2
    assert "must be pairs, such as {p_malignant: score}" in capsys.readouterr().err
