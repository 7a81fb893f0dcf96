"""Compare random access to TFRecord files by name with the reader of the tfrecord package.

Measures a shuffled epoch in one process and through a loader with two workers, and the memory of an
epoch by file size. Our reader checks the CRC of every record, the package checks none; it shuffles
within a queue of 1,024 records, ours completely. A memory map is included for comparison: it stands
for `TFRecordFile` with `mmap` instead of `pread`.

    SKINMM_DATA=DIR python benchmarks/tfrecord_reading.py > benchmarks/results/tfrecord_reading.md
"""

import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from tfrecord.torch.dataset import TFRecordDataset
from torch.utils.data import DataLoader, Dataset

from skinmm.images.shards import TFRecordFile
from skinmm.images.tfrecord import HEADER, has_valid_crc, load_index, write_tfrecord

SIZES: Final = (128, 512, 2048)  # megabytes
MIDDLE: Final = SIZES[1]
ROUNDS: Final = 5
QUEUE: Final = 1024

FIELDS: Final = {
    **dict.fromkeys(("sex", "anatom_site_general_challenge", "diagnosis", "target"), 0),
    **dict.fromkeys(("age_approx", "width", "height"), 45),
}
LOADER: Final[dict[str, Any]] = {"batch_size": 32, "num_workers": 2, "collate_fn": list}

Reader = Callable[[Path], Iterable[Any]]


class Ours:
    """Shuffled epoch of one file, by name."""

    def __init__(self, path: Path, get: Callable[[TFRecordFile, str], Any]) -> None:
        """Open the file; the index stays for all epochs, as it does in training."""
        self.file = TFRecordFile(path)
        self._get = get

    def __iter__(self) -> Iterator[Any]:
        """Yield every record once."""
        for row in np.random.default_rng(0).permutation(len(self.file.names)).tolist():
            yield self._get(self.file, self.file.names[row])


class Mapped(Ours):
    """Reader with the same index and checks over a memory map."""

    def __init__(self, path: Path) -> None:
        """Map the file."""
        super().__init__(path, self.image)
        index = load_index(path, "image_name", "image")
        self._spans = dict(zip(index.names, index.spans.tolist(), strict=True))
        with path.open("rb") as stream:
            self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def image(self, file: TFRecordFile, name: str) -> bytes:  # noqa: ARG002
        """Return an image, as `TFRecordFile.image` does."""
        start, size, image, image_size = self._spans[name]
        if not has_valid_crc(self._content[start + HEADER : start + size]):
            raise ValueError(name)
        return self._content[image : image + image_size]


class Images(Dataset[bytes]):
    """Dataset of a loader."""

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._file = TFRecordFile(path)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._file.names)

    def __getitem__(self, row: int) -> bytes:
        """Return one image."""
        return self._file.image(self._file.names[row])


def package(path: Path, description: dict[str, str] | None) -> TFRecordDataset:
    """Read with the package, with the index that it needs for workers."""
    return TFRecordDataset(str(path), f"{path}.tfindex", description, shuffle_queue_size=QUEUE)


READERS: Final[dict[str, Reader]] = {
    "package, image": lambda path: package(path, {"image": "byte"}),
    "ours, image": lambda path: Ours(path, TFRecordFile.image),
    "memory map, image": Mapped,
    "package, all features": lambda path: package(path, None),
    "ours, all features": lambda path: Ours(path, TFRecordFile.read),
}
LOADERS: Final[dict[str, Reader]] = {
    "package, image": lambda path: DataLoader(package(path, {"image": "byte"}), **LOADER),
    "ours, image": lambda path: DataLoader(Images(path), shuffle=True, **LOADER),
}


def rates(readers: dict[str, Reader], path: Path, clock: Callable[[], float]) -> dict[str, float]:
    """Return the records per second of each reader: medians of alternating rounds."""
    records = len(TFRecordFile(path).names)
    opened = {name: reader(path) for name, reader in readers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, epoch in opened.items():
            start = clock()
            deque(epoch, maxlen=0)
            seconds[name].append(clock() - start)
    return {name: records / median(each) for name, each in seconds.items()}


def resident() -> float:
    """Return the resident memory of this process in megabytes, including file pages."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def print_growth(name: str, path: Path) -> None:
    """Print the megabytes that opening adds, and the peak of an epoch."""
    before = resident()
    epoch = READERS[name](path)
    opened = resident()
    peak = max(resident() for number, _ in enumerate(epoch) if number % 50 == 0)
    print(f"{opened - before:.0f} + {peak - opened:.0f} MB")


def growth(name: str, path: Path) -> str:
    """Run `print_growth` in a process of its own."""
    command = [sys.executable, __file__, name, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def write(path: Path, megabytes: int, images: list[Path]) -> None:
    """Write a file in the public schema from real images, repeated up to a size."""
    number, size = 0, 0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal number, size
        for image in cycle(images):
            content = image.read_bytes()
            name = f"{number}_{image.stem}"
            yield {"image": content, "image_name": name, "patient_id": number, **FIELDS}
            number, size = number + 1, size + len(content)
            if size > megabytes * 1e6:
                return

    write_tfrecord(path, records())


def print_rates(title: str, measured: dict[str, float]) -> None:
    """Print a table of rates, relative to the package for the same features."""
    print(f"\n## {title}\n\n| reader | records/s | ratio to the package |\n|---|---:|---:|")
    for name, rate in measured.items():
        theirs = measured[f"package, {name.partition(', ')[2]}"]
        print(f"| {name} | {rate:,.0f} | {rate / theirs:.2f} |")


def print_memory(paths: dict[int, Path]) -> None:
    """Print the memory of each reader by file size."""
    print("\n## Memory: opening + peak of one shuffled epoch\n")
    print(f"| reader | {' | '.join(f'{size} MB' for size in paths)} |")
    print(f"|---|{'---:|' * len(paths)}")
    for name in ("package, image", "ours, image", "memory map, image"):
        print(f"| {name} | {' | '.join(growth(name, path) for path in paths.values())} |")


def main() -> None:
    """Write the files, measure, print the page."""
    images = sorted(Path(os.environ["SKINMM_DATA"], "siim_isic_2020/jpeg/train").glob("*.jpg"))
    print(f"# TFRecord reading\n\n{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores", end=", ")
    print(f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}.")
    print(f"Command: `SKINMM_DATA=DIR python benchmarks/{Path(__file__).name}`.")
    print(f"Files: {len(images)} SIIM-ISIC images of 512x512 px, repeated; in the page cache.")
    with tempfile.TemporaryDirectory() as folder:
        paths = {size: Path(folder, f"{size}.tfrec") for size in SIZES}
        for size, path in paths.items():
            write(path, size, images)
        start = time.process_time()
        records = len(TFRecordFile(paths[MIDDLE]).names)
        print(f"Index of {MIDDLE} MB: {records:,} records, {time.process_time() - start:.1f} s.")
        for size in SIZES:
            TFRecordFile(paths[size])
        one = rates(READERS, paths[MIDDLE], time.process_time)
        print_rates(f"Shuffled epoch of {MIDDLE} MB, one process, CPU time", one)
        two = rates(LOADERS, paths[MIDDLE], time.perf_counter)
        print_rates(f"Shuffled epoch of {MIDDLE} MB, loader with 2 workers", two)
        print_memory(paths)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_growth(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
