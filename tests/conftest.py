"""What tests share: where the real cohorts are, and which tests this machine cannot run."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings

# Before torch is imported, for this process and those that it starts: sums over one thread are the
# same everywhere, and on a busy machine the threads of a micro-model wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# jaxtyping evaluates annotations here, and only here; `pd.Series[Any]` is a type from pandas 3 on.
if not hasattr(pd.Series, "__class_getitem__"):
    setattr(pd.Series, "__class_getitem__", classmethod(lambda cls, _: cls))  # noqa: B010

# A busy machine is no failure, and the same code gets the same examples: a change is judged by what
# it changes. New examples are for those who look for them: pytest --hypothesis-profile=exploring.
settings.register_profile("exploring", deadline=None, max_examples=200)
settings.register_profile("same", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("same")


def _real_data() -> Path | None:
    named = os.environ.get("SKINMM_DATA")
    return Path(named).resolve() if named and Path(named).is_dir() else None


@pytest.fixture(scope="session")
def skinmm_data() -> Path:
    """The folder of the real cohorts; a test that asks for it is marked `realdata`."""
    folder = _real_data()
    if folder is None:
        pytest.skip("SKINMM_DATA names no folder of real cohorts")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; modules that ask for it skip their tests without the two."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        executable = shutil.which("chromium")
        opened = engine.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine has not the data or the device for."""
    if item.get_closest_marker("realdata") and _real_data() is None:
        pytest.skip("SKINMM_DATA names no folder of real cohorts")
    if item.get_closest_marker("postgres") and not os.environ.get("SKINMM_POSTGRES"):
        pytest.skip("SKINMM_POSTGRES names no server")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def pictures() -> Path:
    """The included cohort's images."""
    return Path(__file__).parents[1] / "skinmm" / "demo" / "images"


def _trained(factory: pytest.TempPathFactory, name: str, *overrides: str) -> Path:
    from quick_runs import quick_train

    run = factory.mktemp("runs") / name
    assert quick_train(run, "data.limit=48", *overrides) == 0
    return run


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at image and record."""
    return _trained(tmp_path_factory, "both")


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, on larger images alone."""
    return _trained(
        tmp_path_factory, "larger", "fusion=image_only", "seed=1", "model.image_size=48"
    )


@pytest.fixture(scope="session")
def record_table(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A folder, named as a person may name it, with the embedded table and no image."""
    root = tmp_path_factory.mktemp("records") / "Läsionen (1) = a, b [neu] #2"
    root.mkdir()
    shutil.copy(pictures.parent / "cohort.csv", root)
    return root


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks at the record alone."""
    return _trained(tmp_path_factory, "records", "fusion=tabular_only")


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of the included model and a copy with other calibration, limits and decisions."""
    import torch
    from exported_page import ZOO

    from skinmm.models.checkpoint import load_card, save_ensemble

    folder = tmp_path_factory.mktemp("networks")
    card, _ = load_card(ZOO)
    assert card.calibration is not None
    assert card.conformal is not None
    changed = {
        "calibration": {**card.calibration, "state": {"scale": 0.9, "shifts": [0.3, 0.0]}},
        "conformal": {**card.conformal, "limits": {"benign": 0.2, "malignant": 0.6}},
        "threshold": {**(card.threshold or {}), "value": 0.3},
    }
    save_ensemble([ZOO], folder / "other.ckpt", **changed)
    save_ensemble([ZOO], folder / "same.ckpt")
    members = [torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("same", "other")]
    torch.save({"members": members}, folder / "ensemble.ckpt")
    return folder / "ensemble.ckpt"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page exported from the included model."""
    from exported_page import ZOO, export

    return export(ZOO, tmp_path_factory.mktemp("site") / "page")


@pytest.fixture(scope="module")
def page(browser: Any, site: Path) -> Iterator[Any]:
    """The exported page in a tab of Chromium."""
    from exported_page import Page, Server

    server = Server(site)
    opened = Page(browser, server.address)
    yield opened
    opened.context.close()
    server.stop()
