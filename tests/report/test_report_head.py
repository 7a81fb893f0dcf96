"""The head of the report: verdict, natural frequencies, decisions and the clinic."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_cases import THRESHOLD, fitted, make_run

from skinmm.evaluation.metrics import evaluate, evaluate_clinic
from skinmm.report.blocks import Note, Table, format_percent
from skinmm.report.inputs import ReportInputs, read_prediction_file, read_run
from skinmm.report.sections.headline import collect_warnings, restate_at_clinic
from skinmm.report.sections.referral import (
    build_decided_tiles,
    collect_referral_warnings,
    describe_shares,
)
from skinmm.report.sections.subgroups import build_subgroups
from skinmm.report.sections.verdict import (
    build_frequencies,
    build_verdict,
    split_count,
    useful_prevalence,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def verdict(inputs: ReportInputs) -> str:
    block = build_verdict(inputs)
    return " ".join([block.title, *block.lines])


def test_the_first_paragraph_states_whether_the_model_is_of_use(run: Path) -> None:
    inputs = read_run(run, pictures=False)
    rows = inputs.predictions
    flags_all = replace(inputs, measured=evaluate(rows, threshold=0.0, resamples=100))
    assert "flagging every lesion is at least as good" in verdict(flags_all)
    assert f"the model missed 0 of {rows.malignant.sum()} malignant" in verdict(flags_all)
    perfect = replace(
        rows, probabilities=np.column_stack([~rows.malignant, rows.malignant]).astype(float)
    )
    found = replace(inputs, predictions=perfect, measured=evaluate(perfect, resamples=100))
    assert verdict(found).startswith("Useful at its threshold in this test")
    gain = {"value": 0.01, "low": -0.01, "high": 0.02}
    measured = {**found.measured, "metrics": found.measured["metrics"] | {"net_benefit_gain": gain}}
    unproven = verdict(replace(found, measured=measured))
    assert unproven.startswith("Not shown to be useful at its threshold")
    assert "and flagged 0 of" in verdict(found)
    noise = np.random.default_rng(0).random(len(rows))
    random = replace(rows, probabilities=np.column_stack([1 - noise, noise]))
    chance = replace(inputs, predictions=random, measured=evaluate(random, resamples=100))
    assert verdict(chance).startswith("Not shown to be useful")
    sure = chance.measured["metrics"] | {
        "sensitivity": {"value": 0.9},
        "specificity": {"value": 0.9},
    }
    lucky = replace(chance, measured={**chance.measured, "metrics": sure})
    assert useful_prevalence(lucky) is not None
    assert "at a prevalence from" not in verdict(lucky)


def test_the_range_of_prevalence_ends_where_flagging_all_or_none_is_as_good(run: Path) -> None:
    inputs = read_run(run, pictures=False)
    limits = useful_prevalence(inputs)
    assert limits is not None
    for limit in limits:
        restated = evaluate_clinic(
            inputs.predictions, threshold=THRESHOLD, prevalence=limit, resamples=0
        )
        assert restated is not None
        assert restated["metrics"]["net_benefit_gain"]["value"] == pytest.approx(0, abs=1e-12)
    assert f"at a prevalence from {format_percent(limits[0])} to" in verdict(inputs)
    faultless = {**inputs.measured["metrics"], "sensitivity": {"value": 1.0}}
    ranked = replace(inputs, measured={**inputs.measured, "metrics": faultless})
    low, high = useful_prevalence(ranked) or (0, 0)
    assert high == 1
    assert f"at a prevalence of {format_percent(low)} or more, for lesions" in verdict(ranked)
    worthless = {name: {"value": 0.5} for name in ("sensitivity", "specificity")}
    measured = {**inputs.measured, "metrics": inputs.measured["metrics"] | worthless}
    assert useful_prevalence(replace(inputs, measured=measured)) is None


def test_natural_frequencies_add_up_and_have_the_shares_of_the_rows(run: Path) -> None:
    inputs = read_run(run, pictures=False).restate(0.002)
    row = build_frequencies(inputs)
    assert row is not None
    table, clinic = row.parts
    assert isinstance(table, Table)
    assert isinstance(clinic, Table)
    assert table.header == ("", "Decided benign", "Decided malignant", "Referred", "All")
    malignant, benign, total = ([int(cell.replace(",", "")) for cell in r[1:]] for r in table.rows)
    rows = inputs.predictions
    assert rows.decision is not None
    for kind, truth in ((malignant, rows.malignant), (benign, ~rows.malignant)):
        assert sum(kind[:3]) == kind[3] == pytest.approx(1000 * truth.mean(), abs=0.5)
        shares = [(rows.decision[truth] == name).mean() for name in ("benign", "malignant")]
        assert kind[:2] == pytest.approx([share * kind[3] for share in shares], abs=1)
    assert total == [a + b for a, b in zip(malignant, benign, strict=True)]
    assert [r[-1] for r in clinic.rows] == ["20", "9,980", "10,000"]
    no_decisions = replace(inputs, predictions=replace(rows, decision=None))
    table = build_frequencies(no_decisions).parts[0]  # type: ignore[union-attr]
    assert table.header == ("", "Not flagged", "Flagged", "All")  # type: ignore[union-attr]
    assert split_count(10, np.array(["a", "b", "c"]), ["a", "b", "c"]) == [4, 3, 3]


def test_a_gap_that_is_more_than_chance_is_named_above_the_tables(run: Path) -> None:
    inputs = read_run(run, pictures=False)
    rows = inputs.predictions
    threshold = float(np.median(rows.malignancy[rows.malignant]))  # half are missed: 14 of women
    hits = rows.malignant & (rows.malignancy >= threshold)
    women = rows.malignant & ~hits
    sex = pd.Series(np.where(women, "female", "male"), rows.image_id)
    assert inputs.cohort is not None
    cohort = inputs.cohort.drop(columns=["age", "site"])
    cohort = cohort.assign(sex=cohort["image_id"].map(sex).fillna("male"))
    measured = {**inputs.measured, "threshold": threshold}
    section = build_subgroups(replace(inputs, cohort=cohort, measured=measured))
    assert section is not None
    notes = [block.text for block in section.blocks if isinstance(block, Note)]
    named = "Sensitivity at the threshold differs by sex: lowest for female, highest for male"
    assert any(note.startswith(named) for note in notes)
    assert not any("image size" in note for note in notes)  # no size is known


def test_the_head_names_targets_that_validation_does_not_show(run: Path) -> None:
    inputs = read_run(run, pictures=False)
    decision = inputs.predictions.decision
    assert decision is not None
    count = inputs.metrics["band"]["low"]["patients"]
    assert count < 99
    first = "evaluation.miss_rate=0.01 needs 99 malignant images among the"
    (text,) = collect_referral_warnings(inputs)[:1]
    assert text.startswith(first)
    assert (
        f"The {count} available permit a target of {format_percent(1 / (count + 1))} at best"
        in text
    )
    assert "the validation rows" in text
    assert "calibration rows" not in text
    none = np.where(decision == "benign", "refer", decision)
    undecided = replace(inputs, predictions=replace(inputs.predictions, decision=none))
    texts = collect_referral_warnings(undecided)
    assert any("benign, because of evaluation.miss_rate=0.01" in text for text in texts)
    unfamiliar = replace(undecided.predictions, ood=np.full(len(decision), 2.0))
    texts = collect_referral_warnings(replace(undecided, predictions=unfamiliar))
    assert "No lesion of the test is decided benign." in texts  # whatever the target
    all_above = {**undecided.measured, "threshold": 0.0}
    texts = collect_referral_warnings(replace(undecided, measured=all_above))
    assert "No lesion of the test is decided benign." in texts
    enough = {**inputs.metrics["band"]["low"], "patients": 99, "certified": 0.01}
    metrics = {**inputs.metrics, "band": {**inputs.metrics["band"], "low": enough}}
    assert not any(
        "miss_rate" in text for text in collect_referral_warnings(replace(inputs, metrics=metrics))
    )


def test_sentences_on_a_clinic_have_their_condition_and_do_not_repeat_the_verdict(
    run: Path,
) -> None:
    inputs = read_run(run, pictures=False)
    gain = {"value": 0.01, "low": 0.005, "high": 0.02}
    metrics = {"net_benefit_gain": gain, "number_needed_to_treat": {"value": None}}
    clinic = {"prevalence": 0.05, "metrics": metrics}
    worthless = {"net_benefit_gain": {"value": -0.1, "low": -0.2, "high": -0.05}}
    measured = {**inputs.measured, "metrics": inputs.measured["metrics"] | worthless}
    inputs = replace(inputs, measured={**measured, "clinic": clinic})
    text = verdict(inputs)
    assert text.startswith("Not useful")
    without = {"net_benefit_gain": {"value": 0.08, "low": None, "high": None}}
    unknown = {**measured, "metrics": measured["metrics"] | without, "clinic": None}
    assert "Not useful" not in verdict(replace(inputs, measured=unknown))
    assert "with lesions otherwise as in this test, the model is useful" in text
    assert "too" not in text.split()
    assert "no malignant lesion is flagged. The gain in net benefit" in restate_at_clinic(inputs)[0]


def test_two_rows_are_not_called_useful_anywhere(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image_id": ["a", "b"], "p_malignant": [0.1, 0.9], "target": [0, 1]})
    rows.assign(decision="refer").to_csv(tmp_path / "two.csv", index=False)
    inputs = read_prediction_file(tmp_path / "two.csv", None, None, pictures=False)
    text = verdict(inputs)
    assert text.startswith("Not shown to be useful")
    assert "as in this test, the model is not shown to be useful" in text
    assert (
        "At this prevalence, no lesion is decided benign, and no lesion is decided malignant."
        in (restate_at_clinic(inputs))
    )


def test_a_reversed_ranking_is_not_called_chance(tmp_path: Path) -> None:
    table = fitted()
    table.assign(target=1 - table["target"]).to_csv(tmp_path / "file.csv", index=False)
    inputs = read_prediction_file(tmp_path / "file.csv", pictures=False)
    title = build_verdict(inputs).title
    assert title.startswith("Not useful: the model ranks benign lesions above malignant ones.")
    (warning,) = (text for text in collect_warnings(inputs) if "chance" in text)
    assert warning.startswith("The ranking is worse than chance, AUROC 0.")


def test_the_head_counts_wrong_decisions_among_the_decided(run: Path) -> None:
    inputs = read_run(run, pictures=False)
    rows = inputs.predictions
    benign = rows.decision == "benign"
    assert isinstance(benign, np.ndarray)
    tiles = {tile.label: tile for tile in build_decided_tiles(inputs)}
    wrong = tiles["Decided benign, but malignant"]
    assert wrong.value == format_percent(rows.malignant[benign].mean())
    assert wrong.meaning == f"of {benign.sum()} lesions decided benign"
    missed = f"{(benign & rows.malignant).sum()} of {rows.malignant.sum()} malignant images"
    assert f", {missed} decided benign" in verdict(inputs)
    clinic = restate_at_clinic(inputs.restate(0.05))
    assert clinic[0].startswith(f"At a prevalence of {format_percent(0.05, 2)}")
    assert "of the lesions decided benign are malignant" in clinic[1]
    undefined = {"decided_npv": {"value": 0.9}, "decided_ppv": {"value": None}}
    assert describe_shares(undefined) == (
        f"{format_percent(0.1)} of the lesions decided benign are malignant, "
        "and no lesion is decided malignant"
    )
