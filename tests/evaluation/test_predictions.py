"""Prediction files: what is written is read, whoever wrote it; what is wrong is named in a line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skinmm.errors import InputError
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import (
    DECISIONS,
    Predictions,
    read_predictions,
    write_predictions,
)
from skinmm.vocabulary import is_missing, normalise_name

BINARY = "image_id,patient_id,target,p_benign,p_malignant\n"
GOOD = BINARY + "a,p1,0,0.9,0.1\nb,p1,1,0.2,0.8\n"


def write(folder: Path, text: str, name: str = "predictions.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


names = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8
).filter(lambda text: text.strip() == text)


@given(st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, data: st.DataObject) -> None:
    images = data.draw(st.lists(names, min_size=2, max_size=6, unique=True))
    n = len(images)
    patients = names.filter(lambda name: normalise_name(name) == name and not is_missing(name))
    classes = data.draw(st.sampled_from((("benign", "malignant"), ("bkl", "mel", "nv"))))
    generator = np.random.default_rng(n)
    written = Predictions(
        image_id=np.array(images, dtype=object),
        patient_id=np.array(data.draw(st.lists(patients, min_size=n, max_size=n)), dtype=object),
        target=np.arange(n) % len(classes),
        probabilities=generator.dirichlet(np.ones(len(classes)), size=n),
        raw=generator.dirichlet(np.ones(len(classes)), size=n) if n % 2 else None,
        classes=classes,
        positive=("malignant",) if len(classes) == 2 else ("mel",),
        fold=np.arange(n) if n % 3 else None,
        decision=generator.choice(DECISIONS, size=n).astype(object) if n % 2 else None,
        sets=generator.random((n, len(classes))) < 0.5 if n % 3 else None,
        ood=generator.random(n) if n % 2 else None,
        called=generator.integers(len(classes), size=n) if n % 2 and len(classes) > 2 else None,
    )
    path = tmp_path / "predictions.csv"
    write_predictions(path, written)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    read = read_predictions(path)
    assert read.image_id.tolist() == images
    assert read.patient_id.tolist() == written.patient_id.tolist()
    assert read.classes == classes
    assert read.positive == written.positive
    np.testing.assert_array_equal(read.target, written.target)
    np.testing.assert_allclose(read.probabilities, written.probabilities, rtol=1e-8)
    for name in ("raw", "fold", "ood", "sets", "decision", "called"):
        one, other = getattr(read, name), getattr(written, name)
        assert (one is None) == (other is None)
        if one is not None and name == "decision":
            assert one.tolist() == other.tolist()
        elif one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-8)


def test_sets_of_diagnoses_become_sets_of_benign_and_malignant(tmp_path: Path) -> None:
    text = (
        "image_id,target,p_nv,p_mel,p_bcc,decision,prediction_set,ood\n"
        "a,0,0.5,0.3,0.2,Refer,mel|bcc,\nb,1,0.2,0.6,0.2,malignant,none,1.5\n"
    )
    read = read_predictions(write(tmp_path, text))
    assert read.sets is not None
    assert read.decision is not None
    assert read.ood is not None
    assert read.sets.tolist() == [[False, True], [False, False]]
    assert read.decision.tolist() == ["refer", "malignant"]
    assert np.isnan(read.ood[0])


def test_the_called_class_is_the_file_s_and_else_the_likeliest(tmp_path: Path) -> None:
    text = "image_id,target,p_nv,p_mel,called\na,nv,0.9,0.1,melanoma\nb,mel,0.3,0.7,\n"
    read = read_predictions(write(tmp_path, text))
    assert read.predicted_classes().tolist() == [1, 1]
    assert evaluate(read, resamples=0)["metrics"]["class_accuracy"]["value"] == 0.5
    assert evaluate(read, resamples=0)["confusion"]["counts"] == [[0, 1], [0, 1]]
    unsaid = read_predictions(write(tmp_path, text.replace("melanoma", "")))
    assert unsaid.called is None
    assert unsaid.predicted_classes().tolist() == [0, 1]
    for foreign in ("0", "1", "True", "0.5", " "):
        theirs = text.replace("melanoma", foreign).replace("0.7,\n", f"0.7,{foreign}\n")
        assert read_predictions(write(tmp_path, theirs)).called is None
    padded = read_predictions(write(tmp_path, text.replace("melanoma", " mel ")[:-1] + " \n"))
    assert padded.predicted_classes().tolist() == [1, 1]
    binary = read_predictions(
        write(tmp_path, GOOD.replace("\n", ",x\n").replace(",x", ",called", 1))
    )
    assert binary.called is None
    assert binary.predicted_classes(0.85).tolist() == [0, 0]


def test_folders_called_0_and_1_are_names_and_not_answers(tmp_path: Path) -> None:
    text = "image_id,target,p_0,p_1\na,0,0.9,0.1\nb,1,0.2,0.8\n"
    read = read_predictions(write(tmp_path, text), positive=["0"])
    assert read.classes == ("0", "1")
    assert read.malignant.tolist() == [True, False]
    np.testing.assert_allclose(read.malignancy, [0.9, 0.2])


def test_float32_probabilities_survive_the_file(tmp_path: Path) -> None:
    p = np.random.default_rng(0).random(500, dtype=np.float32)
    chance = p.astype(np.float64)
    written = Predictions(
        image_id=np.arange(500).astype(str),
        patient_id=np.arange(500).astype(str),
        target=np.arange(500) % 2,
        probabilities=np.column_stack([1 - chance, chance]),
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )
    write_predictions(tmp_path / "p.csv", written)
    read = read_predictions(tmp_path / "p.csv").probabilities[:, 1]
    np.testing.assert_array_equal(read.astype(np.float32), p)


def test_malignancy_alone_is_enough_and_patients_fall_back(tmp_path: Path) -> None:
    text = "isic_id,lesion_id,target,malignancy\na.jpg,l1,benign,0.25\nb.jpg,,malignant,0.5\n"
    read = read_predictions(write(tmp_path, text))
    assert read.classes == ("benign", "malignant")
    assert read.patient_id.tolist() == ["l1", "b.jpg"]
    np.testing.assert_array_equal(read.probabilities, [[0.75, 0.25], [0.5, 0.5]])


def test_one_number_is_one_patient(tmp_path: Path) -> None:
    text = BINARY + "a,100,0,0.9,0.1\nb,100.0,1,0.2,0.8\nc,unknown,1,0.2,0.8\nd, 7,0,0.9,0.1\n"
    assert read_predictions(write(tmp_path, text)).patient_id.tolist() == ["100", "100", "c", "7"]


def test_labels_come_from_a_second_table(tmp_path: Path) -> None:
    text = "image_id,p_benign,p_malignant,error\nb.png,.5,.5,\na,.9,.1,\nc,,,not an image\n"
    labels = "image_name,patient_id,target\nx,p0,1\na.jpg,p1,0\nb.jpg,p2,1\nc,p3,1\n"
    path = write(tmp_path, text)
    read = read_predictions(path, labels=write(tmp_path, labels, "labels.csv"))
    assert read.target.tolist() == [1, 0]
    assert read.patient_id.tolist() == ["p2", "p1"]
    assert read.unpredicted == 1


@pytest.mark.parametrize("own", [("", ""), ("L0", "L1")])
def test_labels_name_the_patients_of_a_file_without(tmp_path: Path, own: tuple[str, ...]) -> None:
    text = f"image_id,patient_id,p_malignant,lesion_id\na,{own[0]},0.1,\nb,{own[1]},0.5,\n"
    labels = "image_id,patient_id,lesion_id,target\na,P,L0,0\nb,P,L1,1\n"
    labels_file = write(tmp_path, labels, "labels.csv")
    read = read_predictions(write(tmp_path, text), labels=labels_file)
    assert read.patient_id.tolist() == ["P", "P"]
    assert read.list_units().tolist() == ["patient", "patient"]


def test_labels_that_contradict_the_file_are_refused_and_those_without_a_prediction_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GOOD)
    agrees = write(tmp_path, "image_id,target\na,benign\nb,1\nc,0\nd,1\n", "labels.csv")
    assert len(read_predictions(path, labels=agrees)) == 2
    assert f"2 images of {agrees} have no row in {path}" in capsys.readouterr().err
    synonyms = write(tmp_path, "image_id,diagnosis\na,nevus\nb,melanoma\n", "labels.csv")
    diagnosed = (
        GOOD.replace("target", "diagnosis").replace("p1,0", "p1,nv").replace("p1,1", "p1,mel")
    )
    assert len(read_predictions(write(tmp_path, diagnosed, "b.csv"), labels=synonyms)) == 2
    turned = write(tmp_path, "image_id,target\na,1\nb,0\n", "labels.csv")
    scored = write(tmp_path, GOOD.replace("p1,0", "p1,0.3"), "scored.csv")
    assert read_predictions(scored, labels=turned).target.tolist() == [1, 0]
    message = r"image a: target is 0 in .*, but 1 in .*labels\.csv \(2 such rows\); correct it"
    with pytest.raises(InputError, match=message):
        read_predictions(path, labels=turned)


def test_truth_may_be_diagnoses_or_0_and_1(tmp_path: Path) -> None:
    text = BINARY.replace(",target", "") + "a,p1,0.9,0.1\nb,p1,0.2,0.8\n"
    labels = write(tmp_path, "image_id,dx\na,nevus\nb,basal cell carcinoma\n", "labels.csv")
    read = read_predictions(write(tmp_path, text), labels)
    assert read.target.tolist() == [0, 1]
    text = "image_id,target,p_nv,p_mel,p_bcc\na,0,0.5,0.3,0.2\nb,1,0.25,0.5,0.25\n"
    read = read_predictions(write(tmp_path, text))
    assert read.classes == ("benign", "malignant")
    np.testing.assert_allclose(read.malignancy, [0.5, 0.75])
    assert read.target.tolist() == [0, 1]
    with pytest.raises(InputError, match="positive classes melanoma: name some"):
        read_predictions(write(tmp_path, text), positive=["melanoma"])


def test_positive_classes_are_the_usual_ones_or_those_named(tmp_path: Path) -> None:
    text = "image_id,target,p_nv,p_mel,p_BCC\na,nv,0.5,0.3,0.2\nb,BCC,0.25,0.5,0.25\n"
    assert read_predictions(write(tmp_path, text)).positive == ("mel", "BCC")
    read = read_predictions(write(tmp_path, text), positive=["BCC"])
    assert read.malignant.tolist() == [False, True]
    with pytest.raises(InputError, match="none of the classes x, y counts as malignant"):
        read_predictions(write(tmp_path, "image_id,target,p_x,p_y\na,x,0.5,0.5\n"))


BAD = {
    "has no column image_id; it has name, p_malignant": "name,p_malignant\na,0.1\n",
    "has no probabilities: it needs p_malignant": "image_id,target\na,1\n",
    "has no column target; give labels=": "image_id,p_malignant\na,0.1\n",
    "has one class only, nv": "image_id,target,p_nv\na,nv,1\n",
    r"row 3 \(image b\): p_malignant '1\.2' is not a probability": GOOD.replace("0.8", "1.2"),
    r"row 2 \(image a\): p_benign '-0\.9' is not": GOOD.replace("0.9", "-0.9"),
    r"row 3 \(image b\): p_malignant 'nan' is not": GOOD.replace("0.8", "nan"),
    r"row 3 \(image b\): p_malignant is empty; fill it in, or remove the row": (
        GOOD.replace("0.8", "")
    ),
    r"row 2 \(image a\): p_benign \+ p_malignant is 1\.2, not 1": GOOD.replace("0.1", "0.3"),
    r"row 2 \(image a\): no target \(1 row in all\)": GOOD.replace("p1,0", "p1,"),
    r"row 2 \(image a\): target 'maybe' is not one of 0, 1": GOOD.replace("p1,0", "p1,maybe"),
    "image a is in rows 2, 4; keep one": GOOD + "a,p1,0,0.9,0.1\n",
    "all 2 rows are malignant; evaluation needs both": GOOD.replace("p1,0", "p1,1"),
    "no row has a prediction": BINARY,
    r"\.csv: row 4 has 7 cells, the header has 5": GOOD + "c,p1,0,0.9,0.1,7,8\n",
    r"\.csv: the table is empty": "",
    r"row 2 \(image a\): decision 'maybe' is not one of benign, malignant, refer; rename": (
        "image_id,target,p_malignant,decision\na,1,0.1,maybe\nb,0,0.1,benign\n"
    ),
    r"row 3 \(image b\): decision is empty; fill it in": (
        "image_id,target,p_malignant,decision\na,1,0.1,refer\nb,0,0.1,\n"
    ),
    r"row 2 \(image a\): prediction_set 'mel' is not made of benign, malignant with \|": (
        "image_id,target,p_malignant,prediction_set\na,1,0.1,mel\nb,0,0.1,benign\n"
    ),
    r"row 2 \(image a\): ood '-3' is not a number from 0 up": (
        "image_id,target,p_malignant,ood\na,1,0.1,-3\nb,0,0.1,2\n"
    ),
    r"row 3 \(image b\): called 'xyz' is not one of nv, mel; rename or drop": (
        "image_id,target,p_nv,p_mel,called\na,nv,0.9,0.1,nv\nb,mel,0.2,0.8,xyz\n"
    ),
    "fold 'one' is not a whole number": "image_id,target,p_malignant,fold\na,1,0.1,one\n",
}


@pytest.mark.parametrize("message", BAD)
def test_faulty_files_are_named_in_one_line(tmp_path: Path, message: str) -> None:
    path = write(tmp_path, BAD[message])
    with pytest.raises(InputError, match=message) as caught:
        read_predictions(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_truth_may_be_capitalised_words(tmp_path: Path) -> None:
    file = tmp_path / "words.csv"
    file.write_text("image_id,p_malignant,target\na,0.1,Benign\nb,0.9,MALIGNANT\n")
    assert read_predictions(file).target.tolist() == [0, 1]


def test_one_class_is_read_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("p1,0", "p1,1"))
    assert read_predictions(path, allow_one_class=True).malignant.all()


def test_bad_labels_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"labels\.csv: no such file"):
        read_predictions(path, tmp_path / "labels.csv")
    cases = {
        "nor a column diagnosis; it has image_id, age; name one: 'columns=": "image_id,age\na,3\n",
        "gives image a two different labels": "image_id,target\na,1\na.jpg,0\n",
        r"has no label for any image of .*: their first images are 'a' and 'x'": (
            "image_id,target\nx,1\n"
        ),
        r"labels\.csv has no row for 1 image of .*\.csv, e\.g\. b": "image_id,target\na,1\n",
    }
    for message, text in cases.items():
        with pytest.raises(InputError, match=message):
            read_predictions(path, write(tmp_path, text, "labels.csv"))


def test_binary_files_raise(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(b"\xfe\xfe\x00\x01image_id")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_predictions(path)
    with pytest.raises(InputError, match="no such file"):
        read_predictions(tmp_path / "nowhere.csv")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    broken = read_predictions(path)
    object.__setattr__(broken, "patient_id", broken.patient_id[:1])
    with pytest.raises(ValueError, match="length"):
        write_predictions(path, broken)
    assert path.read_text(encoding="utf-8") == GOOD
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_diagnosis_is_not_benign(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image_id,p_malignant\na,0.9\nb,0.8\nc,0.1\n")
    (tmp_path / "l.csv").write_text("image_id,diagnosis\na,melanoma\nb,unknown\nc,nevus\n")
    with pytest.raises(InputError, match="unknown"):
        read_predictions(tmp_path / "p.csv", tmp_path / "l.csv")


def test_labels_give_the_patients_that_a_file_leaves_empty(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image_id,patient_id,p_malignant\na,,0.9\nb,,0.8\nc,Q,0.1\n")
    (tmp_path / "l.csv").write_text("image_id,patient_id,target\na,P,1\nb,P,0\nc,P,0\n")
    rows = read_predictions(tmp_path / "p.csv", tmp_path / "l.csv")
    assert rows.patient_id.tolist() == ["P", "P", "Q"]
