"""What is decided and what is referred: before, by prediction sets; now, by a band.

Patients have 2 to 115 images as in SIIM-ISIC, and 1.76 % of the images are malignant. Half of the
variance of a score is shared by the images of a patient. Scores are normal, so that the
true rates of a limit are known in closed form. With SKINMM_DATA, the second and third table also
draw patients from the 2,056 of SIIM-ISIC, with their numbers of images and of melanomas, and a last
table uses the published predictions of others for 1,503 images of HAM10000.

    SKINMM_DATA=DIR python benchmarks/referral.py [decisions|guarantee|coverage|published ...]
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit, logit
from scipy.stats import norm

from skinmm.evaluation.conformal import (
    count_effective_rows,
    coverage_range,
    fit_conformal,
    sets_agree,
)
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.thresholds import choose_threshold, fit_band

REPEATS: Final = 1000
SIZES: Final = (2, 5, 9, 12, 18, 24, 115)  # images of a patient: quantiles in seven steps
DISTANCE: Final = 1.8  # of the means of the classes: AUROC .90
MISS_RATE: Final = 0.01
FALSE_ALARM_RATE: Final = 0.1
HAM_CLASSES: Final = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
HALF: Final = 0.5
MALIGNANT: Final = ("akiec", "bcc", "mel")


class World(NamedTuple):
    """Number of patients of a validation part, and the share of malignant images.

    `structure` has the numbers of images and of malignant images of patients to draw from; without
    it, malignant images are independent.
    """

    patients: int
    prevalence: float
    structure: Int64[np.ndarray, "p 2"] | None = None


WORLDS: Final = {
    "120 patients": World(120, 0.0176),
    "240 patients": World(240, 0.0176),
    "2,056 patients": World(2_056, 0.0176),
}


def draw(rng: np.random.Generator, world: World) -> Predictions:
    """Return calibrated predictions of images; at least one is malignant."""
    if world.structure is None:
        quantiles = rng.random(world.patients)
        sizes = np.rint(np.interp(quantiles, np.linspace(0, 1, len(SIZES)), SIZES)).astype(int)
        codes = np.repeat(np.arange(world.patients), sizes)
        malignant = rng.random(len(codes)) < world.prevalence
        malignant[0] = True
    else:
        drawn = world.structure[rng.integers(len(world.structure), size=world.patients)]
        codes = np.repeat(np.arange(world.patients), drawn[:, 0])
        first = np.repeat(np.cumsum(drawn[:, 0]) - drawn[:, 0], drawn[:, 0])
        malignant = np.arange(len(codes)) - first < drawn[codes, 1]
    own, shared = rng.normal(size=len(codes)), rng.normal(size=world.patients)[codes]
    scores = DISTANCE * malignant + np.sqrt(HALF) * (own + shared)
    p = expit(DISTANCE * scores - DISTANCE**2 / 2 + logit(world.prevalence))
    names = np.arange(len(codes)).astype(str)
    columns = np.column_stack([1 - p, p])
    target = malignant.astype(np.int64)
    return Predictions(names, codes, target, columns, None, ("benign", "malignant"), ("malignant",))


def list_worlds() -> dict[str, World]:
    """Return the simulated patients, and with SKINMM_DATA those of SIIM-ISIC."""
    file = Path(os.environ.get("SKINMM_DATA", "")) / "siim_isic_2020" / "train.csv"
    if not file.is_file():
        return WORLDS
    table = pd.read_csv(file)
    patients = table.groupby("patient_id")["target"].agg(["size", "sum"]).to_numpy()
    real = World(len(patients), float(table["target"].mean()), patients)
    names = {240: "240 patients drawn from SIIM-ISIC", len(patients): "SIIM-ISIC's 2,056 patients"}
    return WORLDS | {name: real._replace(patients=count) for count, name in names.items()}


def share_below(value: float, prevalence: float, *, is_malignant: bool) -> float:
    """Return the true share of a class below a probability."""
    odds = logit(np.clip(value, 1e-15, 1 - 1e-15)) - logit(prevalence)
    return float(norm.cdf(odds / DISTANCE + DISTANCE / 2 - DISTANCE * is_malignant))


def rules(
    validation: Predictions, test: Predictions
) -> dict[str, tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
    """Return the test rows that each rule decides to be benign, and to be malignant."""
    facts = validation.malignancy, validation.malignant, validation.patient_id
    called = test.malignancy >= choose_threshold(*facts).value
    sets = fit_conformal(validation).predict_sets(test.probabilities)
    positive = np.isin(test.classes, test.positive)
    band = fit_band(*facts, miss_rate=MISS_RATE, false_alarm_rate=FALSE_ALARM_RATE)
    safe = {
        "threshold alone": np.ones(len(test), bool),
        "sets": sets_agree(called, positive, sets),
        "band": band.is_safe(called, test.malignancy),
    }
    return {name: (~called & rows, called & rows) for name, rows in safe.items()}


def describe(
    malignant: Bool[np.ndarray, " n"],
    benign_calls: Bool[np.ndarray, " n"],
    malignant_calls: Bool[np.ndarray, " n"],
) -> Float64[np.ndarray, " 5"]:
    """Return misses, their share of the decided, false alarms, rows decided malignant, referred."""
    missed = malignant & benign_calls
    return np.array([
        missed.sum() / malignant.sum(),
        missed.sum() / max(1, benign_calls.sum()),
        (~malignant & malignant_calls).sum() / (~malignant).sum(),
        malignant_calls.mean(),
        (~benign_calls & ~malignant_calls).mean(),
    ])  # fmt: skip


HEADER: Final = (
    "malignant decided benign | decided benign, but malignant | benign decided malignant | "
    "rows decided malignant | referred |\n|---|---|---|---|---|---|---|"
)


def decisions(repeats: int) -> Iterator[str]:
    """Yield what each rule decides, as means over repeats."""
    yield f"\n| validation | rule | {HEADER}"
    worlds = {**WORLDS, "30 patients, 20 % of images malignant": World(30, 0.2)}
    for name, world in worlds.items():
        rng = np.random.default_rng(0)
        found: dict[str, list[Float64[np.ndarray, " 5"]]] = {}
        for _ in range(repeats):
            validation, test = draw(rng, world), draw(rng, world._replace(patients=1_000))
            for rule, calls in rules(validation, test).items():
                found.setdefault(rule, []).append(describe(test.malignant, *calls))
        for rule, values in found.items():
            cells = " | ".join(f"{100 * value:.1f} %" for value in np.mean(values, axis=0))
            yield f"| {name} | {rule} | {cells} |"


def guarantee(repeats: int) -> Iterator[str]:
    """Yield the true rates of the limits, against what they certify."""
    yield (
        "\n| validation | patients with such lesions | limit | certified | true rate, mean | "
        "true rate at most the 95 % bound |\n|---|---|---|---|---|---|"
    )
    for name, world in list_worlds().items():
        rng = np.random.default_rng(1)
        low: list[tuple[float, ...]] = []
        high: list[tuple[float, ...]] = []
        for _ in range(repeats):
            rows = draw(rng, world)
            facts = rows.malignancy, rows.malignant, rows.patient_id
            band = fit_band(*facts, miss_rate=MISS_RATE, false_alarm_rate=FALSE_ALARM_RATE)
            missed = share_below(band.low.value, world.prevalence, is_malignant=True)
            alarms = 1 - share_below(band.high.value, world.prevalence, is_malignant=False)
            for rates, limit, rate in ((low, band.low, missed), (high, band.high, alarms)):
                is_within = rate <= limit.upper_bound()
                rates.append((limit.patients, limit.certified, rate, is_within))
        for side, rates in (("miss rate", low), ("false alarm rate", high)):
            patients, certified, rate, within = np.mean(rates, axis=0)
            cells = f"{patients:.0f} | {side} | {certified:.4f} | {rate:.4f} | {within:.3f}"
            yield f"| {name} | {cells} |"


def coverage(repeats: int) -> Iterator[str]:
    """Yield how often the coverage of the benign class is outside its printed range."""
    yield "\n| validation | range that counts images | range that counts patients |\n|---|---|---|"
    for name, world in list_worlds().items():
        rng, outside = np.random.default_rng(2), []
        for _ in range(repeats):
            rows = draw(rng, world)
            fitted = fit_conformal(rows)
            benign = ~rows.malignant
            p, patients = rows.probabilities[benign, 0], rows.patient_id[benign]
            limit = fitted.limits["benign"]
            true = share_below(1 - limit, world.prevalence, is_malignant=False)
            effective = count_effective_rows(p >= limit, patients)
            ranges = (
                coverage_range(len(p), fitted.coverage, effective_rows=count)
                for count in (None, effective)
            )
            outside.append([not r[0] <= true <= r[1] for r in ranges if r])
        cells = " | ".join(f"{share:.3f}" for share in np.mean(outside, axis=0))
        yield f"| {name} | {cells} |"


def published(folder: Path) -> Iterator[str]:
    """Yield what is decided with seven classes; half of the lesions is validation, ten times."""
    labels = pd.read_csv(folder / "labels.csv").set_index("image_id")
    table = pd.read_csv(folder / "predictions.csv").set_index("image_id").loc[labels.index]
    codes, _ = pd.factorize(labels["lesion_id"])
    target = labels["dx"].map(HAM_CLASSES.index).to_numpy(np.int64)
    yield f"\n| predictions | rule | {HEADER}"
    names = dict.fromkeys(name.rsplit(":", 1)[0] for name in table.columns if ":" in name)
    found: dict[str, list[Float64[np.ndarray, " 5"]]] = {}
    for name in names:
        p = table[[f"{name}:{index}" for index in range(len(HAM_CLASSES))]].to_numpy(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        ids = labels.index.to_numpy(dtype=str)
        rows = Predictions(ids, codes, target, p, None, HAM_CLASSES, MALIGNANT)
        for repeat in range(10):
            for rule, shares in _decide_half(rows, codes, repeat).items():
                found.setdefault(rule, []).append(shares)
    for rule, values in found.items():
        cells = " | ".join(f"{100 * value:.1f} %" for value in np.mean(values, axis=0))
        none = sum(value[3] == 0 for value in values)
        yield f"| {len(names)} models, ten halves; none malignant in {none} | {rule} | {cells} |"


def _decide_half(
    rows: Predictions, codes: Int64[np.ndarray, " n"], seed: int
) -> dict[str, Float64[np.ndarray, " 5"]]:
    is_validation = np.random.default_rng(seed).random(codes.max() + 1)[codes] < HALF
    validation, test = rows.select(is_validation), rows.select(~is_validation)
    return {
        name: describe(test.malignant, *calls) for name, calls in rules(validation, test).items()
    }


def main() -> None:
    """Print the named tables, or all, as Markdown."""
    folder = Path(os.environ.get("SKINMM_DATA", "")) / "ham_frontier"
    tables = {
        "decisions": decisions(100),
        "guarantee": guarantee(REPEATS),
        "coverage": coverage(REPEATS),
        "published": published(folder) if folder.is_dir() else iter(()),
    }
    for name in sys.argv[1:] or tables:
        for line in tables[name]:
            print(line, flush=True)


if __name__ == "__main__":
    main()
