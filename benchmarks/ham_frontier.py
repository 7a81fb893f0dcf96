"""Published predictions of eight foundation models on HAM10000, and decision rules on MILK10k.

    SKINMM_DATA=DIR python benchmarks/ham_frontier.py [milk10k | PREDICTIONS.csv ...]

DIR has `ham_frontier/predictions.csv` (published probabilities on 1,503 images), the official table
`ham10000/HAM10000_metadata`, which has the column `dataset`, and the tables in `milk10k/`. Other
prediction files of the same images join the tables under the names of the files.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinmm.evaluation.call_rules import assign_folds, cross_fit_calls
from skinmm.evaluation.comparison import RULE_METRICS, compare, compare_rules
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.other_formats import TableFormat
from skinmm.evaluation.prediction_tables import list_systems
from skinmm.evaluation.predictions import Predictions, read_predictions

DATA: Final = Path(os.environ.get("SKINMM_DATA", "data"))
CLASSES: Final = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
PUBLISHED: Final = {  # accuracy, balanced accuracy, macro AUROC
    "DermFM-Zero": (0.893, 0.832, 0.989),
    "PanDerm": (0.882, 0.783, 0.981),
    "DINOv3-L16": (0.863, 0.748, 0.976),
    "MONET": (0.851, 0.662, 0.970),
    "CLIP-Large": (0.846, 0.668, 0.968),
}
RANKING: Final = ("auroc", "within_source_auroc", "macro_auroc", "within_source_macro_auroc")
CALIBRATION: Final = ("calibration_slope", "calibration_intercept", "ece", "class_log_loss")
PAIRED: Final = ("auroc", "within_source_auroc", "brier")
RULES: Final = ("likeliest", "balanced", "f1")
SEEDS: Final = 5


def main() -> None:
    """Print all tables as Markdown, or those of MILK10k."""
    if sys.argv[1:] == ["milk10k"]:
        print_milk10k()
        return
    file, labels = DATA / "ham_frontier/predictions.csv", DATA / "ham10000/HAM10000_metadata"
    columns = {"source": "dataset"}
    systems = {
        name: read_predictions(file, labels, form=TableFormat(CLASSES, columns, system=name))
        for name in list_systems(file)
    }
    others = {
        path.stem: read_predictions(path, labels, form=TableFormat(columns=columns))
        for path in map(Path, sys.argv[1:])
    }
    systems |= {name: replace(rows, called=None) for name, rows in others.items()}
    first = next(iter(systems.values()))
    lesions = len(set(first.patient_id))
    print(f"{len(first):,} images of {lesions:,} lesions, {int(first.malignant.sum())} malignant\n")
    measured = {name: evaluate(rows)["metrics"] for name, rows in systems.items()}
    print_published(systems)
    print_table("Intervals over lesions", RANKING, measured)
    accuracy = ("class_accuracy", "class_balanced_accuracy", "macro_f1")
    print_table("Likeliest class, intervals over lesions", accuracy, measured)
    print_table("Calibration", CALIBRATION, measured)
    print_rules("Decision rules, cross-fitted over lesions", systems)
    decided = {name: evaluate(rows)["metrics"] for name, rows in others.items()}
    print_table("Rule of the checkpoint, intervals over lesions", accuracy, decided)
    print_pairs(systems, [*others])
    if not others:
        print_milk10k()


def print_milk10k() -> None:
    """Print the rules on MILK10k, and the spread of macro F1 over divisions into folds."""
    print_rules("MILK10k, record only, cross-fitted over lesions", predict_milk10k(seed=1))
    values: dict[str, dict[str, list[float]]] = {}
    for seed in range(SEEDS):
        for name, rows in predict_milk10k(seed=seed).items():
            fit = rows.probabilities, rows.target, rows.patient_id
            scores = values.setdefault(name.partition(" (")[0], {rule: [] for rule in RULES})
            for rule in RULES:
                called = cross_fit_calls(rule, *fit)
                scores[rule].append(float(f1_score(rows.target, called, average="macro")))
    print_row([f"macro F1, mean (sd) of {SEEDS} divisions", *RULES])
    print_row(["---"] * (len(RULES) + 1))
    for name, scores in values.items():
        print_row([name, *(f"{np.mean(v):.3f} ({np.std(v, ddof=1):.3f})" for v in scores.values())])


def print_published(systems: dict[str, Predictions]) -> None:
    """Print the figures of scikit-learn next to the published ones."""
    print("| model | accuracy | balanced accuracy | macro AUROC | published | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, rows in systems.items():
        called = rows.probabilities.argmax(axis=1)
        aurocs = roc_auc_score(np.eye(len(CLASSES))[rows.target], rows.probabilities)
        figures = (
            accuracy_score(rows.target, called),
            balanced_accuracy_score(rows.target, called),
            aurocs,
        )
        published = PUBLISHED.get(name)
        cells = ["", ""]
        if published:
            gap = max(abs(a - b) for a, b in zip(figures, published, strict=True))
            cells = [" / ".join(f"{value:.3f}" for value in published), f"{gap:.4f}"]
        print_row([name, *(f"{value:.3f}" for value in figures), *cells])
    print()


def print_table(title: str, names: Sequence[str], measured: dict[str, dict[str, Any]]) -> None:
    """Print metrics with intervals, a row a system."""
    print(f"### {title}\n")
    print_row(["", *names])
    print_row(["---"] * (len(names) + 1))
    for system, metrics in measured.items():
        print_row([system, *(format_entry(metrics[name]) for name in names)])
    print()


def print_rules(title: str, systems: dict[str, Predictions]) -> None:
    """Print accuracy, balanced accuracy and macro F1 of every rule."""
    rules = {name: compare_rules(rows) for name, rows in systems.items()}
    by_rule = {f"{name}, {rule}": rules[name][rule] for name in rules for rule in RULES}
    print_table(title, RULE_METRICS, by_rule)


def print_pairs(systems: dict[str, Predictions], others: Sequence[str]) -> None:
    """Print the differences of the best system, and of the added ones, to all others."""
    best = max(
        systems, key=lambda name: roc_auc_score(systems[name].malignant, systems[name].malignancy)
    )
    print("### Differences, p Holm-corrected\n")
    print_row(["", *(cell for name in PAIRED for cell in (name, "p"))])
    print_row(["---"] * (1 + 2 * len(PAIRED)))
    for pair in compare(systems, against=[best, *others])["pairs"]:
        row = [f"{pair['a']} minus {pair['b']}"]
        for name in PAIRED:
            entry = pair["metrics"][name]
            row += [format_entry({**entry, "value": entry["difference"]}), f"{entry['p_holm']:.2g}"]
        print_row(row)
    print()


def predict_milk10k(seed: int) -> dict[str, Predictions]:
    """Return cross-fitted predictions of logistic regressions on the record of MILK10k."""
    folder = DATA / "milk10k"
    truth = pd.read_csv(folder / "MILK10k_Training_GroundTruth.csv").set_index("lesion_id")
    images = pd.read_csv(folder / "MILK10k_Training_Metadata.csv")
    first = images.drop_duplicates("lesion_id").set_index("lesion_id")
    record = pd.get_dummies(first[["sex", "site"]], dummy_na=True).astype(float)
    age = first["age_approx"]
    record = record.assign(
        tone=first["skin_tone_class"], age=age, square=age**2, missing=age.isna()
    )
    scores = [name for name in images if str(name).startswith("MONET_")]
    monet = images.pivot(index="lesion_id", columns="image_type", values=scores)
    monet.columns = pd.Index(["|".join(name) for name in monet.columns])
    tables = {"age, sex, site, tone": record, "and MONET scores of both images": record.join(monet)}
    target = truth.to_numpy().argmax(axis=1)
    names = truth.index.to_numpy(dtype=object)
    systems = {}
    for name, table in tables.items():
        table = table.loc[truth.index].astype(float)
        p = cross_fit(table.fillna(table.median()).to_numpy(), target, names, seed)
        aurocs = roc_auc_score(np.eye(truth.shape[1])[target], p)
        classes = tuple(truth.columns)
        malignant = ("AKIEC", "BCC", "MAL_OTH", "MEL", "SCCKA")
        systems[f"{name} (macro AUROC {aurocs:.3f})"] = Predictions(
            names, names, target, p, None, classes, malignant
        )
    return systems


def cross_fit(
    inputs: Float64[np.ndarray, "n k"], target: np.ndarray, names: np.ndarray, seed: int
) -> Float64[np.ndarray, "n c"]:
    """Return the probabilities of models that were fitted to the other four fifths of the rows."""
    folds = assign_folds(target, names, seed=seed)
    p = np.zeros((len(target), target.max() + 1))
    for fold in np.unique(folds):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(inputs[folds != fold], target[folds != fold])
        p[folds == fold] = model.predict_proba(inputs[folds == fold])
    return p


def format_entry(entry: dict[str, Any]) -> str:
    """Return value and interval."""
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
