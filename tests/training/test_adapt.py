"""`skinmm adapt`: the new checkpoint predicts for the site, its record is true, and refusals."""

import shutil
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_runs import best
from scipy.special import expit, logit
from sklearn.metrics import log_loss

from skinmm.cli import main
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.call_rules import fit_call_rule
from skinmm.evaluation.conformal import ConformalPredictor
from skinmm.evaluation.predictions import format_sets
from skinmm.evaluation.thresholds import Threshold, choose_threshold
from skinmm.models.checkpoint import load_card, load_cards, save_ensemble, update_card
from skinmm.report.sites import _describe_threshold

Said = pytest.CaptureFixture[str]
SHIFT = 2.0  # of the log odds of malignancy at the site


def adapt(folder: Path, *settings: str) -> int:
    outputs = (f"output={folder / 'new.ckpt'}", f"page={folder / 'adapt.html'}")
    return main.main(["adapt", *outputs, *settings])


def predict(checkpoint: Path, table: Path, output: Path, *settings: str) -> pd.DataFrame:
    job = (f"checkpoint={checkpoint}", f"input={table}", f"output={output}", "overwrite=true")
    assert main.predict([*job, *settings]) == 0
    return pd.read_csv(output)


@pytest.fixture
def site(records: Path, pictures: Path, tmp_path: Path) -> Path:
    """A table of another site: records, and labels with higher odds of malignancy."""
    table = pd.read_csv(pictures.parent / "cohort.csv", dtype=str).head(400)
    table = table[["image_id", "age", "sex", "site"]].assign(patient_id=table["image_id"])
    table.to_csv(tmp_path / "site.csv", index=False)
    p = predict(best(records), tmp_path / "site.csv", tmp_path / "plain.csv")["malignancy"]
    odds = logit(p.to_numpy()) + SHIFT
    drawn = np.random.default_rng(0).random(len(p)) < expit(odds)
    table.assign(target=drawn.astype(int)).to_csv(tmp_path / "site.csv", index=False)
    return tmp_path / "site.csv"


def test_a_column_diagnosis_has_the_labels(records: Path, site: Path, tmp_path: Path) -> None:
    table = pd.read_csv(site)
    words = table["target"].map({0: "nevus", 1: "melanoma"})
    table.drop(columns="target").assign(diagnosis=words).to_csv(site, index=False)
    assert adapt(tmp_path, f"checkpoint={best(records)}", f"input={site}") == 0
    facts = load_card(tmp_path / "new.ckpt")[0].adaptation or {}
    assert facts["malignant"] == table["target"].sum()


def test_labels_have_the_name_of_the_training_table(
    records: Path, site: Path, tmp_path: Path, capsys: Said
) -> None:
    checkpoint = Path(shutil.copy(best(records), tmp_path / "mapped.ckpt"))
    config = load_card(checkpoint)[0].config
    config["data"] |= {"name": "csv", "args": {"columns": {"target": "Befund"}}}
    update_card(checkpoint, config=config)
    table = pd.read_csv(site).rename(columns={"target": "Befund"})
    table.to_csv(site, index=False)
    assert predict(checkpoint, site, tmp_path / "out.csv")["target"].equals(table["Befund"])
    assert adapt(tmp_path, f"checkpoint={checkpoint}", f"input={site}") == 0
    facts = load_card(tmp_path / "new.ckpt")[0].adaptation or {}
    assert facts["malignant"] == table["Befund"].sum()
    table.drop(columns="Befund").to_csv(site, index=False)
    reference = f"reference={records / 'predictions' / 'val.csv'}"
    given = (f"checkpoint={checkpoint}", f"input={site}", reference, "overwrite=true")
    assert adapt(tmp_path, *given) == 2
    said = capsys.readouterr()
    assert "no value of target or diagnosis: adapting without labels" in said.out
    assert "a change of prevalence alone does not explain these rows" in said.err


def test_the_new_checkpoint_predicts_for_the_site(
    records: Path, site: Path, tmp_path: Path, capsys: Said
) -> None:
    checkpoint = best(records)
    assert adapt(tmp_path, f"checkpoint={checkpoint}", f"input={site}") == 0
    said = capsys.readouterr().out
    card, old = load_card(tmp_path / "new.ckpt")[0], load_card(checkpoint)[0]
    facts = card.adaptation or {}
    labels = pd.read_csv(site)["target"].to_numpy()
    assert facts["method"] in ("intercept", "both")
    assert (facts["rows"], facts["malignant"]) == (400, labels.sum())
    assert facts["source"] == sha256(site.read_bytes()).hexdigest()
    assert facts["checkpoint"] == sha256(checkpoint.read_bytes()).hexdigest()
    assert facts["after"] < facts["before"]
    assert f"log loss {facts['before']:.4f} before, {facts['after']:.4f} after" in said
    before = pd.read_csv(tmp_path / "plain.csv")["malignancy"]
    after = predict(tmp_path / "new.ckpt", site, tmp_path / "after.csv")
    assert after["malignancy"].mean() == pytest.approx(labels.mean(), abs=0.02)
    assert (after["malignancy"].rank() == before.rank()).all()
    # The threshold is that of training's function for the site's rows.
    patients = after["patient_id"].to_numpy(dtype=str)
    scores = after["malignancy"].to_numpy(), labels == 1, patients
    assert card.threshold is not None
    assert card.threshold["value"] == pytest.approx(choose_threshold(*scores).value, rel=1e-4)
    assert card.threshold["guaranteed"] == (labels.sum() >= 59)
    assert after["threshold"][0] == pytest.approx(card.threshold["value"])
    assert card.prior["deployed"] == pytest.approx([1 - labels.mean(), labels.mean()])
    assert card.prior["trained"] == old.prior["trained"]
    assert "before its probabilities" in card.summary["note"]
    page = (tmp_path / "adapt.html").read_text(encoding="utf-8")
    assert facts["source"][:10] in page
    assert page.count("<svg") == 3


def test_its_own_predictions_replace_the_images(records: Path, site: Path, tmp_path: Path) -> None:
    checkpoint, cards = best(records), []
    predictions = tmp_path / "predictions.csv"
    predict(checkpoint, site, predictions).to_parquet(tmp_path / "predictions.parquet")
    for source in (site, predictions, tmp_path / "predictions.parquet"):
        given = (f"checkpoint={checkpoint}", f"input={source}", "overwrite=true")
        assert adapt(tmp_path, *given) == 0
        cards.append(load_card(tmp_path / "new.ckpt")[0])
    assert cards[0].calibration == cards[1].calibration
    assert cards[0].threshold == cards[1].threshold
    assert cards[1].calibration == cards[2].calibration


def test_the_networks_of_an_ensemble_are_adapted_one_by_one(
    records: Path, site: Path, tmp_path: Path, capsys: Said
) -> None:
    first, second = best(records), tmp_path / "second.ckpt"
    shutil.copy(first, second)
    calibration = load_card(first)[0].calibration or {}
    update_card(second, calibration={**calibration, "method": "none", "state": {}})
    target = pd.read_csv(site)["target"].to_numpy()
    plain = [predict(path, site, tmp_path / "p.csv")["malignancy"] for path in (first, second)]
    cards = []
    ensemble = tmp_path / "ensemble.ckpt"
    save_ensemble([first, second], ensemble)
    for checkpoint in (f"[{first},{second}]", ensemble):
        given = (f"checkpoint={checkpoint}", f"input={site}", "overwrite=true")
        assert adapt(tmp_path, *given) == 0
        cards.append([card for card, _ in load_cards(tmp_path / "new.ckpt")])
    assert [c.calibration for c in cards[0]] == [c.calibration for c in cards[1]]
    facts = cards[0][0].adaptation or {}
    assert facts["before"] == pytest.approx(log_loss(target, sum(plain) / 2))
    after = predict(tmp_path / "new.ckpt", site, tmp_path / "after.csv")
    assert log_loss(target, after["malignancy"]) < facts["after"] < facts["before"]
    assert after["malignancy"].mean() == pytest.approx(target.mean(), abs=0.02)
    state = (cards[0][0].threshold or {})["value"]
    assert after["threshold"][0] == pytest.approx(state)
    scores = after["malignancy"].to_numpy(), target == 1, after["patient_id"].to_numpy(dtype=str)
    assert state == pytest.approx(choose_threshold(*scores).value, rel=1e-4)
    # One by one: the first network is adapted as it is alone.
    assert adapt(tmp_path, f"checkpoint={first}", f"input={site}", "overwrite=true") == 0
    assert load_card(tmp_path / "new.ckpt")[0].calibration == cards[0][0].calibration
    capsys.readouterr()
    unlabelled = tmp_path / "unlabelled.csv"
    pd.read_csv(site, dtype=str).drop(columns="target").to_csv(unlabelled, index=False)
    refused = {
        "adapted with labels only": unlabelled,
        "mean predictions of 2 networks": tmp_path / "p.csv",
    }
    for message, table in refused.items():
        given = (f"checkpoint={ensemble}", f"input={table}", "overwrite=true")
        assert adapt(tmp_path, *given) == 2
        assert message in capsys.readouterr().err


def test_the_bound_names_its_unit_and_confidence_and_is_not_rounded_up() -> None:
    threshold = Threshold(0.1, "sensitivity", guaranteed=False, patients=57, found=57, bound=0.9488)
    near = replace(threshold, bound=0.94996)
    text = _describe_threshold(threshold, near, 0.95, 0.95, "image")
    assert "57 of 57 malignant cases (by image) reach it. With 95" in text
    assert "at least 94.9" in text
    assert "2 more patients" in text


def test_what_cannot_be_adapted_is_named(
    records: Path, both: Path, site: Path, tmp_path: Path, capsys: Said
) -> None:
    checkpoint, raw = best(records), tmp_path / "raw.csv"
    predict(checkpoint, site, raw, "probabilities=raw")
    new = tmp_path / "new.ckpt"
    assert adapt(tmp_path, f"checkpoint={checkpoint}", f"input={site}") == 0
    alone = shutil.copy(checkpoint, tmp_path / "alone.ckpt")
    unlabelled = tmp_path / "unlabelled.csv"
    pd.read_csv(site, dtype=str).drop(columns="target").to_csv(unlabelled, index=False)
    benign, malignant = tmp_path / "benign.csv", tmp_path / "malignant.csv"
    pd.read_csv(site, dtype=str).assign(target="0").to_csv(benign, index=False)
    pd.read_csv(site, dtype=str).assign(target="1").to_csv(malignant, index=False)
    partly = pd.read_csv(site, dtype=str)
    partly.loc[[1, 5, 7], "target"] = None
    partly.to_csv(tmp_path / "partly.csv", index=False)
    cases = {
        "not the calibrated predictions of this checkpoint": (checkpoint, raw),
        "adapted to a site already": (new, site),
        "give reference=RUN/predictions/val.csv": (alone, unlabelled),
        "none of 400 rows is malignant": (checkpoint, benign),
        "none of 400 rows is benign": (checkpoint, malignant),
        "partly.csv: row 3 (image": (checkpoint, tmp_path / "partly.csv"),
    }
    for message, (model, table) in cases.items():
        capsys.readouterr()
        given = (f"checkpoint={model}", f"input={table}", f"output={tmp_path / 'x.ckpt'}")
        assert adapt(tmp_path, *given, "overwrite=true") == 2, message
        assert message in capsys.readouterr().err
    assert not [*tmp_path.glob("x.*")]  # no predictions that refuse the next try
    wrong = (f"checkpoint={best(both)}", f"input={site}", f"output={tmp_path / 'x.bin'}")
    assert adapt(tmp_path, *wrong, "overwrite=true") == 2
    assert "the suffix must be .ckpt" in capsys.readouterr().err


def test_without_labels_only_a_change_of_prevalence_is_accepted(
    records: Path, tmp_path: Path, capsys: Said
) -> None:
    checkpoint, site = best(records), tmp_path / "site.csv"
    card, val = load_card(checkpoint)[0], pd.read_csv(records / "predictions" / "val.csv")
    rng = np.random.default_rng(0)
    for factor, status in ((1.0, 0), (8.0, 2)):
        drawn = val.iloc[rng.integers(len(val), size=300)].drop(columns="target")
        p = expit(factor * logit(drawn["p_malignant"].to_numpy()))
        names = [f"site{row}" for row in range(300)]
        sets = ConformalPredictor(**card.conformal or {}).predict_sets(np.c_[1 - p, p])
        values = {"p_benign": 1 - p, "p_malignant": p}
        values |= {"image_id": names, "patient_id": names}
        drawn = drawn.assign(prediction_set=format_sets(sets, card.classes), **values)
        drawn.to_csv(site, index=False)
        given = (f"checkpoint={checkpoint}", f"input={site}", "overwrite=true")
        assert adapt(tmp_path, *given) == status
    assert "a change of prevalence alone does not explain these rows" in capsys.readouterr().err
    facts = load_card(tmp_path / "new.ckpt")[0].adaptation or {}
    val.drop(columns=["target", "ood"]).to_csv(site, index=False)
    assert adapt(tmp_path, f"checkpoint={checkpoint}", f"input={site}", "overwrite=true") == 2
    assert "the column ood is needed" in capsys.readouterr().err
    share, low, high = facts["shares"]["malignant"]
    assert low <= share <= high
    assert facts["p"] >= 0.05


def test_several_classes_need_their_diagnoses(records: Path, tmp_path: Path, capsys: Said) -> None:
    checkpoint, site = tmp_path / "three.ckpt", tmp_path / "site.csv"
    shutil.copy(best(records), checkpoint)
    classes, limits = ["bkl", "mel", "nv"], {"bkl": 0.1, "mel": 0.1, "nv": 0.1}
    config = load_card(checkpoint)[0].config
    config["evaluation"]["call"] = "f1"
    card = update_card(
        checkpoint,
        config=config,
        classes=classes,
        positive=["mel"],
        prior={"trained": [1 / 3] * 3, "deployed": [0.2, 0.3, 0.5]},
        calibration=asdict(Calibration()),
        conformal={"coverage": 0.9, "limits": limits, "rows": dict.fromkeys(classes, 50)},
    )
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 2], size=2000)
    sharp = p**2 * [0.5, 1, 3]  # what the site's probabilities should have been
    sharp /= sharp.sum(axis=1, keepdims=True)
    target = np.array([rng.choice(3, p=row) for row in sharp])
    sets = ConformalPredictor(**card.conformal or {}).predict_sets(p)
    table = pd.DataFrame({f"p_{name}": p[:, i] for i, name in enumerate(classes)})
    table = table.assign(image_id=[f"i{row}" for row in range(2000)])
    table["prediction_set"] = format_sets(sets, classes)
    table.assign(target=np.array(classes)[target]).to_csv(site, index=False)
    given = (f"checkpoint={checkpoint}", f"input={site}", "overwrite=true")
    assert adapt(tmp_path, *given) == 0
    new = load_card(tmp_path / "new.ckpt")[0]
    assert (new.adaptation or {})["method"] == "both"
    state = (new.calibration or {})["site"]
    assert state["scale"] == pytest.approx(2, abs=0.3)
    assert state["shifts"] == pytest.approx(np.log([1, 2, 6]), abs=0.35)
    assert new.prior["deployed"] == pytest.approx(np.bincount(target) / 2000)
    adapted = Calibration(**new.calibration or {}).apply(p)
    names = table["image_id"].to_numpy(dtype=object)
    rule = fit_call_rule("f1", adapted, target.astype(np.int64), names)
    assert (new.call or {})["divisors"] == pytest.approx(rule.divisors, rel=1e-4)
    table.assign(target=(target == 1).astype(int)).to_csv(site, index=False)
    capsys.readouterr()
    assert adapt(tmp_path, *given) == 2
    assert "give a column diagnosis" in capsys.readouterr().err
