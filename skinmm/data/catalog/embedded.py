"""The cohort that travels with the package."""

from pathlib import Path
from typing import Final

import pandas as pd

import skinmm
from skinmm.config import DataConfig
from skinmm.data.catalog.images import with_paths
from skinmm.data.catalog.tables import canonical, read_table

FOLDER: Final = Path(skinmm.__file__).parent / "demo"


def demo(data: DataConfig) -> pd.DataFrame:
    """700 CC0 images of ISIC 2017 with age, sex and site; see `demo/README.md`."""
    file = FOLDER / "cohort.csv"
    rows = canonical(read_table(file), file, data.name, data.columns)
    return with_paths(rows, FOLDER, "jpeg", ["images"])
