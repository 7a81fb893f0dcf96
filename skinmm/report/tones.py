"""Skin tones of a cohort's pictures, decoded tiny."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError
from skinmm.images.measure import tone_of, typology_angle

MEASURED: Final = 500
"""Pictures at most, half of them malignant where there are so many: nobody is kept waiting."""
_SIDE: Final = 64  # pixels


def with_tones(records: pd.DataFrame, malignant: Bool[np.ndarray, " n"]) -> pd.DataFrame:
    """The records with a column `skin_tone`, missing where it was not or cannot be measured.

    Args:
        records: canonical rows; without a column `path` nothing is measured.
        malignant: of the same rows.
    """
    if "path" not in records:
        return records
    there = records["path"].notna().to_numpy()
    chance = np.random.default_rng(0)
    chosen = chance.permutation(np.flatnonzero(there & malignant))[: MEASURED // 2]
    others = chance.permutation(np.flatnonzero(there & ~malignant))[: MEASURED - len(chosen)]
    rows = np.r_[chosen, others]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_tone, records["path"].to_numpy(dtype=object)[rows]))
    tones = np.full(len(records), None, dtype=object)
    tones[rows] = found
    return records.assign(skin_tone=tones)


def _tone(path: Any) -> str | None:
    from skinmm.images.decode import decode
    from skinmm.images.source import read_source

    try:
        source = read_source(str(path))
        return tone_of(typology_angle(decode(source.data, size=_SIDE, frame=source.frame)))
    except (OSError, InputError):
        return None
