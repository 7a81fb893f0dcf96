"""Measure hair removal on images with drawn hairs: error inside, change elsewhere, and speed.

    python benchmarks/preprocess.py FOLDER_OF_JPEGS [IMAGES]

Twelve dark curves, one to three pixels wide, are drawn on each image at 256 px, and twice as wide
at 512 px, the size at which the step is applied for a network of 256 px. The result is the decrease
of the mean error inside the curves, the mean change of images without hairs (and of all) in grey
levels, and images per second of CPU time.
"""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from skinmm.images.decode import decode
from skinmm.images.preprocess import Pixels, find_hair, remove_hair

HAIRLESS = 0.005  # of the picture's area found to be hair by the same detector, at most


def with_hairs(image: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Draw a dozen dark curves on an image; return it and the mask of the curves."""
    size = len(image)
    canvas = Image.new("L", (1024, 1024))
    draw = ImageDraw.Draw(canvas)
    steps = np.linspace(0, 1, 60)[:, None]
    for _ in range(12):
        start, bend, end = rng.uniform(0, 1024, (3, 2))
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
        draw.line([tuple(point) for point in curve], 255, width=int(rng.integers(4, 11)))
    share = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255
    hair = np.array([45, 32, 28]) + rng.uniform(-15, 25)
    covered = image * (1 - share[..., None]) + hair * share[..., None]
    return np.rint(covered).astype(np.uint8), share > 0.5  # noqa: PLR2004


def main(folder: Path, count: int, size: int) -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    files = sorted(folder.rglob("*.jpg"))
    chosen = [files[place] for place in rng.choice(len(files), count, replace=False)]
    falls, changes, every, seconds = [], [], [], 0.0
    for file in chosen:
        image = decode(file.read_bytes(), size=size)
        hairy, inside = with_hairs(image, rng)
        began = time.process_time()
        cleaned = remove_hair(hairy)
        seconds += time.process_time() - began
        error = [np.abs(each.astype(float) - image)[inside].mean() for each in (hairy, cleaned)]
        falls.append(1 - error[1] / error[0])
        every.append(np.abs(remove_hair(image).astype(float) - image).mean())
        if find_hair(image).mean() < HAIRLESS:
            changes.append(every[-1])
    print(
        f"| {size} | {count} | {np.mean(falls):.1%} "
        f"| {np.mean(changes):.3f} ({len(changes)} images) | {np.mean(every):.3f} "
        f"| {count / seconds:.0f} |"
    )


if __name__ == "__main__":
    print(
        "| side, px | images | error inside falls by | hairless change by | all | images/s a core |"
    )
    print("|---|---|---|---|---|---|")
    for side in (256, 512):
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200, side)  # noqa: PLR2004
