"""The container's steps, run here: the Dockerfile's make targets in a clean environment.

What was built of the images themselves: docker/README.md.
"""

import csv
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
STEP: Final = re.compile(r"^RUN make (\S+)(?: VENV=\S+)?(?: EXTRAS=(\S+))?$", flags=re.MULTILINE)
ENVIRONMENT: Final = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's make targets with their extras, in order, each once."""
    return list(dict.fromkeys(STEP.findall((ROOT / "docker" / "Dockerfile").read_text())))


def clean_environment(folder: Path) -> Path:
    """A virtual environment with this one's packages, by links, but without skinmm itself."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    ours = Path(sysconfig.get_path("purelib"))
    theirs = folder / ours.relative_to(sys.prefix)
    for entry in ours.iterdir():
        if "skinmm" not in entry.name and not (theirs / entry.name).exists():
            (theirs / entry.name).symlink_to(entry)
    return folder


def test_every_step_is_a_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    names = [name for name, _ in steps()]
    assert names[0] == "wheel"
    assert set(names) <= set(targets)


def test_nothing_runs_as_root() -> None:
    runtime = (ROOT / "docker" / "Dockerfile").read_text().partition(" AS runtime")[2]
    assert "\nUSER skinmm\n" in runtime
    assert not re.search(r"^(RUN make|USER root)", runtime, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment's bin folder, after the Dockerfile's steps were run for it."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("needs a virtual environment to copy")
    folder = tmp_path_factory.mktemp("image")
    venv = clean_environment(folder / "venv")
    for target, extras in steps():
        offline = "--no-index --no-build-isolation" if target == "wheel" else "--no-index"
        subprocess.run(
            [  # noqa: S607
                "make",
                target,
                f"PYTHON={sys.executable}",
                f"VENV={venv}",
                f"DIST={folder / 'dist'}",
                f"EXTRAS={extras}",
                f"PIP_ARGS={offline}",
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            check=True,
        )
    return venv / "bin"


def run(cwd: Path, *command: str | Path) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def test_the_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(tmp_path, installed / "python", "-c", "import skinmm; print(skinmm.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_installed_command_trains_and_predicts(installed: Path, tmp_path: Path) -> None:
    (demo,) = installed.parent.glob("lib/python*/site-packages/skinmm/demo")
    cohort = (demo / "cohort.csv").read_text().splitlines()
    (tmp_path / "patients.csv").write_text("\n".join(cohort[:4]) + "\n")
    train = ("model=tiny", "trainer.max_epochs=1", "data.limit=32", "hydra.run.dir=run")
    run(tmp_path, installed / "skinmm", "train", *train)
    predict = ("input=patients.csv", f"images={demo / 'images'}", "output=predictions.csv")
    run(tmp_path, installed / "skinmm", "predict", "checkpoint=run/checkpoints/best.ckpt", *predict)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == [line.partition(",")[0] for line in cohort[1:4]]
    assert all(0 <= float(row["malignancy"]) <= 1 for row in rows)
