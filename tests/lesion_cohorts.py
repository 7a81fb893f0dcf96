"""A miniature cohort of lesions with up to three real pictures each, written as files."""

from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import DataConfig

PICTURES: Final = Path(__file__).parents[1] / "skinmm" / "demo" / "images"
WORDS: Final = ("dermoscopic", "clinical: close-up", "clinical: overview")


def lesion_table(lesions: int = 60) -> pd.DataFrame:
    """One to three images per lesion, two lesions per patient, every third malignant."""
    names = sorted(path.stem for path in PICTURES.glob("*.jpg"))
    rows: list[dict[str, object]] = []
    for lesion in range(lesions):
        for view in range(1 + lesion % 3):
            image = names[len(rows)]
            record = {"age": 30 + 10 * (lesion % 5), "sex": ("male", "female")[lesion % 2]}
            row = {"image": image, "lesion_id": f"L{lesion}", "patient_id": f"P{lesion // 2}"}
            target = int(lesion % 3 == 0)
            shade = round(lesion / 7 + view, 2)
            rows.append({**row, **record, "view": WORDS[view], "shade": shade, "target": target})
    return pd.DataFrame(rows)


def write_lesions(root: Path, table: pd.DataFrame) -> Path:
    """Write the table and its pictures."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name in table["image"]:
        target = root / "images" / f"{name}.jpg"
        target.write_bytes((PICTURES / f"{name}.jpg").read_bytes())
    table.to_csv(root / "cohort.csv", index=False)
    return root / "cohort.csv"


def lesion_config(root: Path, **settings: object) -> DataConfig:
    """Configuration of the cohort by lesion."""
    return DataConfig(name="csv", root=str(root), unit="lesion", **settings)  # type: ignore[arg-type]
