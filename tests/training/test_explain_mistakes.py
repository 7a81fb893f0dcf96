"""The surest mistakes of a run, explained in its report as prediction explains them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick_runs import best, cohort_of, metrics_of, predictions_of, quick_train

from skinmm.evaluation.predictions import MAX_MISTAKES, find_confident_mistakes, read_predictions
from skinmm.images.decode import decode_within
from skinmm.predict.explain import Explainer
from skinmm.predict.heat_maps import overlay
from skinmm.predict.loading import CaseImage
from skinmm.predict.predictor import Predictor
from skinmm.report import write_report
from skinmm.report.write import write_anonymous_report
from skinmm.training import extras, trainer
from skinmm.training.extras import SIDE


def test_the_report_says_why_the_surest_mistakes_were_made(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quick_train(run, "report.explain=true", "data.limit=48") == 0
    told = json.loads((run / "explanations" / "mistakes.json").read_text())
    rows = read_predictions(run / "predictions" / "test.csv")
    chosen = find_confident_mistakes(rows, metrics_of(run)["threshold"]["value"])
    names = [name for kind in chosen.values() for name in rows.image_id[kind]]
    assert list(told) == names
    assert len(told) > MAX_MISTAKES // 2
    (explainer,) = Explainer.for_predictor(
        Predictor.from_checkpoints([best(run)]), [best(run)], "cpu"
    )
    records = cohort_of(run).astype(object).set_index("image_id")
    image = (pictures / f"{names[0]}.jpg").read_bytes()
    reasons = explainer.explain([CaseImage(image)], dict(records.loc[names[0]]))
    assert told[names[0]]["added"] == pytest.approx(reasons.contributions.added)
    drawn = np.asarray(Image.open(run / "explanations" / told[names[0]]["picture"]), float)
    exact = overlay(decode_within(image, SIDE), *reasons.heats)
    assert np.abs(drawn - exact).mean() < 5  # of 255: what JPEG takes away
    chance = predictions_of(run).set_index("image_id")["p_malignant"]
    together = reasons.contributions.start + sum(reasons.contributions.added.values())
    assert together == pytest.approx(chance[names[0]], abs=1e-6)
    page = (run / "report.html").read_text()
    assert page.count('alt="Heat map of ') == len(told)
    assert re.search(r"points: average lesion \d.*image [+-]\d", page)
    averages = {entry["average"] for entry in told.values()}
    mean = predictions_of(run, "val")["p_malignant"].mean()
    assert max(averages) == min(averages) == pytest.approx(mean, abs=0.02)
    assert "Heat map of" not in write_report(run, pictures=False).read_text()
    assert "points: " not in write_anonymous_report(run, tmp_path / "shared.html").read_text()


def test_a_run_without_pictures_explains_nothing(tmp_path: Path) -> None:
    given = ("report.explain=true", "report.pictures=false", "data.limit=48")
    assert quick_train(tmp_path / "run", *given) == 0
    assert not (tmp_path / "run" / "explanations").exists()


def test_a_run_is_finished_when_its_mistakes_are_explained_or_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[bool, int]] = []

    def fails(fold: extras.TrainedFold) -> None:
        seen.append((fold.run.is_finished, torch.get_num_threads()))
        raise RuntimeError("no heat map")

    monkeypatch.setattr(extras, "write_explanations", fails)
    monkeypatch.setattr(trainer, "THREADS", 3)
    before = torch.get_num_threads()
    kept = ("model.freeze=true", "augment=none", "report.explain=true", "data.limit=48")
    assert quick_train(tmp_path, *kept) == 0
    assert seen == [(False, 3)]
    assert torch.get_num_threads() == before
    assert "explaining the mistakes failed: RuntimeError: no heat map" in capsys.readouterr().err
    assert (tmp_path / "report.html").is_file()
