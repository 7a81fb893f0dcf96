"""The documentation site: generated pages are complete, links lead somewhere, answers are near."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from quick_runs import ROOT

from skinmm.cli.main import COMMANDS

pytest.importorskip("mkdocs")
ANSWERS = {"readme.html", "metrics.html", "plugins.html", "serving.html"}


@pytest.fixture(scope="module")
def generate() -> Any:
    """The module that makes pages."""
    path = ROOT / "docs" / "site" / "generate.py"
    spec = importlib.util.spec_from_file_location("site_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_metric_has_an_entry_and_every_entry_a_metric(generate: Any) -> None:
    text = (ROOT / "docs" / "site" / "metrics.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)["metrics"]
    page = generate.format_metrics()
    assert [name for name in entries if f"| `{name}`<br>" not in page] == []
    assert all({"group", "definition", "formula"} <= entry.keys() for entry in entries.values())


def test_the_settings_page_has_every_command(generate: Any) -> None:
    page = generate.format_settings()
    assert re.findall(r"^## skinmm (.+)$", page, re.MULTILINE) == [*COMMANDS]
    assert "| `evaluation.sensitivity` | `0.95` | target of threshold=sensitivity |" in page


def test_every_page_of_the_folder_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {*re.findall(r": ([\w-]+\.md)$", navigation, re.MULTILINE)}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_answers_are_near(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reached, pages = {"index.html"}, {"index.html"}
    for _ in range(3):
        texts = [(tmp_path / page).read_text(encoding="utf-8") for page in pages]
        found = {name for text in texts for name in re.findall(r'href="([\w-]+\.html)', text)}
        pages, reached = found - reached, reached | found
    assert reached >= ANSWERS
    figures = (tmp_path / "figures.html").read_text(encoding="utf-8")
    assert figures.count('<svg role="img"') >= 6
