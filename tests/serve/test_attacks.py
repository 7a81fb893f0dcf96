"""The real process under attack: malformed uploads, and a fuzzer of its description."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", exc_type=ImportError)
pytest.importorskip("sqlalchemy", exc_type=ImportError)

from malformed import malformed
from quick_runs import best
from served import RECORD, Running, jpeg_of, process

pytestmark = pytest.mark.slow
UPLOADS = 5_000


@pytest.fixture(scope="module")
def running(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = tmp_path_factory.mktemp("store") / "cases.db"
    with process(best(both), f"store={store}", "page=false", "queue=64") as server:
        yield server


def is_well(running: Running, pictures: Path) -> bool:
    image = {"image": ("a.jpg", jpeg_of(pictures))}
    answer = httpx.post(f"{running.address}/v1/predict", files=image, data=RECORD, timeout=60)
    return running.server.poll() is None and answer.status_code == 200


def test_five_thousand_malformed_uploads(running: Running, pictures: Path) -> None:
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=running.address, timeout=60) as client:
        for body, kind in malformed(pictures, UPLOADS):
            headers = {b"content-type": kind.encode("latin-1")}
            try:
                answer = client.post("/v1/predict", content=body, headers=headers)
            except (httpx.RemoteProtocolError, httpx.LocalProtocolError):
                continue  # a header that is none: the client or the server hangs up
            statuses[answer.status_code // 100] += 1
    assert {*statuses} <= {2, 4}, statuses  # a picture bears some damage
    assert statuses[4] > UPLOADS // 2
    assert is_well(running, pictures)


def test_the_description_under_schemathesis(
    running: Running, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis", exc_type=ImportError)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run"),
            f"{running.address}/v1/openapi.json",
            *("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "30", "--seed", "0", "--generation-database", "none", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        cwd=tmp_path,  # it leaves a folder
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert is_well(running, pictures)
