"""`skinmm plan`: the table on the terminal and the page have the numbers of the functions."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from skinmm.cli import main
from skinmm.evaluation.planning import (
    malignant_by_pairs,
    malignant_for_auroc,
    malignant_for_difference,
)
from skinmm.evaluation.predictions import BINARY, Predictions, write_predictions

Said = pytest.CaptureFixture[str]


def plan(tmp_path: Path, *settings: str) -> int:
    return main.main(["plan", f"output={tmp_path / 'plan.html'}", *settings])


def test_the_table_has_the_numbers_of_the_formulas(tmp_path: Path, capsys: Said) -> None:
    given = ("prevalence=0.5", "auroc=0.7", "correlation=0", "confidence=0.9", "width=0.08")
    assert plan(tmp_path, *given) == 0
    said = capsys.readouterr().out
    assert "difference of 0.05 between two AUROCs (power 0.8)" in said
    needed = malignant_for_difference(0.7, 0.05, 0.5, correlation=0.0, confidence=0.9)
    assert f" {needed} " in said
    assert needed == pytest.approx(652, rel=0.013)  # Hanley and McNeil 1982, table III
    assert f" {malignant_for_auroc(0.7, 0.08, 0.5, 0.9):,} " in said
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert f">{needed}<" in page
    assert plan(tmp_path) == 2
    assert "exists; choose another path" in capsys.readouterr().err


def test_a_prediction_file_gives_auroc_and_share_and_is_resampled(
    tmp_path: Path, capsys: Said
) -> None:
    rng = np.random.default_rng(0)
    target = (np.arange(600) % 6 == 0).astype(np.int64)
    p = expit(logit(1 / 6) + rng.normal((2 * target - 1) * 1.0, 1.4))
    names = np.arange(600).astype(str)
    rows = Predictions(names, names, target, np.c_[1 - p, p], None, BINARY, BINARY[1:])
    write_predictions(tmp_path / "rows.csv", rows)
    assert plan(tmp_path, str(tmp_path / "rows.csv"), "width=0.2", "slope_width=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("Patients with malignant lesions, by resampling")
    assert re.fullmatch(r"assumed: AUROC 0\.\d{3}, 16\.67\s% malignant lesions", lines[-2])
    formula, _, resampled = lines[3].split()[-3:]  # the interval of the AUROC
    assert int(resampled) == pytest.approx(int(formula), rel=0.5)
    guarantee = lines[1].split()
    assert guarantee[-3:] == ["59", "354", "\N{EM DASH}"]
    assert lines[4].split()[-1] == "\N{EM DASH}"  # a difference needs a second system
    q = expit(logit(p) + rng.normal(size=600))
    write_predictions(tmp_path / "other.csv", replace(rows, probabilities=np.c_[1 - q, q]))
    given = (f"against={tmp_path / 'other.csv'}", "width=0.2", "slope_width=1", "overwrite=true")
    assert plan(tmp_path, str(tmp_path / "rows.csv"), *given) == 0
    lines = capsys.readouterr().out.splitlines()
    needed = malignant_by_pairs(rows, replace(rows, probabilities=np.c_[1 - q, q]), 0.05)
    assert int(lines[4].split()[-1].replace(",", "")) == pytest.approx(needed, abs=2)
    assert plan(tmp_path, given[0], "overwrite=true") == 2
    assert "compared with a first prediction file; give both" in capsys.readouterr().err


def test_a_high_auroc_has_a_smaller_difference(tmp_path: Path, capsys: Said) -> None:
    assert plan(tmp_path, "auroc=0.97", "slope_width=2") == 0
    assert "difference of 0.015 between two AUROCs" in capsys.readouterr().out


def test_predictions_with_other_headers_are_planned(tmp_path: Path, capsys: Said) -> None:
    rows = [f"im{n},{(n * 7 % 40 + 10 * (n % 3 == 0)) / 50},{int(n % 3 == 0)}" for n in range(120)]
    (tmp_path / "rows.csv").write_text("\n".join(["img,score,y", *rows]))
    columns = "{image_id: img, p_malignant: score, target: y}"
    given = (str(tmp_path / "rows.csv"), "width=0.2", "slope_width=1")
    assert plan(tmp_path, *given) == 2
    assert f"'columns={columns}'" in capsys.readouterr().err
    assert plan(tmp_path, *given, f"columns={columns}") == 0
    assert "33.33" in capsys.readouterr().out


def test_what_cannot_be_planned_is_named(tmp_path: Path, capsys: Said) -> None:
    assert plan(tmp_path, "expected=0.9") == 2
    assert "must be above sensitivity=0.95 and below 1" in capsys.readouterr().err
    assert plan(tmp_path, "auroc=0.97", "difference=0.05") == 2
    assert "an AUROC of 1.02 is not below 1; ask for less than 0.03" in capsys.readouterr().err
    rows = pd.DataFrame({"image_id": [*"abcd"], "target": [0, 0, 1, 1]})
    for p, problem in (
        ([0.1, 0.2, 0.8, 0.9], "its AUROC is 1;"),
        ([0.1] * 4, "its AUROC is 0.5;"),
        ([0.8, 0.9, 0.1, 0.2], "its AUROC is 0; it ranks benign lesions above malignant ones"),
    ):
        rows.assign(p_malignant=p).to_csv(tmp_path / "rows.csv", index=False)
        assert plan(tmp_path, str(tmp_path / "rows.csv")) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "plan.html").exists()


def test_a_higher_correlation_needs_fewer_lesions() -> None:
    sizes = [malignant_for_difference(0.8, 0.03, 0.1, correlation=r) for r in (0.0, 0.4, 0.8)]
    assert sizes == sorted(sizes, reverse=True)
