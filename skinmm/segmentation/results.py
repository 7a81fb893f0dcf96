"""Results of a segmentation: predicted masks, overlap metrics, and the report page."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float64, Int64, Shaped
from PIL import Image
from tqdm import tqdm

from skinmm.config import PredictConfig
from skinmm.data.lesion_finder import LesionFinder
from skinmm.errors import InputError, print_error, print_line, require_new_output
from skinmm.evaluation.intervals import bootstrap, patient_codes, summarise
from skinmm.images.base import MIN_SIDE
from skinmm.images.decode import decode, probe
from skinmm.images.finder import strip_suffix
from skinmm.predict.inputs import ImageFolder, read_input
from skinmm.predict.job import check_paths, count_workers, find_image_folder, require_images
from skinmm.predict.pipeline import TableBatch
from skinmm.report.blocks import Card, Gallery, Section, Table, Tile, Tiles, thumbnail
from skinmm.report.write import RUN_PAGES, write_page


def predict_masks(config: PredictConfig, checkpoint: Path) -> int:
    """Write a PNG mask for every row (lesion white), with the size and name of the image.

    Returns:
        Exit status: 0, or 3 if some images could not be used; the reasons are printed.
    """
    check_paths(config)
    images, out = ImageFolder(find_image_folder(config)), Path(config.output)
    if not (config.resume and out.is_dir()):
        require_images(config, images)
    if out.suffix or out.is_file():
        raise InputError(f"output={out}: this checkpoint draws masks; name a folder, output=masks")
    require_new_output("output", out, overwrite=config.overwrite or config.resume)
    out.mkdir(parents=True, exist_ok=True)
    finder = LesionFinder.load(checkpoint)
    write = partial(_write_mask, finder, images, out, skip=config.resume)
    done = failed = 0
    workers = max(count_workers(config.workers), 1)
    with ThreadPoolExecutor(workers) as pool, tqdm(unit=" masks", disable=None) as bar:
        for table in read_input(config.input, 256):  # rows at a time
            names = TableBatch(table, [], needs_image=True).cells["image_id"]
            for error in pool.map(write, names):
                if error:
                    print_error(error)
                done, failed = done + 1, failed + bool(error)
                bar.update()
    if not done:
        raise InputError(f"input={config.input}: the table has no rows")
    print_line(f"masks: {out} ({done - failed} of {done})")
    return 3 if failed else 0


def _write_mask(
    finder: LesionFinder, images: ImageFolder, out: Path, name: str, *, skip: bool
) -> str | None:
    """Write one mask; return an error message if the image cannot be used."""
    stem = Path(strip_suffix(name))
    if stem.is_absolute() or ".." in stem.parts:
        stem = Path(stem.name)  # no file is written outside the folder
    target = out / f"{stem}.png"
    if skip and target.is_file():
        return None
    try:
        path = images.find(name)
        if path is None:
            return images.describe_missing(name)
        source = images.read(path)
        info = probe(source.data)
        pixels = decode(
            source.data, size=finder.size, frame=source.frame, icc=finder.icc, min_side=MIN_SIDE
        )
        mask = finder(pixels, (info.height, info.width))
    except (OSError, InputError) as error:
        return f"image {name}: {' '.join(str(error).split())}"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.name}.partial")
    Image.fromarray(mask * np.uint8(255)).save(partial_file, "PNG")
    partial_file.replace(target)
    return None


WORST: Final = 24  # masks on the report page
SHARES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
MEANINGS: Final = {
    "dice": "twice the common area over the sum of both areas",
    "jaccard": "common area over the area of the union",
}
Areas = Float64[np.ndarray, " n"]


def overlaps(overlap: Areas, predicted: Areas, true: Areas) -> pd.DataFrame:
    """Return Dice and Jaccard of each image; both are 1 if both masks are empty.

    The arguments are numbers of pixels: in both masks, in the predicted mask, in the true mask.
    """
    total = predicted + true
    union = total - overlap
    dice = np.divide(2 * overlap, total, out=np.ones_like(total), where=total > 0)
    jaccard = np.divide(overlap, union, out=np.ones_like(union), where=union > 0)
    return pd.DataFrame({"dice": dice, "jaccard": jaccard})


def mean_overlaps(
    scores: pd.DataFrame, patients: Shaped[np.ndarray, " n"], *, resamples: int, confidence: float
) -> dict[str, Any]:
    """Return means over images with bootstrap intervals over patients, for `metrics.json`.

    `patients` has the patient of each row; without resamples there are no intervals.
    """
    codes, count = patient_codes(patients)
    rows = np.bincount(codes, minlength=count)
    names = list(map(str, scores))
    sums = {name: np.bincount(codes, scores[name], count) for name in names}

    def means(sample: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        return {name: sample @ total / (sample @ rows) for name, total in sums.items()}

    samples: dict[str, Any] = {name: np.empty(0) for name in names}
    if resamples and count > 1:
        samples = bootstrap(means, count, len(scores), resamples=resamples, seed=0)
    metrics = {
        name: summarise(name, float(scores[name].mean()), samples[name], None, confidence, count)
        for name in names
    }
    return {"n": len(scores), "patients": count, "metrics": metrics}


def write_mask_page(run: Path, pictures: bool | None = None) -> Path:
    """Write `report.html`: Dice and Jaccard, their quantiles, and the images with the worst masks.

    `pictures=None` includes images if the run's configuration does.
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
        [name, *(f"{value:.3f}" for value in scores[name].quantile(SHARES))] for name in MEANINGS
    ]
    header = ("", *(f"{share:.0%} are below" for share in SHARES))
    cards = [
        Card(
            row["image_id"],
            [f"Dice {row['dice']:.3f}", f"area {row['area']:.1%}, true {row['area_true']:.1%}"],
            thumbnail(cohort["path"].get(row["image_id"])) if pictures else None,
        )
        for row in scores.nsmallest(WORST, "dice").to_dict("records")
    ]
    tiles = Tiles([_build_tile(name, test["metrics"][name]) for name in MEANINGS])
    table = Table("Images of the test part", header, quantiles)
    lead = "Means over the images of the test part; intervals are over patients."
    sections = [
        Section("fit", "Agreement with the true masks", [tiles, table], lead=lead),
        Section("worst", "Worst masks", [Gallery("The lowest Dice of the test part", cards)]),
    ]
    title = f"Report of {config['data']['name']}, {run.name}"
    return write_page(run / "report.html", title=title, facts=facts, sections=sections)


def _build_tile(name: str, entry: dict[str, Any]) -> Tile:
    interval = f"{entry['low']:.4f} to {entry['high']:.4f}" if entry["low"] is not None else ""
    return Tile(name.capitalize(), f"{entry['value']:.4f}", interval, MEANINGS[name])


RUN_PAGES["segmentation"] = write_mask_page
