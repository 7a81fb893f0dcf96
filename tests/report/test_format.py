"""What the terminal shows after a run."""

import json
from pathlib import Path

import yaml
from report_cases import CONFIG, make_run

from skinmm.report.blocks import metric_table
from skinmm.report.inputs import read_run
from skinmm.report.sections.headline import collect_warnings
from skinmm.report.terminal import summarize_run


def test_a_run_ends_with_a_short_table_and_the_warnings_of_its_page(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    settings = {**CONFIG, "evaluation": {"confidence": 0.95, "sensitivity": 0.9}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    text, warnings = summarize_run(run)
    header, *lines, verdict = text.splitlines()
    assert header.split() == ["test:", "140", "rows,", "23", "malignant", "interval", "asked"]
    assert 5 <= len(lines) <= 8
    auroc = json.loads((run / "metrics.json").read_text())["test"]["metrics"]["auroc"]
    assert lines[0].split() == [
        *("AUROC", f"{auroc['value']:.3f}", f"{auroc['low']:.3f}", "to", f"{auroc['high']:.3f}")
    ]
    (sensitivity,) = (line for line in lines if line.startswith("Sensitivity"))
    assert sensitivity.endswith("  90.0 %")
    assert sum(line.endswith("90.0 %") for line in lines) == 1
    assert "useful" in verdict.lower()
    page = collect_warnings(read_run(run, pictures=False))
    assert warnings == [warning.replace("\N{NO-BREAK SPACE}", " ") for warning in page]


def test_masks_end_with_their_overlaps(tmp_path: Path) -> None:
    entry = {"value": 0.81234, "low": 0.7, "high": 0.9}
    metrics = {"task": "segmentation", "test": {"n": 9, "metrics": {"dice": entry}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    text, warnings = summarize_run(tmp_path)
    assert text.splitlines()[1].split() == ["dice", "0.8123", "0.700", "to", "0.900"]
    assert warnings == []


def test_an_interval_of_few_malignant_patients_is_marked() -> None:
    entry = {"value": 0.8, "low": 0.7, "high": 0.9}
    measured = {"malignant_patients": 44, "metrics": {"balanced_accuracy": entry, "auroc": entry}}
    table = metric_table("Metrics", measured, ["auroc", "balanced_accuracy"])
    assert [row[1] for row in table.rows] == ["0.800 (0.700 to 0.900)", "0.800 (0.700 to 0.900) *"]
    assert "With 44 malignant patients" in table.caption
    unnamed = {**measured, "units": {"patient": 0, "lesion": 2, "image": 138}}
    caption = metric_table("Metrics", unnamed, ["balanced_accuracy"]).caption
    assert "With 44 malignant images" in caption
    enough = metric_table("Metrics", {**measured, "malignant_patients": 45}, ["balanced_accuracy"])
    assert enough.rows[0][1] == "0.800 (0.700 to 0.900)"
    assert enough.caption == "Metrics"
    old = {"metrics": measured["metrics"]}  # a run of an earlier version
    assert metric_table("Metrics", old, ["balanced_accuracy"]).caption == "Metrics"
