"""An exported model says what its checkpoint says, without PyTorch."""

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_classifier, micro_config
from PIL import Image
from quick_runs import ROOT, best, cohort_of

from skinmm.cli import main
from skinmm.config import Component, Config
from skinmm.config.commands import ExportConfig
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.evaluation.calibration import METHODS, Calibration, fit_calibration
from skinmm.evaluation.thresholds import ReferralBand, RiskLimit
from skinmm.models.checkpoint import KEY, load_card, save_checkpoint, save_ensemble, update_card
from skinmm.models.fusion import FUSIONS
from skinmm.models.tabular import TABULAR
from skinmm.predict import Predictor, export_onnx
from skinmm.predict.backends import OnnxBackend

needs_onnx = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="needs skinmm[onnx]"
)
P = ["p_benign", "p_malignant"]
EXAMPLE = ROOT / "examples" / "onnx_predict.py"
ALWAYS = [{"value": value, "rule": "given", "guaranteed": False} for value in (0.0, 1.0)]
Said = pytest.CaptureFixture[str]
SETUPS = [*((name, "mlp") for name in FUSIONS), *(("concat", name) for name in TABULAR)]


def untrained(config: Config, path: Path) -> Path:
    """A checkpoint of a network as it was born."""
    data = LesionData(config, FUSIONS[config.fusion.name].inputs)
    data.setup()
    classifier = micro_classifier(config, data)
    content = {"state_dict": classifier.state_dict(), KEY: asdict(classifier.card)}
    save_checkpoint(content, path)
    return path


@pytest.fixture
def checkpoint(both: Path, tmp_path: Path) -> Path:
    """A trained one, where it may be exported."""
    return Path(shutil.copy(best(both), tmp_path / "best.ckpt"))


def example(monkeypatch: pytest.MonkeyPatch, *given: Any) -> int:
    """The example's exit status."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, given)])
    try:
        runpy.run_path(str(EXAMPLE))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def exported(config: ExportConfig) -> Path:
    (path,) = export_onnx.export(config)
    return path


@needs_onnx
@pytest.mark.parametrize(("fusion", "tabular"), SETUPS)
def test_every_block_is_exported(fusion: str, tabular: str, tmp_path: Path) -> None:
    config = micro_config(fusion)
    learns = replace(config.model, drop_image=0.2 if "image" in FUSIONS[fusion].inputs else 0.0)
    encoder = Component(tabular, {"hidden": [8]} if tabular == "mlp" else {})
    views = replace(config.evaluation, views=2)
    config = replace(config, model=learns, tabular=encoder, evaluation=views)
    path = exported(
        ExportConfig(str(untrained(config, tmp_path / "a.ckpt")), rows=9, uncalibrated=True)
    )
    assert path == tmp_path / "a.onnx"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.ckpt", "a.onnx"]
    assert OnnxBackend(path).metadata["threshold"] is None


@needs_onnx
def test_every_network_of_an_ensemble_is_exported(tmp_path: Path) -> None:
    members = [untrained(micro_config("tabular_only"), tmp_path / f"{name}.ckpt") for name in "ab"]
    for member, shift in zip(members, (0.0, 1.0), strict=True):
        state = {"scale": 1.0, "shifts": [0.0, shift]}
        calibration = asdict(Calibration("temperature", state))
        update_card(member, calibration=calibration, threshold=ALWAYS[0])
    ensemble = tmp_path / "ensemble.ckpt"
    save_ensemble(members, ensemble)
    paths = export_onnx.export(ExportConfig(str(ensemble), rows=9))
    assert [path.name for path in paths] == ["ensemble.0.onnx", "ensemble.1.onnx"]
    table = pd.DataFrame({"image": ["x", "y"], "age": [30, 70], "sex": ["male", None]})
    together, apart, onnx = (
        Predictor.from_checkpoints(files, "cpu", backend=backend).predict(table)
        for files, backend in (([ensemble], "torch"), (members, "torch"), (ensemble, "onnx"))
    )
    pd.testing.assert_frame_equal(together, apart)
    pd.testing.assert_frame_equal(onnx, together, atol=1e-5)


@needs_onnx
def test_a_mobile_model_is_small(tmp_path: Path) -> None:
    config = micro_config("concat")
    model = replace(config.model, name="tf_efficientnet_lite0", image_size=224)
    path = untrained(replace(config, model=model), tmp_path / "lite0.ckpt")
    assert exported(ExportConfig(str(path), rows=2, uncalibrated=True)).stat().st_size < 20e6


@needs_onnx
def test_the_whole_cohort_is_predicted_and_decided_alike(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.main(["export", f"checkpoint={checkpoint}"]) == 0
    table = pd.read_csv(pictures.parent / "cohort.csv", dtype=str)
    assert len(table) == 700
    ours, theirs = (
        Predictor.from_checkpoints([checkpoint], "cpu", backend=backend)
        for backend in ("torch", "auto")
    )
    assert (ours.backend, theirs.backend) == ("torch", "onnx")
    expected, predicted = (each.predict(table, pictures) for each in (ours, theirs))
    assert np.abs(expected[P].to_numpy() - predicted[P].to_numpy()).max() < 1e-4
    same = ["decision", "prediction_set", "error", "missing"]
    limits = np.array([*(load_card(checkpoint)[0].conformal or {})["limits"].values()])
    is_apart = (np.abs(expected[P].to_numpy() - limits) > 1e-4).all(axis=1)
    assert is_apart.mean() > 0.95  # other rows may be on different sides of a limit
    pd.testing.assert_frame_equal(expected[is_apart][same], predicted[is_apart][same])
    np.testing.assert_allclose(predicted["ood"], expected["ood"], rtol=1e-3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    two = Predictor.from_checkpoints([checkpoint], "cpu", backend="onnx", concurrency=2)
    assert [one.ensemble.concurrency for one in (two, theirs, ours)] == [2, 1, 1]
    tables = [table[:301], table[301:301], table[301:]]
    pieces = [each.table for each in two.stream(tables, pictures, batch_size=7)]
    assert [len(piece) for piece in pieces] == [301, 0, 399]
    together = pd.concat(pieces, ignore_index=True)
    pd.testing.assert_frame_equal(together, predicted, check_dtype=False, atol=1e-6, rtol=1e-4)
    table.head(3).to_csv(tmp_path / "in.csv", index=False)
    sources = [f"input={tmp_path / 'in.csv'}", f"images={pictures}"]
    target = [f"output={tmp_path / 'out.csv'}", f"checkpoint={checkpoint}"]
    assert main.predict([*sources, *target, "backend=onnx"]) == 0


@needs_onnx
def test_the_example_needs_no_more_than_the_file(
    checkpoint: Path, both: Path, pictures: Path
) -> None:
    model = exported(ExportConfig(str(checkpoint)))
    row = cohort_of(both)[["image_id", "age", "sex", "site"]].dropna().head(1)
    picture = pictures / f"{row['image_id'].item()}.jpg"
    known = [f"{name}={row[name].item()}" for name in ("age", "sex", "site")]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(model), str(picture), *known],
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)
    expected = Predictor.from_checkpoints([checkpoint]).predict(row, pictures)
    # Pillow shrinks the whole picture, our decoder one that was decoded at a smaller scale.
    assert said["malignancy"] == pytest.approx(expected["malignancy"].item(), abs=0.02)
    assert len(EXAMPLE.read_text().splitlines()) <= 70


class Rules(NamedTuple):
    """Decision of a lesion at the threshold 0 or 1, and the rules that refer."""

    decision: str
    threshold: int
    limits: tuple[float, float] | None = (0.0, 0.0)
    ood_limit: float = 1e9
    band: tuple[float, float] | None = None


@needs_onnx
@pytest.mark.parametrize(
    "rules",
    [
        Rules("malignant", 0, (1.0, 0.0)),
        Rules("benign", 1, (0.0, 1.0)),
        Rules("refer", 0, (0.0, 1.0)),
        Rules("refer", 1, (0.0, 0.0)),
        Rules("refer", 0, None, ood_limit=1e-9),
        Rules("malignant", 0, band=(1.0, 0.0)),
        Rules("benign", 1, band=(1.0, 0.0)),
        Rules("refer", 0, (1.0, 0.0), band=(0.0, 1.0)),
        Rules("refer", 1, (0.0, 1.0), band=(0.0, 1.0)),
    ],
)
def test_the_example_decides_as_prediction_does(
    rules: Rules,
    checkpoint: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    held = rules.limits and {
        "coverage": 0.9,
        "limits": dict(zip(("benign", "malignant"), rules.limits, strict=True)),
        "rows": {},
    }
    usual = {**(load_card(checkpoint)[0].ood or {}), "limit": rules.ood_limit}
    parts = [RiskLimit(value, 0.1, 0.1, 9) for value in rules.band or ()]
    band = asdict(ReferralBand(*parts)) if parts else None
    threshold = ALWAYS[rules.threshold]
    update_card(checkpoint, band=band, conformal=held, ood=usual, threshold=threshold)
    model = exported(ExportConfig(str(checkpoint), rows=2))
    picture = checkpoint.with_suffix(".png")
    side = load_card(checkpoint)[0].config["model"]["image_size"]
    Image.open(pictures / "ISIC_0000000.jpg").resize((side, side)).save(picture)
    assert example(monkeypatch, model, picture, "age=55", "site=torso") == 0
    said = json.loads(capsys.readouterr().out)
    row = pd.DataFrame({"image": [picture.name], "age": [55], "site": ["torso"]})
    expected = Predictor.from_checkpoints([checkpoint]).predict(row, picture.parent)
    assert said["malignancy"] == pytest.approx(expected["malignancy"].item(), abs=1e-6)
    assert said["decision"] == expected["decision"].item() == rules.decision


@needs_onnx
def test_the_example_says_in_one_line_what_it_cannot_do(
    checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    model, picture = exported(ExportConfig(str(checkpoint), rows=2)), str(checkpoint)
    good, grey = str(pictures / "ISIC_0000000.jpg"), str(checkpoint.with_name("grey.png"))
    Image.new("L", (64, 64), 90).save(grey)
    for status, given, message in (
        (2, [model], "usage: onnx_predict.py MODEL.onnx IMAGE [COLUMN=VALUE ...]"),
        (2, ["nowhere.onnx", good], "nowhere.onnx"),
        (2, [picture, good], "usage: onnx_predict.py MODEL.onnx"),
        (2, [model, good, "age"], "usage: onnx_predict.py MODEL.onnx"),
        (2, [model, good, "years=5"], "no column years; choose from age, sex, site"),
        (3, [model, "nowhere.jpg"], "nowhere.jpg: "),
        (3, [model, grey], "grey.png: the image is too small or has a single colour"),
        (3, [model, picture], "best.ckpt: cannot identify image file"),
        (3, [model, good, "age=old"], "could not convert string to float: 'old'"),
    ):
        assert example(monkeypatch, *given) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@needs_onnx
def test_a_model_that_differs_is_not_left(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"differs from its checkpoint: .* nothing was written"):
        exported(ExportConfig(str(checkpoint), rows=4))
    assert [each.name for each in checkpoint.parent.iterdir()] == ["best.ckpt"]


@needs_onnx
def test_what_was_exported_from_another_checkpoint_is_not_used(
    checkpoint: Path, larger: Path
) -> None:
    exported(ExportConfig(str(checkpoint), rows=4))
    shutil.copy(best(larger), checkpoint)
    assert Predictor.from_checkpoints([checkpoint], "cpu").backend == "torch"
    with pytest.raises(InputError, match="was exported from another checkpoint"):
        Predictor.from_checkpoints([checkpoint], "cpu", backend="onnx")
    checkpoint.with_suffix(".onnx").write_text("no model")
    with pytest.raises(InputError, match="not an exported model, or damaged"):
        Predictor.from_checkpoints([checkpoint], "cpu", backend="onnx")


def test_onnx_without_an_exported_model_is_named(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"best\.onnx does not exist; to create it: skinmm export"):
        Predictor.from_checkpoints([checkpoint], "cpu", backend="onnx")
    assert Predictor.from_checkpoints([checkpoint], "cpu", backend="auto").backend == "torch"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "checkpoint=zoo:cc0 comes with skinmm: name the file, out=FILE"),
        (["checkpoint=nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["checkpoint={}", "out=nowhere/a.onnx"], "the folder nowhere does not exist"),
        (
            ["checkpoint={}", "out={}"],
            "best.ckpt exists; choose another path or set overwrite=true",
        ),
        (["-m", "checkpoint={}"], "skinmm export does not accept -m"),
    ],
)
def test_what_cannot_be_exported_is_named(
    checkpoint: Path, capsys: Said, given: list[str], message: str
) -> None:
    assert main.main(["export", *(item.format(checkpoint) for item in given)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prior", [None, ([0.5, 0.3, 0.2], [0.9, 0.1, 0.0])])
@pytest.mark.parametrize(
    "inverse",
    [
        None,
        {"kind": "smoothing", "smoothing": 0.1},
        {"kind": "focus", "gammas": [4.0, 1.0, 1.0], "margins": [0.05, 0.0, 0.0]},
        {"kind": "margins", "scale": 2.0, "margins": [0.1, 0.2, 0.5]},
    ],
)
def test_the_graph_calibrates_as_the_evaluation_does(
    method: str, prior: Any, inverse: dict[str, Any] | None
) -> None:
    rng = np.random.default_rng(0)
    raw = rng.dirichlet([1, 1, 1], 400)
    targets = np.array([rng.choice(3, p=row) for row in raw])
    fitted = fit_calibration(raw, targets, np.arange(400), method=method)
    site = {"scale": 0.7, "shifts": [0.0, 1.0, -1.0]} if prior else None
    calibration = Calibration(fitted.method, fitted.state, prior, inverse=inverse, site=site)
    # Certainty of a class that does not occur in use leaves a ratio of rounding errors.
    certain = np.eye(3)[:2] if prior and inverse else np.eye(3)
    values = np.vstack([raw, rng.dirichlet([0.1, 0.1, 0.1], 50), certain])
    graph = export_onnx.CalibrationModule(calibration)(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(graph, calibration.apply(values), atol=1e-9)
