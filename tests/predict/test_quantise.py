"""Smaller arithmetic: what is written is what was measured, and what costs too much is refused."""

import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from quick_runs import best, predictions_of
from sklearn.metrics import roc_auc_score

from skinmm.cli import main
from skinmm.predict import Predictor, quantise, quantiser
from skinmm.predict.backends import OnnxBackend, read_precision

pytestmark = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="needs skinmm[onnx]"
)
Said = pytest.CaptureFixture[str]


@pytest.fixture
def checkpoint(both: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(best(both), tmp_path / "best.ckpt"))


def count_operators(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


def element_types(path: Path) -> Counter[int]:
    import onnx

    return Counter(tensor.data_type for tensor in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_smaller_file_states_what_it_cost(
    precision: str, checkpoint: Path, both: Path, pictures: Path, capsys: Said
) -> None:
    import onnx

    export = ["export", f"checkpoint={checkpoint}"]
    path = checkpoint.with_suffix(".onnx")
    assert main.main([*export, f"precision={precision}"]) == 0
    assert f"{precision}, 0 layers in 32 bits: " in capsys.readouterr().out
    kinds = element_types(path)
    wanted = {"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}[precision]
    assert kinds[wanted] > 20
    assert (count_operators(path)["QuantizeLinear"] > 0) == (precision == "int8")
    facts = OnnxBackend(path).metadata["precision"]
    assert facts["name"] == precision
    assert quantise.is_accepted(facts)
    val = predictions_of(both, "val")
    assert facts["validation_rows"] == len(val)
    expected = roc_auc_score(val["target"], val["p_malignant"])
    assert facts["auroc"][0] == pytest.approx(expected, abs=1e-6)
    table = pd.DataFrame({"image": val["image_id"]})
    cells = pd.read_csv(both / "cohort.csv", dtype={"image_id": str}).set_index("image_id")
    for name in ("age", "sex", "site"):
        table[name] = cells.loc[val["image_id"], name].to_numpy()
    predictor = Predictor.from_checkpoints([checkpoint], "cpu", backend="onnx")
    predicted = predictor.predict(table, pictures)
    actual = roc_auc_score(val["target"], predicted["malignancy"])
    assert facts["auroc"][1] == pytest.approx(actual, abs=1e-6)
    equal = (predicted["decision"].to_numpy() == val["decision"].to_numpy()).mean()
    assert facts["equal_decisions"] == pytest.approx(equal)
    assert read_precision(predictor.ensemble.members[0].backend) == facts


def test_layers_that_hurt_stay_in_32_bits(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    path = checkpoint.with_suffix(".onnx")
    results = iter([False, False, True])
    monkeypatch.setattr(quantise, "is_accepted", lambda _: next(results))
    monkeypatch.setattr(quantiser, "PROBED_IMAGES", 4)
    assert main.main(["export", f"checkpoint={checkpoint}", "precision=int8"]) == 0
    told = capsys.readouterr()
    assert told.err.count("not accepted: int8, ") == 2
    layers = OnnxBackend(path).metadata["precision"]["layers_in_32_bits"]
    assert len(layers) == 2
    import onnx

    inputs = {node.name: node.input for node in onnx.load(path).graph.node}
    outputs = {name: n.op_type for n in onnx.load(path).graph.node for name in n.output}
    for layer in layers:
        assert outputs.get(inputs[layer][1]) != "DequantizeLinear"


def test_a_loss_beyond_the_limits_is_refused_with_its_figures(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(quantise, "MIN_EQUAL", 1.01)
    assert main.main(["export", f"checkpoint={checkpoint}", "precision=fp16"]) == 2
    told = capsys.readouterr().err
    assert "precision=fp16 costs too much: fp16, 0 layers in 32 bits: AUROC " in told
    assert "nothing was written; use precision=fp32" in told
    assert not checkpoint.with_suffix(".onnx").exists()


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"auroc": [0.9, 0.8979]}, False),
        ({"auroc": [0.8, 0.9]}, True),
        ({"calibration_error": [0.01, 0.0151]}, False),
        ({"equal_decisions": 0.989}, False),
    ],
)
def test_limits(change: dict[str, Any], accepted: bool) -> None:
    facts = {"auroc": [0.9, 0.899], "calibration_error": [0.01, 0.014], "equal_decisions": 0.99}
    assert quantise.is_accepted({**facts, **change}) == accepted


def test_what_needs_no_image_network_is_refused(
    records: Path, tmp_path: Path, capsys: Said
) -> None:
    out = f"out={tmp_path / 'a.onnx'}"
    assert main.main(["export", f"checkpoint={best(records)}", out, "precision=int8"]) == 2
    assert "the checkpoint has no image network" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
