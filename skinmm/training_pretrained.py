"""What the run behind `model.pretrained` has seen: nothing of it may be judged here."""

from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.checkpoint import is_checkpoint
from skinmm.config import ModelConfig

OWNERS: Final = ("patient_id", "lesion_id")  # names that mean the same within a source only


def seen_before(model: ModelConfig, cohort: pd.DataFrame) -> list[str]:
    """Sentences on rows judged here that steered the weights which training begins with.

    Args:
        model: what `pretrained` names; only a run's checkpoint has seen lesions.
        cohort: canonical rows with their `part`.
    """
    path = Path(str(model.pretrained))
    if not is_checkpoint(path):
        return []
    record = path.resolve().parents[1] / "cohort.csv"
    if not record.is_file():
        return [f"what {path} was trained on is not known: {record} is not there"]
    theirs = pd.read_csv(record, dtype=str)
    theirs = theirs[theirs["part"].isin(["train", "val"])]
    judged = cohort[cohort["part"].isin(["val", "test"])].astype(str)
    known = judged["image_id"].isin(theirs["image_id"])
    for name in OWNERS:
        owned = theirs.dropna(subset=[name])
        known |= pd.Index(judged["source"] + "\0" + judged[name]).isin(
            owned["source"] + "\0" + owned[name]
        )
    if not known.any():
        return []
    rows = f"{int(known.sum())} of {len(judged)} rows to validate or test, or their lesions or"
    return [f"{rows} patients, trained what model.pretrained names"]
