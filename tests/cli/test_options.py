"""Every option of a training recipe runs through the command line, several of them at a time."""

from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from quick_runs import metrics_of, predictions_of, quick_train

from skinmm.cli.compose import CONF

GROUPS: Final = (
    *("fusion", "tabular", "loss", "sampler"),
    *("augment", "mix", "optimizer", "schedule"),
)
OPTIONS: Final = {group: sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in GROUPS}
RUNS: Final = [
    [f"{group}={options[run % len(options)]}" for group, options in OPTIONS.items()]
    for run in range(max(map(len, OPTIONS.values())))
]


def test_every_option_is_in_a_run() -> None:
    every = {f"{group}={option}" for group, options in OPTIONS.items() for option in options}
    assert set(chain.from_iterable(RUNS)) == every


@pytest.mark.parametrize("options", RUNS, ids=" ".join)
def test_options_train_together(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    drops = ("model.drop_image=0.1", "model.drop_record=0.1", "model.drop_columns=0.1")
    assert quick_train(run, "data.limit=48", *drops, *options) == 0
    assert np.isfinite(predictions_of(run)["p_malignant"]).all()
    assert metrics_of(run)["test"]["metrics"]["auroc"]["value"] is not None
