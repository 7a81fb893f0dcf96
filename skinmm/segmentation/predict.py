"""`predict.py` with a checkpoint of `task=segmentation`: a folder of masks."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from tqdm import tqdm

from skinmm.config import PredictConfig
from skinmm.errors import InputError
from skinmm.images.decode import decode, probe
from skinmm.models.lesion_finder import LesionFinder
from skinmm.predict.images import MIN_SIDE, ImageFolder, strip_image_suffix
from skinmm.predict.reader import canonical_patients, read_tables

ROWS: Final = 256  # of a table that are read at a time
WHITE: Final = np.uint8(255)


def write_masks(config: PredictConfig, checkpoint: Path, images: ImageFolder, workers: int) -> int:
    """Writes a PNG for every row, white where the lesion is, at the image's size and named by it.

    Args:
        config: the job; `output` is the folder, made where missing.
        checkpoint: what draws the masks.
        images: where they are.
        workers: threads.

    Returns:
        The exit status: 0, or 3 when some images could not be used; what was wrong is said.

    Raises:
        InputError: an output that is no folder or holds files, or a table that cannot be used.
    """
    out = Path(config.output)
    if out.suffix or out.is_file():
        raise InputError(f"output={out}: this checkpoint draws masks; name a folder, output=masks")
    if out.is_dir() and any(out.iterdir()) and not (config.overwrite or config.resume):
        raise InputError(f"output={out} holds files; choose another, or overwrite=true")
    out.mkdir(parents=True, exist_ok=True)
    finder = LesionFinder.load(checkpoint)
    draw = partial(_draw, finder, images, out, skip=config.resume)
    done = failed = 0
    with ThreadPoolExecutor(max(workers, 1)) as pool, tqdm(unit=" masks", disable=None) as bar:
        for table in read_tables(config.input, ROWS):
            names = canonical_patients(table, [], needs_image=True).cells["image_id"]
            for error in pool.map(draw, names):
                if error:
                    print(error, file=sys.stderr)  # noqa: T201
                done, failed = done + 1, failed + bool(error)
                bar.update()
    if not done:
        raise InputError(f"input={config.input}: the table has no rows")
    print(f"masks: {out} ({done - failed} of {done})")  # noqa: T201
    return 3 if failed else 0


def _draw(
    finder: LesionFinder, images: ImageFolder, out: Path, name: str, *, skip: bool
) -> str | None:
    """Writes one mask; says what was wrong, if anything was."""
    plain = strip_image_suffix(name)
    if Path(plain).is_absolute() or ".." in Path(plain).parts:
        plain = Path(plain).name  # nothing is written beside the folder
    target = out / f"{plain}.png"
    if skip and target.is_file():
        return None
    try:
        path = images.find(name)
        if path is None:
            return f"image {name} not found"
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
    Image.fromarray(mask * WHITE).save(partial_file, "PNG")
    partial_file.replace(target)
    return None
