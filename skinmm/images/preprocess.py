"""Preprocessing steps: pure functions of uint8 RGB images, chosen by `data.preprocess=[...]`."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy.ndimage import find_objects, label

from skinmm.errors import InputError

Pixels = UInt8[np.ndarray, "_ _ 3"]
Mask = Bool[np.ndarray, "_ _"]
Find = Callable[[Pixels], Mask]  # from an image to the mask of its lesion

HAIR_WIDTH: Final = 1 / 40  # maximum width of a hair, as a share of the shorter side
HAIR_LENGTH: Final = 1 / 10  # minimum length of a hair, as a share of the shorter side
HAIR_DEPTH: Final = 12  # minimum difference between a hair and its surroundings, in grey levels
HAIR_SHARE: Final = 0.5  # maximum around a hair; a denser mesh of hairs is a pigment network
DIRECTIONS: Final = 12
MINKOWSKI: Final = 6  # norm of Shades of Grey, the best one in its paper
DARK: Final = 40  # darker corners and edges, in grey levels, belong to the instrument
MARGIN: Final = 0.15  # skin to leave around a lesion, as a share of its longer side


def remove_hair(image: Pixels) -> Pixels:
    """Replace hairs by the colour of the skin around them (DullRazor).

    Closing with short lines in several directions fills dark and narrow structures; those that are
    also long are hair. As in Lee et al. 1997, doi:10.1016/S0010-4825(97)00020-6, but the length is
    tested by opening with long lines, and a hair is filled with a weighted mean of the skin around
    it instead of along one line.
    """
    mask = find_hair(image)
    if not mask.any():
        return image
    cv2 = _import_opencv()
    reach = _round_to_odd(3 * HAIR_WIDTH * min(image.shape[:2]))
    skin = (~mask).astype(np.float32)
    near = cv2.GaussianBlur(skin, (reach, reach), 0)
    filled = cv2.GaussianBlur(image * skin[..., None], (reach, reach), 0)
    reachable = mask & (near > np.finfo(np.float32).eps)
    result = image.copy()
    result[reachable] = np.rint(filled[reachable] / near[reachable, None]).astype(np.uint8)
    return result


def find_hair(image: Pixels) -> Mask:
    """Return the mask of the hairs in an image."""
    cv2 = _import_opencv()
    side = min(image.shape[:2])
    short, long = _round_to_odd(HAIR_WIDTH * side), _round_to_odd(HAIR_LENGTH * side)
    grey = image.min(axis=2)
    closed = [cv2.morphologyEx(grey, cv2.MORPH_CLOSE, line) for line in _draw_lines(short, 4)]
    narrow = (np.max(closed, axis=0).astype(np.int16) - grey > HAIR_DEPTH).astype(np.uint8)
    # One more pixel on each side, as hairs are not straight; it also covers their soft edge.
    broad = cv2.dilate(narrow, np.ones((3, 3), np.uint8))
    lines = _draw_lines(long, DIRECTIONS)
    hairs = np.max([cv2.morphologyEx(broad, cv2.MORPH_OPEN, line) for line in lines], axis=0)
    # Hairs cross each other; a mesh that fills an area is the pigment network of the lesion.
    around = _round_to_odd(2 * HAIR_LENGTH * side)
    share = cv2.boxFilter(hairs, cv2.CV_32F, (around, around))
    dense = cv2.dilate((share > HAIR_SHARE).astype(np.uint8), np.ones((long, long), np.uint8))
    return (hairs > dense).astype(bool)


def remove_colour_cast(image: Pixels) -> Pixels:
    """Remove the colour of the illumination (Shades of Grey, Finlayson and Trezzi 2004, CIC 12).

    The light is the Minkowski mean of order six of each channel; the channels are scaled so that it
    becomes grey of the same strength. An image with a black channel is returned unchanged.
    """
    values = image.astype(np.float32) / 255
    light: Float32[np.ndarray, 3] = (values**MINKOWSKI).mean(axis=(0, 1)) ** (1 / MINKOWSKI)
    if not light.all():
        return image
    scaled = values * (np.linalg.norm(light) / (np.sqrt(3) * light))
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)


def crop_border(image: Pixels) -> Pixels:
    """Crop black borders and the dark corners of a round field of view.

    First, each side is cropped while the middle half of its row or column is dark; then all sides
    equally while corners are dark, to half of the image at most.
    """
    grey = image.max(axis=2)
    height, width = grey.shape
    rows = np.flatnonzero(_average_middle(grey.T) >= DARK)
    columns = np.flatnonzero(_average_middle(grey) >= DARK)
    if len(rows) == 0 or len(columns) == 0:
        return image
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    for _ in range(min(height, width)):
        corners = grey[[top, top, bottom - 1, bottom - 1], [left, right - 1, left, right - 1]]
        down, across = max((bottom - top) // 100, 1), max((right - left) // 100, 1)
        half = bottom - top - 2 * down < height / 2 or right - left - 2 * across < width / 2
        if half or (corners >= DARK).all():
            break
        top, bottom, left, right = top + down, bottom - down, left + across, right - across
    return np.ascontiguousarray(image[top:bottom, left:right])


def crop_lesion(image: Pixels, mask: Mask) -> Pixels:
    """Crop a square with a margin around the largest part of the mask, if it is not empty."""
    pieces, count = label(mask)
    if count == 0:
        return image
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    rows, columns = find_objects(pieces)[largest]
    side = round(max(rows.stop - rows.start, columns.stop - columns.start) * (1 + 2 * MARGIN))
    top, bottom = _centre_span(rows, side, mask.shape[0])
    left, right = _centre_span(columns, side, mask.shape[1])
    return np.ascontiguousarray(image[top:bottom, left:right])


def mask_background(image: Pixels, mask: Mask) -> Pixels:
    """Make all pixels outside the mask black; return the image unchanged if the mask is empty."""
    return np.where(mask[..., None], image, np.uint8(0)) if mask.any() else image


STEPS: Final[dict[str, Callable[[Pixels], Pixels]]] = {
    "border": crop_border,
    "hair": remove_hair,
    "colour": remove_colour_cast,
}
"""Steps that `data.preprocess` may name. A step may crop; images are resized after the last."""

MASK_STEPS: Final[dict[str, Callable[[Pixels, Mask], Pixels]]] = {
    "crop_lesion": crop_lesion,
    "mask_background": mask_background,
}
"""Further steps, which need the mask of the lesion that `data.segmenter` draws."""

ALIGNED_STEPS: Final = frozenset({"hair", "colour"})  # move no pixels, so that a mask still fits

DETAIL_STEPS: Final = frozenset({"border", "crop_lesion", "hair"})
"""Steps that receive twice the size, to crop or to distinguish hairs from a pigment network."""


def check_steps(names: Sequence[str], *, has_finder: bool = False) -> None:
    """Raise InputError for unknown or repeated steps, or without OpenCV or a lesion finder."""
    choices = [*STEPS, *MASK_STEPS]
    for name in names:
        if name not in choices:
            raise InputError(f"data.preprocess: unknown step '{name}'; choose from {choices}")
        if name in MASK_STEPS and not has_finder:
            raise InputError(
                f"data.preprocess: '{name}' needs a checkpoint of task=segmentation that finds the "
                "lesion: data.segmenter=CKPT"
            )
        if list(names).count(name) > 1:
            raise InputError(f"data.preprocess names '{name}' more than once")
    if "hair" in names:
        _import_opencv()


def preprocess(image: Pixels, names: Sequence[str], find: Find | None = None) -> Pixels:
    """Apply the named steps in order; `find` provides the mask for steps that need it."""
    for name in names:
        if name in STEPS:
            image = STEPS[name](image)
        elif find is not None:
            image = MASK_STEPS[name](image, find(image))
    return image


def _import_opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise InputError("hair removal needs OpenCV: pip install 'skinmm[preprocess]'") from error
    return cv2


def _centre_span(span: slice, side: int, whole: int) -> tuple[int, int]:
    """Return start and stop of `side` pixels centred on `span`, shifted to fit into the image."""
    side = min(side, whole)
    start = min(max((span.start + span.stop - side) // 2, 0), whole - side)
    return start, start + side


def _round_to_odd(length: float) -> int:
    return 2 * max(round(length / 2), 1) + 1


def _draw_lines(length: int, directions: int) -> UInt8[np.ndarray, "n side side"]:
    """Return kernels of one-pixel lines through the middle of a square, in equal angular steps."""
    half = length // 2
    steps = np.linspace(-half, half, 4 * length + 1)
    kernels = np.zeros((directions, length, length), np.uint8)
    for kernel, angle in zip(kernels, np.arange(directions) * np.pi / directions, strict=True):
        rows = np.rint(half + steps * np.sin(angle)).astype(int)
        columns = np.rint(half + steps * np.cos(angle)).astype(int)
        kernel[rows, columns] = 1
    return kernels


def _average_middle(grey: UInt8[np.ndarray, "height width"]) -> Float32[np.ndarray, " width"]:
    """Return the mean of the middle half of every column."""
    height = grey.shape[0]
    return grey[height // 4 : height - height // 4].mean(axis=0, dtype=np.float32)
