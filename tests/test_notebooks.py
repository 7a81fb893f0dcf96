"""The notebooks of examples/ run from top to bottom, and are committed without outputs.

`make test-notebooks` runs them: they train on the included cohort and take minutes.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from quick_runs import ROOT

NOTEBOOKS: Final = sorted((ROOT / "examples").glob("*.ipynb"))
MINUTES: Final = 10


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks_for_every_journey() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["evaluate_predictions", "fusion_study", "own_data", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_has_an_install_cell(path: Path) -> None:
    cells = code(path)
    assert [cell["outputs"] for cell in cells if cell["outputs"]] == []
    assert "pip install" in "".join(cells[0]["source"])
    assert path.stat().st_size < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=60 * MINUTES, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert "<svg" in shown
    assert "Traceback" not in json.dumps(outputs)
