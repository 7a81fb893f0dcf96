"""Packs in object storage: an S3 server as a process, behind a proxy that is slow or fails."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest
import torch
from quick_runs import ROOT, quick_train

from skinmm.config import DataConfig
from skinmm.data.bucket import _open_bucket, locate_pack
from skinmm.data.cohorts.packs import packed
from skinmm.data.cohorts.public import demo
from skinmm.data.pack import pack
from skinmm.data.packed import COHORT, FILE, PackError, PackSettings
from skinmm.errors import InputError
from skinmm.images import shards
from skinmm.images.bucket import _start_fetcher
from skinmm.images.shards import read_tfrecord_image

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")

_HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Proxy:
    """Proxy in front of the server.

    Attributes:
        port: of the proxy.
        server: port of the server.
        delay: seconds before each answer of a shard.
        failing: each request of a shard whose number is a multiple fails, in turn with a status of
            503 and with a connection that is cut within the body; 0: none.
        requests: path and range of the requests of shards.
    """

    server: int
    port: int = 0
    delay: float = 0.0
    failing: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Forward a request, late or not at all."""
        is_shard = handler.path.partition("?")[0].endswith(".tfrec")
        number = len(self.requests) + 1
        if is_shard and handler.command == "GET":
            self.requests.append((handler.path, handler.headers.get("Range", "")))
            time.sleep(self.delay)
        fails = is_shard and self.failing and number % self.failing == 0
        length = int(handler.headers.get("Content-Length") or 0)
        connection = HTTPConnection("127.0.0.1", self.server, timeout=60)
        headers = dict(handler.headers.items())
        connection.request(handler.command, handler.path, handler.rfile.read(length), headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        is_unavailable = fails and number // self.failing % 2 == 0
        handler.send_response(503 if is_unavailable else answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                handler.send_header(name, value)
        size = answer.getheader("Content-Length") if handler.command == "HEAD" else len(body)
        handler.send_header("Content-Length", str(size or 0))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fails else body)
        handler.close_connection = True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of three shards."""
    rows = demo(DataConfig()).rows.groupby("target").head(30).reset_index(drop=True)
    out = tmp_path_factory.mktemp("pack") / "local"
    pack(rows, out, read, PackSettings(size=48, shard_images=20), workers=1)
    return out


def read(path: str) -> tuple[bytes, int | None]:
    return Path(path).read_bytes(), None


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    made = Proxy(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            made.answer(self)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = http.server_address[1]
    threading.Thread(target=http.serve_forever, daemon=True).start()
    for name, value in environment(made).items():
        monkeypatch.setenv(name, value)
    for cached in (_open_bucket, _start_fetcher, shards._open_file):
        cached.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    yield made
    http.shutdown()
    http.server_close()


def environment(proxy: Proxy) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def url(proxy: Proxy, folder: Path, request: pytest.FixtureRequest) -> str:
    """The pack in a bucket of this test."""
    bucket = re.sub(r"\W|_", "-", request.node.name.lower())[:50].strip("-")
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir(bucket)
    for file in folder.iterdir():
        filesystem.pipe_file(f"{bucket}/packs/p/{file.name}", file.read_bytes())
    proxy.requests.clear()
    return f"s3://{bucket}/packs/p"


def config(url: str, cache: Path, **args: Any) -> DataConfig:
    return DataConfig(name="packed", root=url, args={"cache": str(cache), **args})


def read_all(data: DataConfig) -> dict[str, bytes]:
    """Read every image of a pack, in the order of its table."""
    cohort = packed(data, **data.args)
    pairs = zip(cohort.rows["image_id"], cohort.rows["path"], strict=True)
    return {name: read_tfrecord_image(path) for name, path in pairs}


def read_table(data: DataConfig) -> pd.DataFrame:
    return packed(data, **data.args).rows


def read_often(data: DataConfig) -> None:
    for _ in range(20):
        read_all(data)


def wait_until_cached(cache: Path, shards: int = 3) -> Path:
    """Wait until a cache has a number of shards; return the folder of the pack."""
    end = time.monotonic() + 60
    while len(files := list(cache.glob("*/*.tfrec"))) < shards:
        assert time.monotonic() < end
        time.sleep(0.05)
    return files[0].parent


def test_a_server_that_fails_gives_the_same_bytes(
    folder: Path, proxy: Proxy, url: str, tmp_path: Path
) -> None:
    proxy.failing = 5
    local = DataConfig(name="packed", root=str(folder))
    assert read_all(config(url, tmp_path)) == read_all(local)
    cached = wait_until_cached(tmp_path)
    for file in folder.glob("*.tfrec"):
        assert (cached / file.name).read_bytes() == file.read_bytes()
    assert not list(tmp_path.rglob("*.part"))
    columns = ["image_id", "patient_id", "age", "sex", "site", "diagnosis", "target", "width"]
    table = read_table(config(url, tmp_path))
    pd.testing.assert_frame_equal(table[columns], read_table(local)[columns])
    proxy.requests.clear()
    shards._open_file.cache_clear()
    assert read_all(config(url, tmp_path)) == read_all(local)
    assert proxy.requests == []  # all from the cache


def test_the_cache_is_bounded_and_the_rest_is_read_record_by_record(
    folder: Path, url: str, tmp_path: Path
) -> None:
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.tfrec")}
    limit = sorted(sizes.values())[-1] * 1.2
    data = config(url, tmp_path, cache_gb=limit / 1e9)
    cohort = packed(data, **data.args)
    assert re.search(r"1 of 3 shards .* records of the others are read one by one", cohort.notes[0])
    local = DataConfig(name="packed", root=str(folder))
    for _ in range(2):
        assert read_all(data) == read_all(local)
        wait_until_cached(tmp_path, 1)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.tfrec")) <= limit
    read_all(config(url, tmp_path, cache_gb=0.0))
    assert not list(tmp_path.rglob("*.tfrec"))  # a smaller cache of the next run
    with pytest.raises(InputError, match=r"cache_gb=-1.0: must be at least 0"):
        locate_pack(url, str(tmp_path), -1.0)


FETCH: Final = """
import sys
from pathlib import Path
from skinmm.images import bucket
bucket._BLOCK = 4096
folder, name = Path(sys.argv[1]), sys.argv[2]
bucket.Bucket.load(folder).fetch_shard(folder, name)
"""


def test_a_killed_download_is_resumed(folder: Path, proxy: Proxy, url: str, tmp_path: Path) -> None:
    cache = locate_pack(url, str(tmp_path))
    name = "shard-00000-of-00003.tfrec"
    partial = cache / f"{name}.part"
    proxy.delay = 0.2
    command = [sys.executable, "-c", FETCH, str(cache), name]
    variables = os.environ | environment(proxy) | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=variables)
    end = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = partial.stat().st_size
    assert 0 < start < (folder / name).stat().st_size
    proxy.requests.clear()
    proxy.delay = 0
    subprocess.run(command, env=variables, check=True, timeout=120)
    assert proxy.requests[0] == (proxy.requests[0][0], f"bytes={start}-{start + 4095}")
    assert (cache / name).read_bytes() == (folder / name).read_bytes()
    assert not partial.exists()


def test_damage_in_the_bucket_is_refused(
    folder: Path, proxy: Proxy, url: str, tmp_path: Path
) -> None:
    name = "shard-00001-of-00003.tfrec"
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    s3fs.S3FileSystem().pipe_file(f"{url.removeprefix('s3://')}/{name}", bytes(content))
    proxy.delay = 0.05
    with pytest.raises(
        InputError, match=rf"{name}: (differs from its checksum|record \d+ .*wrong)"
    ):
        read_often(config(url, tmp_path))
    assert not list(tmp_path.rglob(name))
    filesystem = s3fs.S3FileSystem()
    filesystem.pipe_file(
        f"{url.removeprefix('s3://')}/{COHORT}", b"image_id,target,source\nX,0,a\n"
    )
    _open_bucket.cache_clear()
    with pytest.raises(PackError, match=r"1 images of cohort\.csv are in no shard, such as X"):
        read_all(config(url, tmp_path))


def test_what_is_no_pack_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{url}/nowhere/{FILE}: no such file"):
        locate_pack(f"{url}/nowhere", str(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        locate_pack("nothing://a/b", str(tmp_path))
    manifest = s3fs.S3FileSystem().cat_file(f"{url}/{FILE}")
    unsafe = manifest.replace(b"shard-00000", b"../shard-00000")
    s3fs.S3FileSystem().pipe_file(f"{url}/{FILE}", unsafe)
    with pytest.raises(PackError, match=r"'\.\./shard-00000-of-00003\.tfrec' is not the name"):
        locate_pack(url, str(tmp_path))


@pytest.mark.slow
def test_training_is_the_same_to_the_bit(
    folder: Path, proxy: Proxy, url: str, tmp_path: Path
) -> None:
    """Two epochs with loader processes, from a server that fails, and from a local folder."""
    proxy.failing = 7
    weights, predictions = dict[str, Any](), dict[str, pd.DataFrame]()
    for name, root in (("bucket", url), ("local", str(folder))):
        run = tmp_path / name
        assert (
            quick_train(
                run,
                "data=packed",
                f"data.root={root}",
                *([f"+data.args.cache={tmp_path / 'cache'}"] if name == "bucket" else []),
                "trainer.max_epochs=2",
                "trainer.workers=2",
                "trainer.batch_size=4",
            )
            == 0
        )
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        weights[name] = last["state_dict"]
        predictions[name] = pd.read_csv(run / "predictions" / "test.csv")
    assert proxy.requests
    assert weights["bucket"].keys() == weights["local"].keys()
    for key, value in weights["bucket"].items():
        assert torch.equal(value, weights["local"][key]), key
    pd.testing.assert_frame_equal(predictions["bucket"], predictions["local"])


def test_ranks_of_a_machine_fetch_a_shard_once(
    folder: Path, proxy: Proxy, url: str, tmp_path: Path
) -> None:
    cache = locate_pack(url, str(tmp_path))
    name = "shard-00002-of-00003.tfrec"
    proxy.delay = 0.1
    command = [sys.executable, "-c", FETCH, str(cache), name]
    variables = os.environ | environment(proxy) | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=variables) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    size = (folder / name).stat().st_size
    assert len(proxy.requests) == -(-size // 4096)
    assert (cache / name).read_bytes() == (folder / name).read_bytes()
    shutil.rmtree(cache)
