"""Pages of whole runs and bare files: self-contained, safe, and true to the numbers."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest
import yaml
from report_cases import CONFIG, THRESHOLD, Page, demo_cohort, fitted, make_run, report_file
from scipy.stats import beta

from skinmm.errors import InputError
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.planning import malignant_for_auroc
from skinmm.evaluation.predictions import read_predictions
from skinmm.report import write_report
from skinmm.report.blocks import TEXTS, format_estimate
from skinmm.report.compare import DIFFERENT
from skinmm.report.inputs import read_run
from skinmm.report.sections import SECTIONS
from skinmm.report.sections.cohort import describe_people
from skinmm.report.sections.performance import PER_PATIENT, PROBABILITIES, RATES
from skinmm.report.sections.referral import (
    REFERRAL,
)
from skinmm.report.sections.subgroups import MEASURES
from skinmm.report.sections.systems import SHOWN

HOSTILE: Final = '"><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{&amp;皮膚'
LOADERS: Final = {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}


def assert_inert(page: Page) -> None:
    """Nothing is loaded from elsewhere and nothing runs."""
    for tag, attributes in page.tags:
        assert tag not in LOADERS
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "srcset", "poster", "background"}:
                assert value.startswith(("#", "data:image/jpeg;base64,"))
    assert set(re.findall(r"url\(\s*.", page.source)) <= {"url(#"}
    assert "@import" not in page.source


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that has everything."""
    return Page(write_report(make_run(tmp_path_factory.mktemp("whole"))))


def test_page_of_a_run_holds_every_section_and_no_address(whole: Page) -> None:
    assert_inert(whole)
    assert not re.search(r"https?:|//[a-z]", whole.source)
    anchors = [attributes["id"] for tag, attributes in whole.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in whole.tags if tag == "a"]
    assert len(anchors) == len(SECTIONS)
    assert links == [f"#{anchor}" for anchor in anchors]
    assert whole.count("svg") >= 9
    assert whole.count("img") > 4


def test_names_within_drawings_do_not_clash(whole: Page) -> None:
    ids = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:xlink:href="|url\()#(\w+)', whole.source)
    assert set(used) <= set(ids)


def test_headline_says_what_was_measured(whole: Page, run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())["test"]["metrics"]
    auroc, sensitivity = metrics["auroc"], metrics["sensitivity"]
    assert f"AUROC {auroc['value']:.3f} {auroc['low']:.3f} to {auroc['high']:.3f}" in whole.text
    assert f"Sensitivity {100 * sensitivity['value']:.1f} %" in whole.text
    assert "FROM SCRATCH: no weights here" in whole.text
    assert "not a guaranteed lower bound" in whole.text
    assert "confidence from 59 malignant cases on, if none is missed" in whole.text
    rows = json.loads((run / "metrics.json").read_text())["test"]
    needed = malignant_for_auroc(auroc["value"], 0.1, rows["prevalence"])
    text = f"A 95 % interval of the AUROC of width 0.1 needs about {needed:,} malignant"
    assert text in whole.text


def test_only_what_has_a_course_is_drawn_over_the_epochs(whole: Page) -> None:
    drawn = [tag["aria-label"] for name, tag in whole.tags if name == "svg"]
    assert [label for label in drawn if label.startswith("Training")] == [
        "Training: loss",
        "Training: auroc",
    ]


def test_confusion_counts_are_in_the_page(whole: Page, run: Path) -> None:
    rows = read_predictions(run / "predictions" / "test.csv")
    flagged = rows.malignancy >= THRESHOLD
    for truth in (rows.malignant, ~rows.malignant):
        for call in (flagged, ~flagged):
            assert f" {int((truth & call).sum())} " in whole.text


def test_what_is_referred_and_covered_is_said(whole: Page, run: Path) -> None:
    table = pd.read_csv(run / "predictions" / "test.csv")
    malignant = table["target"] == 1
    for truth in (malignant, ~malignant):
        for decision in ("benign", "malignant", "refer"):
            assert f" {(truth & (table['decision'] == decision)).sum()} " in whole.text
    share = 100 * (table["decision"] == "refer").mean()
    assert f"With referral to a person: {share:.1f} % of images (" in whole.text
    held = table["prediction_set"].str.contains("malignant")[malignant].mean()
    assert f"malignant {held:.3f} (" in whole.text
    rows = json.loads((run / "metrics.json").read_text())["conformal"]["rows"]["malignant"]
    low, high = beta.ppf([0.025, 0.975], rows + 1 - int(0.1 * (rows + 1)), int(0.1 * (rows + 1)))
    assert f"{rows} malignant validation images ({100 * low:.0f} % to" in whole.text
    assert f"{low:.2f} to {high:.2f}" in whole.text
    assert "skin tone (estimated): " in whole.text


def test_what_missing_columns_cost_is_shown(whole: Page, run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for part in ("test", "missing_1_of_3", "missing_2_of_3"):
        auroc = metrics[part]["metrics"]["auroc"]
        assert f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})" in whole.text
    assert metrics["missing_3_of_3"]["metrics"]["auroc"]["value"] == 0.5
    assert "66.7 %" in whole.text


def test_a_class_too_rare_for_coverage_is_said_loudly(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["conformal"]["rows"]["malignant"] = 8
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = Page(write_report(run, pictures=False))
    assert "this needs 9 validation images of malignant" in page.text
    assert "images of malignant, and there are 8." in page.text


@pytest.mark.parametrize(("key", "count"), [("stard", 48), ("claim", 44)])
def test_further_lists_refer_to_answered_items_of_tripod(whole: Page, key: str, count: int) -> None:
    section = whole.source[whole.source.index(f'id="{key}"') :].partition("</section>")[0]
    rows = re.findall(r"<th scope=\"row\">\d+[a-d]? .*?<td>(.*?)</td>", section, re.DOTALL)
    assert len(rows) == count  # as published: 40 items with parts; 44 items
    assert all(row.strip() for row in rows)
    tripod = whole.source[whole.source.index('id="tripod"') :].partition("</section>")[0]
    listed = re.findall(r"<th scope=\"row\">(\d+[a-g]?) .*?<td>(.*?)</td>", tripod, re.DOTALL)
    answered = {number for number, answer in listed if not answer.startswith(" <span")}
    references = re.findall(r"See TRIPOD\+AI ([\w, ]+)\.", section)
    assert len(references) > count / 3
    assert {number for cell in references for number in cell.split(", ")} <= answered


def test_every_tripod_item_is_answered_or_left_to_the_author(whole: Page) -> None:
    checklist = whole.source[whole.source.index('id="tripod"') : whole.source.index('id="stard"')]
    rows = re.findall(r"<tr><th scope=\"row\">(\d+[a-g]?) .*?</tr>", checklist, re.DOTALL)
    assert len(rows) == 52
    answers = re.findall(r"</th>\s*<td>(.*?)</td>", checklist, re.DOTALL)
    assert all(answer.strip() for answer in answers)


def test_every_metric_that_a_page_names_is_measured(run: Path) -> None:
    measured = json.loads((run / "metrics.json").read_text())["test"]["metrics"]
    named = {*RATES, *PROBABILITIES, *MEASURES, *REFERRAL, *SHOWN, *DIFFERENT}
    of_sources = {"within_source_auroc", "within_source_macro_auroc"}  # this run has one
    assert named - of_sources <= set(measured)


def test_without_pictures_no_lesion_is_shown(run: Path) -> None:
    page = Page(write_report(run, pictures=False))
    assert page.count("img") == 0
    assert "data:image" not in page.source
    assert "Malignant, below the threshold" in page.text


def test_a_run_s_own_wish_about_pictures_holds_until_another_is_said(run: Path) -> None:
    wish = yaml.safe_dump({**CONFIG, "report": {"pictures": False}})
    (run / "config.yaml").write_text(wish)
    assert Page(write_report(run)).count("img") == 0
    assert Page(write_report(run, pictures=True)).count("img") > 0


def test_an_image_that_is_gone_or_broken_does_not_cost_the_page(run: Path) -> None:
    cohort = pd.read_csv(run / "cohort.csv")
    broken = run / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    cohort["path"] = [str(broken), "/nowhere/x.jpg", None, "x.tfrec#y", "x.dcm#frame=z"] * 140
    cohort.to_csv(run / "cohort.csv", index=False)
    page = Page(write_report(run))
    assert page.count("img") == 0


@pytest.mark.parametrize("name", ["metrics.json", "cohort.csv"])
def test_any_file_but_the_predictions_may_be_absent(run: Path, name: str) -> None:
    (run / name).unlink()
    assert_inert(Page(write_report(run, pictures=False)))


def test_predictions_alone_make_a_page(run: Path) -> None:
    for path in run.iterdir():
        if path.is_file():
            path.unlink()
    page = Page(write_report(run))
    assert "Subgroups" not in page.text
    assert "To be completed by the author" in page.text


def test_a_folder_without_predictions_is_refused(run: Path) -> None:
    (run / "predictions" / "test.csv").unlink()
    with pytest.raises(InputError, match=r"predictions/test\.csv is missing"):
        write_report(run)


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "cohort.csv"])
def test_a_damaged_file_is_named(run: Path, name: str) -> None:
    (run / name).write_text('{"a": [\n"')
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(run)


def test_hostile_names_stay_text(run: Path) -> None:
    file = run / "predictions" / "test.csv"
    table = pd.read_csv(file)
    cohort = pd.read_csv(run / "cohort.csv")
    for each in (table, cohort):
        each["image_id"] = HOSTILE + each["image_id"]
    table["patient_id"] = table["image_id"]
    cohort["source"] = HOSTILE
    cohort.loc[::2, "site"] = HOSTILE
    table.to_csv(file, index=False)
    cohort.to_csv(run / "cohort.csv", index=False)
    history = pd.read_csv(run / "history.csv")
    history.loc[::2, "name"] = f"train/{HOSTILE}"
    history.to_csv(run / "history.csv", index=False)
    (run / "config.yaml").write_text(json.dumps({"model": {"name": HOSTILE}}))
    (run / "audit.json").write_text(json.dumps({"leaks": [HOSTILE]}))
    named = run.rename(run.with_name("<script>alert(2)<"))
    page = Page(write_report(named))
    assert_inert(page)
    assert page.count("img") > 4
    assert "<script>alert(1)</script>" in page.text


def test_several_classes_have_their_curves_whatever_they_are_called(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    table = fitted("diagnosis").rename(columns={"p_unknown": f"p_{HOSTILE}"})
    table["target"] = table["target"].replace("unknown", HOSTILE)
    table.to_csv(file, index=False)
    page = report_file(file, tmp_path / "page.html")
    assert_inert(page)
    assert HOSTILE in page.text
    measured = evaluate(read_predictions(file), resamples=0)["metrics"]
    for name in set(demo_cohort()["diagnosis"]) - {"unknown"}:
        assert f"{name} ({measured[f'auroc_{name}']['value']:.3f})" in page.text
    assert f"malignant ({measured['auroc']['value']:.3f})" in page.text


def test_patients_with_a_malignant_lesion_have_a_table(tmp_path: Path) -> None:
    file, table = tmp_path / "predictions.csv", fitted()
    table.drop(columns=["patient_id", "unit"], errors="ignore").to_csv(file, index=False)
    assert "By patient" not in report_file(file, tmp_path / "page.html").text
    table["patient_id"] = [f"P{row // 20}" for row in range(len(table))]
    table.drop(columns="unit", errors="ignore").to_csv(file, index=False)
    text = report_file(file, tmp_path / "named.html").text
    measured = evaluate(read_predictions(file), resamples=0)["metrics"]
    shown = text.partition("By patient")[2]
    for name in PER_PATIENT:
        label, value = TEXTS["metrics"][name], measured[name]["value"]
        assert shown.partition(label)[2].split()[0] == f"{value:.3f}"


SHAPES: Final[dict[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "one row": lambda table: table.head(1),
    "benign only": lambda table: table[table["target"] == 0],
    "all alike": lambda table: table.assign(
        p_malignant=0.5, p_benign=0.5, raw_malignant=0.5, raw_benign=0.5
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_degenerate_runs_have_a_page(run: Path, shape: str) -> None:
    file = run / "predictions" / "test.csv"
    SHAPES[shape](pd.read_csv(file)).to_csv(file, index=False)
    (run / "metrics.json").unlink()
    assert "nan" not in Page(write_report(run)).text.lower().split()


def test_pooled_folds_show_each_fold(run: Path, tmp_path: Path) -> None:
    parent = tmp_path / "pooled"
    (parent / "predictions").mkdir(parents=True)
    tables = []
    for fold in range(2):
        (parent / f"fold_{fold}").mkdir()
        for name in ("cohort.csv", "history.csv", "config.yaml"):
            text = (run / name).read_bytes()
            (parent / f"fold_{fold}" / name).write_bytes(text)
        part = "test" if fold else "val"
        tables.append(pd.read_csv(run / "predictions" / f"{part}.csv").assign(fold=fold))
    pd.concat(tables).to_csv(parent / "predictions" / "test.csv", index=False)
    page = Page(write_report(parent))
    assert "fold 0" in page.text
    assert "train fold_1" in page.text
    assert "fitted on the validation part; method: chosen in each fold." in page.text


def test_a_page_names_its_data_and_the_day_of_the_run(run: Path) -> None:
    (run / "environment.json").write_text(json.dumps({"date": "2026-02-01"}))
    page = Page(write_report(run, pictures=False))
    assert "<title>Report of demo, 1 February 2026</title>" in page.source
    assert f"run {run.name}" in page.text


def test_a_table_of_ones_own_is_named_by_its_folder(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"name": "csv", "root": "data/Ärzte 7"}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    cohort = pd.read_csv(run / "cohort.csv").assign(source="csv", cohort="csv")
    cohort.to_csv(run / "cohort.csv", index=False)
    cells = Page(write_report(run, pictures=False)).text
    assert f"Ärzte 7: {len(cohort)} images" in cells
    assert "csv:" not in cells


def test_links_lead_into_folded_sections_and_nothing_else_is_folded(whole: Page) -> None:
    folded = re.findall(r'<details class="chapter">.*?<section id="(\w+)"', whole.source, re.S)
    assert folded == [
        *("decision", "referral", "missing", "training"),
        *("metrics", "card", "tripod", "stard", "claim", "configuration"),
    ]


def test_ages_and_sexes_that_are_not_all_known_say_so(run: Path) -> None:
    inputs = read_run(run, pictures=False)
    assert inputs.cohort is not None
    whole = inputs.cohort.assign(age=50.0, sex="female")
    assert "(median 50), 100" in describe_people(replace(inputs, cohort=whole))
    is_known = pd.Series(np.arange(len(whole)) % 2 == 0, index=whole.index)
    part = whole.assign(age=whole["age"].where(is_known), sex=whole["sex"].where(is_known))
    text = describe_people(replace(inputs, cohort=part))
    assert "(median 50, where known)" in text
    assert text.endswith("female where known")


def test_metrics_that_an_earlier_version_did_not_have_are_added(run: Path) -> None:
    whole = json.loads((run / "metrics.json").read_text())["test"]
    newer = ("decided_npv", "decided_ppv", "cleared_or_referred", "net_benefit_gain")
    metrics = json.loads((run / "metrics.json").read_text())
    for name in newer:
        del metrics["test"]["metrics"][name]
    for key in ("clinic", "units", "malignant_patients"):
        del metrics["test"][key]
    metrics["test"]["metrics"]["auroc"]["low"] = 0.123  # what was measured then stays
    (run / "metrics.json").write_text(json.dumps(metrics))
    measured = read_run(run, pictures=False).measured
    for name in newer:
        assert measured["metrics"][name]["value"] == whole["metrics"][name]["value"]
    assert measured["units"] == whole["units"]
    assert measured["metrics"]["auroc"]["low"] == 0.123
    assert "Decided benign, but malignant" in Page(write_report(run)).text
    config = yaml.safe_load((run / "config.yaml").read_text())
    settings: dict[str, Any] = {"prevalence": 0.05, "resamples": 50, "confidence": 0.8}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"evaluation": settings}))
    inputs = read_run(run, pictures=False)
    expected = evaluate(inputs.predictions, threshold=whole["threshold"], **settings)
    assert inputs.measured["clinic"] == expected["clinic"]
    for name in newer:
        assert inputs.measured["metrics"][name] == expected["metrics"][name]


def test_a_file_with_sources_has_the_ranking_and_the_calibration_within_them(
    tmp_path: Path,
) -> None:
    table = fitted().assign(source=np.resize(["North", "South", "West"], len(fitted())))
    table.to_csv(tmp_path / "predictions.csv", index=False)
    page = report_file(tmp_path / "predictions.csv", tmp_path / "page.html").text
    measured = evaluate(read_predictions(tmp_path / "predictions.csv"))
    within = format_estimate(measured["metrics"]["within_source_auroc"])
    auroc = format_estimate(measured["metrics"]["auroc"])
    assert TEXTS["within_source"].format(within, auroc).strip() in page
    assert "AUROC within sources" in page
    assert "Calibration by source" in page
    mean = format_estimate(measured["sources"]["random_effects"])
    assert f"Random-effects mean of the AUROCs of 3 sources: {mean}." in page
    one = table.assign(source="North")
    one.to_csv(tmp_path / "predictions.csv", index=False)
    page = report_file(tmp_path / "predictions.csv", tmp_path / "one.html").text
    assert "within sources" not in page
