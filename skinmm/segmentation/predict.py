"""`predict.py` with a checkpoint of `task=segmentation`: a folder of masks."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from skinmm.config import PredictConfig
from skinmm.data.lesion_finder import LesionFinder
from skinmm.errors import InputError, print_error, print_line, require_new_output
from skinmm.images.decode import decode, probe
from skinmm.images.finder import strip_suffix
from skinmm.predict.inputs import ImageFolder, read_input
from skinmm.predict.job import check_paths, count_workers, find_image_folder, require_images
from skinmm.predict.pipeline import MIN_SIDE, TableBatch


def predict_masks(config: PredictConfig, checkpoint: Path) -> int:
    """Write a PNG mask for every row, white inside the lesion, with the size and name of the image.

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
    """Write one mask; return the reason if the image cannot be used."""
    stem = Path(strip_suffix(name))
    if stem.is_absolute() or ".." in stem.parts:
        stem = Path(stem.name)  # no file is written outside the folder
    target = out / f"{stem}.png"
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
    Image.fromarray(mask * np.uint8(255)).save(partial_file, "PNG")
    partial_file.replace(target)
    return None
