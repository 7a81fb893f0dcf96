"""Make the embedded demo cohort from the CC0 part of ISIC 2017.

    python benchmarks/make_demo.py FOLDER

FOLDER contains `training.csv` and `training/*.jpg`. The cohort has every training row with age, sex
and site, and 78 rows with missing cells, chosen by the hash of the image name: with the same share
of melanomas, and the same shares of the patterns of missing cells. Files are copied unchanged.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import pandas as pd

from skinmm.vocabulary import parse_site

INCOMPLETE_ROWS = 78
MAX_BYTES = 6_000_000
DEMO = Path(__file__).parent.parent / "skinmm" / "demo"


def choose(source: pd.DataFrame) -> pd.DataFrame:
    """Return the demo's rows of the ISIC 2017 training table, in its order."""
    cells = source[["age_approximate", "sex", "anatom_site_general"]]
    complete = cells.notna().all(axis=1)
    melanomas = round(INCOMPLETE_ROWS * source.melanoma[complete].mean())
    chosen = [source[complete]]
    for label, count in ((1, melanomas), (0, INCOMPLETE_ROWS - melanomas)):
        rows = source[~complete & (source.melanoma == label)]
        pattern = cells.loc[rows.index].isna().astype(int).astype(str).agg("".join, axis=1)
        chosen.append(_proportional(rows, pattern, count))
    return pd.concat(chosen).sort_index()


def _proportional(rows: pd.DataFrame, pattern: "pd.Series[str]", count: int) -> pd.DataFrame:
    """Return `count` rows; row r of the n rows of a pattern is ranked at (r + 0.5) / n."""
    digest = rows.image_id.map(lambda name: hashlib.sha256(name.encode()).hexdigest())
    rank = digest.groupby(pattern).rank() - 0.5
    place = rank / pattern.groupby(pattern).transform("size")
    order = pd.DataFrame({"place": place, "digest": digest}).sort_values(["place", "digest"])
    return rows.loc[order.index[:count]]


def main(folder: Path) -> None:
    """Write cohort.csv and images/ of the demo."""
    rows = choose(pd.read_csv(folder / "training.csv"))
    cohort = pd.DataFrame(
        {
            "image_id": rows.image_id,
            "lesion_id": rows.lesion_id,
            "age": rows.age_approximate,
            "sex": rows.sex,
            "site": rows.anatom_site_general.map(parse_site),
            "diagnosis": rows.melanoma.map({1: "mel", 0: "unknown"}),
            "target": rows.melanoma,
        }
    )
    files = [folder / "training" / f"{name}.jpg" for name in cohort.image_id]
    total = sum(file.stat().st_size for file in files)
    if total > MAX_BYTES:
        sys.exit(f"the images hold {total} bytes, more than {MAX_BYTES}")
    (DEMO / "images").mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, DEMO / "images" / file.name)
    cohort.to_csv(DEMO / "cohort.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
