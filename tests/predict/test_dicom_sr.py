"""Predictions as DICOM: valid by dciodvfy where it is installed, and pointing at their image."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from dicom_files import dicom_from_jpeg
from pydicom import Dataset, dcmread
from quick_runs import best

from skinmm.cli import main
from skinmm.predict import Predictor

pytestmark = pytest.mark.skipif(find_spec("highdicom") is None, reason="needs skinmm[dicom]")
Said = pytest.CaptureFixture[str]
HEADER = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "StudyID": "7"}


@pytest.fixture
def tree(pictures: Path, tmp_path: Path) -> Path:
    """A picture with all that a report needs, one without a study, and one that is no DICOM."""
    (tmp_path / "tree").mkdir()
    picture = pictures / "ISIC_0000000.jpg"
    stream = picture.read_bytes()
    whole = dicom_from_jpeg(stream, PatientID="P1", PatientSex="F", PatientAge="050Y", **HEADER)
    (tmp_path / "tree" / "a.dcm").write_bytes(whole)
    (tmp_path / "tree" / "b.dcm").write_bytes(dicom_from_jpeg(stream))
    shutil.copy(picture, tmp_path / "tree" / "c.jpg")
    return tmp_path / "tree"


def texts(report: Dataset) -> dict[str, str]:
    """Every number, code and text of a report by its concept's name."""
    found = {}
    for item in report.ContentSequence:
        name = (
            item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
        )
        if item.ValueType == "NUM":
            found[name] = str(item.MeasuredValueSequence[0].NumericValue)
        elif item.ValueType in ("TEXT", "CODE"):
            coded = item.get("ConceptCodeSequence")
            found[name] = coded[0].CodeMeaning if coded else item.TextValue
        if "ContentSequence" in item:
            found |= texts(item)
    return found


def test_a_report_says_what_was_predicted_of_which_image(
    tree: Path, both: Path, capsys: Said
) -> None:
    out = tree.parent / "out"
    given = [f"checkpoint={best(both)}", f"input={tree}", f"out={out}"]
    assert main.main(["dicom-sr", *given]) == 3
    told = capsys.readouterr()
    assert told.out == f"results: {out} (1 written, 2 failed)\n"
    assert told.err.splitlines() == [
        "b: its header lacks SeriesInstanceUID, StudyInstanceUID, to which a result refers",
        "c: not a DICOM file, so no DICOM result can refer to it",
    ]
    source = dcmread(tree / "a.dcm")
    expected = Predictor.from_checkpoints([best(both)]).predict(
        pd.DataFrame({"image": ["a"]}), tree
    )
    kinds = {path.name.split(".")[-2]: dcmread(path) for path in out.iterdir()}
    report, capture = kinds["sr"], kinds["sc"]
    said = texts(report)
    chance = expected["malignancy"].item()
    assert float(said["Probability of cancer"]) == pytest.approx(100 * chance, rel=1e-6)
    assert float(said["p_malignant"]) == pytest.approx(expected["p_malignant"].item(), rel=1e-6)
    assert said["Decision"].lower() == expected["decision"].item()
    assert said["Comment"].startswith("Research use only.")
    assert said["Algorithm Name"] == "skinmm"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (image,) = series.ReferencedSOPSequence
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert report.StudyInstanceUID == capture.StudyInstanceUID == source.StudyInstanceUID
    assert {report.PatientID, capture.PatientID} == {"P1"}
    assert (capture.Rows, capture.Columns) == (source.Rows, source.Columns)
    names = {path.name for path in out.iterdir()}
    if shutil.which("dciodvfy"):
        for name in names:
            checked = subprocess.run(
                ["dciodvfy", str(out / name)],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
            assert "Error" not in checked.stderr
    assert main.main(["dicom-sr", *given]) == 2
    assert (
        f"out={out} contains files; choose another path or set overwrite=true"
        in capsys.readouterr().err
    )
    assert main.main(["dicom-sr", *given, "overwrite=true"]) == 3
    assert {path.name for path in out.iterdir()} == names


def test_a_folder_without_images_is_refused(both: Path, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "tree").mkdir()
    given = [f"checkpoint={best(both)}", f"input={tmp_path / 'tree'}", f"out={tmp_path / 'out'}"]
    assert main.main(["dicom-sr", *given]) == 2
    assert capsys.readouterr().err == f"error: input={tmp_path / 'tree'}: no images to predict\n"
    assert not (tmp_path / "out").exists()


def test_one_folder_at_a_time(capsys: Said) -> None:
    assert main.main(["dicom-sr", "-m"]) == 2
    assert "skinmm dicom-sr does not accept -m" in capsys.readouterr().err
