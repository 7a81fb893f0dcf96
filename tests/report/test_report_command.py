"""The commands report and compare: what they read, refuse and leave alone."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_cases import Page, demo_cohort, fitted, make_run, report_file

from skinmm.cli import main as cli
from skinmm.errors import InputError
from skinmm.report import report_predictions
from skinmm.report.inputs import read_prediction_file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_a_bare_file_takes_truth_and_groups_from_labels(tmp_path: Path) -> None:
    table = fitted().drop(columns=["target", "patient_id"])
    table.assign(image_id=table["image_id"] + ".jpg", threshold=0.3).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    labels = demo_cohort()[["image_id", "target", "age", "sex", "site"]]
    labels.rename(columns={"age": "age_approx"}).to_csv(tmp_path / "labels.csv", index=False)
    page = report_file(
        tmp_path / "predictions.csv", tmp_path / "page.html", tmp_path / "labels.csv"
    )
    assert "sex: female" in page.text
    assert "age: 40 to 59" in page.text
    assert "At the threshold 0.300 the model missed" in page.text
    assert "is assumed" not in page.text


def test_a_file_of_a_run_has_the_threshold_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, metrics = tmp_path / "page.html", json.loads((run / "metrics.json").read_text())
    file = run / "predictions" / "test.csv"
    assert cli.main(["report", str(file), f"output={page}"]) == 0
    said = capsys.readouterr().out
    threshold = metrics["test"]["threshold"]
    sensitivity = metrics["test"]["metrics"]["sensitivity"]
    assert f"{file}: threshold {threshold:.3f}, from the metrics.json of its run" in said
    assert re.search(rf"Sensitivity +{100 * sensitivity['value']:.1f} %", said)
    text = Page(page).text
    assert f"At the threshold {threshold:.3f} the model missed" in text
    assert "is assumed" not in text
    assert "conformal risk control on the validation rows" in text  # the band of the run
    validation = file.with_name("val.csv")
    fitted_rows = "the run fitted its threshold to these rows, so the figures are optimistic"
    assert fitted_rows not in text
    assert cli.main(["report", str(validation), f"output={page}", "overwrite=true"]) == 0
    assert f"WARNING: {validation}: {fitted_rows}" in capsys.readouterr().err.splitlines()
    copy = tmp_path / "copy.csv"
    copy.write_bytes(file.read_bytes())
    assert cli.main(["report", str(copy), f"output={page}", "overwrite=true"]) == 0
    warning = "WARNING: The decision threshold is unknown; 0.500 is assumed. To set it, "
    warning += "add a column `threshold` with one value to the file."
    assert warning in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("cell", ["0,3", "30%", "50", "abc"])
def test_a_threshold_that_is_no_number_is_refused(
    cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vendor.csv"
    file.write_text(f"image_id;target;p_malignant;threshold\nI0;0;0.2;{cell}\nI1;1;0.7;{cell}\n")
    assert cli.main(["report", str(file)]) == 2
    assert f"vendor.csv: threshold '{cell}' is not a number from 0 to 1" in capsys.readouterr().err


def test_decisions_in_place_of_probabilities_are_named(tmp_path: Path) -> None:
    file = tmp_path / "vendor.csv"
    rows = [f"I{row},{row % 2},{row % 3 % 2}" for row in range(12)]
    file.write_text("\n".join(["image_id,target,p_malignant", *rows]))
    (note,) = [n for n in read_prediction_file(file, pictures=False).notes if "0 or 1" in n]
    assert note == "all probabilities are 0 or 1: are they decisions, or columns exchanged?"


def test_the_warnings_of_the_page_are_printed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run)]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert any("no pretrained weights" in line for line in warnings)


@pytest.mark.parametrize("command", ["report", "compare"])
def test_columns_that_are_not_used_are_named(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "a.csv", tmp_path / "page.html"
    table = fitted().drop(columns="patient_id").assign(case="P1", subset="test", age=50)
    table.to_csv(file, index=False)
    table.assign(Patient=range(len(table))).to_csv(tmp_path / "b.csv", index=False)
    files = [str(file), *([str(tmp_path / "b.csv")] if command == "compare" else [])]
    assert cli.main([command, *files, f"output={page}"]) == 0
    line = (
        "no column patient_id or lesion_id: every image counts as a patient; columns not used: "
        "case, subset (looks like a split)"
    )
    (warning,) = [row for row in capsys.readouterr().err.splitlines() if "not used" in row]
    assert warning == f"WARNING: {file}: {line}"
    assert Page(page).text.count(line) == 1


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_switch_is_true_or_false_and_nothing_else(
    run: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "predictions" / "test.csv"
    out = tmp_path / "page.html"
    for name in ("overwrite", *(["report.pictures"] if command == "report" else [])):
        assert cli.main([command, str(file), str(file), f"output={out}", f"{name}=flase"]) == 2
        assert cli.main([command, str(file), f"output={out}", f"{name}=flase"]) == 2
        assert f"{name}: must be true or false, not 'flase'" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_leaves_pictures_out_and_takes_positive_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run), "report.pictures=False"]) == 0
    assert Page(run / "report.html").count("img") == 0
    file = tmp_path / "two.csv"
    file.write_text("image_id,target,p_x,p_y\na,x,0.9,0.1\nb,y,0.4,0.6\nc,y,0.2,0.8\n")
    page = tmp_path / "page.html"
    assert cli.main(["report", str(file), f"output={page}"]) == 2
    assert "name the malignant classes with positive=" in capsys.readouterr().err
    assert cli.main(["report", str(file), f"output={page}", "positive=[y]"]) == 0
    assert "3 images" in Page(page).text


def test_costs_add_a_rule_and_its_mean_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, costs, page = (tmp_path / name for name in ("three.csv", "costs.yaml", "page.html"))
    p = np.random.default_rng(0).dirichlet([1, 1, 2], size=60)
    table = pd.DataFrame(p, columns=["p_bkl", "p_mel", "p_nv"])
    table["target"] = np.array(["bkl", "mel", "nv"])[np.resize([0, 1, 2, 2], 60)]
    table.rename_axis("image_id").to_csv(file)
    costs.write_text("mel: {nv: 20}\n", encoding="utf-8")
    given = ["report", str(file), f"output={page}", "overwrite=true"]
    assert cli.main(given) == 0
    assert "Mean cost" not in Page(page).text
    assert cli.main([*given, f"evaluation.costs={costs}"]) == 0
    assert "Mean cost" in Page(page).text
    assert "lowest expected cost (cost)" in Page(page).text
    costs.write_text("melanoma: {nv: 20}\n", encoding="utf-8")
    assert cli.main([*given, f"evaluation.costs={costs}"]) == 2
    assert "classes of bkl, mel, nv" in capsys.readouterr().err


def test_a_page_that_is_there_is_kept(tmp_path: Path) -> None:
    fitted().to_csv(tmp_path / "predictions.csv", index=False)
    output = tmp_path / "page.html"
    output.write_text("mine")
    with pytest.raises(InputError, match=r"output=.* exists"):
        report_predictions(tmp_path / "predictions.csv", output)
    assert output.read_text() == "mine"
    report_predictions(tmp_path / "predictions.csv", output, overwrite=True)
    assert Page(output).count("svg") > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "predictions.csv"]
