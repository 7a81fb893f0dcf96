"""Pages in Chromium: axe finds nothing, nothing is wider than the screen, folds open."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", exc_type=ImportError)

from report_cases import make_run

from skinmm.cli.main import main
from skinmm.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here"),
]
PAGES = ("report", "explore", "audit", "compare", "preview")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages of the included cohort."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder)
    shutil.move(write_report(run), folder / "report.html")
    assert main(["explore", "data=demo", f"output={folder / 'explore.html'}"]) == 0
    assert main(["audit", "data=demo", f"output={folder / 'audit'}"]) == 0
    shutil.move(folder / "audit" / "audit.html", folder / "audit.html")
    file = run / "predictions" / "test.csv"
    assert main(["compare", str(run), str(file), f"output={folder / 'compare.html'}"]) == 0
    quick = ["data=demo", "model=tiny", "examples=3"]
    assert main(["preview", *quick, f"output={folder / 'preview.html'}"]) == 0
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_and_fits(
    browser: Any, folder: Path, name: str, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto((folder / f"{name}.html").as_uri())
    if width == 1200:
        assert page.evaluate("document.documentElement.scrollHeight") < 6 * 800
    page.evaluate("document.querySelectorAll('details').forEach((fold) => fold.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    violations = Axe().run(page).response["violations"]
    assert {each["id"]: each["nodes"][0]["html"][:200] for each in violations} == {}
    page.close()


def test_a_link_and_print_open_what_is_folded(browser: Any, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto((folder / "report.html").as_uri())
    table = page.locator("#tripod table")
    assert not table.is_visible()
    height = "element => element.getBoundingClientRect().height"
    page.emulate_media(media="print")
    assert table.evaluate(height) > 1000
    assert page.locator("#configuration pre").evaluate(height) > 100
    page.emulate_media(media="screen")
    page.get_by_role("link", name="TRIPOD+AI 2024").click()
    assert table.is_visible()
    page.close()
