"""Checks before training that no evaluated row influences the model, now or in earlier runs."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from skinmm.config import Config, LossConfig, ModelConfig, read_config
from skinmm.config.checkpoints import FINAL, ZOO, locate_included
from skinmm.data.audit import audit
from skinmm.data.datamodule import LesionData
from skinmm.data.lesion_finder import LesionFinder
from skinmm.data.lesions import explode_images
from skinmm.data.splits import CALIBRATION, UNUSED
from skinmm.errors import InputError, warn
from skinmm.models.checkpoint import is_checkpoint, load_card
from skinmm.training.run_folder import RunFolder
from skinmm.vocabulary import map_unique, normalise_name

_ISIC: Final = r"(HAM|BCN|MSK\d*|IL|IP)_\d{7}"
"""Lesions and patients of the ISIC archive, in whichever of its datasets."""


def audit_split(data: LesionData, config: Config) -> dict[str, Any]:
    """Audit the split for audit.json; refuse leaks unless `data.allow_leaks` is set."""
    findings = audit(
        data.cohort, positive=data.positive, columns=config.data.columns, fitted_on=data.fitted_on
    )
    findings["leaks"] += rows_seen_in_training(config.model, data.cohort)
    findings["leaks"] += list_teacher_leaks(config.loss, data.cohort)
    if findings["leaks"] and not config.data.allow_leaks:
        raise InputError(
            f"the split leaks: {'; '.join(findings['leaks'][:3])}; correct the data, or set "
            "data.allow_leaks=true (audit.json and the report will mention it)"
        )
    return {"allow_leaks": config.data.allow_leaks, **findings, "notes": list(data.notes)}


def rows_seen_in_training(model: ModelConfig, cohort: pd.DataFrame) -> list[str]:
    """Describe overlaps of evaluated rows with the training rows of `model.pretrained`."""
    cohorts: list[pd.DataFrame] = []
    path = locate_included(str(model.pretrained))
    # A run may itself have started from a run; a checkpoint deleted since then still counts.
    while is_checkpoint(path) or (cohorts and path.suffix == ".ckpt"):
        if path.parent == ZOO:
            cohorts.append(pd.read_csv(path.with_suffix(".csv"), dtype=str))
            break
        run = path.resolve().parents[1]
        if path.stem == FINAL:
            run /= FINAL
        files = (run / "cohort.csv", run / "config.yaml")
        if missing := next((file for file in files if not file.is_file()), None):
            return [f"the training rows of {path} are unknown: {missing} is missing"]
        cohorts.append(pd.read_csv(files[0], dtype=str))
        path = locate_included(str(read_config(files[1]).model.pretrained))
    if not cohorts:
        return []
    trained = pd.concat(map(explode_images, cohorts), ignore_index=True)
    trained = trained[trained["part"].isin(["train", "val"])]
    return _describe_overlaps(cohort, trained, "model.pretrained")


def _describe_overlaps(cohort: pd.DataFrame, trained: pd.DataFrame, key: str) -> list[str]:
    evaluated = cohort[cohort["part"].isin(["val", CALIBRATION, "test"])]
    if not (count := int(find_overlaps(evaluated, trained).sum())):
        return []
    return [
        f"{count} of {len(evaluated)} validation and test rows share an image, a lesion or a "
        f"patient with the training rows of {key}"
    ]


def find_overlaps(rows: pd.DataFrame, trained: pd.DataFrame) -> "pd.Series[bool]":
    """Return a mask of rows that share an image, a lesion or a patient with other rows."""
    evaluated = explode_images(rows).astype(str)
    trained_images = trained["image_id"].astype(str).str.removesuffix("_downsampled")
    overlaps = evaluated["image_id"].str.removesuffix("_downsampled").isin(trained_images)
    trained, evaluated = (  # runs of earlier versions have the name of the cohort as the source
        table.assign(cohort=table.get("cohort", table["source"]).fillna(table["source"]))
        for table in (trained, evaluated)
    )
    for name in ("patient_id", "lesion_id"):
        owned = trained.dropna(subset=[name])
        owned = owned.assign(**{name: map_unique(owned[name], normalise_name)})
        overlaps |= pd.Index(_qualify(evaluated, name)).isin(_qualify(owned, name))
    return overlaps


def _qualify(table: pd.DataFrame, name: str) -> "pd.Series[str]":
    """Prefix ids with their cohort; all datasets of the ISIC archive share a prefix."""
    ids = table[name].astype(str)
    return table["cohort"].mask(ids.str.fullmatch(_ISIC), "isic") + "\0" + ids


def list_teacher_leaks(config: LossConfig, cohort: pd.DataFrame) -> list[str]:
    """Describe overlaps of evaluated rows with the training rows of the teacher."""
    if not config.teacher:
        return []
    tables = list(read_teacher_cohorts(Path(config.teacher)).values())
    if not tables:
        warn(f"loss.teacher={config.teacher}: not in a run folder; its training rows are unknown")
        return []
    return _describe_overlaps(cohort, pd.concat(tables, ignore_index=True), "loss.teacher")


def read_teacher_cohorts(path: Path) -> dict[int, pd.DataFrame]:
    """Return the rows that the networks behind a prediction file were fitted to, by fold.

    The images of a lesion are rows of their own. The number -1 is a run of one fold. A file
    outside the folder `predictions` of a run has no rows.
    """
    folder = path.absolute().parent
    if folder.name != "predictions":
        return {}
    by_fold = folder.parent.glob("fold_*/cohort.csv")
    files = {int(file.parent.name.removeprefix("fold_")): file for file in by_fold}
    files = files or {-1: folder.parent / "cohort.csv"}
    tables = {
        fold: explode_images(pd.read_csv(f, dtype=str)) for fold, f in files.items() if f.is_file()
    }
    fitted = ["train", "val", CALIBRATION]
    return {fold: table[table["part"].isin(fitted)] for fold, table in tables.items()}


def require_same_split(file: Path, cohort: pd.DataFrame, column: str) -> None:
    """Require the rows and parts that the run started with.

    `file` is the run's cohort.csv; nothing is checked if it does not exist. `column` is `part`, or
    `fold` for the run of another fold.
    """
    if not file.is_file():
        return
    before, now = (
        # It does not matter to the evaluation which training rows data.limit took.
        table.set_index("image_id")[column].astype(str).replace(UNUSED, "train").sort_index()
        for table in (pd.read_csv(file, dtype={"image_id": str}), cohort)
    )
    if not before.equals(now):
        shared = before.index.intersection(now.index)
        moved = int((before[shared] != now[shared]).sum())
        raise InputError(
            f"{file.parent} was started with {len(before)} rows; now there are {len(now)}, {moved} "
            "of them in another part, so training rows could be evaluated; restore the original "
            "data, or start a new run"
        )


def require_usable_split(data: LesionData, run: RunFolder) -> None:
    """Require both classes in every part, the same split on resuming, and poolable folds."""
    if run.is_resumed:
        require_same_split(run.path / "cohort.csv", data.cohort, "part")
        if run.parent:
            require_same_split(run.parent.fold(0).path / "cohort.csv", data.cohort, "fold")
    columns = [data.classes.index(name) for name in data.positive]
    has_calibration = len(data.rows(CALIBRATION)) > 0
    for part in ("train", "val", *([CALIBRATION] if has_calibration else []), "test"):
        malignant = np.isin(data.targets[data.rows(part)], columns)
        if malignant.all() or not malignant.any():
            kind = "benign" if malignant.any() else "malignant"
            raise InputError(
                f"no {kind} row among the {len(malignant)} of part '{part}'; "
                "use fewer data.folds, another data.split_seed or a larger cohort"
            )
    if run.parent and (data.cohort.loc[data.rows("test"), "fold"] < 0).all():
        raise InputError(
            "data.fold=all needs another test part in each fold, but this dataset has a fixed one; "
            "set data.fold to a number"
        )


def require_same_finder(config: Config, run: RunFolder) -> None:
    """Require the same segmentation network in all folds and restarts of a run."""
    checkpoint = next(run.root.path.rglob("last.ckpt"), None) if run.is_resumed else None
    if not config.data.segmenter or not checkpoint:
        return
    segmenter = load_card(checkpoint)[0].segmenter
    if segmenter and segmenter["digest"] != LesionFinder.load(Path(config.data.segmenter)).digest:
        raise InputError(
            f"data.segmenter={config.data.segmenter}: the run was started with another "
            f"checkpoint, whose SHA-256 is {segmenter['digest']}; restore that file"
        )
