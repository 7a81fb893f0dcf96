"""PAD-UFES-20: clinical photographs from smartphones, with 21 clinical features."""

from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.catalog.images import root_of, with_paths
from skinmm.data.catalog.tables import canonical, read_table
from skinmm.vocabulary import by_value, canonical_diagnosis, rename_columns

PAD_UFES_FOLDERS: Final = (
    *(
        f"{top}imgs_part_{n}{below}"
        for n in (1, 2, 3)
        for top, below in (("images/", ""), ("", ""))
    ),
    *("images", ""),
)


def pad_ufes_20(data: DataConfig) -> pd.DataFrame:
    """PAD-UFES-20 (Pacheco et al. 2020), six classes.

    Its clinical features (`itch`, `grew`, `bleed`, `diameter_1`, `fitspatrick`, ...) may be named
    in `data.columns`; `biopsed` may not.
    """
    root = root_of(data)
    file = root / "metadata.csv"
    table = read_table(file, ["img_id", "patient_id", "lesion_id", "diagnostic"])
    table["diagnostic"] = by_value(table["diagnostic"], canonical_diagnosis)
    # Lesions are bare numbers here; other cohorts' may be too.
    table["lesion_id"] = "PAD_" + table["lesion_id"]
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    return with_paths(rows, root, data.format, PAD_UFES_FOLDERS)
