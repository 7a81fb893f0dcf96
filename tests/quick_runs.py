"""Runs of seconds for the tests: the command line in this process, or as a real command."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from skinmm.cli import main

ROOT: Final = Path(__file__).parents[1]
QUICK: Final = (
    "model=tiny",
    "model.image_size=32",
    "trainer=debug",
    "trainer.progress=false",
    "evaluation.resamples=20",
    "report.explain=false",
)

LIMIT: Final = "data.limit=48"  # of the run `both`
MISSING: Final = {f"predictions/missing_{count}_of_3.csv" for count in (1, 2, 3)}


CONTRACT: Final = MISSING | {
    "config.yaml",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "predictions/val.csv",
    "predictions/test.csv",
    "metrics.json",
    "history.csv",
    "cohort.csv",
    "audit.json",
    "environment.json",
    "report.html",
    "card.md",
}
"""Files of a run folder."""


def train(*overrides: str) -> int:
    """`train.py` in this process."""
    try:
        return main.train([*overrides])
    finally:
        torch.use_deterministic_algorithms(mode=False)  # Lightning sets it for good


def quick_train(run: Path, *overrides: str) -> int:
    """A tiny model for two steps, in this process."""
    return train(*QUICK, f"hydra.run.dir={run}", *overrides)


def tabular(root: Path) -> list[str]:
    """Overrides of a model of the record on a table in a folder."""
    return ["data=csv", f"data.root={root}", "fusion=tabular_only"]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def command(
    *arguments: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`python SCRIPT ...` as typed in a terminal, from any folder."""
    script, *rest = arguments
    return subprocess.run(
        [sys.executable, str(ROOT / script), *rest],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def metrics_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return content


def predictions_of(run: Path, part: str = "test") -> pd.DataFrame:
    return pd.read_csv(run / "predictions" / f"{part}.csv", dtype={"image_id": str})


def cohort_of(run: Path, part: str = "test") -> pd.DataFrame:
    """The canonical rows of a part, in the order of its predictions."""
    cohort = pd.read_csv(run / "cohort.csv", dtype={"image_id": str})
    return cohort[cohort["part"] == part].reset_index(drop=True)
