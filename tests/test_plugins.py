"""Components of others: from an installed package, a file, or Python; never from a checkpoint."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pandas as pd
import pytest
from quick_runs import QUICK, ROOT, best

import skinmm
from skinmm.config import registry
from skinmm.config.registry import load_plugins, register, require_sources
from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS, Concat

CODE: Final = '''
"""A fusion block, a loss and a dataset."""

from pathlib import Path

import pandas as pd
import torch

from skinmm.data.cohorts.public import demo
from skinmm.models.fusion import Fusion
from skinmm.training.losses import CrossEntropy


class Scaled(Fusion):
    """The record scales the image."""

    def __init__(self, image_dim: int, record_dim: int, width: int = 8) -> None:
        super().__init__(width)
        self.image = torch.nn.Linear(image_dim, width)
        self.record = torch.nn.Linear(record_dim, width)

    def forward(self, image, record):
        from skinmm.errors import InputError

        for name, value in (("image", image), ("record", record)):
            if value is None:
                raise InputError(f"this model needs the {name}")
        return self.image(image) * (1 + self.record(record))


class Halved(CrossEntropy):
    """Half of the cross-entropy."""

    def forward(self, logits, target):
        return super().forward(logits, target) / 2


def clinic(data, prefix: str = ""):
    """The included cohort under other names."""
    return demo(data)
'''
ENTRY_POINTS: Final = """
[skinmm.fusions]
scaled = acme_derm:Scaled
[skinmm.losses]
halved = acme_derm:Halved
[skinmm.adapters]
clinic = acme_derm:clinic
"""
CHECKS: Final = """
from acme_derm import Halved, Scaled, clinic
from skinmm.testing import check_adapter, check_fusion, check_loss
check_fusion(Scaled)
check_loss(Halved)
check_adapter(clinic)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that sees this package and its requirements."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    paths = f"{ROOT}\n{sysconfig.get_path('purelib')}\n"
    site = next(folder.glob("lib/python3*/site-packages"))
    (site / "skinmm_source.pth").write_text(paths)
    return folder / "bin" / "python"


def install(python: Path) -> list[Path]:
    """Install a package, as an installer unpacks its wheel; return its folders."""
    site = next(python.parents[1].glob("lib/python3*/site-packages"))
    (site / "acme_derm").mkdir()
    (site / "acme_derm" / "__init__.py").write_text(CODE)
    info = site / "acme_derm-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-derm\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "top_level.txt").write_text("acme_derm\n")
    return [site / "acme_derm", info]


def call(python: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(python), *words],
        cwd=python.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.slow
def test_a_package_adds_components_and_its_checkpoint_needs_it(
    python: Path, tmp_path: Path
) -> None:
    folders, run = install(python), tmp_path / "run"
    done = call(python, "-c", CHECKS)
    assert done.returncode == 0, done.stderr
    words = [*QUICK, "data=clinic", "data.limit=48", "fusion=scaled", "+fusion.args.width=4"]
    words += ["loss=halved", f"hydra.run.dir={run}"]
    done = call(python, "-m", "skinmm", "train", *words)
    assert done.returncode == 0, done.stderr
    exported = call(python, "-m", "skinmm", "export", f"checkpoint={run}", "rows=4")
    assert exported.returncode == 0, exported.stderr
    demo = ROOT / "skinmm" / "demo"
    predict = ["-m", "skinmm", "predict", f"checkpoint={run}", f"images={demo / 'images'}"]
    predict += [f"input={demo / 'patients.csv'}", "backend=torch", f"output={tmp_path / 'p.csv'}"]
    done = call(python, *predict)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(tmp_path / "p.csv")["p_malignant"].notna().all()
    for folder in folders:
        folder.rename(tmp_path / folder.name)
    refused = call(python, *predict, "overwrite=true")
    assert refused.returncode == 2
    assert "fusion 'scaled' of the package acme-derm 1.2 is missing" in refused.stderr
    assert "pip install 'acme-derm==1.2'" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[Path]:
    """A file that registers a block."""
    file = tmp_path / "my blocks.py"
    file.write_text(f"{CODE}\nimport skinmm\nskinmm.register_fusion('of_a_file', Scaled)\n")
    yield file
    registry._registered["fusion"].pop("of_a_file", None)
    for name in [name for name in sys.modules if name.startswith("skinmm_plugin_")]:
        del sys.modules[name]


def test_a_file_adds_a_block_and_is_named_again_to_predict(
    blocks: Path, tmp_path: Path, pictures: Path
) -> None:
    plugins = f"plugins=['{blocks}']"
    words = [word for word in QUICK if not word.startswith("trainer=")]
    run = skinmm.fit(
        *words, plugins, "fusion=of_a_file", "data.limit=48", trainer="debug", output=tmp_path / "r"
    )
    del registry._registered["fusion"]["of_a_file"]
    for name in [name for name in sys.modules if name.startswith("skinmm_plugin_")]:
        del sys.modules[name]
    with pytest.raises(InputError, match=r"of the file my blocks.py is missing: give plugins=\["):
        run.predictor()
    with pytest.raises(InputError, match="give its plugins"):
        skinmm.fit(resume=str(run.path))
    load_plugins([str(blocks)])
    load_plugins([str(blocks)])  # once
    rows = skinmm.load_cohort().head(2)
    assert run.predictor().predict(rows, pictures)["p_malignant"].notna().all()
    assert best(run.path).is_file()


def test_a_checkpoint_runs_no_file_that_it_names(blocks: Path) -> None:
    part = {"kind": "fusion", "name": "of_a_file", "file": str(blocks)}
    with pytest.raises(InputError, match="is missing"):
        require_sources(Path("a.ckpt"), [part])
    assert "of_a_file" not in FUSIONS


def test_names_that_are_in_use_are_refused(blocks: Path) -> None:
    with pytest.raises(InputError, match=r"fusion 'concat' of a Python session has the name of a"):
        register("fusion", "concat", type("Mine", (Concat,), {"__module__": "__main__"}))
    assert FUSIONS["concat"] is Concat
    load_plugins([str(blocks)])
    assert "of_a_file" in FUSIONS
    with pytest.raises(InputError, match=r"fusion 'of_a_file' of the file my blocks.py and fusion"):
        register("fusion", "of_a_file", type("Mine", (Concat,), {"__module__": "__main__"}))


def test_losses_and_data_of_others_do_not_bind_a_checkpoint() -> None:
    source = {"name": "gone", "package": "acme-derm", "version": "1.2"}
    require_sources(Path("a.ckpt"), [{"kind": "loss", **source}])
    with pytest.raises(InputError, match=r"'gone' .* is missing: pip install 'acme-derm==1.2'"):
        require_sources(Path("a.ckpt"), [{"kind": "fusion", **source}])


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such Python file"), ("1/0", "division by zero")]
)
def test_a_file_that_cannot_be_run_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "broken.py"
    if text:
        file.write_text(text)
    with pytest.raises((InputError, ZeroDivisionError), match=message):
        load_plugins([str(file)])
