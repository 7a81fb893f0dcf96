"""Time of one query, and of one of 64 queries, of `skinmm similar` in a file of embeddings.

    python benchmarks/similar.py [ROWS=1000000] [DIM ...]

Random vectors in memory, as `EmbeddingIndex` stores them; the median of 7 searches for 5 rows.
"""

import sys
import time
from typing import Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32

from skinmm.predict.embed import EmbeddingIndex

REPEATS: Final = 7


def measure(index: EmbeddingIndex, queries: Float32[np.ndarray, "q dim"]) -> float:
    """Return the milliseconds of one query."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        index.search(queries, 5)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds)) / len(queries)


if __name__ == "__main__":
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rng = np.random.default_rng(0)
    print(f"{rows:,} rows, {torch.get_num_threads()} threads\n")
    print(
        "| dimensions | memory (GB) | one query (ms) | one of 64 queries (ms) |\n|---|---|---|---|"
    )
    for dim in map(int, sys.argv[2:] or (384, 768, 1280)):
        vectors = rng.standard_normal((rows, dim), dtype=np.float32)
        index = EmbeddingIndex(vectors, pd.DataFrame(index=range(rows)), {})
        queries = rng.standard_normal((64, dim), dtype=np.float32)
        figures = (measure(index, queries[:1]), measure(index, queries))
        print(
            f"| {dim} | {vectors.nbytes / 1e9:.1f} | {figures[0]:.0f} | {figures[1]:.0f} |",
            flush=True,
        )
        del vectors, index
