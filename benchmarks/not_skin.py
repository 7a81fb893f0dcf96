"""Measure how well the out-of-distribution score of a run detects images that are not skin.

    [SKINMM_DATA=DIR] python benchmarks/not_skin.py RUN [PICTURES]

The records are those of test patients, so that only the images are unusual. With SKINMM_DATA,
HAM10000 is included: skin, but from another archive.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from skinmm.predict import Predictor

SIDE: Final = 256
Pictures = Iterator[UInt8[np.ndarray, "h w 3"]]


def noise(rng: np.random.Generator) -> Pictures:
    """Return images of independent pixels."""
    while True:
        yield rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def gradients(rng: np.random.Generator) -> Pictures:
    """Return soft colours: enlarged images of four by four pixels."""
    while True:
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        yield np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def pages(rng: np.random.Generator) -> Pictures:
    """Return pages of black letters on white."""
    letters = np.array(list("abcdefghijklmnoprstuvwy     "))
    font = ImageFont.load_default(size=14)
    while True:
        page = Image.new("RGB", (SIDE, SIDE), "white")
        text = "\n".join("".join(rng.choice(letters, 34)) for _ in range(15))
        ImageDraw.Draw(page).multiline_text((4, 4), text, fill="black", font=font)
        yield np.asarray(page)


def photographs(rng: np.random.Generator) -> Pictures:
    """Return parts of scikit-learn's two photographs, a temple and a flower."""
    photos = load_sample_images().images
    while True:
        photo = photos[rng.integers(len(photos))]
        side = int(rng.integers(120, 420))
        top, left = (int(rng.integers(0, length - side)) for length in photo.shape[:2])
        yield photo[top : top + side, left : left + side]


KINDS: Final[dict[str, Callable[[np.random.Generator], Pictures]]] = {
    maker.__name__: maker for maker in (photographs, pages, gradients, noise)
}


def main(run: Path, count: int) -> None:
    """Print a table row for every kind of image."""
    predictor = Predictor.from_checkpoints([run / "checkpoints" / "best.ckpt"])
    cohort = pd.read_csv(run / "cohort.csv", dtype={"image_id": str})
    patients = cohort[cohort["part"] == "test"].sample(count, replace=True, random_state=0)
    usual = pd.read_csv(run / "predictions" / "test.csv")
    print("| pictures | number | AUROC against test images | above the limit | referred |")
    print("|---|---:|---:|---:|---:|")
    print(_row("test images", usual, None))
    for name, maker in KINDS.items():
        with TemporaryDirectory() as folder:
            names = [f"{number}.png" for number in range(count)]
            for file, pixels in zip(names, maker(np.random.default_rng(0)), strict=False):
                Image.fromarray(pixels).save(Path(folder) / file)
            strange = predictor.predict(patients.assign(image_id=names), folder)
        print(_row(name, strange, usual), flush=True)
    other = Path(os.environ.get("SKINMM_DATA", "")) / "ham10000" / "jpeg"
    if other.is_dir():
        names = sorted(path.name for path in other.iterdir())[:: 10_000 // count][:count]
        skin = predictor.predict(patients.assign(image_id=names), other)
        print(_row("HAM10000 (skin, another archive)", skin, usual))


def _row(name: str, found: pd.DataFrame, usual: pd.DataFrame | None) -> str:
    above, referred = (found["ood"] > 1).mean(), (found["decision"] == "refer").mean()
    area = ""
    if usual is not None:
        strange = np.repeat([False, True], [len(usual), len(found)])
        area = f"{roc_auc_score(strange, np.r_[usual['ood'], found['ood']]):.3f}"
    return f"| {name} | {len(found)} | {area} | {above:.2f} | {referred:.2f} |"


if __name__ == "__main__":
    if len(sys.argv) < 2:  # noqa: PLR2004
        sys.exit(f"usage: {sys.argv[0]} RUN [PICTURES]")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)  # noqa: PLR2004
