"""The card of a checkpoint: the run's figures and facts as Markdown, and nobody's name."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from report_cases import CONFIG, demo_cohort, fitted, make_run

from skinmm.report.inputs import read_run
from skinmm.report.sections.facts import collect_facts, list_corrections
from skinmm.report.sections.referral import collect_referral_warnings, describe_rule
from skinmm.report.write import format_card


def card_of(run: Path) -> str:
    return format_card(read_run(run, pictures=False))


def tables(card: str) -> list[list[list[str]]]:
    """The cells of every table, as a Markdown reader splits them."""
    found = re.findall(r"(?:^\|.*\|\n?)+", card, re.MULTILINE)
    return [
        [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.splitlines()] for table in found
    ]


def test_a_card_holds_the_run_s_figures_and_facts_and_names_nobody(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    card = card_of(run)
    measured = json.loads((run / "metrics.json").read_text())["test"]["metrics"]
    for name in ("auroc", "average_precision", "sensitivity", "specificity", "brier"):
        value, low, high = (measured[name][key] for key in ("value", "low", "high"))
        assert f"| {value:.3f} ({low:.3f} to {high:.3f}) |" in card
    for words in (
        "fusion concat",
        "224 pixels",
        "FROM SCRATCH: no weights here",
        "at most 6 epochs",
        "Sampler balanced, loss cross_entropy",
        "Not a medical device",
        "No external validation",
        "with the complete record, 0.500 without it",
        "predict.py 'checkpoint=checkpoints/best.ckpt'",
        "There are 5 folds; the test rows are those of fold 0.",
    ):
        assert words in card, words
    test = demo_cohort().query("part == 'test'")
    assert f"Test: {len(test)} images" in card
    assert not [name for name in demo_cohort()["image_id"] if name in card]
    assert all(len({len(row) for row in table}) == 1 for table in tables(card))


def test_a_card_tells_what_is_referred_beside_the_sensitivity(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    card = card_of(run)
    decision = pd.read_csv(run / "predictions" / "test.csv")["decision"]
    share = (decision == "refer").mean()
    assert f"| Referred to a person | {share:.3f} (" in card
    (results,) = (line for line in card.splitlines() if line.startswith("**Results.**"))
    assert f", referred to a person: {100 * share:.1f} % of images (" in results
    (threshold,) = (line for line in card.splitlines() if line.startswith("**Threshold.**"))
    assert "are referred to a person. The limits are chosen by conformal risk control" in threshold
    assert "of the lesions decided benign are malignant" in results


@pytest.mark.parametrize("part", ["val", "calibration"])
def test_rates_are_bounds_only_if_other_rows_chose_the_epoch(tmp_path: Path, part: str) -> None:
    inputs = read_run(make_run(tmp_path), pictures=False)
    text = describe_rule(replace(inputs, metrics={**inputs.metrics, "fitted_on": part}))
    is_apart = part == "calibration"
    assert (
        "calibration rows" in text,
        "On average over samples of such rows, at most" in text,
    ) == (
        is_apart,
        is_apart,
    )
    assert (
        "estimates without a bound, because the epoch was also selected on these rows" in text
    ) != is_apart


@pytest.mark.parametrize("window", [1, 3])
def test_the_referral_states_how_the_epoch_was_selected(tmp_path: Path, window: int) -> None:
    inputs = read_run(make_run(tmp_path), pictures=False)
    inputs = replace(inputs, metrics={**inputs.metrics, "selection": {"window": window}})
    text = describe_rule(inputs)
    assert ("by the value of one epoch" in text, "7.5 %" in text) == (window == 1, window == 1)
    assert ("also selected on these rows by the mean of 3 epochs. The" in text) == (window == 3)


def test_a_fitted_head_selects_no_epoch_and_has_no_dropped_columns(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "model.drop_columns" in card_of(run)
    config = {**CONFIG, "head": {"name": "linear"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    inputs, card = read_run(run, pictures=False), card_of(run)
    assert "model.drop_columns" not in card
    assert "selected the epoch" not in card
    assert "conformal risk control on the validation rows. On average over" in describe_rule(inputs)


def test_a_final_network_has_its_own_threshold_and_band(tmp_path: Path) -> None:
    inputs = read_run(make_run(tmp_path), pictures=False)
    rows = replace(inputs.predictions, fold=np.zeros(len(inputs.predictions), dtype=int))
    limit = {"target": 0.01, "certified": 0.02, "patients": 49}
    final: dict[str, Any] = {
        "checkpoint": "checkpoints/final.ckpt",
        "epochs": 4,
        "rows": 700,
        "threshold": {"value": 0.123, "rule": "youden", "guaranteed": False},
        "band": {"low": {"value": 0.045, **limit}, "high": {"value": 0.678, **limit}},
    }
    inputs = replace(inputs, predictions=rows, metrics={**inputs.metrics, "final": final})
    text = collect_facts(inputs)["threshold"]
    assert "from a probability of 0.123, chosen on the test predictions of the folds" in text
    assert f"use the mean threshold of the folds, {inputs.threshold:.3f}." in text
    rule = (
        "checkpoints/final.ckpt decides a lesion to be benign below {} and malignant from {} on; "
    )
    assert rule.format("a probability of 0.045", "a probability of 0.678") in text
    final["band"] = {"low": {"value": 0.123, **limit}, "high": {"value": 0.1, **limit}}
    text = collect_facts(inputs)["threshold"]  # a limit that is the threshold is stated once
    assert rule.format(*["the threshold of 0.123"] * 2) in text
    (warning, *_) = collect_referral_warnings(inputs)
    assert "of the rows shown here are decided benign by checkpoints/final.ckpt." in warning


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (1, "the value of one epoch, a target of 95 % with 95 % confidence was reached in 89 %"),
        (3, "the mean of three epochs, a target of 95 % with 95 % confidence was reached in 93 %"),
        (5, "calibration part; see data.calibration) by the mean of 5 epochs, which makes"),
    ],
)
def test_optimism_has_figures_only_for_what_was_simulated(
    tmp_path: Path, window: int, words: str
) -> None:
    inputs = read_run(make_run(tmp_path), pictures=False)
    metrics = {**inputs.metrics, "selection": {"window": window, "epochs": [1]}}
    text = collect_facts(replace(inputs, metrics=metrics))["threshold"]
    assert words in text
    assert (
        "simulations with 60 malignant cases and 15 equally good epochs, selected by the mean"
        in text
    ) == (window == 3)


def test_the_threshold_of_pooled_folds_is_the_mean_of_theirs(tmp_path: Path) -> None:
    inputs = read_run(make_run(tmp_path), pictures=False)
    assert ", chosen on the validation part for" in collect_facts(inputs)["threshold"]
    rows = inputs.predictions
    pooled = replace(rows, fold=np.arange(len(rows)) % 5)
    config = {**inputs.config, "data": {**inputs.config["data"], "fold": "all"}}
    facts = collect_facts(replace(inputs, predictions=pooled, config=config))
    mean = (
        ", the mean of the thresholds of the folds (of their log odds), each chosen on the "
        "validation part for"
    )
    assert mean in facts["threshold"]
    mixed = {**inputs.metrics, "fitted_on": "mixed"}
    facts = collect_facts(replace(inputs, predictions=pooled, config=config, metrics=mixed))
    assert (
        "chosen on the calibration part of the fold, or else its validation" in facts["threshold"]
    )
    assert "In folds without a calibration part, the epoch" in facts["threshold"]
    assert "or its validation rows if it has no calibration rows" in facts["split"]
    assert (
        "There are 5 folds; each is predicted by a network that was not trained" in facts["split"]
    )


@pytest.mark.parametrize(
    ("sources", "kind"),
    [
        (["pad_ufes_20"], "smartphone photographs"),
        (["isic_2019", "isic_2019 (2)"], "dermoscopic images"),
        (["isic_2024", "ham10000"], "crops of total-body photographs and dermoscopic images"),
        (["csv"], "images of skin lesions"),
    ],
)
def test_a_card_names_the_kind_of_pictures_and_no_folder_of_the_machine(
    tmp_path: Path, sources: list[str], kind: str
) -> None:
    run = make_run(tmp_path)
    cohort = demo_cohort()
    cohort.assign(source=np.resize(sources, len(cohort))).to_csv(run / "cohort.csv", index=False)
    command = [
        "python",
        "/home/ann/bin/skinmm",
        "train",
        "data.root=/home/ann/my data, old",
        "model.pretrained=/home/ann/runs/a=b/best.ckpt",
        "data.extra=[{name:isic_2019,root:/home/ann/isic},{name:own,root:'/home/ann/o'}]",
        "data.extra=[{name: own, root: /home/ann/my data, old}, {root: //nas/ann/x, name: a}]",
        "data.extra=[{name:a,root://nas/ann},{name:b,root: 'C:\\Users\\ann\\x, y'},{root:~ann/x}]",
        "data.args.table=file:///home/ann/X.CSV",
        "data.root=//nas/ann/x",
        "data.root=C:\\Users\\ann\\x",
        "model.pretrained=../../home/ann/best.pth",
        "data.root=/data/patient.smith",
        "logger.args.tracking_uri=sqlite:////home/ann/m",
        "input=s3://bucket/a.csv",
        "loss.args.alpha=1/2",
    ]
    (run / "environment.json").write_text(json.dumps({"command": command}))
    card = card_of(run)
    assert f"Research on {kind}." in card
    assert f"images other than {kind};" in card
    assert ("dermoscop" in card) == ("dermoscop" in kind)
    typed = (
        "python skinmm train data.root=DIR model.pretrained=best.ckpt "
        "data.extra=\\[{name:isic_2019,root:DIR},{name:own,root:'DIR'}\\] "
        "data.extra=\\[{name: own, root: DIR}, {root: DIR, name: a}\\] "
        "data.extra=\\[{name:a,root:DIR},{name:b,root: 'DIR'},{root:DIR}\\] "
        "data.args.table=X.CSV data.root=DIR data.root=DIR model.pretrained=best.pth "
        "data.root=DIR logger.args.tracking_uri=DIR "
        "input=s3://bucket/a.csv loss.args.alpha=1/2"
    )
    assert f"Command: {typed}\n" in card


def test_a_card_of_several_classes_and_folds_counts_each(tmp_path: Path) -> None:
    run = tmp_path / "a|b <i> *c*"
    (run / "predictions").mkdir(parents=True)
    table = fitted("diagnosis").assign(fold=0)
    table.assign(called="mel").to_csv(run / "predictions" / "test.csv", index=False)
    cohort = demo_cohort().assign(target=demo_cohort()["diagnosis"])
    cohort.to_csv(run / "cohort.csv", index=False)
    evaluation = {"confidence": 0.9, "call": "balanced"}
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "evaluation": evaluation}))
    card = card_of(run)
    assert card.startswith("# Model card: a\\|b &lt;i&gt; \\*c\\*\n")
    counts = Counter(cohort["target"])
    rows = {
        row[0].strip(): [cell.strip() for cell in row] for table in tables(card) for row in table
    }
    for name, count in counts.items():
        assert rows[name][1] == str(count)
        assert rows[name][3].startswith("1.000" if name == "mel" else "0.000")
        assert rows[f"Class: {name}"][1].startswith(f"{count} (")
    assert "largest probability relative to its share of the training rows" in card
    assert "with 90 % intervals" in card
    assert "'checkpoint=fold_*/checkpoints/best.ckpt'" in card


EVEN_CLASSES = ([0.5, 0.5], [0.98, 0.02])
NATURAL = ([0.98, 0.02], [0.98, 0.02])


@pytest.mark.parametrize(
    ("loss", "sampler", "inverse", "prior", "expected"),
    [
        ("cross_entropy", "shuffle", {}, NATURAL, []),
        ("label_smoothing", "shuffle", {"kind": "smoothing"}, NATURAL, ["is inverted in closed"]),
        ("focal", "weighted", {"kind": "focus"}, EVEN_CLASSES, ["is inverted", "class shares"]),
        ("asymmetric", "shuffle", None, NATURAL, ["loss asymmetric .* is not inverted"]),
        ("cross_entropy", "patient_balanced", {}, EVEN_CLASSES, ["class shares", "weights of"]),
    ],
)
def test_a_card_names_the_corrections_of_its_run_alone(
    tmp_path: Path,
    loss: str,
    sampler: str,
    inverse: dict[str, str] | None,
    prior: tuple[list[float], list[float]],
    expected: list[str],
) -> None:
    run = make_run(tmp_path)
    config = CONFIG | {"loss": {"name": loss}, "sampler": {"name": sampler}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["calibration"] = {"method": "platt", "prior": prior, "inverse": inverse}
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    inputs = read_run(run, pictures=False)
    sentences = list_corrections(inputs)
    assert len(sentences) == len(expected)
    for sentence, words in zip(sentences, expected, strict=True):
        assert re.search(words, sentence)
    card = format_card(inputs)
    assert (
        " ".join([*sentences, "Calibration, fitted on the validation part; method: platt."]) in card
    )
