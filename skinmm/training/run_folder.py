"""The run folder: its paths and files, and protection against overwriting a run by accident."""

import json
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import pandas as pd
import yaml

from skinmm import __version__
from skinmm.config import Config, to_mapping
from skinmm.config.checkpoints import FINAL, FOLD
from skinmm.config.cores import count_cores
from skinmm.errors import InputError
from skinmm.files import atomic_write

CONTENTS: Final = (
    *("config.yaml", "metrics.json", "history.csv", "cohort.csv", "audit.json", "environment.json"),
    *("report.html", "card.md", "checkpoints", "predictions", "explanations", "features"),
    *(FINAL, "tensorboard", "wandb"),
)
PACKAGES: Final = (
    *("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics"),
    *("numpy", "pandas", "scikit-learn"),
)


@dataclass
class RunFolder:
    """Folder of a run, or of one fold or the final network of a run with `data.fold=all`.

    Attributes:
        path: the folder.
        config: configuration of what it contains.
        parent: folder of the whole run, if this is a part of it.
        is_open: whether this process has prepared it for writing.
        starts_processes: whether the training may start further processes of the same command.
    """

    path: Path
    config: Config
    parent: "RunFolder | None" = None
    is_open: bool = False
    starts_processes: bool = False

    @property
    def root(self) -> "RunFolder":
        """Folder of the whole run."""
        return self.parent or self

    @property
    def is_resumed(self) -> bool:
        """Return whether the run continues an earlier one."""
        return self.config.resume is not None

    @property
    def is_finished(self) -> bool:
        """Return whether the run is finished: metrics.json is the last of its results."""
        return (self.path / "metrics.json").is_file()

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def ensemble_checkpoint(self) -> Path:
        """Ensemble of the folds' best checkpoints, for a run of all folds."""
        return self.path / "checkpoints" / "ensemble.ckpt"

    @property
    def final_checkpoint(self) -> Path:
        """Network that was trained on all rows after the folds."""
        return self.path / "checkpoints" / f"{FINAL}.ckpt"

    @property
    def final(self) -> "RunFolder":
        """Folder of the final network, which is trained on all rows after the folds."""
        return RunFolder(self.path / FINAL, self.config, parent=self)

    @property
    def last_checkpoint(self) -> Path | None:
        """Checkpoint to continue from; None to start at the first epoch."""
        path = self.path / "checkpoints" / "last.ckpt"
        return path if self.is_resumed and path.is_file() else None

    def fold(self, number: int) -> "RunFolder":
        """Return the folder of one fold."""
        data = replace(self.config.data, fold=number)
        optimizer = self.config.optimizer
        if optimizer.lr == "auto":  # chosen on the rows of the fold
            optimizer = replace(optimizer)
        config = replace(self.config, data=data, optimizer=optimizer, final=False)
        return RunFolder(self.path / f"{FOLD}{number}", config, parent=self)

    def prepare(self) -> None:
        """Create the folder, remove an earlier run's files, and write config.yaml."""
        if not self.is_resumed and not self.parent:
            for path in _contents(self.path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        self.remove_results()
        write_config(self.path / "config.yaml", self.config)

    def remove_results(self) -> None:
        """Remove report, card and metrics, which would be outdated."""
        for name in ("report.html", "card.md", "metrics.json"):
            (self.path / name).unlink(missing_ok=True)

    def require_unused(self) -> None:
        """Require a folder without a run; `overwrite` allows a run, but no other files."""
        contents = _contents(self.path)
        if contents and self.config.overwrite and not (self.path / "config.yaml").is_file():
            raise InputError(
                f"{self.path} is not a run folder (no config.yaml), but contains "
                f"{', '.join(path.name for path in contents)}: overwrite=true does not replace it; "
                "choose another hydra.run.dir"
            )
        if contents and not self.config.overwrite:
            raise InputError(
                f"{self.path} contains a run; choose another hydra.run.dir, set overwrite=true, or "
                "continue it with resume="
            )


def write_config(path: Path, config: Config) -> None:
    """Write a `config.yaml` atomically; a run cannot be resumed without it."""
    text = yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON atomically; missing numbers are null, never NaN."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_metrics(run: Path) -> dict[str, Any]:
    """Return the content of a finished run's metrics.json."""
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return content


def write_cohort(run: Path, cohort: pd.DataFrame) -> None:
    """Write the canonical rows with their part and fold."""
    with atomic_write(run / "cohort.csv") as partial:
        cohort.to_csv(partial, index=False, float_format="%.9g")


def environment(device: str) -> dict[str, Any]:
    """Return command, versions and machine, to repeat a run."""
    return {
        "skinmm": __version__,
        "date": datetime.now(UTC).astimezone().date().isoformat(),
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": count_cores(),
        "device": device,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _contents(run: Path) -> list[Path]:
    paths = [run / name for name in CONTENTS if (run / name).exists()]
    folds = [path for path in run.glob("fold_*") if path.name.removeprefix("fold_").isdecimal()]
    return [*paths, *sorted(folds)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
