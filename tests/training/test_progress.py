"""The progress bar in a notebook, in a real kernel."""

import pytest

CELL = """
from tqdm import tqdm
from skinmm.training.progress import NotebookLine
for _ in tqdm(range(200), file=NotebookLine(), mininterval=0, ascii=False, desc="epoch 1/1"):
    pass
for _ in tqdm(range(200), file=NotebookLine(), mininterval=0, leave=False):
    pass
"""


def test_a_bar_is_one_output_of_its_cell_and_is_removed_where_asked() -> None:
    client = pytest.importorskip("nbclient", exc_type=ImportError)
    pytest.importorskip("ipykernel", exc_type=ImportError)
    notebook = pytest.importorskip("nbformat").v4.new_notebook()
    notebook.cells = [pytest.importorskip("nbformat").v4.new_code_cell(CELL)]
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [each for each in notebook.cells[0].outputs if each.output_type == "display_data"]
    first, second = (each.data["text/plain"] for each in shown)
    assert first.startswith("epoch 1/1: 100%")
    assert "200/200" in first
    assert second == ""
