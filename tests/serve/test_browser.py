"""The real command in a real browser: upload, result, learning, refusals, on a desk and a phone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("gradio", exc_type=ImportError)
pytest.importorskip("playwright.sync_api", exc_type=ImportError)

from quick_runs import ROOT, best

from skinmm.serve.limits import MAX_IMAGE

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
START = "import sys; from skinmm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def address(both: Path, folder: Path) -> Iterator[str]:
    """A service of its own process, until the tests are over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = f"http://localhost:{port}"
    before = uploads()
    options = [f"checkpoint={best(both)}", f"port={port}"]
    server = subprocess.Popen(
        [sys.executable, "-c", START, "serve", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        for _ in range(300):
            try:
                urlopen(f"{where}/readyz", timeout=5).close()  # noqa: S310
                break
            except URLError:
                assert server.poll() is None
                time.sleep(0.4)
        yield where
    finally:
        server.terminate()
        assert server.wait(60) in (0, -15)
        assert uploads() <= before


def uploads() -> set[Path]:
    """The folders of all services that run."""
    return {*Path("/dev/shm").glob("skinmm-page-*")}  # noqa: S108


def kept() -> list[Path]:
    """What uploads left."""
    files = [path for each in uploads() for path in each.rglob("*")]
    return [path for path in files if path.is_file() and path.stat().st_size]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_gradio_tells_nobody_and_offers_nothing_else(address: str) -> None:
    with urlopen(f"{address}/config", timeout=30) as answer:  # noqa: S310
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}


@pytest.mark.parametrize("width", [1280, 390])
def test_a_lesion_is_judged(
    browser: Any, address: str, pictures: Path, folder: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    judge = page.get_by_role("button", name="Judge this lesion")
    judge.wait_for(timeout=60_000)
    assert page.get_by_label("Age, years").input_value() == ""
    chosen = page.locator("input[type=file]")
    broken = folder / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 broken")
    lesion = pictures / "ISIC_0000166.jpg"
    steps = ((broken, "", ".refusal"), (lesion, "63", ".result"), (lesion, "", ".result"))
    for file, age, outcome in steps:
        chosen.set_input_files(str(file))
        page.get_by_text(file.stem).first.wait_for()
        page.get_by_label("Age, years").fill(age)
        judge.click()
        page.get_by_text(file.stem).first.wait_for(state="detached", timeout=60_000)
        page.locator(outcome).wait_for(timeout=60_000)
        assert kept() == []
        lacked = "sex and site" if age else "age and sex and site"
        if outcome == ".result":
            assert f"Predicted without {lacked}" in page.locator(outcome).inner_text()
    assert page.locator(".result img").count() == 2
    assert page.get_by_text("Research use only").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("tab", name="Learn").click()
    page.get_by_text("The ABCDE rule").wait_for()
    page.get_by_role("tab", name="Model").click()
    page.get_by_text("Model card").wait_for()
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
    page.close()


def test_a_file_that_is_too_large_is_refused(browser: Any, address: str, folder: Path) -> None:
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("button", name="Judge this lesion").wait_for(timeout=60_000)
    large = folder / "large.jpg"
    large.write_bytes(b"\xff\xd8\xff" + bytes(MAX_IMAGE))
    page.locator("input[type=file]").set_input_files(str(large))
    page.get_by_text("exceed the maximum").first.wait_for(timeout=30_000)
    assert kept() == []
    page.close()
