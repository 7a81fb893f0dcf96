"""The page in Chromium, on a desktop and a phone: upload, result, education, refusals."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("gradio", exc_type=ImportError)
pytest.importorskip("playwright.sync_api", exc_type=ImportError)

from playwright.sync_api import expect
from quick_runs import best
from served import process

from skinmm.serve.forms import MAX_IMAGE
from skinmm.vocabulary import SITES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here"),
]
SCREENSHOTS = os.environ.get("SKINMM_SCREENSHOTS")  # a folder for who wants to look


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def address(both: Path, folder: Path) -> Iterator[str]:
    """A service of its own process, until the tests are over."""
    before = uploads()
    with process(best(both), f"store={folder / 'cases.db'}", TMPDIR=str(folder)) as running:
        yield running.address
    assert uploads() <= before


def uploads() -> set[Path]:
    """The folders of all services that run."""
    return {*Path("/dev/shm").glob("skinmm-page-*")}  # noqa: S108


def kept() -> list[Path]:
    """What uploads left."""
    files = [path for each in uploads() for path in each.rglob("*")]
    return [path for path in files if path.is_file() and path.stat().st_size]


def test_gradio_tells_nobody_and_offers_nothing_else(address: str) -> None:
    with urlopen(f"{address}/config", timeout=30) as answer:  # noqa: S310
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}


def looked_at(page: Any, name: str) -> None:
    """Nobody is kept out: axe-core finds no serious violation, and nothing is cut off."""
    from axe_playwright_python.sync_playwright import Axe

    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)
    found = Axe().run(page).response["violations"]
    serious = {
        each["id"]: [node["html"][:200] for node in each["nodes"]]
        for each in found
        if each["impact"] in ("serious", "critical")
    }
    assert serious == {}, f"{name}: {serious}"
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_lesion_is_judged(
    browser: Any, address: str, pictures: Path, folder: Path, width: int, dark: bool
) -> None:
    scheme, size = "dark" if dark else "light", {"width": width, "height": 900}
    page = browser.new_page(viewport=size, color_scheme=scheme)
    name = f"{width}-{scheme}"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    judge = page.get_by_role("button", name="Analyse this lesion")
    judge.wait_for(timeout=60_000)
    assert page.get_by_label("Age, years").input_value() == ""
    point_at_a_body(page)
    chosen = page.locator("input[type=file]")
    broken = folder / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 broken")
    lesion = pictures / "ISIC_0000166.jpg"
    steps = (
        (broken, "", "the image cannot be used"),
        (lesion, "old", "'old' is not a number"),
        (None, "63", "Not provided: sex, site."),  # the upload stays
        (None, "", "Not provided: age, sex, site."),
    )
    for file, age, words in steps:
        if file:
            chosen.set_input_files(str(file))
            page.get_by_text(file.stem).first.wait_for()
        page.get_by_label("Age, years").fill(age)
        judge.click()
        answer = page.locator(".refusal, .result").filter(has_text=words)
        answer.wait_for(timeout=60_000)
        expect(answer).to_be_in_viewport(ratio=0.01)
        stays = file is not broken
        page.get_by_text((file or lesion).stem).first.wait_for(
            state="visible" if stays else "detached", timeout=60_000
        )
        assert broken.name not in [path.name for path in kept()]
        assert not stays or [path.name for path in kept()] == [lesion.name]
    assert page.locator(".result img").count() == 2
    assert page.get_by_text("Research use only").first.is_visible()
    looked_at(page, f"{name}-result")
    number = page.locator(".result").get_by_text("Saved as case").locator("b").inner_text()
    open_tab(page, "Diagnosis")
    page.get_by_label("Case").fill(number)
    page.get_by_label("benign").check()
    page.get_by_role("button", name="Save").click()
    page.get_by_text(f"Case {number}: benign").wait_for(timeout=60_000)
    looked_at(page, f"{name}-verdict")
    for tab, words in (("Learn", "The ABCDE rule"), ("Model", "Model card")):
        open_tab(page, tab)
        page.get_by_text(words).wait_for()
        looked_at(page, f"{name}-{tab.lower()}")
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
    page.close()


def point_at_a_body(page: Any) -> None:
    """The drawing chooses in the list, by mouse and by keyboard, and shows what the list says."""
    sites = page.get_by_label("Site", exact=True)
    page.locator(".body [data-site=torso]").last.click()  # on the back
    expect(sites).to_have_value("torso")
    group = page.get_by_role("radiogroup", name="Site on a body")
    expect(group.locator("[tabindex='0']")).to_have_count(1)
    radios = [part.get_attribute("data-site") for part in group.get_by_role("radio").all()]
    after = radios[(radios.index("torso") + 1) % len(radios)]
    group.locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    expect(sites).to_have_value(str(after))
    expect(group.get_by_role("radio", name=str(after))).to_be_focused()
    expect(group.locator("[aria-checked=true]")).to_have_count(1)
    expect(group.locator("[tabindex='0']")).to_have_count(1)
    assert {part.get_attribute("data-site") for part in page.locator(".body g").all()} == {*SITES}
    sites.click()
    page.get_by_role("option", name="not stated").click()
    expect(page.locator(".body .chosen")).to_have_count(0)


def open_tab(page: Any, name: str) -> None:
    """Opens a tab, also where it hides behind the three dots of a narrow screen."""
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu button").first.click()
        tab = page.get_by_text(name, exact=True).last
    tab.click()


def test_a_file_that_is_too_large_is_refused(browser: Any, address: str, folder: Path) -> None:
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("button", name="Analyse this lesion").wait_for(timeout=60_000)
    large = folder / "large.jpg"
    large.write_bytes(b"\xff\xd8\xff" + bytes(MAX_IMAGE))
    page.locator("input[type=file]").set_input_files(str(large))
    page.get_by_text("exceed the maximum").first.wait_for(timeout=30_000)
    assert large.name not in [path.name for path in kept()]
    page.close()
