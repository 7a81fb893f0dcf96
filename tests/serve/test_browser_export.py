"""Pixels, probabilities and decisions of the exported page in Chromium equal those of Python."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from exported_page import ZOO, Page, Server, as_bytes, export, images, in_browser

from skinmm.evaluation.call_rules import CallRule
from skinmm.evaluation.predictions import format_sets
from skinmm.evaluation.thresholds import ReferralBand, RiskLimit
from skinmm.images.decode import decode
from skinmm.predict import Predictor
from skinmm.predict.ensemble import ModelOutput, load_models


@in_browser
def test_the_pixels_are_those_of_python(page: Page) -> None:
    wrong = {}
    for name, data in images().items():
        expression = (
            "import('./image.js').then((code) => code.readImage("
            f"{as_bytes(data)}, 192, 5e7)).then((image) => "
            "btoa(Array.from(image.pixels, (level) => String.fromCharCode(level)).join('')))"
        )
        pixels = np.frombuffer(base64.b64decode(page.run(expression)), np.uint8)
        expected = decode(data, size=192).reshape(-1)
        if difference := int(np.abs(pixels.astype(int) - expected).max()):
            wrong[name] = difference
    assert wrong == {}


@in_browser
def test_the_results_are_those_of_predict(page: Page, tmp_path: Path) -> None:
    require_equal_results(page, ZOO, tmp_path)


@in_browser
def test_an_ensemble_is_averaged(browser: Any, networks: Path, tmp_path: Path) -> None:
    server = Server(export(networks, tmp_path / "page"))
    page = Page(browser, server.address)
    require_equal_results(page, networks, tmp_path)
    page.context.close()
    server.stop()


def require_equal_results(page: Page, checkpoint: Path, folder: Path) -> None:
    files, rng = images(), np.random.default_rng(0)
    rows = []
    for number, data in enumerate(files.values()):
        (folder / f"{number}.png").write_bytes(data)
        row = {"image": f"{number}.png", "age": "", "sex": "", "site": ""}
        if number % 4:
            row |= {"age": str(rng.integers(1, 100)), "sex": str(rng.choice(["male", "female"]))}
        if number % 3:
            row["site"] = str(rng.choice(["torso", "palms/soles", "oral/genital"]))
        rows.append(row)
    rows.append({"image": "", "age": "70,5", "sex": "male", "site": "torso"})
    predictor = Predictor.from_checkpoints(checkpoint, "cpu", backend="torch")
    expected = predictor.predict(pd.DataFrame(rows), folder, workers=0)
    assert {*expected["error"]} == {""}
    decisions = set()
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        image = (folder / row["image"]).read_bytes() if row["image"] else None
        result = page.analyse(image, {key: row[key] for key in ("age", "sex", "site")})
        assert result["malignancy"] == pytest.approx(wanted["malignancy"], abs=1e-4)
        assert result["threshold"] == wanted["threshold"]
        assert result["decision"] == wanted["decision"], row
        assert "|".join(result["prediction_set"]) == wanted["prediction_set"]
        assert result["missing"] == list(filter(None, wanted["missing"].split("|")))
        assert result["unknown"] == []
        if np.isnan(wanted["ood"]):
            assert result["ood"] is None
        else:
            assert result["ood"] == pytest.approx(wanted["ood"], abs=1e-3)
        decisions.add(result["decision"])
    assert len(decisions) > 1


@in_browser
def test_every_rule_of_a_decision(page: Page) -> None:
    rng = np.random.default_rng(3)
    predictor: Any = Predictor(load_models(ZOO, torch.device("cpu")))
    facts = page.run("skinmm.facts")
    for case in range(60):
        p = rng.dirichlet([0.6, 0.6], size=1)
        sets, ood = rng.random((1, 2)) < 0.6, rng.choice([0.4, 1.0, 1.1], 1)
        threshold = float(rng.choice([0.2, p[0, 1], 0.7]))
        low, high = sorted(rng.random(2))
        limits = (RiskLimit(value, 0.1, 0.1, 9) for value in (low, high))
        band = ReferralBand(*limits) if case % 2 else None
        kind = case % 6
        changed = facts | {
            "threshold": threshold,
            "band": band and {"low": low, "high": high},
        }
        output = {
            "probabilities": p[0].tolist(),
            "set": sets[0].astype(int).tolist() if kind else None,
            "ood": float(ood[0]),
        }
        result = page.run(
            "import('./model.js').then((code) => code.decide("
            f"{json.dumps(changed)}, [{json.dumps(output)}]))"
        )
        predictor.band = band
        called = p[:, 1] >= threshold
        (decision,) = predictor.decide(called, ModelOutput(p, p, sets if kind else None, ood))
        assert result["decision"] == decision, (changed, output)
        assert "|".join(result["prediction_set"]) == (
            format_sets(sets, predictor.classes)[0] if kind else ""
        )


@in_browser
def test_one_of_several_classes_is_called_by_the_rule(page: Page) -> None:
    classes, rng = ["a", "b", "c"], np.random.default_rng(4)
    facts = page.run("skinmm.facts") | {"classes": classes, "positive": ["c"]}
    for rule in (
        CallRule("likeliest", [1 / 3] * 3),
        CallRule("balanced", [0.7, 0.3, 0.0]),
        CallRule("cost", [1 / 3] * 3, [[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [9.0, 9.0, 0.0]]),
    ):
        facts["call"] = rule.score(np.eye(3)).tolist()
        rows = rng.dirichlet([0.7] * 3, size=20)
        outputs = [{"probabilities": row, "set": None, "ood": None} for row in rows.tolist()]
        called = page.run(
            f"import('./model.js').then((code) => {json.dumps(outputs)}.map((output) => "
            f"code.decide({json.dumps(facts)}, [output]).called))"
        )
        assert called == [classes[index] for index in rule.call(rows)]
        assert len({*called}) > 1


@in_browser
def test_a_record_is_read_as_meant_or_named(page: Page) -> None:
    columns = [
        {"name": "age", "kind": "number", "low": 0, "high": 120},
        {"name": "size", "kind": "number"},
        {"name": "site", "kind": "choice", "choices": ["torso"]},
    ]
    for age, size, site, values, unknown in (
        ("63", "1.5", "torso", {"age": 63, "size": 1.5, "site": "torso"}, []),
        (" 63,5 ", "", "", {"age": 63.5}, []),
        ("121", "-2e1", "arm", {"size": -20}, ["age", "site"]),
        ("sixty", "1,234", "unknown", {}, ["age", "size"]),
    ):
        record = {"age": age, "size": size, "site": site}
        result = page.run(
            "import('./model.js').then((code) => code.readRecord("
            f"{json.dumps(columns)}, {json.dumps(record)}))"
        )
        assert (result["values"], result["unknown"]) == (values, unknown)
