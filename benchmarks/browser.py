"""Measure the exported page in Chromium: loading, time a lesion, and parity with `predict`.

    SKINMM_DATA=DIR SKINMM_ENGINE=DIR python benchmarks/browser.py [int8]

Needs the extras onnx and browser, Chromium, and the npm package onnxruntime-web in SKINMM_ENGINE.
Images: 200 of HAM10000 at random, and the camera files of the ISIC archive. With int8, the first
candidate is taken whatever it costs; differences are from `predict` in 32 bits.
"""

import base64
import json
import os
import platform
import shutil
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from skinmm.config.checkpoints import INCLUDED
from skinmm.config.commands import ExportConfig
from skinmm.predict import Predictor, quantise
from skinmm.serve.browser import ENGINE, VERSION, export_browser
from skinmm.vocabulary import parse_site

ROWS, TIMED = 200, 20


class Quiet(SimpleHTTPRequestHandler):
    """A static web server without a log."""

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


def open_page(tab: Any, address: str) -> float:
    """Open the page; return the seconds until it is ready."""
    start = time.perf_counter()
    tab.goto(address)
    tab.wait_for_selector("html[data-ready]", timeout=300_000)
    return time.perf_counter() - start


def run(protocol: Any, expression: str) -> Any:
    """Return the value of an expression on the page."""
    answer = protocol.send(
        "Runtime.evaluate",
        {"expression": expression, "awaitPromise": True, "returnByValue": True},
    )
    if "exceptionDetails" in answer:
        raise RuntimeError(answer)
    return answer["result"].get("value")


def analyse(protocol: Any, image: bytes, record: dict[str, str]) -> dict[str, Any]:
    """Return the result of one lesion, with its milliseconds on the page."""
    data = base64.b64encode(image).decode()
    result: dict[str, Any] = run(
        protocol,
        f"(async () => {{ const data = Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0));"
        f"const start = performance.now(); const result = await skinmm.analyse(data, "
        f"{json.dumps(record)}); return {{ ...result, ms: performance.now() - start }}; }})()",
    )
    return result


def describe_times(times: list[float]) -> str:
    """Return median and quartiles in milliseconds."""
    low, median, high = np.percentile(times, [25, 50, 75])
    return f"{median:.0f} ms ({low:.0f} to {high:.0f})"


def read_rows() -> tuple[pd.DataFrame, Path]:
    """Return random rows of HAM10000 and the folder of its images."""
    folder = Path(os.environ["SKINMM_DATA"], "ham10000")
    table = pd.read_csv(folder / "HAM10000_metadata.csv").sample(ROWS, random_state=0)
    files = {path.stem: path for path in folder.joinpath("jpeg").rglob("*.jpg")}
    table["image"] = [str(files[name]) for name in table["image_id"]]
    return table[["image", "age", "sex", "localization"]], folder


def compare(protocol: Any, table: pd.DataFrame, folder: Path) -> None:
    """Print the differences from `predict`."""
    cells = table.rename(columns={"localization": "site"}).astype(object)
    predictor = Predictor.from_checkpoints(INCLUDED, "cpu", backend="torch")
    expected = predictor.predict(cells, folder, workers=0)
    results = []
    for row in cells.to_dict("records"):
        record = {name: "" if pd.isna(row[name]) else str(row[name]) for name in ("age", "sex")}
        record["site"] = parse_site(row["site"]) or ""
        results.append(analyse(protocol, Path(row["image"]).read_bytes(), record))
    actual = pd.DataFrame(results)
    difference = np.abs(actual["malignancy"].to_numpy() - expected["malignancy"].to_numpy())
    print(f"| largest difference of a probability | {difference.max():.2g} |")
    print(f"| median difference | {np.median(difference):.2g} |")
    print(f"| equal decisions | {(actual['decision'] == expected['decision']).sum()} of {ROWS} |")
    sets = actual["prediction_set"].str.join("|")
    print(f"| equal prediction sets | {(sets == expected['prediction_set']).sum()} of {ROWS} |")


def time_lesions(tab: Any, protocol: Any, files: list[Path]) -> None:
    """Print the times of lesions, at the speed of this machine and of a slower processor."""
    threads = run(
        protocol,
        "crossOriginIsolated ? Math.min(4, Math.ceil(navigator.hardwareConcurrency / 2)) : 1",
    )
    for rate in (1, 4):
        protocol.send("Emulation.setCPUThrottlingRate", {"rate": rate})
        analyse(protocol, files[0].read_bytes(), {})
        times = [analyse(protocol, file.read_bytes(), {})["ms"] for file in files]
        label = f"a lesion, {len(files)} images, threads: {threads}, CPU 1/{rate}"
        print(f"| {label} | {describe_times(times)} |")
    protocol.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    tab.wait_for_timeout(100)


def measure(chromium: Any, server: ThreadingHTTPServer, table: pd.DataFrame, folder: Path) -> None:
    """Print all measurements as a table."""
    address = f"http://127.0.0.1:{server.server_port}/"
    small = [Path(name) for name in table["image"][:TIMED]]
    camera = sorted(folder.parent.joinpath("isic_originals").rglob("*.jpg"))[:TIMED]
    for rate in (1, 4):
        context = chromium.new_context()
        tab = context.new_page()
        protocol = context.new_cdp_session(tab)
        protocol.send("Emulation.setCPUThrottlingRate", {"rate": rate})
        print(f"| first load, CPU 1/{rate} | {open_page(tab, address):.1f} s |")
        context.close()
    context = chromium.new_context()
    tab = context.new_page()
    protocol = context.new_cdp_session(tab)
    open_page(tab, address)
    time_lesions(tab, protocol, small)
    compare(protocol, table, folder)
    server.shutdown()
    server.server_close()
    for rate in (1, 4):
        protocol.send("Emulation.setCPUThrottlingRate", {"rate": rate})
        print(f"| reload without a server, CPU 1/{rate} | {open_page(tab, address):.1f} s |")
    time_lesions(tab, protocol, small)
    sizes = [path.stat().st_size / 1e6 for path in camera]
    print(f"| camera files, megabytes | {min(sizes):.1f} to {max(sizes):.1f} |")
    time_lesions(tab, protocol, camera)


def main() -> None:
    """Export, serve and measure the included model."""
    table, folder = read_rows()
    with TemporaryDirectory() as name, sync_playwright() as engine:
        runtime = os.environ["SKINMM_ENGINE"]
        precision = next(iter(sys.argv[1:]), "fp32")
        quantise.is_accepted = lambda facts: True  # noqa: ARG005
        root = f"{os.environ['SKINMM_DATA']}/isic_2017_cc0"
        site = export_browser(
            ExportConfig(
                target="browser",
                output=f"{name}/page",
                runtime=runtime,
                precision=precision,
                root=root,
            )
        )
        chromium = engine.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        size = sum(path.stat().st_size for path in site.iterdir()) / 1e6
        print("# The exported page in Chromium\n")
        print(
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPU cores, {platform.machine()}, ",
            end="",
        )
        print(f"Chromium {chromium.version}, {ENGINE} {VERSION} (WebAssembly, {precision}).")
        print(f"Model: {INCLUDED}, EfficientNet-Lite0 at 192 pixels; the folder has {size:.1f} MB.")
        print("Times: median and quartiles; CPU 1/4: Chromium's throttling of the page by four.\n")
        print("| measure | value |\n|---|---|")
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        measure(chromium, server, table, folder)
        chromium.close()


if __name__ == "__main__":
    main()
