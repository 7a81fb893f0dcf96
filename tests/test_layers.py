"""The rooms of the package, the imports between them, and their size, read from the source.

A row of the table is a folder or a top-level file. Add an arrow together with its reason; never
turn one round. `python benchmarks/structure.py` prints the present state.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from typing import Final

import pytest
from structure import (
    ROOT,
    Edge,
    count_lines,
    draw,
    find_arrows,
    find_edges,
    find_floors,
    load_modules,
    room_of,
)

GROUND: Final = ("__init__", "errors", "files", "vocabulary")
"""Every room may import these; `__init__` has the version."""

ARROWS: Final[dict[str, tuple[str, ...]]] = {
    "__init__": (),
    "errors": (),
    "files": (),
    "vocabulary": (),
    "config": (),
    # NumPy, pandas, SciPy and scikit-learn.
    "images": (),
    "evaluation": (),
    "report": ("config", "evaluation", "images"),
    # PyTorch. Models know neither images nor data.
    "models": ("config",),
    "data": ("config", "images", "models"),  # a trained network finds the lesions to crop
    "predict": ("config", "data", "evaluation", "images", "models"),
    # Lightning. Training explains its mistakes as prediction explains any row.
    "training": ("config", "data", "evaluation", "images", "models", "predict", "report"),
    # Optional features, which the rooms above do not know.
    "segmentation": (
        *("config", "data", "evaluation", "images", "models"),
        *("predict", "report", "training"),
    ),
    "spark": ("config", "data", "images", "predict"),
    "serve": ("config", "data", "evaluation", "images", "predict", "report", "training"),
    "federated": ("config", "data", "images", "models", "training"),
    # The command line. It imports other rooms inside functions: it answers --help and refuses a
    # wrong option before they, and torch, are loaded.
    "cli": (
        *("config", "data", "images", "models", "predict", "report"),
        *("segmentation", "serve", "spark", "training"),
    ),
    # Contract tests, also for components of others.
    "testing": ("config", "data", "models"),
    "__main__": ("cli",),
    "train.py": ("cli",),
    "predict.py": ("cli",),
}
LATE: Final = {"cli": tuple(room for room in ARROWS["cli"] if room != "config")}

# Packages that are not named here may be imported anywhere.
LIGHTNING: Final = ("data.datamodule", "federated", "segmentation", "training")
ONLY_IN: Final[dict[str, tuple[str, ...]]] = {
    "hydra": ("cli.hydra_app", "cli.compose"),
    "omegaconf": ("config",),
    "pydicom": ("images", "predict.dicom_sr", "serve.dicomweb"),
    "tfrecord": ("images",),
    "timm": ("models",),
    "segmentation_models_pytorch": ("models",),
    "lightning": (),  # the same code as pytorch_lightning under a second name
    "pytorch_lightning": LIGHTNING,
    "lightning_fabric": LIGHTNING,
    "torch": (
        "data",
        "federated",
        "models",
        "predict",
        "segmentation",
        "serve",
        "testing",
        "training",
    ),
    "flwr": ("federated",),
}
LATE_PACKAGES: Final = ("tfrecord",)  # imports torch, which takes 1.7 s

MAX_ARROWS: Final = 99
MAX_FLOORS: Final = 9
MAX_FILES: Final = 200
MAX_LINES: Final = 40_210
MAX_LINES_OF_A_FILE: Final = 320


def offence(edge: Edge) -> str | None:
    """Return what is wrong with an import, or None."""
    package, _, inside = edge.target.partition(".")
    text = f"{edge.source} imports {edge.target}"
    if package != "skinmm":
        homes = ONLY_IN.get(package)
        is_outside = homes is not None and not any(
            edge.source == home or edge.source.startswith(f"{home}.") for home in homes
        )
        is_early = package in LATE_PACKAGES and not edge.late
        return text if is_outside or is_early or not package else None
    source = room_of(edge.source)
    target = "__init__" if not inside or inside.startswith("__") else room_of(inside)
    if source not in ARROWS or target not in ARROWS:
        return f"{text}: not a room of ARROWS"
    is_early = target in LATE.get(source, ()) and not edge.late
    return text if target not in {source, *GROUND, *ARROWS[source]} or is_early else None


def offences(module: str, text: str) -> list[str]:
    """Return what is wrong with the imports of a module."""
    return [line for edge in find_edges(module, ast.parse(text)) if (line := offence(edge))]


def test_every_import_is_in_the_table() -> None:
    wrong = [
        line for name, path in load_modules().items() for line in offences(name, path.read_text())
    ]
    assert wrong == []


def test_every_arrow_of_the_table_is_used() -> None:
    used = find_arrows()
    unused = [
        (room, target)
        for room, targets in ARROWS.items()
        for target in targets
        if target not in used[room]
    ]
    assert unused == []


def test_every_room_is_in_the_table() -> None:
    assert {room_of(module) for module in load_modules()} == ARROWS.keys()


def test_no_arrow_points_up() -> None:
    assert {*TopologicalSorter(ARROWS).static_order()} == ARROWS.keys()


def test_the_house_stays_small() -> None:
    arrows, lines = find_arrows(), count_lines()
    assert sum(map(len, arrows.values())) <= MAX_ARROWS
    assert max(find_floors(arrows).values()) <= MAX_FLOORS
    assert len(lines) <= MAX_FILES
    assert sum(lines.values()) <= MAX_LINES
    assert [path.name for path, n in lines.items() if n > MAX_LINES_OF_A_FILE] == []


def test_the_architecture_page_shows_the_present_rooms() -> None:
    assert draw(find_arrows()) in (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("models.fusion", "from skinmm.data.record import RecordEncoder"),
        ("models.fusion", "def block():\n    from skinmm.data import record"),
        ("report.write", "from skinmm.models import fusion"),
        ("cli.main", "from skinmm.training import fit"),
        ("elsewhere", "import skinmm"),
        ("data.splits", "from skinmm.elsewhere import thing"),
        ("data.splits", "from . import record"),
        ("images.decode", "import torch.nn as nn"),
        ("evaluation.metrics", "def auroc():\n    import torch"),
        ("training.module", "import lightning"),
        ("training.module", "import timm"),
        ("training.fit", "from hydra import compose"),
        ("config.load", "from hydra import compose"),
        ("predict.reader", "import pydicom"),
        ("images.tfrecord", "import tfrecord"),
        ("training.fold", "from skinmm.segmentation.module import SegmentationModule"),
    ],
)
def test_a_forbidden_import_is_reported(module: str, text: str) -> None:
    assert offences(module, text) != []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("cli.main", "def train():\n    from skinmm.training import fit"),
        ("images.tfrecord", "def write():\n    from tfrecord import TFRecordWriter"),
        ("images.dicom", "import pydicom"),
        ("data.splits", "from skinmm.errors import InputError"),
        ("report.write", "import skinmm"),
    ],
)
def test_an_allowed_import_is_not_reported(module: str, text: str) -> None:
    assert offences(module, text) == []


def _loads_without_torch(room: str) -> bool:
    rooms = [room]
    for below in rooms:
        early = [target for target in ARROWS[below] if target not in LATE.get(below, ())]
        rooms.extend(target for target in early if target not in rooms)
    return not set(rooms) & set(ONLY_IN["torch"])


def test_rooms_without_torch_load_without_torch() -> None:
    modules = [
        f"skinmm.{name}".removesuffix(".__init__")
        for name in load_modules()
        if not name.endswith(".py") and _loads_without_torch(room_of(name))
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
