"""The direction of the import arrows, read from the source: an edge that no table names fails.

The tables restate the design. An arrow is added together with its reason, and never turned round.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]

# A room is a module, a package with all that is in it, or modules that share a name before "_".
EVERYONES: Final = ("errors", "writing", "config", "__init__")  # __init__ holds the version

ARROWS: Final[dict[str, tuple[str, ...]]] = {
    "__init__": (),
    "errors": (),
    "writing": (),
    "config": (),
    # NumPy and pandas only.
    "data.__init__": (),
    "data.vocabulary": (),
    "data.record": ("data.vocabulary",),
    "data.decode": ("data.vocabulary",),  # a DICOM header knows the patient's age, sex and site
    "data.tfrecord": (),
    "data.splits": (),
    "data.preprocess": (),
    "data.source": ("data.tfrecord",),
    "data.headers": ("data.vocabulary", "data.source", "data.decode"),
    "data.catalog": (
        "data.vocabulary",
        "data.record",
        "data.headers",
        "data.source",
        "data.tfrecord",
        "data.splits",  # public folds and challenge parts come with the tables
        "evaluation",  # columns that can be measured
    ),
    "data.audit": ("data.record", "data.decode", "data.splits"),
    "evaluation": ("data.vocabulary",),  # a prediction file may name classes in other words
    "report": ("data.vocabulary", "data.source", "data.decode", "evaluation"),  # never models
    "wording": (),
    # PyTorch. Models and losses never import data.
    "data.sampling": (),
    "data.transforms": (),
    "data.dataset": ("data.source", "data.decode", "data.preprocess", "data.transforms"),
    "models": ("checkpoint",),  # a network may start from a finished run's
    "losses": (),
    "checkpoint": (),
    "segmentation": (
        "checkpoint",
        "data.decode",
        "data.preprocess",
        "data.source",
        "evaluation",  # what a lesion measures
        "models",
    ),
    # Lightning.
    "data.datamodule": (
        "segmentation",  # the network that finds lesions for the steps of preprocessing
        "evaluation",  # names what it measures
        "data.pack_manifest",  # what a pack's images have been through
        "data.catalog",
        "data.dataset",
        "data.preprocess",
        "data.loading",
        "data.record",
        "data.sampling",
        "data.splits",
        "data.transforms",
    ),
    "optimization": (),
    "mixing": (),
    "module": ("checkpoint", "losses", "mixing", "models", "optimization"),
    # The composition root, in files by purpose; train.py is all that starts it.
    "callbacks": ("checkpoint",),
    "averaging": ("checkpoint",),
    "launch": (),
    "tracking": ("evaluation", "report", "runs"),
    "loop": ("averaging", "callbacks", "data.datamodule", "launch", "module", "tracking"),
    "runs": (),
    "judge": ("evaluation",),
    "training": (
        "callbacks",
        "checkpoint",
        "data.dataset",
        "data.audit",
        "data.datamodule",
        "data.sampling",
        "data.splits",
        "data.transforms",
        "evaluation",
        "judge",
        "launch",
        "loop",
        "losses",
        "mixing",
        "models",
        "module",
        "optimization",
        "predict",  # explains a run's mistakes in its report as it explains any prediction
        "data.source",
        "report",
        "runs",
        "segmentation",  # a run's folds and restarts find lesions with the same network
    ),
    # Prediction, and thin skins over it.
    "explain": ("data.record", "data.vocabulary", "models"),
    "predict": (
        "checkpoint",
        "data.dataset",
        "data.decode",  # what a mask is drawn on
        "data.headers",  # the table's gaps are filled as in training
        "data.preprocess",
        "data.record",
        "data.source",
        "data.tfrecord",  # a folder of shards is a table
        "data.vocabulary",
        "evaluation",
        "explain",
        "models",
        "segmentation",
    ),
    "data.loading": (),
    "data.pack_manifest": (),
    "data.pack": (
        "data.decode",
        "data.pack_manifest",
        "data.preprocess",
        "data.tfrecord",
        "data.vocabulary",
        "segmentation",  # finds the lesion, for the steps that need it
    ),
    "export": ("evaluation", "predict"),  # the calibration becomes part of the graph
    "spark": ("data.pack", "data.pack_manifest", "data.source", "evaluation", "predict"),
    "dicom_result": (
        "data.source",
        "data.vocabulary",
        "predict",
        "serve",  # the model card, and what is said beside a prediction
    ),
    "serve": (
        "data.decode",  # an upload's header, before anything is decoded
        "data.source",
        "data.vocabulary",
        "predict",
        "store",
    ),
    "store": (),
    "feedback": ("evaluation", "predict", "report", "runs", "store"),
    "cli": (),
    "train.py": ("cli",),
    "predict.py": ("cli",),
}

# Arrows that are allowed inside functions only: the command line answers --help and refuses
# a wrong option before any of these, and what they import, is loaded.
LATE_ARROWS: Final[dict[str, tuple[str, ...]]] = {
    "cli": (
        "data.audit",
        "data.catalog",
        "data.pack",
        "data.pack_manifest",
        "data.source",
        "data.splits",
        "dicom_result",
        "export",
        "feedback",
        "launch",
        "predict",
        "report",
        "runs",
        "serve",
        "spark",
        "training",
        "wording",
    ),
}

# A package that is not named here may be imported anywhere.
LIGHTNING: Final = ("data.datamodule", "module", "callbacks", "averaging", "loop", "training")
ONLY_IN: Final[dict[str, tuple[str, ...]]] = {
    "hydra": ("cli", "train.py", "predict.py"),
    "omegaconf": ("config",),
    "pydicom": ("data.decode", "dicom_result"),
    "tfrecord": ("data.tfrecord",),
    "timm": ("models.backbone", "models.segmentation"),
    "segmentation_models_pytorch": ("models.segmentation",),
    "lightning": (),  # the same code as pytorch_lightning under a second name
    "pytorch_lightning": LIGHTNING,
    "lightning_fabric": LIGHTNING,
    "torch": (
        *LIGHTNING,
        "data.sampling",
        "data.transforms",
        "data.loading",
        "data.dataset",
        "models",
        "losses",
        "mixing",
        "optimization",
        "checkpoint",
        "segmentation",
        "launch",
        "runs",
        "explain",
        "predict",
        "serve",
        "export",
    ),
}
LATE_PACKAGES: Final = ("tfrecord",)  # it imports torch, which takes 1.7 s


class Edge(NamedTuple):
    """One import: who, what (dotted, with the imported name), and whether inside a function."""

    source: str
    target: str
    late: bool


def _is_late(node: ast.AST) -> bool:
    """Whether what is below the node does not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def edges(source: str, node: ast.AST, *, late: bool = False) -> Iterator[Edge]:
    """Every import below a syntax node of the module `source`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Edge(source, alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield from (Edge(source, f"{base}.{alias.name}", late) for alias in child.names)
        else:
            yield from edges(source, child, late=late or _is_late(child))


def within(module: str, rooms: Iterable[str]) -> str | None:
    """The room, the narrowest of those given, in which a module is."""
    return max(
        (room for room in rooms if module == room or module.startswith((f"{room}.", f"{room}_"))),
        key=len,
        default=None,
    )


def offence(edge: Edge) -> str | None:
    """What is wrong with an import; None if nothing is."""
    package, _, inside = edge.target.partition(".")
    if package != "skinmm":
        wrong = package in ONLY_IN and not within(edge.source, ONLY_IN[package])
        early = package in LATE_PACKAGES and not edge.late
        relative = not package
        return f"{edge.source} imports {edge.target}" if wrong or early or relative else None
    room = within(edge.source, ARROWS)
    target = "__init__" if not inside or inside.startswith("__") else within(inside, ARROWS)
    if room is None or target is None:
        return f"{edge.source} -> {inside}: not a room of ARROWS"
    allowed = {room, *EVERYONES, *ARROWS[room], *(LATE_ARROWS.get(room, ()) if edge.late else ())}
    return None if target in allowed else f"{edge.source} -> {inside}"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, and the two entry points."""
    package = ROOT / "skinmm"
    found = {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
    }
    return found | {path.name: path for path in (ROOT / "train.py", ROOT / "predict.py")}


def offences(module: str, text: str) -> list[str]:
    """Everything that is wrong with a module's imports."""
    found = map(offence, edges(module, ast.parse(text)))
    return [line for line in found if line is not None]


def test_every_arrow_is_in_the_table() -> None:
    wrong = [line for name, path in modules().items() for line in offences(name, path.read_text())]
    assert wrong == []


def test_every_arrow_is_used() -> None:
    used = {
        (within(name, ARROWS), within(edge.target.partition(".")[2], ARROWS))
        for name, path in modules().items()
        for edge in edges(name, ast.parse(path.read_text()))
        if edge.target.startswith("skinmm.")
    }
    arrows = [*ARROWS.items(), *LATE_ARROWS.items()]
    named = [(room, target) for room, targets in arrows for target in targets]
    assert [arrow for arrow in named if arrow not in used] == []


def test_every_module_has_a_room() -> None:
    assert [name for name in modules() if within(name, ARROWS) is None] == []


def test_no_arrow_points_back() -> None:
    below = {room: (*ARROWS[room], *LATE_ARROWS.get(room, ())) for room in ARROWS}
    assert {*TopologicalSorter(below).static_order()} == ARROWS.keys()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("models.fusion", "from skinmm.data.record import RecordEncoder"),
        ("models.fusion", "def block():\n    from skinmm.data import record"),
        ("report.page", "from skinmm.models import fusion"),
        ("cli", "from skinmm.training.fit import fit"),
        ("elsewhere", "import skinmm"),
        ("data.splits", "from skinmm.elsewhere import thing"),
        ("data.splits", "from . import record"),
        ("data.splits", "import torch.nn as nn"),
        ("evaluation.metrics", "def auroc():\n    import torch"),
        ("module", "import lightning"),
        ("models.fusion", "import timm"),
        ("training", "from hydra import compose"),
        ("predict.reader", "import pydicom"),
        ("data.tfrecord_format", "import tfrecord"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, text: str) -> None:
    assert offences(module, text) != []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("cli", "def train():\n    from skinmm.training.fit import fit"),
        ("data.tfrecord_format", "def write():\n    from tfrecord import TFRecordWriter"),
        ("data.decode_dicom", "import pydicom"),
        ("data.splits", "from skinmm.errors import InputError"),
        ("report.page", "import skinmm"),
    ],
)
def test_an_allowed_import_is_not(module: str, text: str) -> None:
    assert offences(module, text) == []


def _loads_no_torch(room: str) -> bool:
    below = [room]
    for seen in below:
        below.extend(below_it for below_it in ARROWS[seen] if below_it not in below)
    return not any(within(each, ONLY_IN["torch"]) for each in below)


def test_rooms_above_no_torch_load_without_it() -> None:
    free = [
        f"skinmm.{name}".removesuffix(".__init__")
        for name in modules()
        if not name.endswith(".py") and _loads_no_torch(within(name, ARROWS) or "models")
    ]
    code = f"import sys, {', '.join(free)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
