"""Dice and Jaccard of predicted masks, and the report page of a segmentation run."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float64, Int64, Shaped

from skinmm.evaluation.intervals import bootstrap, patient_codes, summarise
from skinmm.report.blocks import Card, Gallery, Section, Table, Tile, Tiles, thumbnail
from skinmm.report.write import RUN_PAGES, write_page

SEED: Final = 0
Areas = Float64[np.ndarray, " n"]


def overlaps(overlap: Areas, predicted: Areas, true: Areas) -> pd.DataFrame:
    """Return Dice and Jaccard of each image; both are 1 for two empty masks.

    Args:
        overlap: pixels in both masks.
        predicted: pixels in the predicted mask.
        true: pixels in the true mask.
    """
    union = predicted + true - overlap
    empty = union == 0
    return pd.DataFrame(
        {
            "dice": np.where(empty, 1.0, 2 * overlap / np.where(empty, 1, predicted + true)),
            "jaccard": np.where(empty, 1.0, overlap / np.where(empty, 1, union)),
        }
    )


def mean_overlaps(
    scores: pd.DataFrame,
    patients: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    confidence: float,
) -> dict[str, Any]:
    """Return means over images with bootstrap intervals over patients, for `metrics.json`.

    Args:
        scores: columns to average.
        patients: patient id of each row.
        resamples: number of bootstrap samples; 0: no intervals.
        confidence: of the intervals.
    """
    codes, count = patient_codes(patients)
    rows = np.bincount(codes, minlength=count)
    names = list(map(str, scores))
    sums = {name: np.bincount(codes, scores[name], count) for name in names}

    def means(sample: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        return {name: sample @ total / (sample @ rows) for name, total in sums.items()}

    samples: dict[str, Any] = {name: np.empty(0) for name in names}
    if resamples and count > 1:
        samples = bootstrap(means, count, len(scores), resamples=resamples, seed=SEED)
    metrics = {
        name: summarise(name, float(scores[name].mean()), samples[name], None, confidence, count)
        for name in names
    }
    return {"n": len(scores), "patients": count, "metrics": metrics}


WORST: Final = 24
SHARES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_MEANING: Final = {
    "dice": "twice the common area over the sum of both areas",
    "jaccard": "common area over the area of the union",
}


def write_mask_page(run: Path, pictures: bool | None = None) -> Path:
    """Write `report.html`: Dice and Jaccard, their quantiles, and the images with the worst masks.

    Args:
        run: the run folder.
        pictures: include images; None: as in the run's configuration.
    """
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    scores = pd.read_csv(run / "predictions" / "test.csv", dtype={"image_id": str})
    cohort = pd.read_csv(run / "cohort.csv", dtype={"image_id": str}).set_index("image_id")
    pictures = config["report"]["pictures"] if pictures is None else pictures
    test = metrics["test"]
    facts = [f"{key} {config[key]['name']}" for key in ("data", "segmenter", "model")]
    facts += [f"{test['n']:,} images", f"{test['patients']:,} patients or lesions"]
    quantiles = [
        [name, *(f"{value:.3f}" for value in scores[name].quantile(SHARES))] for name in _MEANING
    ]
    header = ("", *(f"{share:.0%} are below" for share in SHARES))
    worst = scores.nsmallest(WORST, "dice")
    cards = [
        Card(
            row["image_id"],
            [f"Dice {row['dice']:.3f}", f"area {row['area']:.1%}, true {row['area_true']:.1%}"],
            thumbnail(cohort["path"].get(row["image_id"])) if pictures else None,
        )
        for row in worst.to_dict("records")
    ]
    sections = [
        Section(
            "fit",
            "Agreement with the true masks",
            [
                Tiles([_tile(name, test["metrics"][name]) for name in _MEANING]),
                Table("Images of the test part", header, quantiles),
            ],
            lead="Means over the images of the test part; intervals are over patients.",
        ),
        Section("worst", "Worst masks", [Gallery("The lowest Dice of the test part", cards)]),
    ]
    return write_page(run / "report.html", title=run.name, facts=facts, sections=sections)


def _tile(name: str, entry: dict[str, Any]) -> Tile:
    interval = f"{entry['low']:.4f} to {entry['high']:.4f}" if entry["low"] is not None else ""
    return Tile(name.capitalize(), f"{entry['value']:.4f}", interval, _MEANING[name])


RUN_PAGES["segmentation"] = write_mask_page
