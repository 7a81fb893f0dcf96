"""The run folder: what is in it, and that nothing in it is lost by accident."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm import __version__
from skinmm.errors import InputError
from skinmm.files import atomic_write

CONTENTS: Final = (
    "config.yaml",
    "metrics.json",
    "history.csv",
    "cohort.csv",
    "audit.json",
    "environment.json",
    "report.html",
    "card.md",
    "checkpoints",
    "predictions",
    "explanations",
    "features",
    "tensorboard",
    "wandb",
)
PACKAGES: Final = (
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "torchmetrics",
    "numpy",
    "pandas",
    "scikit-learn",
)


def refuse_in_use(run: Path, *, overwrite: bool) -> None:
    """Refuses a folder that holds a run; with `overwrite` one that something else is in.

    Raises:
        InputError: it does.
    """
    held = _held(run)
    if held and overwrite and not (run / "config.yaml").is_file():
        raise InputError(
            f"{run} holds {', '.join(path.name for path in held)} but no config.yaml, so it is no "
            "run that overwrite=true may replace; choose another hydra.run.dir"
        )
    if held and not overwrite:
        raise InputError(
            f"{run} holds a run already; choose another hydra.run.dir, set overwrite=true, or "
            "continue it with resume="
        )


def clear(run: Path) -> None:
    """Makes the run's folder; of a run that was there nothing is left, other files stay."""
    for path in _held(run):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    run.mkdir(parents=True, exist_ok=True)


def fold_folder(run: Path, fold: int) -> Path:
    """Where `data.fold=all` keeps the run of one fold."""
    return run / f"fold_{fold}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes readable JSON, whole or not at all; missing numbers are null, never NaN."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_metrics(run: Path) -> dict[str, Any]:
    """A finished run's metrics.json."""
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return content


def write_cohort(run: Path, cohort: pd.DataFrame) -> None:
    """Writes the canonical rows with their part and fold."""
    with atomic_write(run / "cohort.csv") as partial:
        cohort.to_csv(partial, index=False, float_format="%.9g")


def environment(device: str) -> dict[str, Any]:
    """What a reader needs to repeat a run: command, versions, machine."""
    return {
        "skinmm": __version__,
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "device": device,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _held(run: Path) -> list[Path]:
    found = [run / name for name in CONTENTS if (run / name).exists()]
    folds = [path for path in run.glob("fold_*") if path.name.removeprefix("fold_").isdecimal()]
    return [*found, *sorted(folds)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
