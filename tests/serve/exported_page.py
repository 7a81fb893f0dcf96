"""An exported page on a web server, in a tab of Chromium, and pictures for it."""

import base64
import io
import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skinmm.config.commands import ExportConfig
from skinmm.serve import browser as exporter
from skinmm.serve.browser import export_browser

ROOT = Path(__file__).parents[2]


ENGINE = os.environ.get("SKINMM_ENGINE", str(ROOT / "node_modules" / exporter.ENGINE))


ZOO = ROOT / "skinmm" / "zoo" / "cc0.safetensors"


needs_browser = [
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


def export(checkpoint: Path, folder: Path) -> Path:
    config = ExportConfig(
        checkpoint=str(checkpoint), target="browser", output=str(folder), runtime=ENGINE, rows=2
    )
    return export_browser(config)


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
