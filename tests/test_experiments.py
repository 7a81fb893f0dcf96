"""Every experiment, its cohort and size apart as it is, runs an epoch on the embedded images."""

import json
from pathlib import Path

import pytest
from quick_runs import ROOT, train

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
SMALL = (
    "data=demo",
    "data.root=null",
    "data.limit=32",
    "data.extra=[]",
    "model.image_size=32",
    "model.pretrained=false",
    "evaluation.views=1",
    "evaluation.resamples=20",
    "report.pictures=false",
    "trainer=debug",
    "trainer.batch_size=8",
    "trainer.workers=0",
    "trainer.progress=false",
)


@pytest.mark.slow  # networks of full width
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_an_epoch(name: str, tmp_path: Path) -> None:
    assert train(f"experiment={name}", *SMALL, f"hydra.run.dir={tmp_path}") == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["n"] == 140
