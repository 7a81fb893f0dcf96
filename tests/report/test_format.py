"""What the terminal shows after a run."""

from skinmm.report.blocks import HEADLINE, metric_table
from skinmm.report.terminal import format_metrics


def test_what_is_referred_stands_below_the_sensitivity() -> None:
    plain = {f"m{number}": {"value": 0.5} for number in range(HEADLINE + 3)}
    metrics = {**plain, "referred": {"value": 0.3123, "low": 0.28, "high": 0.341}}
    *lines, last = format_metrics({"n": 9, "metrics": metrics}).splitlines()
    assert last.split() == ["referred", "to", "a", "person", "0.3123", "[0.28,", "0.341]"]
    assert len(lines) == HEADLINE + 1
    assert "referred" not in format_metrics({"n": 9, "metrics": plain})


def test_several_classes_are_reported_before_malignancy() -> None:
    names = ["auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1"]
    names += ["class_balanced_accuracy", "macro_auroc", "recall_mel", "recall_nv", "f1_mel"]
    text = format_metrics({"n": 9, "metrics": {name: {"value": 0.5} for name in names}})
    first = [line.split()[0] for line in text.splitlines()[1:]]
    assert first[:5] == [
        "macro_auroc",
        "class_balanced_accuracy",
        "recall_mel",
        "recall_nv",
        "auroc",
    ]
    assert "f1_mel" not in first


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
