"""What images go through before a network sees them, as a configuration and a pack say."""

from pathlib import Path

from skinmm.config import DataConfig
from skinmm.data.pack_manifest import packed_steps
from skinmm.errors import InputError
from skinmm.images.measure import MEASUREMENTS
from skinmm.images.preprocess import MASKED, check_steps
from skinmm.models.lesion_finder import LesionFinder


def preprocessing(data: DataConfig) -> tuple[tuple[str, ...], LesionFinder | None]:
    """All steps, those that a pack's images have been through first, and what finds the lesion.

    Raises:
        InputError: steps that cannot be taken, a checkpoint that draws no masks or is not the
            pack's, or one that nothing asks for; measurements of a pack's changed pictures.
    """
    finder = LesionFinder.load(Path(data.segmenter)) if data.segmenter else None
    packed = data.name == "packed"
    done, digest = packed_steps(Path(data.root or "")) if packed else ((), None)
    steps = (*done, *data.preprocess)
    check_steps(steps, finds=finder is not None)
    if finder and digest and finder.digest != digest:
        raise InputError(
            f"data.segmenter={data.segmenter}: {data.root} was packed with another checkpoint, "
            f"whose SHA-256 is {digest}"
        )
    if done and {*data.columns} & {*MEASUREMENTS}:
        raise InputError(
            f"data.root={data.root}: its pictures went through {', '.join(done)} before they were "
            f"packed, prediction would measure them as they came: leave the measurements out of "
            "data.columns, or the steps out of the pack"
        )
    if finder and not {*steps} & {*MASKED} and not {*data.columns} & {*MEASUREMENTS}:
        raise InputError(
            f"data.segmenter={data.segmenter}: nothing asks where the lesion is; name a step of "
            f"{', '.join(MASKED)} or a column of {', '.join(MEASUREMENTS)}"
        )
    return steps, finder
