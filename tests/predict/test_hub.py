"""Publishing on a stand-in of the Hub's HTTP API, and loading from it; licences of images."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from quick_runs import ROOT, best

from skinmm.errors import InputError
from skinmm.models.checkpoint import Card
from skinmm.predict.hub import FOLDERS, choose_licence, hide_folders, hide_local

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(BaseHTTPRequestHandler):
    """The calls of the Hub that a push and a download make; one repository, one commit."""

    files: dict[str, bytes]
    tokens: list[str]

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.append(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self.reply({"url": f"{self.base}/clinic/lesions", "name": "clinic/lesions"})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif self.path == "/api/models/clinic/lesions/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            self.reply({"files": modes})
        elif self.path == "/api/models/clinic/lesions/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.base}/clinic/lesions/commit/{COMMIT}"
            self.reply({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.reply({"error": self.path}, 404)

    def do_GET(self) -> None:
        for revision in ("main", COMMIT):
            prefix = f"/clinic/lesions/resolve/{revision}/"
            name = self.path.removeprefix(prefix)
            if self.path.startswith(prefix) and name in self.files:
                content = self.files[name]
                etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
                self.reply(content, ETag=etag, X_Repo_Commit=COMMIT)
                return
        self.reply({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    StandIn.files, StandIn.tokens = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def skinmm(hub: ThreadingHTTPServer, folder: Path, *arguments: str) -> "Any":
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "skinmm", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_pushed_run_predicts_as_before(
    both: Path, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    done = skinmm(hub, tmp_path, "push", str(both), "hub=clinic/lesions")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint=hf://clinic/lesions@{COMMIT}" in done.stdout
    assert set(StandIn.tokens) == {"Bearer hf_secret"}
    assert {*StandIn.files} == {"model.safetensors", "README.md"}

    _, block, text = StandIn.files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(block)
    assert (data["license"], data["library_name"]) == ("cc0-1.0", "skinmm")
    (result,) = data["model-index"][0]["results"]
    figures = json.loads((both / "metrics.json").read_text())["test"]["metrics"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["auroc"] == pytest.approx(figures["auroc"]["value"], abs=1e-4)
    assert text.strip().startswith((both / "card.md").read_text().strip()[:200])
    for content in StandIn.files.values():
        assert str(both.parent).encode() not in content

    demo = ROOT / "skinmm" / "demo"
    rest = (f"input={demo / 'patients.csv'}", f"images={demo / 'images'}", "backend=torch")
    tables = []
    for name, checkpoint in (
        ("a.csv", str(best(both))),
        ("b.csv", f"hf://clinic/lesions@{COMMIT}"),
    ):
        done = skinmm(hub, tmp_path, "predict", f"checkpoint={checkpoint}", f"output={name}", *rest)
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_csv(tmp_path / name))
    before, after = tables
    pd.testing.assert_frame_equal(before, after)

    done = skinmm(hub, tmp_path, "predict", "checkpoint=hf://clinic/lesions@v9", *rest)
    assert done.returncode == 2
    assert "checkpoint=hf://clinic/lesions@v9: cannot be fetched" in done.stderr


def test_the_strictest_licence_of_the_images_counts() -> None:
    rows = pd.DataFrame({"licence": ["CC-0", "CC-BY|CC-0", None]})
    assert choose_licence(rows, "demo", None) == "cc-by-4.0"
    assert choose_licence(rows, "ham10000", None) == "cc-by-nc-4.0"
    assert choose_licence(rows, "demo", "cc-by-nc-sa-4.0") == "cc-by-nc-sa-4.0"
    with pytest.raises(InputError, match=r"images with CC-BY; choose cc-by-4\.0 or a stricter"):
        choose_licence(rows, "demo", "cc0-1.0")
    with pytest.raises(InputError, match="images with CC-BY-NC"):
        choose_licence(rows, "siim_isic", "apache-2.0")
    with pytest.raises(InputError, match="licence: images with none stated; read their terms"):
        choose_licence(rows, "csv", None)
    assert choose_licence(rows, "csv", "cc-by-nc-4.0") == "cc-by-nc-4.0"


def test_no_folder_of_this_machine_is_published() -> None:
    text = "train data.root=/data/clinic/ham x=[/a/b.py,'/c/d e/f'] </td> and/or https://x.y/z/w"
    assert FOLDERS.sub("", text) == (
        "train data.root=ham x=[b.py,'d e/f'] </td> and/or https://x.y/z/w"
    )
    config = {"data": {"root": "/data/clinic/ham", "extra": [{"root": "/x/y"}]}, "a": "b/c", "n": 1}
    hidden = {"data": {"root": "ham", "extra": [{"root": "y"}]}, "a": "b/c", "n": 1}
    assert hide_folders(config) == hidden
    finder = {"config": config, "digest": "a1"}
    card = Card(config, [], [], {}, "", {}, segmenter=finder, index={"image_id": ["ISIC_1"]})
    changes = hide_local(card)
    assert changes["config"] == changes["segmenter"]["config"] == hidden
    assert changes["index"] is None
