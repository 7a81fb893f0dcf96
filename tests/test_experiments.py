"""Every experiment, its cohort and size apart as it is, runs an epoch on the embedded images."""

from pathlib import Path

import pytest
import yaml
from lesion_drawings import write_cohort
from quick_runs import ROOT, best, metrics_of, quick_train, train

FILES = {path.stem: path for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
ARMS = {
    name: yaml.safe_load(path.read_text(encoding="utf-8")).get("study", {}).get("arms", {})
    for name, path in FILES.items()
}
OUTSIDE = "outside_study"  # whose arms are cohorts
STUDIES = [
    pytest.param(name, marks=pytest.mark.realdata if name == OUTSIDE else ())
    for name, arms in sorted(ARMS.items())
    if arms
]
SMALL = (
    "data=demo",
    "data.root=null",
    "data.fold=0",
    "data.limit=32",
    "data.extra=[]",
    "data.columns=[age,sex,site]",
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
@pytest.mark.parametrize("name", sorted(name for name, arms in ARMS.items() if not arms))
def test_an_experiment_runs_an_epoch(name: str, tmp_path: Path) -> None:
    cohort = ("data.positive=[]", f"hydra.run.dir={tmp_path}")
    assert train(f"experiment={name}", *SMALL, *cohort) == 0
    assert metrics_of(tmp_path)["test"]["n"] == 140


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that draws masks."""
    root, run = tmp_path_factory.mktemp("drawn"), tmp_path_factory.mktemp("run")
    write_cohort(root)
    task = ("task=segmentation", "data=image_folder", f"data.root={root}")
    assert quick_train(run, *task) == 0
    return best(run)


@pytest.mark.slow  # up to ten runs each
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_all_its_arms(
    name: str, drawing: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = [*SMALL, "data.positive=[]", f"hydra.run.dir={tmp_path}"]
    if name == "preprocess_study":
        here.append(f"data.segmenter={drawing}")
    if name == OUTSIDE:
        here = [each for each in here if not each.startswith(("data=", "data.root", "data.posi"))]
        here.append(f"data.root={request.getfixturevalue('skinmm_data')}")
    assert train(f"experiment={name}", *here) == 0
    table = (tmp_path / "compare.md").read_text(encoding="utf-8")
    for arm in ARMS[name]:
        assert metrics_of(tmp_path / arm)["test"]["n"] > 0
        assert f"| {arm} |" in table
