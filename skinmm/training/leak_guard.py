"""What a run has seen that is gone on with, or whose weights are: nothing of it may be judged."""

from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import ModelConfig, read_config
from skinmm.data.splits import UNUSED
from skinmm.errors import InputError
from skinmm.models.checkpoint import is_checkpoint

OWNERS: Final = ("patient_id", "lesion_id")  # names that mean the same within a source only


def seen_before(model: ModelConfig, cohort: pd.DataFrame) -> list[str]:
    """Sentences on rows judged here that steered the weights which training begins with.

    Args:
        model: what `pretrained` names; only a run's checkpoint has seen lesions.
        cohort: canonical rows with their `part`.
    """
    seen: list[pd.DataFrame] = []
    path = Path(str(model.pretrained))
    while is_checkpoint(path) or (seen and path.suffix == ".ckpt"):  # gone, but it had been one
        run = path.resolve().parents[1]
        record, settings = run / "cohort.csv", run / "config.yaml"
        if gone := next((file for file in (record, settings) if not file.is_file()), None):
            return [f"what {path} was trained on is not known: {gone} is not there"]
        seen.append(pd.read_csv(record, dtype=str))
        path = Path(str(read_config(settings).model.pretrained))  # a run of a run has seen both's
    if not seen:
        return []
    theirs = pd.concat(seen, ignore_index=True)
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


def refuse_another_split(file: Path, cohort: pd.DataFrame, column: str) -> None:
    """Refuses to go on with other rows, or the same in other parts: what was learnt may be judged.

    Args:
        file: a run's cohort.csv, if it has one yet.
        cohort: the rows that are to be gone on with.
        column: `part`, or of another fold's run `fold`.

    Raises:
        InputError: the rows differ, or some stand elsewhere.
    """
    if not file.is_file():
        return
    kept, found = (
        # Which rows of its part a limit took matters to no one who judges.
        table.set_index("image_id")[column].astype(str).replace(UNUSED, "train").sort_index()
        for table in (pd.read_csv(file, dtype={"image_id": str}), cohort)
    )
    if not kept.equals(found):
        shared = kept.index.intersection(found.index)
        moved = int((kept[shared] != found[shared]).sum())
        raise InputError(
            f"{file.parent} was begun with {len(kept)} rows; now there are {len(found)}, {moved} "
            "of them in another part, so that rows trained on would be judged. Bring back the data "
            "that it was begun with, or begin another run"
        )
