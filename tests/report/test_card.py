"""The card of a checkpoint: the run's figures and facts as Markdown, and nobody's name."""

import json
import re
from collections import Counter
from pathlib import Path

import yaml
from report_cases import CONFIG, demo_cohort, fitted, make_run

from skinmm.report.card import write_card
from skinmm.report.evidence import read_run


def card_of(run: Path) -> str:
    return write_card(read_run(run, pictures=False), run / "card.md").read_text(encoding="utf-8")


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
        "with the whole record, 0.500 where it is missing",
        "predict.py 'checkpoint=checkpoints/best.ckpt'",
    ):
        assert words in card, words
    test = demo_cohort().query("part == 'test'")
    assert f"Test: {len(test)} images" in card
    assert not [name for name in demo_cohort()["image_id"] if name in card]
    assert all(len({len(row) for row in table}) == 1 for table in tables(card))


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
    assert "largest for its share of the training rows" in card
    assert "with 90 % intervals" in card
    assert "'checkpoint=fold_*/checkpoints/best.ckpt'" in card
