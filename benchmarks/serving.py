"""Measure latency, refusals, memory and throughput of `skinmm serve`, and of the network alone.

The service is a separate process; this process runs plain HTTP clients.

    python benchmarks/serving.py CHECKPOINT [REQUESTS [SECONDS]]

CHECKPOINT is an EfficientNet-Lite0 at 224 pixels with the exported model next to it (`skinmm
export`). Legs: `network` (ONNX Runtime, one row at a time, pixels in memory), `paced` (5 requests
per second, latency from their due time), `busy` (8 clients, the size of the queue, without pause),
`crowd` (64 clients for SECONDS, which retry 50 ms after a refusal), `memory` (REQUESTS in all). CPU
milliseconds are the server's; on a shared machine they are more reliable than wall time.
"""

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

import numpy as np
import torch

from skinmm.predict.ensemble import load_models

PICTURES: Final = sorted((Path(__file__).parents[1] / "skinmm/demo/images").glob("*.jpg"))[:50]
START: Final = "import sys; from skinmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
RATE, BUSY, CROWD, PAUSE = 5, 8, 64, 0.05
TICKS: Final = os.sysconf("SC_CLK_TCK")


def request(image: bytes) -> bytes:
    """Return the HTTP request of a prediction."""
    parts = {"age": "55", "sex": "female", "site": "torso"}
    head = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    fields = "".join(f"{head.format(name, '')}{cell}\r\n" for name, cell in parts.items())
    start = fields + head.format("image", '; filename="a.jpg"')
    body = start.encode() + image + b"\r\n--b--\r\n"
    lines = ("POST /v1/predict HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}")
    kind = "Content-Type: multipart/form-data; boundary=b"
    return "\r\n".join([*lines, kind, "", ""]).encode() + body


REQUESTS: Final = cycle([request(path.read_bytes()) for path in PICTURES])


class Server:
    """The service and its resources."""

    def __init__(self, checkpoint: Path) -> None:
        """Start the service and wait until it responds."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = [f"checkpoint={checkpoint}", f"port={self.port}", "page=false", "backend=onnx"]
        command = [sys.executable, "-c", START, "serve", *options]
        self.process = subprocess.Popen(command)  # noqa: S603
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self.process.poll() is not None:
                break
            asyncio.run(asyncio.sleep(0.5))
        raise SystemExit("the service did not start")

    def cpu(self) -> float:
        """Return the CPU seconds of its threads."""
        cells = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(cells[11]) + int(cells[12])) / TICKS

    def memory(self) -> float:
        """Return its memory in megabytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def asked(port: int, connection: list[asyncio.StreamReader | asyncio.StreamWriter]) -> int:
    """Sends one request over a connection that is kept, and returns the answer's status."""
    if not connection:
        connection.extend(await asyncio.open_connection("127.0.0.1", port))
    reader, writer = connection
    assert isinstance(reader, asyncio.StreamReader)  # noqa: S101
    assert isinstance(writer, asyncio.StreamWriter)  # noqa: S101
    writer.write(next(REQUESTS))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
    await reader.readexactly(length)
    if b"connection: close" in head:
        writer.close()
        connection.clear()
    return int(head.split()[1])


async def paced(port: int, seconds: float) -> list[float]:
    """Milliseconds of each answer, from when its request was due."""
    idle: list[list[asyncio.StreamReader | asyncio.StreamWriter]] = []

    async def one(due: float) -> float:
        connection = idle.pop() if idle else []
        status = await asked(port, connection)
        idle.append(connection)
        return 1e3 * (perf_counter() - due) if status == 200 else float("inf")  # noqa: PLR2004

    start, tasks = perf_counter(), []
    for number in range(int(RATE * seconds)):
        due = start + number / RATE
        await asyncio.sleep(max(0.0, due - perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    return await asyncio.gather(*tasks)


async def crowd(port: int, clients: int, more: Callable[[Counter[str]], bool]) -> Counter[str]:
    """How requests ended, of clients that ask as long as there is `more`."""
    ends: Counter[str] = Counter()

    async def client() -> None:
        connection: list[asyncio.StreamReader | asyncio.StreamWriter] = []
        while more(ends):
            try:
                end = str(await asked(port, connection))
            except (OSError, asyncio.IncompleteReadError) as error:
                end = type(error).__name__
                connection.clear()
            ends[end] += 1
            if end != "200":
                await asyncio.sleep(PAUSE)

    waiting: list[Awaitable[None]] = [client() for _ in range(clients)]
    await asyncio.gather(*waiting)
    return ends


def network(checkpoint: Path, seconds: float) -> tuple[float, float]:
    """Return rows per second and CPU milliseconds per row of the network alone."""
    (member,) = load_models(checkpoint, torch.device("cpu"), "onnx")
    size = member.view.size if member.view else 0
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    record = member.encoder.blank[None] if "record" in member.inputs else None
    for _ in range(20):
        member.backend(pixels, record, np.ones(1, bool))
    start, cpu, rows = perf_counter(), process_time(), 0
    while perf_counter() - start < seconds:
        member.backend(pixels, record, np.ones(1, bool))
        rows += 1
    return rows / (perf_counter() - start), 1e3 * (process_time() - cpu) / rows


def main(checkpoint: Path, requests: int = 20_000, seconds: float = 60) -> None:
    """Run all legs and print the table."""
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f} before\n")
    print("| leg | figure |\n|---|---|", flush=True)
    alone = subprocess.run(  # noqa: S603
        [sys.executable, __file__, str(checkpoint), "network", str(seconds / 3)],
        capture_output=True,
        check=True,
    )
    rate, cpu = json.loads(alone.stdout.splitlines()[-1])
    print(f"| network | {rate:.1f} rows/s, {cpu:.1f} CPU ms a row |", flush=True)
    server = Server(checkpoint)
    done, first = 0, None
    try:
        asyncio.run(crowd(server.port, BUSY, lambda ends: ends.total() < 50))  # noqa: PLR2004
        took = np.array(asyncio.run(paced(server.port, seconds)))
        middle, late = np.percentile(took, [50, 99], method="inverted_cdf")
        print(f"| paced | p50 {middle:.0f} ms, p99 {late:.0f} ms, worst {took.max():.0f} ms |")
        used, start = server.cpu(), perf_counter()
        end = start + seconds
        ends = asyncio.run(crowd(server.port, BUSY, lambda _: perf_counter() < end))
        served, each = ends["200"] / (perf_counter() - start), 1e3 * (server.cpu() - used)
        each /= max(ends["200"], 1)
        print(f"| busy | {served:.1f} rows/s, {each:.1f} CPU ms a row; of the network's ", end="")
        print(f"{served / rate:.2f} by the clock, {cpu / each:.2f} by CPU time |", flush=True)
        end = perf_counter() + seconds
        many = asyncio.run(crowd(server.port, CROWD, lambda _: perf_counter() < end))
        print(f"| crowd | {', '.join(f'{n} x {kind}' for kind, n in many.items())} |", flush=True)
        done, first = len(took) + ends["200"] + many["200"], server.memory()
        left = requests - done
        asyncio.run(crowd(server.port, BUSY, lambda ends: ends["200"] < left))
        print(
            f"| memory | {first:.0f} MB after {done}, {server.memory():.0f} MB after {requests} |"
        )
    finally:
        server.process.terminate()
        server.process.wait(60)
    print(f"\nload {os.getloadavg()[0]:.1f} after, torch {torch.__version__}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "network" in arguments:
        print(json.dumps(network(Path(arguments[0]), float(arguments[2]))))
    else:
        numbers = [int(each) for each in arguments[1:]]
        main(Path(arguments[0]), *numbers)
