"""A frozen network's kept features: the run is the one that looks at every image every time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_classifier, micro_config, read_data, with_model
from quick_runs import best, cohort_of, predictions_of, quick_train

from skinmm.config import Component
from skinmm.predict import Predictor
from skinmm.training import frozen_features
from skinmm.training.frozen_features import cache_features, has_constant_features

INPUTS = frozenset({"image", "record"})


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("test_efficientnet-*.npy"))


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_kept_features_train_the_same_network(
    fusion: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, looked = tmp_path / "kept", tmp_path / "looked"
    frozen = ("model.freeze=true", "augment=none", "model.drop_image=0.2", f"fusion={fusion}")
    options = (*frozen, "data.limit=48", "trainer.precision='32'")
    assert quick_train(kept, *options) == 0
    assert len(files(kept / "features")) == 1
    monkeypatch.setattr(frozen_features, "has_constant_features", lambda _: False)
    assert quick_train(looked, *options) == 0
    assert not files(looked / "features")
    one, other = (pd.read_csv(run / "history.csv") for run in (kept, looked))
    is_loss = one["name"] == "train/loss"
    np.testing.assert_allclose(one[is_loss]["value"], other[is_loss]["value"], rtol=1e-5)
    written, seen = predictions_of(kept), predictions_of(looked)
    np.testing.assert_allclose(written["raw_malignant"], seen["raw_malignant"], atol=1e-5)
    again = Predictor.from_checkpoints([best(kept)]).predict(cohort_of(kept), pictures)
    np.testing.assert_allclose(again["p_malignant"], written["p_malignant"], atol=1e-5)


def test_features_are_looked_up_under_weights_and_files(tmp_path: Path) -> None:
    config = replace(with_model(micro_config(), freeze=True), augment=Component("none"))
    config = replace(config, data=replace(config.data, limit=8))
    data, device = read_data(config, INPUTS), torch.device("cpu")
    network = micro_classifier(config, data).network
    first = cache_features(config, data, network, device, tmp_path)
    assert files(tmp_path) == [first]
    assert np.load(first).shape == (len(data.used_rows), network.fusion.dim - 8)
    assert len(data.used_rows) == 8 + len(data.rows("val")) + len(data.rows("test"))
    made = first.stat().st_mtime_ns
    cache_features(config, read_data(config, INPUTS), network, device, tmp_path)
    assert [file.stat().st_mtime_ns for file in files(tmp_path)] == [made]
    for parameter in network.parameters():
        parameter.data += 1e-3
    cache_features(config, read_data(config, INPUTS), network, device, tmp_path)
    assert len(files(tmp_path)) == 2


def test_only_what_never_changes_is_kept() -> None:
    config = replace(with_model(micro_config(), freeze=True), augment=Component("none"))
    assert has_constant_features(config)
    assert not has_constant_features(with_model(config, freeze=False))
    assert not has_constant_features(replace(config, augment=Component("standard")))
    assert not has_constant_features(replace(config, mix=Component("mixup")))
    assert not has_constant_features(
        replace(config, evaluation=replace(config.evaluation, views=8))
    )
