"""Coverage of intervals and type-I error of tests, with patients as in SIIM-ISIC 2020.

python benchmarks/inference.py [SECTION ...]
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from evaluation import Rows, World, covered_table, draw, predictions, table
from scipy.special import expit, logit

from skinmm.evaluation.comparison import compare
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.smooth_calibration import calibration_noise
from skinmm.evaluation.subgroups import Group, sensitivity_gaps

SIIM_SIZES: Final = (
    *(2, 3, 3, 4, 4, 5, 6, 7, 8, 10),
    *(12, 13, 15, 17, 19, 22, 25, 29, 35, 44, 115),
)
"""Quantiles (every 5 %) of the number of images of SIIM-ISIC 2020's 2,056 patients."""


def siim_like(patients: int) -> World:
    """Patients as in SIIM-ISIC 2020: 2 to 115 images, 1.7 % malignant, 20 % with a melanoma."""
    return World(patients, mean=-5.6, spread=1.6, shared=1.0, sizes=SIIM_SIZES)


def main() -> None:
    """Run the named sections, or all, and print Markdown."""
    for name in sys.argv[1:] or SECTIONS:
        for line in SECTIONS[name]():
            print(line, flush=True)
    print(f"\nCPU time: {time.process_time():.0f} s.")


def coverage() -> Iterator[str]:
    """Share of intervals that contain the truth."""
    yield "\n## Coverage of 95 % intervals, patients as in SIIM-ISIC 2020\n"
    worlds = {
        "few": siim_like(140),
        "enough": siim_like(228),
        "overconfident": siim_like(228)._replace(overconfidence=1.6),
        "easy": World(250, mean=-6.5, spread=3.0),
        "many": siim_like(600),
    }
    yield from covered_table({name: (world, 1000) for name, world in worlds.items()})


NULL_REPEATS: Final = 1000
NULL_RESAMPLES: Final = 200  # of the standard error, whose noise is then 5 %
NULL_METRICS: Final = (
    *("auroc", "average_precision", "brier", "log_loss", "net_benefit"),
    *("balanced_accuracy", "sensitivity", "specificity"),
)


def null_tests() -> Iterator[str]:
    """How often two, or some of four, systems of equal skill are called different."""
    for kind, world in (
        ("SIIM-like, 28 malignant patients", siim_like(140)),
        ("SIIM-like, 46 malignant patients", siim_like(228)),
        ("140 single lesions, 28 malignant", None),
    ):
        yield f"\n## Paired comparison of equal systems: {kind}, {NULL_REPEATS:,} repeats\n"
        yield table("metric", "two systems, p < 0.05", "any pair of four, Holm's p < 0.05")
        generator = np.random.default_rng(4)
        names = (*NULL_METRICS, "auroc, DeLong over patients", "p and interval disagree")
        called, family = dict.fromkeys(names, 0), dict.fromkeys(NULL_METRICS, 0)
        for repeat in range(NULL_REPEATS):
            scores, truth, codes = _single(generator) if world is None else draw(generator, world)
            noisy = [expit(logit(scores) + generator.normal(size=len(scores))) for _ in range(4)]
            files = {
                name: predictions(p, truth, codes) for name, p in zip("abcd", noisy, strict=True)
            }
            threshold = float(np.quantile(noisy[0][truth], 0.05))
            found = compare(
                files,
                thresholds=dict.fromkeys(files, threshold),
                resamples=NULL_RESAMPLES,
                seed=repeat,
            )
            pairs = found["pairs"]
            entries = {name: pairs[0]["metrics"][name] for name in NULL_METRICS}
            entries["auroc, DeLong over patients"] = pairs[0]["delong"]
            for name, entry in entries.items():
                is_called = is_significant(entry["p"])
                called[name] += is_called
                if entry["p"] is not None:
                    disagree = is_called == (entry["low"] <= 0 <= entry["high"])
                    called["p and interval disagree"] += disagree
            for name in NULL_METRICS:
                tests = (pair["metrics"][name]["p_holm"] for pair in pairs)
                family[name] += any(map(is_significant, tests))
        for name, count in called.items():
            any_pair = f"{family[name] / NULL_REPEATS:.3f}" if name in family else ""
            yield f"| {name} | {count / NULL_REPEATS:.3f} | {any_pair} |"


def is_significant(p: float | None) -> bool:
    """Return whether a p-value is below 0.05; None is not."""
    return p is not None and p < 0.05  # noqa: PLR2004


def _single(generator: np.random.Generator) -> Rows:
    """Draw 140 patients with one lesion each, as in the included cohort."""
    truth = np.arange(140) < 28  # noqa: PLR2004 - as its test part
    risk = generator.normal(size=140) + 1.5 * truth - 2.5
    return expit(risk), truth, np.arange(140)


def gaps() -> Iterator[str]:
    """How often groups of equal sensitivity seem to differ."""
    repeats = 500
    yield f"\n## Gaps between subgroups without any gap, {repeats} repeats\n"
    yield table("groups, malignant lesions", "p < 0.05", "interval of the gap excludes 0")
    for groups, lesions, rate in ((2, 60, 0.95), (3, 120, 0.9), (5, 150, 0.9), (6, 300, 0.9)):
        generator, called, excluded = np.random.default_rng(6), 0, 0
        for repeat in range(repeats):
            sizes = generator.choice([1, 2, 3, 4], p=[0.75, 0.18, 0.05, 0.02], size=lesions)
            codes = np.repeat(np.arange(lesions), sizes)[:lesions]
            shared = generator.normal(size=lesions)[codes]
            hits = generator.random(lesions) < expit(1.2 * logit(rate) + shared)
            labels = generator.integers(groups, size=lesions)[codes]
            file = predictions(hits.astype(np.float64), np.ones(lesions, dtype=bool), codes)
            members = [Group("site", str(name), labels == name) for name in range(groups)]
            found = sensitivity_gaps(file, members, threshold=0.5, permutations=400, seed=repeat)
            called += any(gap["p_holm"] < 0.05 for gap in found)  # noqa: PLR2004
            excluded += any(gap["low"] > 0 for gap in found)
        yield f"| {groups}, {lesions} | {called / repeats:.3f} | {excluded / repeats:.3f} |"


def noise() -> Iterator[str]:
    """Expected calibration error of a calibrated model, and its statement."""
    yield "\n## Expected calibration error of a calibrated model, 300 repeats\n"
    yield table("images, prevalence", "measured, mean", "stated as chance, mean")
    generator = np.random.default_rng(7)
    for rows, shift in ((140, -1.6), (600, -1.6), (3_500, -5.6)):
        found = []
        for repeat in range(300):
            p = expit(shift + 1.5 * generator.normal(size=rows))
            file = predictions(p, generator.random(rows) < p, np.arange(rows))
            if not 0 < file.malignant.sum() < rows:
                continue
            measured = evaluate(file, resamples=0)["metrics"]["ece"]["value"]
            stated = calibration_noise(p, draws=20, seed=repeat)["ece"]
            found.append((measured, stated))
        measured, stated = np.mean(found, axis=0)
        yield f"| {rows:,}, {expit(shift):.3f} | {measured:.4f} | {stated:.4f} |"


SECTIONS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    section.__name__: section for section in (coverage, null_tests, gaps, noise)
}

if __name__ == "__main__":
    main()
