"""The exported page in Chromium equals `predict`, asks no other server, and starts without one."""

import base64
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from skinmm.config.commands import ExportConfig
from skinmm.data.lesion_finder import LesionFinder
from skinmm.errors import InputError
from skinmm.evaluation.call_rules import CallRule
from skinmm.evaluation.predictions import format_sets
from skinmm.evaluation.thresholds import ReferralBand, RiskLimit
from skinmm.images.decode import decode
from skinmm.models.checkpoint import load_card, save_ensemble
from skinmm.predict import Predictor
from skinmm.predict.ensemble import load_models
from skinmm.serve import browser as exporter
from skinmm.serve.browser import ENGINE_FILES, VERSION, export_browser, find_runtime

ROOT = Path(__file__).parents[2]
ENGINE = os.environ.get("SKINMM_ENGINE", str(ROOT / "node_modules" / exporter.ENGINE))
SCREENSHOTS = os.environ.get("SKINMM_SCREENSHOTS")  # a folder for who wants to look
ZOO = ROOT / "skinmm" / "zoo" / "cc0.safetensors"
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs skinmm[browser]"),
    pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs skinmm[onnx]"),
    pytest.mark.skipif(not Path(ENGINE).is_dir(), reason="no onnxruntime-web in SKINMM_ENGINE"),
]


def in_browser(test: Any) -> Any:
    """A test that needs Chromium and the engine."""
    for mark in needs_browser:
        test = mark(test)
    return test


class Server:
    """A static web server, as plain as one can be, that notes what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                asked.append(self.path)

        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self.port = self._server.server_port
        self.address = f"http://127.0.0.1:{self.port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of the included model and a copy with other calibration, limits and decisions."""
    folder = tmp_path_factory.mktemp("networks")
    card, _ = load_card(ZOO)
    assert card.calibration is not None
    assert card.conformal is not None
    changed = {
        "calibration": {**card.calibration, "state": {"scale": 0.9, "shifts": [0.3, 0.0]}},
        "conformal": {**card.conformal, "limits": {"benign": 0.2, "malignant": 0.6}},
        "threshold": {**(card.threshold or {}), "value": 0.3},
    }
    save_ensemble([ZOO], folder / "other.ckpt", **changed)
    save_ensemble([ZOO], folder / "same.ckpt")
    members = [torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("same", "other")]
    torch.save({"members": members}, folder / "ensemble.ckpt")
    return folder / "ensemble.ckpt"


def export(checkpoint: Path, folder: Path) -> Path:
    config = ExportConfig(
        checkpoint=str(checkpoint), target="browser", output=str(folder), runtime=ENGINE, rows=2
    )
    return export_browser(config)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(ZOO, tmp_path_factory.mktemp("site") / "page")


class Page:
    """A tab on the exported page, and the requests of its performance log."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.tab = self.context.new_page()
        self._protocol = self.context.new_cdp_session(self.tab)
        self._protocol.send("Network.enable")
        self.asked: list[str] = []
        self._protocol.on(
            "Network.requestWillBeSent", lambda event: self.asked.append(event["request"]["url"])
        )
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(address)
        self.tab.wait_for_selector("html[data-ready]", timeout=120_000)

    def run(self, expression: str) -> Any:
        """The value of an expression; the policy of the page forbids Playwright's own way."""
        answer = self._protocol.send(
            "Runtime.evaluate",
            {"expression": expression, "awaitPromise": True, "returnByValue": True},
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def analyse(self, image: bytes | None, record: dict[str, str]) -> dict[str, Any]:
        data = "null" if image is None else as_bytes(image)
        result: dict[str, Any] = self.run(f"skinmm.analyse({data}, {json.dumps(record)})")
        return result


def as_bytes(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    return f"Uint8Array.from(atob('{text}'), (letter) => letter.charCodeAt(0))"


@pytest.fixture(scope="module")
def page(browser: Any, site: Path) -> Iterator[Page]:
    server = Server(site)
    opened = Page(browser, server.address)
    yield opened
    opened.context.close()
    server.stop()


def lesion(width: int, height: int) -> Image.Image:
    """A lesion with noise, so that every pixel counts."""
    file = ROOT / "skinmm" / "demo" / "images" / "ISIC_0000166.jpg"
    pixels = np.asarray(Image.open(file).convert("RGB").resize((width, height)), np.int64)
    noise = np.random.default_rng(width * height).normal(0, 12, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if orientation > 1 else {}), **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """Twenty files as phones, dermatoscopes and screenshots make them."""
    sizes = [(400, 300), (301, 457)]
    files = {
        f"JPEG turned {turn}": encoded(lesion(*sizes[turn % 2]), "JPEG", turn, quality=90)
        for turn in range(1, 9)
    }
    sampled = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
    files |= {
        f"progressive {name}": encoded(
            lesion(250, 187), "JPEG", progressive=True, subsampling=number, quality=85
        )
        for name, number in sampled.items()
    }
    files["JPEG in restart intervals"] = encoded(lesion(97, 131), "JPEG", restart_marker_blocks=3)
    files["grey JPEG"] = encoded(lesion(220, 220).convert("L"), "JPEG")
    files["small JPEG"] = encoded(lesion(60, 45), "JPEG")
    files["large JPEG"] = encoded(lesion(3000, 2000), "JPEG", 6, quality=88)
    files["PNG"] = encoded(lesion(256, 256), "PNG")
    files["PNG turned"] = encoded(lesion(300, 200), "PNG", 6)
    files["palette"] = encoded(lesion(200, 260).quantize(64), "PNG")
    clear = lesion(192, 192).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((192, 192)))
    files["transparent PNG"] = encoded(clear, "PNG")
    files["16 bits"] = encoded(
        Image.fromarray(np.asarray(lesion(210, 190).convert("L"), np.uint16) * 257), "PNG"
    )
    return files


@in_browser
def test_the_pixels_are_those_of_python(page: Page) -> None:
    wrong = {}
    for name, data in images().items():
        expression = (
            "import('./image.js').then((code) => code.readImage("
            f"{as_bytes(data)}, 192, 5e7)).then((image) => "
            "btoa(Array.from(image.pixels, (level) => String.fromCharCode(level)).join('')))"
        )
        pixels = np.frombuffer(base64.b64decode(page.run(expression)), np.uint8)
        expected = decode(data, size=192).reshape(-1)
        if difference := int(np.abs(pixels.astype(int) - expected).max()):
            wrong[name] = difference
    assert wrong == {}


@in_browser
def test_the_results_are_those_of_predict(page: Page, tmp_path: Path) -> None:
    require_equal_results(page, ZOO, tmp_path)


@in_browser
def test_an_ensemble_is_averaged(browser: Any, networks: Path, tmp_path: Path) -> None:
    server = Server(export(networks, tmp_path / "page"))
    page = Page(browser, server.address)
    require_equal_results(page, networks, tmp_path)
    page.context.close()
    server.stop()


def require_equal_results(page: Page, checkpoint: Path, folder: Path) -> None:
    files, rng = images(), np.random.default_rng(0)
    rows = []
    for number, data in enumerate(files.values()):
        (folder / f"{number}.png").write_bytes(data)
        row = {"image": f"{number}.png", "age": "", "sex": "", "site": ""}
        if number % 4:
            row |= {"age": str(rng.integers(1, 100)), "sex": str(rng.choice(["male", "female"]))}
        if number % 3:
            row["site"] = str(rng.choice(["torso", "palms/soles", "oral/genital"]))
        rows.append(row)
    rows.append({"image": "", "age": "70,5", "sex": "male", "site": "torso"})
    predictor = Predictor.from_checkpoints(checkpoint, "cpu", backend="torch")
    expected = predictor.predict(pd.DataFrame(rows), folder, workers=0)
    assert {*expected["error"]} == {""}
    decisions = set()
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        image = (folder / row["image"]).read_bytes() if row["image"] else None
        result = page.analyse(image, {key: row[key] for key in ("age", "sex", "site")})
        assert result["malignancy"] == pytest.approx(wanted["malignancy"], abs=1e-4)
        assert result["threshold"] == wanted["threshold"]
        assert result["decision"] == wanted["decision"], row
        assert "|".join(result["prediction_set"]) == wanted["prediction_set"]
        missing = [name for name in wanted["missing"].split("|") if name not in ("", "image")]
        assert sorted(result["missing"]) == missing
        assert result["unknown"] == []
        if np.isnan(wanted["ood"]):
            assert result["ood"] is None
        else:
            assert result["ood"] == pytest.approx(wanted["ood"], abs=1e-3)
        decisions.add(result["decision"])
    assert len(decisions) > 1


@in_browser
def test_every_rule_of_a_decision(page: Page) -> None:
    rng = np.random.default_rng(3)
    predictor: Any = Predictor(load_models(ZOO, torch.device("cpu")))
    facts = page.run("skinmm.facts")
    for case in range(60):
        p = rng.dirichlet([0.6, 0.6], size=1)
        sets, ood = rng.random((1, 2)) < 0.6, rng.choice([0.4, 1.0, 1.1], 1)
        threshold = float(rng.choice([0.2, p[0, 1], 0.7]))
        low, high = sorted(rng.random(2))
        limits = (RiskLimit(value, 0.1, 0.1, 9) for value in (low, high))
        band = ReferralBand(*limits) if case % 2 else None
        kind = case % 6
        changed = facts | {
            "threshold": threshold,
            "band": band and {"low": low, "high": high},
        }
        output = {
            "probabilities": p[0].tolist(),
            "set": sets[0].astype(int).tolist() if kind else None,
            "ood": float(ood[0]),
        }
        result = page.run(
            "import('./model.js').then((code) => code.decide("
            f"{json.dumps(changed)}, [{json.dumps(output)}]))"
        )
        predictor.band = band
        called = p[:, 1] >= threshold
        (decision,) = predictor.decide(called, p, sets if kind else None, ood)
        assert result["decision"] == decision, (changed, output)
        assert "|".join(result["prediction_set"]) == (
            format_sets(sets, predictor.classes)[0] if kind else ""
        )


@in_browser
def test_one_of_several_classes_is_called_by_the_rule(page: Page) -> None:
    classes, rng = ["a", "b", "c"], np.random.default_rng(4)
    facts = page.run("skinmm.facts") | {"classes": classes, "positive": ["c"]}
    for rule in (
        CallRule("likeliest", [1 / 3] * 3),
        CallRule("balanced", [0.7, 0.3, 0.0]),
        CallRule("cost", [1 / 3] * 3, [[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [9.0, 9.0, 0.0]]),
    ):
        facts["call"] = rule.score(np.eye(3)).tolist()
        rows = rng.dirichlet([0.7] * 3, size=20)
        outputs = [{"probabilities": row, "set": None, "ood": None} for row in rows.tolist()]
        called = page.run(
            f"import('./model.js').then((code) => {json.dumps(outputs)}.map((output) => "
            f"code.decide({json.dumps(facts)}, [output]).called))"
        )
        assert called == [classes[index] for index in rule.call(rows)]
        assert len({*called}) > 1


@in_browser
def test_a_record_is_read_as_meant_or_named(page: Page) -> None:
    columns = [
        {"name": "age", "kind": "number", "low": 0, "high": 120},
        {"name": "size", "kind": "number"},
        {"name": "site", "kind": "choice", "choices": ["torso"]},
    ]
    for age, size, site, values, unknown in (
        ("63", "1.5", "torso", {"age": 63, "size": 1.5, "site": "torso"}, []),
        (" 63,5 ", "", "", {"age": 63.5}, []),
        ("121", "-2e1", "arm", {"size": -20}, ["age", "site"]),
        ("sixty", "1,234", "unknown", {}, ["age", "size"]),
    ):
        record = {"age": age, "size": size, "site": site}
        result = page.run(
            "import('./model.js').then((code) => code.readRecord("
            f"{json.dumps(columns)}, {json.dumps(record)}))"
        )
        assert (result["values"], result["unknown"]) == (values, unknown)


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
    bad = {
        "ends early": whole[: len(whole) // 2],
        "not a JPEG, PNG": b"hello",
        "DICOM": bytes(128) + b"DICM",
        "CMYK": encoded(lesion(64, 64).convert("CMYK"), "JPEG"),
        "the PNG is damaged": images()["PNG"][:5000],
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
    page.tab.get_by_text("age: '1,234' is not a number in its range").wait_for(timeout=60_000)


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

    with pytest.raises(InputError, match="out names the file"):
        export_browser(ExportConfig(target="browser", out="a.onnx"))
    with pytest.raises(InputError, match="belong to target=browser"):
        export_file(ExportConfig(runtime="node_modules"))
    with pytest.raises(InputError, match="comes with skinmm: name the file"):
        export_file(ExportConfig())
    (tmp_path / "old.html").touch()
    with pytest.raises(InputError, match="contains files"):
        export_browser(ExportConfig(target="browser", output=str(tmp_path)))
