"""Near duplicates by perceptual hash: the same picture saved, scaled, lit or trimmed otherwise."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from PIL import Image

from skinmm.errors import InputError
from skinmm.images.decode import decode, probe

HASH_SIDE: Final = 16  # 256 bits; 64 bits take lesions, which are alike, for one another
PICTURE_SIDE: Final = 64  # pixels, what a hash of 256 bits looks at
DISTANCE: Final = 30
"""Bits in which near duplicates may differ. In 12,788 images of SIIM-ISIC, HAM10000 and ISIC 2017,
11 of the 12 pairs of different patients within 30 bits show one lesion, seen by eye; beyond, small
lesions on plain skin are taken for one another. JPEG quality 30, half the size, another aspect,
15 % more light and nearly all margins of 2 % stay within."""
BLOCK: Final = 1024  # rows compared at a time with all others

Read = Callable[[str], tuple[bytes, int | None]]
"""Gives the bytes and the frame at a cohort's `path`, such as `source.read_source`."""


class Fingerprints(NamedTuple):
    """What the pixels of a cohort said.

    Attributes:
        image_id: names of the readable images.
        bits: their hashes.
        sizes: their width and height, pixels.
        unreadable: name and reason of the others that have a path.
    """

    image_id: list[str]
    bits: Bool[np.ndarray, "n bits"]
    sizes: Int64[np.ndarray, "n 2"]
    unreadable: dict[str, str]


class Fingerprint(NamedTuple):
    """One image's hash, and its width and height in pixels."""

    bits: Bool[np.ndarray, " bits"]
    size: tuple[int, int]


def compute_fingerprints(
    table: pd.DataFrame, read: Read, progress: Callable[[], None] = lambda: None
) -> Fingerprints:
    """Decodes and hashes every image that is on disk, on all cores.

    Args:
        table: canonical rows.
        read: gives the bytes of a path.
        progress: called after each image.
    """
    there = table[table["path"].notna()]
    found: dict[str, Fingerprint] = {}
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: compute_fingerprint(path, read), there["path"])
        for name, result in zip(there["image_id"], results, strict=True):
            if isinstance(result, str):
                unreadable[name] = result
            else:
                found[name] = result
            progress()
    bits = np.array([one.bits for one in found.values()], bool).reshape(-1, HASH_SIDE**2)
    sizes = np.array([one.size for one in found.values()], np.int64).reshape(-1, 2)
    return Fingerprints(list(found), bits, sizes, unreadable)


def find_near_duplicates(found: Fingerprints, distance: int = DISTANCE) -> pd.DataFrame:
    """Every pair of images whose hashes differ in at most `distance` bits.

    Returns:
        Columns `first`, `second` (image names) and `bits` (how many differ), nearest first.
    """
    names = np.array(found.image_id, object)
    blocks = [np.empty((0, 3), np.int64), *_close(found.bits, distance)]
    first, second, bits = np.concatenate(blocks).T
    pairs = pd.DataFrame({"first": names[first], "second": names[second], "bits": bits})
    return pairs.sort_values(["bits", "first", "second"], ignore_index=True)


def _close(
    bits: Bool[np.ndarray, "n bits"], distance: int
) -> Iterator[Int64[np.ndarray, "pairs 3"]]:
    """Row, later row and distance: of signs +-1 the scalar product counts the bits that agree."""
    signs = bits.astype(np.float32) * 2 - 1
    for start in range(0, len(signs), BLOCK):
        agreement = signs[start : start + BLOCK] @ signs[start:].T
        differ = ((bits.shape[1] - agreement) / 2).astype(np.int64)
        row, column = np.nonzero(np.triu(differ <= distance, k=1))
        yield np.stack([start + row, start + column, differ[row, column]], axis=1)


def compute_fingerprint(path: str, read: Read) -> Fingerprint | str:
    """The fingerprint of one image, or why there is none."""
    try:
        data, frame = read(path)
        pixels = decode(data, size=PICTURE_SIDE, frame=frame)
        info = probe(data)
    except (OSError, InputError) as error:
        return str(error)
    return Fingerprint(_hash(Image.fromarray(pixels)), (info.width, info.height))


def _hash(picture: Image.Image) -> Bool[np.ndarray, " bits"]:
    try:
        import imagehash
    except ImportError as error:
        raise InputError("comparing pixels needs imagehash: pip install 'skinmm[audit]'") from error
    return imagehash.phash(picture, hash_size=HASH_SIDE).hash.ravel()
