"""Rate of `skinmm embed` against its network alone, and time of a query of `skinmm similar`.

    python benchmarks/similar.py search [ROWS=1000000] [DIM ...]
    python benchmarks/similar.py embed FOLDER [IMAGES=256] [ROUNDS=3]

`search`: random vectors in memory, as `EmbeddingIndex` stores them; median of 7 searches for 5
rows. `embed`: images of a folder through an untrained EfficientNet-Lite0 at 224 px on the CPU, and
batches of the same size already in memory through the network alone, in turn; wall time and CPU
time, as the machine may be busy.
"""

import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32

from skinmm.config import ModelConfig
from skinmm.data.dataset import View
from skinmm.models.backbone import Backbone
from skinmm.predict.embedder import Embedder, EmbeddingIndex
from skinmm.predict.inputs import ImageFolder

REPEATS: Final = 7
BATCH: Final = 32


def measure(index: EmbeddingIndex, queries: Float32[np.ndarray, "q dim"]) -> float:
    """Return the milliseconds of one query."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        index.search(queries, 5)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds)) / len(queries)


def measure_search(rows: int, dims: list[int]) -> None:
    """Print the time of a query by the width of the embeddings."""
    rng = np.random.default_rng(0)
    print(f"{rows:,} rows, {torch.get_num_threads()} threads\n")
    print(
        "| dimensions | memory (GB) | one query (ms) | one of 64 queries (ms) |\n|---|---|---|---|"
    )
    for dim in dims:
        vectors = rng.standard_normal((rows, dim), dtype=np.float32)
        size = 1.5 * vectors.nbytes / 1e9  # in 32 and in 16 bits
        index = EmbeddingIndex(vectors, pd.DataFrame(index=range(rows)), {})
        queries = rng.standard_normal((64, dim), dtype=np.float32)
        one, many = measure(index, queries[:1]), measure(index, queries)
        print(f"| {dim} | {size:.1f} | {one:.0f} | {many:.0f} |", flush=True)
        del vectors, index


def measure_embed(folder: Path, count: int = 256, rounds: int = 3) -> None:
    """Print images per second of the whole command and of the network alone."""
    config = ModelConfig(name="tf_efficientnet_lite0", pretrained="false", image_size=224)
    network = Backbone(config).eval().requires_grad_(requires_grad=False)
    embedder = Embedder(network.to(memory_format=torch.channels_last), View(224), config.name)
    names = [path.name for path in sorted(folder.iterdir())[:count]]
    images, table = ImageFolder(folder), pd.DataFrame({"image": names})
    blank = {View(224): np.zeros((224, 224, 3), np.uint8)}
    jobs: dict[str, Any] = {
        "embed": lambda: [*embedder.embed([table], images, batch_size=BATCH, workers=2)],
        "network alone": lambda: [
            embedder.run({}, [blank] * BATCH) for _ in range(len(names) // BATCH)
        ],
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter(), time.process_time()
            job()
            taken[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    print("| | images / s | CPU seconds per 1000 images |\n|---|---|---|")
    for name, pairs in taken.items():
        wall, cpu = (min(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {len(names) / wall:.1f} | {1000 * cpu / len(names):.1f} |")


if __name__ == "__main__":
    words = sys.argv[2:]
    if sys.argv[1] == "embed":
        measure_embed(Path(words[0]), *map(int, words[1:]))
    else:
        dims = [*map(int, words[1:])] or [384, 768, 1280]
        measure_search(int(words[0]) if words else 1_000_000, dims)
