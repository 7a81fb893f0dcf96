"""The exported page asks no other server, starts without one, and refuses what it cannot use."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_page import ZOO, Page, Server, encoded, images, in_browser, lesion
from PIL import Image

from skinmm.config.commands import ExportConfig
from skinmm.data.lesion_finder import LesionFinder
from skinmm.errors import InputError
from skinmm.predict.ensemble import load_models
from skinmm.serve import browser as exporter
from skinmm.serve.browser import ENGINE_FILES, VERSION, export_browser, find_runtime

SCREENSHOTS = os.environ.get("SKINMM_SCREENSHOTS")  # a folder for who wants to look


@in_browser
def test_nothing_leaves_the_device_and_no_network_is_needed(
    browser: Any, site: Path, tmp_path: Path
) -> None:
    """First load, then no server at all; a script that asks another origin is stopped."""
    server, other = Server(site), Server(tmp_path)
    page = Page(browser, server.address)
    assert page.run("document.documentElement.dataset.ready") == "offline"
    lesion_file = tmp_path / "lesion.jpg"
    lesion_file.write_bytes(images()["JPEG turned 6"])
    fill_in(page, lesion_file)
    first = page.tab.locator(".chance").inner_text()
    ways = (
        f"fetch('{other.address}a').then(() => 'sent', () => 'stopped')",
        f"new Promise((end) => {{ const image = new Image(); image.src = '{other.address}b'; "
        "image.onload = () => end('sent'); image.onerror = () => end('stopped'); })",
        f"Promise.resolve(navigator.sendBeacon('{other.address}c') && 'sent')",
    )
    before = len(page.asked)
    outcomes = [page.run(way) for way in ways]
    assert outcomes[:2] == ["stopped", "stopped"]
    page.tab.wait_for_timeout(500)
    assert other.asked == []
    asked = page.asked[:before]
    own = (server.address, "blob:http://127.0.0.1", "data:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert any(path.startswith("/sw.js") for path in server.asked)
    assert {"POST", "PUT"}.isdisjoint(server.asked)
    server.stop()
    other.stop()
    page.tab.goto(server.address)
    page.tab.wait_for_selector("html[data-ready=offline]", timeout=120_000)
    assert page.run("crossOriginIsolated") is True
    fill_in(page, lesion_file)
    assert page.tab.locator(".chance").inner_text() == first
    page.context.close()


def fill_in(page: Page, file: Path) -> None:
    page.tab.set_input_files("#file", str(file))
    page.tab.get_by_label("Age, years").fill("63")
    page.tab.get_by_label("Site").select_option("torso")
    page.tab.get_by_role("button", name="Analyse this lesion").click()
    page.tab.wait_for_selector(".result", timeout=120_000)


@in_browser
def test_unusable_images_are_refused_by_name(page: Page, tmp_path: Path) -> None:
    whole = images()["JPEG turned 1"]
    coloured = encoded(lesion(64, 64).quantize(16), "PNG")
    entry = coloured.index(b"PLTE") + 4
    black = Image.new("RGB", (64, 64))
    bad = {
        "the PNG is damaged": coloured[:entry] + b"\xff\0\xff" + coloured[entry + 3 :],
        "single colour": encoded(black, "JPEG"),
        "shows no lesion": encoded(black, "PNG"),
        "too few: each side needs 16": encoded(lesion(40, 15), "PNG"),
        "ends early": whole[: len(whole) // 2],
        "not a JPEG, PNG": b"hello",
        "DICOM": bytes(128) + b"DICM",
        "CMYK": encoded(lesion(64, 64).convert("CMYK"), "JPEG"),
        "or ends early: take": images()["PNG"][:5000],
        "cannot read HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
        "megapixels": whole.replace(b"\x08\x01\xc9\x01\x2d", b"\x08\xff\xff\xff\xff", 1),
    }
    for words, data in bad.items():
        file = tmp_path / "bad.jpg"
        file.write_bytes(data)
        page.tab.set_input_files("#file", str(file))
        page.tab.get_by_role("button", name="Analyse this lesion").click()
        page.tab.get_by_text(words).wait_for(timeout=60_000)
        assert page.tab.locator(".refusal").count() == 1
        assert page.tab.locator(".result").count() == 0
    page.tab.get_by_role("button", name="Remove the image").click()
    page.tab.get_by_label("Age, years").fill("1,234")
    page.tab.get_by_role("button", name="Analyse this lesion").click()
    page.tab.get_by_text("age: '1,234' is not a number from 0 to 120").wait_for(timeout=60_000)


@in_browser
def test_a_result_is_removed_with_the_inputs_that_it_belongs_to(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "lesion.jpg"
    file.write_bytes(images()["JPEG turned 1"])

    def analyse() -> None:
        page.tab.set_input_files("#file", str(file))
        page.tab.get_by_role("button", name="Analyse this lesion").click()
        page.tab.locator(".result").wait_for(timeout=60_000)

    page.tab.get_by_label("Age, years").fill("40")
    analyse()
    page.tab.get_by_label("Age, years").fill("50")
    assert page.tab.locator(".result").count() == 0
    analyse()
    page.tab.get_by_role("button", name="Remove the image").click()
    assert page.tab.locator(".result").count() == 0
    # The record is changed while the image is analysed.
    page.tab.set_input_files("#file", str(file))
    change = "dispatchEvent(new Event('input', {bubbles: true}))"
    page.run(
        f"document.querySelector('#analyse').click(); document.querySelector('[name=age]').{change}"
    )
    page.tab.get_by_text("Image or record were changed: analyse again.").wait_for(timeout=60_000)
    assert page.tab.locator(".result").count() == 0


@in_browser
def test_an_empty_form_has_no_result(page: Page) -> None:
    page.tab.reload()
    page.tab.wait_for_selector("html[data-ready]", timeout=120_000)
    page.tab.get_by_role("button", name="Analyse this lesion").click()
    page.tab.get_by_text("There is nothing to predict from").wait_for(timeout=60_000)


@in_browser
def test_a_changed_network_is_not_run(browser: Any, site: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(site, tmp_path / "copy"))
    network = bytearray((copy / "model.0.onnx").read_bytes())
    network[len(network) // 2] ^= 1
    (copy / "model.0.onnx").write_bytes(bytes(network))
    server = Server(copy)
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(server.address)
    tab.get_by_text("The model could not be loaded").wait_for(timeout=60_000)
    assert tab.locator("#analyse").is_disabled()
    context.close()
    server.stop()


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nobody_is_kept_out(
    browser: Any, site: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    """axe-core finds nothing serious, nothing is cut off, and the keyboard suffices."""
    pytest.importorskip("axe_playwright_python.sync_playwright", exc_type=ImportError)
    from axe_playwright_python.sync_playwright import Axe

    scheme = "dark" if dark else "light"
    server = Server(site)
    size = {"width": width, "height": 844}
    page = Page(browser, server.address, viewport=size, color_scheme=scheme, bypass_csp=True)
    file = tmp_path / "lesion.jpg"
    file.write_bytes(images()["JPEG turned 3"])
    page.tab.set_input_files("#file", str(file))
    page.tab.get_by_label("Age, years").focus()
    page.tab.keyboard.type("63")
    for key in ("Tab", "m", "Tab", "t", "Tab", "Enter"):
        page.tab.keyboard.press(key)
    page.tab.wait_for_selector(".result", timeout=60_000)
    assert "Not provided" not in page.tab.locator(".result").inner_text()
    for name in ("Learn", "Model"):
        page.tab.get_by_text(name, exact=True).focus()
        page.tab.keyboard.press("Enter")
    page.tab.get_by_text("The ABCDE rule").wait_for()
    violations = Axe().run(page.tab).response["violations"]
    serious = [each["id"] for each in violations if each["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.run("document.documentElement.scrollWidth") <= width
    if SCREENSHOTS:
        page.tab.screenshot(path=f"{SCREENSHOTS}/export-{width}-{scheme}.png", full_page=True)
    page.context.close()
    server.stop()


def test_only_the_tested_engine_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no onnxruntime-web there; npm install"):
        find_runtime(str(tmp_path))
    package = tmp_path / "package.json"
    package.write_text(json.dumps({"name": "onnxruntime-web", "version": "1.0.0"}))
    with pytest.raises(InputError, match=f"1.0.0, but .* tested with onnxruntime-web {VERSION}"):
        find_runtime(str(tmp_path))
    package.write_text(json.dumps({"name": "onnxruntime-web", "version": VERSION}))
    with pytest.raises(InputError, match=f"{ENGINE_FILES[0]}.* is missing"):
        find_runtime(str(tmp_path))
    (tmp_path / "dist").mkdir()
    for name in ENGINE_FILES:
        (tmp_path / "dist" / name).write_bytes(b"")
    assert find_runtime(str(tmp_path)) == find_runtime(str(tmp_path / "dist")) == tmp_path / "dist"


def test_what_the_page_cannot_do_is_refused_by_name() -> None:
    (model,) = load_models(ZOO, torch.device("cpu"))
    exporter.require_supported(model, ZOO)
    colour = replace(
        model, config=replace(model.config, data=replace(model.config.data, icc="srgb"))
    )
    steps = replace(model, card=replace(model.card, preprocess=["hair"]))
    finder = object.__new__(LesionFinder)
    for words, changed in (
        ("data.icc=srgb", colour),
        ("data.preprocess=.'hair'.", steps),
        ("a segmenter", replace(model, finder=finder)),
    ):
        with pytest.raises(InputError, match=words):
            exporter.require_supported(changed, ZOO)


def test_keys_of_the_other_target_are_refused(tmp_path: Path) -> None:
    from skinmm.predict.export_onnx import export as export_file

    with pytest.raises(InputError, match="out=FILE belongs to target=onnx"):
        export_browser(ExportConfig(target="browser", out="a.onnx"))
    with pytest.raises(InputError, match="belong to target=browser"):
        export_file(ExportConfig(runtime="node_modules"))
    with pytest.raises(InputError, match="comes with skinmm: name the file"):
        export_file(ExportConfig())
    (tmp_path / "old.html").touch()
    with pytest.raises(InputError, match="contains files"):
        export_browser(ExportConfig(target="browser", output=str(tmp_path)))
