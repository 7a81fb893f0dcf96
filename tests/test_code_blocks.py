"""Python blocks of README and docs run on the included cohort; names in sentences exist."""

import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from quick_runs import ROOT, best, quick_train

from skinmm.config.registry import GROUPS

PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT: Final = {page: page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS: Final = {
    page.name: blocks
    for page, text in TEXT.items()
    if (blocks := re.findall(r"^```(?:python|py)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
}
SMALLER: Final = {
    '"data=csv", "data.root=DIR", model="effnet_b0"': (
        '"data=csv", "data.root=DIR", "evaluation.resamples=20", '
        '"report.explain=false", model="tiny"'
    ),
    '"max_epochs": 5': '"max_epochs": 1',
    "range(3)": "range(1)",
}
"""What a page says -> what takes seconds."""
MAIN: Final = "\n[each() for name, each in [*globals().items()] if name.startswith('test_')]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages assume: a table with images in DIR, and a finished run."""
    path = tmp_path_factory.mktemp("reader")
    demo = ROOT / "skinmm" / "demo"
    (path / "skinmm").mkdir()
    (path / "skinmm" / "demo").symlink_to(demo)
    shutil.copytree(demo / "images", path / "DIR" / "images")
    (path / "DIR" / "cohort.csv").write_bytes((demo / "cohort.csv").read_bytes())
    run = path / "runs" / "demo"
    assert quick_train(run, "data.limit=48") == 0
    best(run).with_name("ensemble.ckpt").write_bytes(best(run).read_bytes())
    return path


@pytest.mark.parametrize("page", BLOCKS)
def test_python_blocks_run(page: str, folder: Path) -> None:
    scripts = []
    for number, block in enumerate(BLOCKS[page]):
        code = block
        for text, smaller in SMALLER.items():
            code = code.replace(text, smaller)
        name = re.match(r"# (\w+\.py)\n", block)
        script = folder / (name[1] if name else f"block_{Path(page).stem}_{number}.py")
        scripts.append(code if not name else f"import {script.stem}\n")
        script.write_text(code, encoding="utf-8")
    (folder / "page.py").write_text("\n".join([*scripts, MAIN]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    used = [text for text in SMALLER if any(text in block for block in BLOCKS[page])]
    assert used or page != "python.md", "SMALLER no longer matches the page"


def test_names_in_sentences_exist() -> None:
    pattern = r"`(skinmm(?:\.[A-Za-z_]+)+)(?=[`(])"
    names = {name for text in TEXT.values() for name in re.findall(pattern, text)}
    names -= {*GROUPS.values()}  # of entry points
    assert {"skinmm.fit", "skinmm.register_fusion"} <= names
    for name in names:
        pkgutil.resolve_name(name)
