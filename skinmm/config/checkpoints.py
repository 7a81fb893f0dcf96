"""Files of the setting `checkpoint`: from paths, run folders, patterns and included models."""

import glob
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from skinmm.errors import InputError, one_line, print_line, suggest_path

ZOO: Final = Path(__file__).parents[1] / "zoo"
"""Models that come with the package: NAME.safetensors, NAME.md with its figures, and NAME.csv with
the rows that it was trained and evaluated on."""
PREFIX: Final = "zoo:"
INCLUDED: Final = "zoo:cc0"
"""The included model that predicts if no checkpoint is given: melanoma against the rest."""
HUB_PREFIX: Final = "hf://"
HUB_FILE: Final = "model.safetensors"
"""File of a model on the Hugging Face Hub, `hf://ORG/NAME@REVISION`."""
FINAL: Final = "final"
"""Name of the network that `final=true` trains on all rows: of its folder, its checkpoint and its
entry in metrics.json."""
FOLD: Final = "fold_"  # and its number: folder of a fold


def is_part_of_run(name: str) -> bool:
    """Return whether a folder name belongs to a fold, a run of a grid, or the final network."""
    return name == FINAL or name.removeprefix(FOLD).isdecimal()


def locate_included(name: str | Path) -> Path:
    """Return the file of an included model `zoo:NAME`; other paths are unchanged."""
    if not str(name).startswith(PREFIX):
        return Path(name)
    path = ZOO / f"{str(name).removeprefix(PREFIX)}.safetensors"
    if not path.is_file():
        names = sorted(f"{PREFIX}{file.stem}" for file in ZOO.glob("*.safetensors"))
        raise InputError(f"{name}: no such included model; choose from {', '.join(names)}")
    return path


def fetch_from_hub(name: str) -> Path:
    """Return the local copy of a model on the Hub, `hf://ORG/NAME` or `hf://ORG/NAME@REVISION`."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    from skinmm.config.addresses import is_reachable

    # A path has one slash where a URL has two.
    address = name.removeprefix("hf:").strip("/")
    repository, _, revision = address.partition("@")
    is_online = not constants.HF_HUB_OFFLINE and is_reachable(constants.ENDPOINT)
    fetch = hf_hub_download if is_online else try_to_load_from_cache
    try:
        path = fetch(repository, HUB_FILE, revision=revision or None)
    except Exception as error:  # the Hub's own errors and those of its HTTP client
        raise InputError(
            f"checkpoint={HUB_PREFIX}{address}: cannot be fetched: {one_line(error)}; check the "
            "name and revision, and HF_TOKEN for a private model"
        ) from error
    if isinstance(path, str):
        return Path(path)
    raise InputError(
        f"checkpoint={HUB_PREFIX}{address}: not cached, and {constants.ENDPOINT} cannot be "
        "reached, or HF_HUB_OFFLINE is set"
    )


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path names: a file, a run folder, `zoo:NAME` or `hf://NAME`.

    In a run folder it is `final.ckpt` or `ensemble.ckpt` (runs of all folds), or else `best.ckpt`.
    """
    if str(path).startswith("hf:/"):
        return fetch_from_hub(str(path))
    path = locate_included(path)
    if not path.is_dir():
        return path
    names = (f"{FINAL}.ckpt", "ensemble.ckpt", "best.ckpt")
    files = (folder / name for folder in (path / "checkpoints", path) for name in names)
    if file := next(filter(Path.is_file, files), None):
        return file
    advice = "give a run folder or a file"
    if (path / "config.yaml").is_file():
        resume = shlex.quote(f"resume={path}")
        advice = f"if the run is unfinished, finish it: python train.py {resume}"
    raise InputError(f"checkpoint={path}: a folder without checkpoints/best.ckpt; {advice}")


def find_checkpoints(setting: Any) -> list[Path]:
    """Return the checkpoints of a path, a pattern, or a list of them, each file once."""
    files: dict[Path, None] = {}
    for name in map(str, [setting] if isinstance(setting, str) else setting or []):
        # A file of exactly that name precedes a match of its brackets.
        is_name = Path(name).exists() or name.startswith((PREFIX, HUB_PREFIX))
        paths = [name] if is_name else sorted(glob.glob(name))  # noqa: PTH207
        if not paths:
            raise InputError(
                f"checkpoint={name}: no such file, and no file matches it as a pattern"
                f"{suggest_path(name)}"
            )
        files.update(dict.fromkeys(map(find_checkpoint, map(Path, paths))))
    return list(files)


def announce_included(checkpoints: Iterable[Path]) -> None:
    """Print a line about each included model, to distinguish it from models of the user."""
    for path in checkpoints:
        if path.parent == ZOO:
            print_line(
                f"model: {PREFIX}{path.stem}, which comes with skinmm for trying and comparing; "
                f"its figures: {path.with_suffix('.md')}; your own model: checkpoint=PATH"
            )
