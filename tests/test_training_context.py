"""Both stages through the command line, on a cohort in which only relative appearance matters."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from quick_runs import best, cohort_of, files_in, metrics_of, predictions_of, train

from skinmm import cli
from skinmm.checkpoint import load_card
from skinmm.predict import Predictor
from skinmm.predict import job as predict_job
from skinmm.predict.spool import Spool

Said = pytest.CaptureFixture[str]
P = ["p_benign", "p_malignant"]
QUICK = (
    *("trainer=debug", "trainer.limit_batches=null", "trainer.progress=false"),
    *("evaluation.resamples=20", "trainer.batch_size=32", "optimizer.lr=0.01"),
)


def ugly_ducklings(folder: Path, patients: int = 100, rows: int = 5) -> Path:
    """Every patient's lesions look alike, each patient's otherwise; a malignant one differs."""
    rng = np.random.default_rng(0)
    usual = rng.normal(0, 10, (patients, 1))
    ugly = np.zeros((patients, rows), int)
    ugly[::2, 0] = 1
    look = usual + rng.normal(0, 2, ugly.shape) + 12 * ugly
    table = {
        "image_name": [f"I{patient}_{row}" for patient in range(patients) for row in range(rows)],
        "patient_id": np.repeat([f"P{patient}" for patient in range(patients)], rows),
        "look": look.ravel().round(3),
        "target": ugly.ravel(),
    }
    folder.mkdir()
    shuffled = pd.DataFrame(table).sample(frac=1, random_state=0)
    shuffled.to_csv(folder / "cohort.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages that compares a lesion with three others at most."""
    folder = tmp_path_factory.mktemp("context")
    cohort = ["data=csv", f"data.root={ugly_ducklings(folder / 'data')}", "data.columns=[look]"]
    chosen = ["fusion=patient_context", "fusion.args.plain.name=tabular_only"]
    args = ["fusion.args.others=3", "trainer.max_epochs=8", f"hydra.run.dir={folder / 'run'}"]
    assert train(*QUICK, *cohort, *chosen, *args) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def both_stages(run: Path) -> tuple[Predictor, Predictor]:
    """Judging a lesion among others, and each alone."""
    paths = (best(run), best(run / "plain"))
    together, alone = (Predictor.from_checkpoints([path]) for path in paths)
    return together, alone


def differ(one: pd.DataFrame, other: pd.DataFrame) -> float:
    return float(np.abs(one[P].to_numpy() - other[P].to_numpy()).max())


def test_context_beats_the_plain_model_where_only_comparison_helps(run: Path) -> None:
    context, plain = (
        metrics_of(each)["test"]["metrics"]["auroc"]["value"] for each in (run, run / "plain")
    )
    assert context > plain + 0.1
    assert (run / "report.html").is_file()
    card, _ = load_card(best(run))
    assert card.config["fusion"]["args"]["plain"]["name"] == "tabular_only"
    assert card.alone == load_card(best(run / "plain"))[0].calibration


def test_the_run_s_rows_are_judged_among_those_of_their_patient(
    run: Path, both_stages: tuple[Predictor, Predictor]
) -> None:
    rows = cohort_of(run)
    predicted = both_stages[0].predict(rows)
    assert differ(predicted, predictions_of(run)) < 1e-6
    assert predicted["decision"].tolist() == predictions_of(run)["decision"].tolist()
    mixed = rows.sample(frac=1, random_state=1)
    again = both_stages[0].predict(mixed, batch_size=7).set_axis(mixed.index).sort_index()
    assert differ(predicted, again) < 1e-6
    other = rows["patient_id"] != rows["patient_id"].iloc[0]
    assert differ(predicted[other], both_stages[0].predict(rows[other])) < 1e-6


@pytest.mark.parametrize("nobody", [None, ""])
def test_a_lesion_without_others_is_judged_as_by_the_plain_model(
    run: Path, both_stages: tuple[Predictor, Predictor], nobody: str | None
) -> None:
    rows, (together, alone) = cohort_of(run), both_stages
    plain = alone.predict(rows)
    firsts = rows.drop_duplicates("patient_id")
    lonely = together.predict(firsts)
    assert differ(lonely, plain.loc[firsts.index]) < 1e-6
    assert {*lonely["missing"]} == {"other images"}
    assert "other images" not in {*together.predict(rows)["missing"]}
    assert differ(together.predict(rows.assign(patient_id=nobody)), plain) < 1e-6
    raw = together.predict(firsts, probabilities="raw")
    assert differ(raw, alone.predict(firsts, probabilities="raw")) < 1e-6
    assert differ(together.predict(rows), plain) > 0.1


def test_an_ensemble_averages_what_either_says(both_stages: tuple[Predictor, Predictor]) -> None:
    together, _ = both_stages
    members = Predictor([*together.panel.members, *both_stages[1].panel.members])
    rows = pd.DataFrame({"patient_id": ["P", "P"], "look": [0.0, 12.0], "image": ["a", "b"]})
    pair, one = members.predict(rows), members.predict(rows[:1])
    assert differ(pair[:1], one) > 1e-3
    mean = np.mean([each.predict(rows)[P].to_numpy() for each in both_stages], axis=0)
    np.testing.assert_allclose(pair[P].to_numpy(), mean, atol=1e-9)


def killing(method: Callable[..., None]) -> Callable[..., None]:
    """The method, but for its third call, at which a person has had enough."""
    calls = count(1)

    def called(*args: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        method(*args)

    return called


def job(run: Path, source: Path, output: Path, *overrides: str) -> int:
    given = [f"checkpoint={best(run)}", f"input={source}", f"output={output}", "batch_size=16"]
    return cli.predict([*given, *overrides])


def test_a_job_compares_rows_that_lie_far_apart_and_goes_on_where_it_was_killed(
    run: Path,
    both_stages: tuple[Predictor, Predictor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    monkeypatch.setattr(predict_job, "CHUNK", 32)
    rows = pd.read_csv(run / "cohort.csv")[["image_id", "patient_id", "look"]].head(120)
    rows.loc[5, "patient_id"] = None
    rows.to_csv(tmp_path / "in.csv", index=False)
    assert job(run, tmp_path / "in.csv", tmp_path / "whole.csv") == 0
    whole = (tmp_path / "whole.csv").read_bytes()
    assert files_in(tmp_path) == {"in.csv", "whole.csv"}
    written = pd.read_csv(tmp_path / "whole.csv")
    assert differ(written, both_stages[0].predict(rows)) < 1e-6
    output = tmp_path / "out.csv"
    for method in ("add", "fill"):  # in either pass
        with monkeypatch.context() as patched:
            patched.setattr(Spool, method, killing(getattr(Spool, method)))
            assert job(run, tmp_path / "in.csv", output, "resume=true") == 130
    assert not output.exists()
    assert job(run, tmp_path / "in.csv", output) == 2
    assert "resume=true goes on" in capsys.readouterr().err
    assert job(run, tmp_path / "in.csv", output, "resume=true", "threshold=0.3") == 2
    assert "changed since" in capsys.readouterr().err
    assert job(run, tmp_path / "in.csv", output, "resume=true") == 0
    assert output.read_bytes() == whole
    assert files_in(tmp_path) == {"in.csv", "whole.csv", "out.csv"}


def test_a_second_stage_on_a_finished_run_is_the_same(run: Path, tmp_path: Path) -> None:
    chosen = ["fusion=patient_context", f"fusion.args.base={run / 'plain'}", "seed=0"]
    args = ["fusion.args.others=3", "trainer.progress=false", f"hydra.run.dir={tmp_path / 'run'}"]
    assert train(*chosen, *args) == 0
    assert differ(predictions_of(tmp_path / "run"), predictions_of(run)) < 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["fusion.args.base=nowhere"], "nowhere: no run there (config.yaml is missing)"),
        (["fusion.args.base={run}"], "is such a run itself; name a plain one"),
        (["fusion.args.base={run}/plain", "data.fold=1"], "RUN/config.yaml but fusion, loss"),
        (["fusion.args.plain=concat"], "choose a block by fusion.args.plain.name=NAME"),
        (["fusion.args.plain.name=patient_context"], "unknown fusion 'patient_context'"),
        (["fusion.args.width=9"], "width=9 is not divided by heads=4"),
    ],
)
def test_what_no_second_stage_can_be_made_of_is_named(
    run: Path, tmp_path: Path, capsys: Said, given: list[str], message: str
) -> None:
    overrides = [item.format(run=run) for item in given]
    assert train("fusion=patient_context", f"hydra.run.dir={tmp_path}/x", *overrides) == 2
    assert message in capsys.readouterr().err


def test_another_cohort_than_the_first_stage_s_is_refused(
    run: Path, tmp_path: Path, capsys: Said
) -> None:
    base = tmp_path / "plain"
    shutil.copytree(run / "plain", base)
    cohort = pd.read_csv(base / "cohort.csv")
    cohort[::-1].to_csv(base / "cohort.csv", index=False)
    given = [f"fusion.args.base={base}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert train("fusion=patient_context", *given) == 2
    assert "the cohort has changed since, or is split otherwise" in capsys.readouterr().err
    (base / "metrics.json").unlink()
    assert train("fusion=patient_context", *given) == 2
    assert "the run is not finished" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["mix=mixup", "optimizer.head_epochs=1", "sampler=balanced"])
def test_an_arm_is_not_gone_on_with_over_a_plain_model_of_other_settings(
    run: Path, capsys: Said, changed: str
) -> None:
    chosen = [
        "fusion=patient_context",
        "fusion.args.plain.name=tabular_only",
        "fusion.args.others=3",
    ]
    arms = (f"++study.arms={{run:{chosen},other:[]}}", f"hydra.run.dir={run.parent}")
    cohort = ["data=csv", f"data.root={run.parent / 'data'}", "data.columns=[look]"]
    assert train(*QUICK, *cohort, *arms, changed) == 2
    key = changed.partition("=")[0]
    assert f"{run} was begun with other values of {key}" in capsys.readouterr().err


def test_what_sees_one_image_at_a_time_is_not_exported(run: Path, capsys: Said) -> None:
    assert cli.export([f"checkpoint={best(run)}"]) == 2
    assert f"export the plain model: checkpoint={run / 'plain'}" in capsys.readouterr().err
