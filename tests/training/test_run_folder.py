"""The run folder: refused, cleared, written whole."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from quick_runs import ROOT, files_in

from skinmm.config import Config
from skinmm.errors import InputError
from skinmm.training import run_folder

OTHER = {"notes.txt", "fold_notes/a.txt"}


def folder(path: Path, *, overwrite: bool = False) -> run_folder.RunFolder:
    return run_folder.RunFolder(path, Config(overwrite=overwrite))


def filled(folder: Path) -> Path:
    """A folder with a run, and with files that are not a run's."""
    for name in (*run_folder.CONTENTS, "fold_0/metrics.json", "fold_11/config.yaml", *OTHER):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("{}")
        else:
            path.mkdir()
            (path / "file").touch()
    return folder


@pytest.mark.parametrize("name", [*run_folder.CONTENTS, "fold_0"])
def test_any_part_of_a_run_makes_a_folder_one_in_use(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"contains a run; choose another hydra\.run\.dir"):
        folder(tmp_path).require_unused()


def test_a_folder_without_a_run_is_free(tmp_path: Path) -> None:
    for overwrite in (False, True):
        folder(tmp_path / "new", overwrite=overwrite).require_unused()
        (tmp_path / "notes.txt").touch()
        folder(tmp_path, overwrite=overwrite).require_unused()
    assert files_in(tmp_path) == {"notes.txt"}


def test_only_a_run_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()  # somebody's folder of that name
    with pytest.raises(InputError, match=r"no config\.yaml\), but contains predictions"):
        folder(tmp_path, overwrite=True).require_unused()
    folder(filled(tmp_path / "run"), overwrite=True).require_unused()


def test_clearing_takes_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder(filled(tmp_path)).prepare()
    assert files_in(tmp_path) == OTHER | {"config.yaml"}
    folder(tmp_path / "new" / "run").prepare()
    assert files_in(tmp_path / "new" / "run") == {"config.yaml"}


def test_json_is_readable_and_never_holds_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    run_folder.write_json(path, {"schema": 1, "site": "Fuß", "auroc": None})
    assert json.loads(path.read_text(encoding="utf-8")) == run_folder.read_metrics(tmp_path)
    assert "Fuß" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_folder.write_json(path, {"auroc": math.nan})
    assert run_folder.read_metrics(tmp_path)["schema"] == 1
    assert files_in(tmp_path) == {"metrics.json"}


def test_the_cohort_keeps_its_rows_and_missing_cells(tmp_path: Path) -> None:
    cohort = pd.DataFrame({"image_id": ["a", "b"], "age": [1 / 3, None], "sex": [None, "male"]})
    run_folder.write_cohort(tmp_path, cohort)
    assert (tmp_path / "cohort.csv").read_text() == "image_id,age,sex\na,0.333333333,\nb,,male\n"


def test_the_environment_names_the_command_as_it_was_typed() -> None:
    code = (
        "from skinmm.training.run_folder import environment; print(environment('cpu')['command'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "data.root=a b"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([Path(sys.executable).name, "-c", code, "data.root=a b"])
    environment = run_folder.environment("cpu")
    assert environment["device"] == "cpu"
    assert environment["packages"].keys() == {*run_folder.PACKAGES}
    assert all(environment["packages"].values())
