"""Compare the decoding of camera JPEGs to a model's size with other libraries.

All readers alternate on each file with one thread each; the time of a file is the median CPU time
over the rounds. Pillow resizes with our filter (its default, bicubic, is slower), with and without
the conversion to RGB that `decode` guarantees. The package makes glibc reuse freed memory, which
helps all readers. Files of 6000x4000 pixels, the most frequent size of SIIM-ISIC, are enlarged.

    SKINMM_DATA=DIR python benchmarks/decode.py > benchmarks/results/decode.md

Needs opencv-python-headless in addition to the package's dependencies. The exit status is 1 if a
target is missed.
"""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import Final, TypeVar

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize as torch_resize

from skinmm.data.audit import PICTURE_SIDE, compute_fingerprint
from skinmm.images.base import resize, resize_pillow, resize_simd
from skinmm.images.decode import decode, probe

T = TypeVar("T")
SIDE: Final = 384  # pixels
SIDES: Final = (224, 300, 384, 512)
LARGE: Final = 4e6  # pixels; the claims are about files above
MADE: Final = (6000, 4000)
MADE_FROM: Final = 3  # files
ROUNDS: Final = 9
CLAIMS: Final = {"Pillow full": 3.5, "Pillow unconverted": 3.5, "the best other": 0.95}
REDUCED: Final = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    0: cv2.IMREAD_COLOR,
}


def ours(data: bytes) -> np.ndarray:
    """Decode as training does."""
    return decode(data, size=SIDE)


def pillow_full(data: bytes) -> np.ndarray:
    """Decode every pixel, then resize."""
    with Image.open(BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def pillow_unconverted(data: bytes) -> np.ndarray:
    """Omit the conversion, which copies even files that are RGB already."""
    with Image.open(BytesIO(data)) as image:
        return np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def pillow_draft(data: bytes) -> np.ndarray:
    """Use Pillow's scaled decoding: halves, quarters and eighths."""
    with Image.open(BytesIO(data)) as image:
        image.draft("RGB", (SIDE, SIDE))
        return np.array(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def opencv_reduced(data: bytes) -> np.ndarray:
    """Use OpenCV's scaled decoding at the smallest sufficient scale, averaged over areas."""
    info = probe(data)
    shrink = min(info.height, info.width) // SIDE
    flag = next(flag for factor, flag in REDUCED.items() if shrink >= factor)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)


def torchvision_full(data: bytes) -> np.ndarray:
    """Decode every pixel with torchvision; its resize is antialiased."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    small = torch_resize(decode_jpeg(encoded, ImageReadMode.RGB), [SIDE, SIDE], antialias=True)
    return small.permute(1, 2, 0).numpy()


READERS: Final[dict[str, Callable[[bytes], np.ndarray]]] = {
    "skinmm": ours,
    "Pillow full": pillow_full,
    "Pillow unconverted": pillow_unconverted,
    "Pillow draft": pillow_draft,
    "OpenCV reduced": opencv_reduced,
    "torchvision": torchvision_full,
}


def enlarged(data: bytes) -> bytes:
    """Return an enlarged camera file, 4:2:2 like most of SIIM-ISIC."""
    file = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.resize(MADE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92, subsampling=1)
    return file.getvalue()


def seconds(data: T, contenders: Mapping[str, Callable[[T], object]]) -> dict[str, float]:
    """Return the median time of each reader, in alternation on one input."""
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            start = process_time()
            contender(data)
            rounds[name].append(process_time() - start)
    return {name: median(each) for name, each in rounds.items()}


def summed(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the total seconds of every reader over several files."""
    return {name: sum(row[name] for row in rows) for name in READERS}


def print_times(groups: dict[str, list[dict[str, float]]]) -> None:
    """Print a table by size, in milliseconds per file."""
    print("\n## Milliseconds a file to 384x384\n")
    print(f"| pixels | files | {' | '.join(READERS)} | to {' | to '.join(CLAIMS)} |")
    print(f"|---|---:|{'---:|' * (len(READERS) + len(CLAIMS))}")
    for title, rows in groups.items():
        total = summed(rows)
        cells = " | ".join(f"{1e3 * value / len(rows):.1f}" for value in total.values())
        ratios = " | ".join(f"{value:.2f}" for value in speedups(total).values())
        print(f"| {title} | {len(rows)} | {cells} | {ratios} |")


def speedups(total: dict[str, float]) -> dict[str, float]:
    """Return the speed-up over full decoding in Pillow, and over the fastest other reader."""
    others = min(value for name, value in total.items() if name != "skinmm")
    return {
        **{name: total[name] / total["skinmm"] for name in ("Pillow full", "Pillow unconverted")},
        "the best other": others / total["skinmm"],
    }


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in decibels; 99 for equal images."""
    error = np.square(left.astype(float) - right).mean()
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def print_quality(files: list[bytes]) -> None:
    """Print the difference of scaled decoding from the same filter over all pixels."""
    exact, whole = [], []
    for data in files:
        full = decode(data)
        for side in SIDES:
            reference = resize(full, (side, side), full.shape[:2])
            raster = simplejpeg.decode_jpeg(data, min_height=side, min_width=side)
            exact.append(psnr(decode(data, size=side), reference))
            whole.append(psnr(resize(raster, (side, side), raster.shape[:2]), reference))
    print(f"\n## PSNR to full decoding and the same filter, {len(files)} files to {SIDES} px\n")
    print("The last row and column of a scaled JPEG are covered in part; `decode` allows for it.")
    print("\n| scaled decoding | mean | worst |\n|---|---:|---:|")
    for title, values in (("exact extent (skinmm)", exact), ("extent ignored", whole)):
        print(f"| {title} | {mean(values):.1f} dB | {min(values):.1f} dB |")


def print_resizers(data: bytes) -> None:
    """Print the time of resizing by library, on a scaled raster."""
    raster = simplejpeg.decode_jpeg(data, min_height=SIDE, min_width=SIDE)
    size, extent = (SIDE, SIDE), raster.shape[:2]
    contenders: dict[str, Callable[[np.ndarray], object]] = {
        "SIMD bilinear (skinmm)": lambda pixels: resize_simd(pixels, size, extent),
        "Pillow bilinear": lambda pixels: resize_pillow(pixels, size, extent),
        "OpenCV area": lambda pixels: cv2.resize(pixels, size, interpolation=cv2.INTER_AREA),
    }
    print(f"\n## Resizing {extent[1]}x{extent[0]} to {SIDE}x{SIDE}\n")
    print("| resizer | milliseconds |\n|---|---:|")
    for title, value in seconds(raster, contenders).items():
        print(f"| {title} | {1e3 * value:.2f} |")


def print_hashing(cohorts: dict[str, list[bytes]]) -> None:
    """Print the time of an audit that compares pixels, and of the decoding that it needs."""
    contenders: dict[str, Callable[[bytes], object]] = {
        f"decode to {SIDE} px": ours,
        f"decode to {PICTURE_SIDE} px": lambda data: decode(data, size=PICTURE_SIDE),
        "fingerprint: decode, size, 256-bit hash": lambda data: compute_fingerprint(
            "", lambda _: (data, None)
        ),
    }
    print("\n## Perceptual hashes, milliseconds a file\n")
    print(f"| files | {' | '.join(contenders)} |\n|---|{'---:|' * len(contenders)}")
    for title, files in cohorts.items():
        rows = [seconds(data, contenders) for data in files]
        cells = " | ".join(f"{1e3 * mean(row[name] for row in rows):.2f}" for name in contenders)
        print(f"| {len(files)} {title} | {cells} |")


def main() -> int:
    """Measure, print the page, return whether a target is missed."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    folder = Path(os.environ["SKINMM_DATA"], "isic_originals")
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    files.sort(key=lambda data: probe(data).width * probe(data).height)
    groups: dict[str, list[dict[str, float]]] = {}
    for data in files:
        info = probe(data)
        groups.setdefault(f"{info.width}x{info.height}", []).append(seconds(data, READERS))
    large = [row for title, rows in groups.items() for row in rows if area(title) > LARGE]
    made = [seconds(enlarged(data), READERS) for data in files[-MADE_FROM:]]
    print(f"# Decoding\n\n{datetime.now(UTC):%Y-%m-%d}, one of two CPU cores", end=", ")
    print(f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}.")
    print(f"Command: `SKINMM_DATA=DIR python benchmarks/{Path(__file__).name}`.")
    print(f"Files: {len(files)} untouched camera JPEGs of the ISIC archive.")
    print_times({**groups, "**all above 4 MP**": large, "6000x4000, made": made})
    print_resizers(files[-MADE_FROM])
    print_quality(files)
    small = sorted(Path(os.environ["SKINMM_DATA"], "siim_isic_2020/jpeg/train").glob("*.jpg"))
    print_hashing(
        {
            "originals": files,
            "of 512x512": [path.read_bytes() for path in small[:: len(small) // 50]],
        }
    )
    reached = speedups(summed(large))
    return int(any(reached[name] < claim for name, claim in CLAIMS.items()))


def area(title: str) -> int:
    """Return the number of pixels of a size such as 3072x2304."""
    width, height = title.split("x")
    return int(width) * int(height)


if __name__ == "__main__":
    sys.exit(main())
