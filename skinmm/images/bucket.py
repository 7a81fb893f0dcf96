"""Shards of a pack in object storage, through a local cache.

The cache folder of a pack has `bucket.json`, the index of every shard, and the shards that were
fetched. A thread of every process that reads from the pack fetches shards; a lock on its partial
file makes sure that one process fetches a shard, and the kernel frees it when that process ends. A
record whose shard is not in the cache is read by its position and compared with its CRC. So any
order of reads gives the bytes of the bucket, whatever the cache contains.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from skinmm.errors import InputError, one_line
from skinmm.files import atomic_write

FILE: Final = "bucket.json"
_BLOCK: Final = 8 << 20
"""Bytes of a request."""
_WAITS: Final = (0.2, 1.0, 4.0)
"""Seconds between the attempts of a request, in addition to those of the storage client."""


def fetch(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return an object, or its bytes from `start` to `end`; repeat failed requests."""
    waits = iter(_WAITS)
    while True:
        try:
            return _request(url, start, end)
        except InputError:
            raise
        except Exception as error:  # each service has its own errors
            wait = next(waits, None)
            if wait is None:
                raise InputError(f"{url}: cannot be read ({one_line(error)})") from error
            time.sleep(wait)


def _request(url: str, start: int | None, end: int | None) -> bytes:
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)  # one client for each process
        data = bytes(filesystem.cat_file(path, start=start, end=end))
    except ImportError as error:
        raise InputError(f"{url}: {one_line(error)}; for S3: pip install 'skinmm[s3]'") from error
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{url}: no permission ({one_line(error)})") from error
    if start is not None and end is not None and len(data) != end - start:
        raise OSError(f"{len(data)} of {end - start} bytes arrived")
    return data


@dataclass(frozen=True)
class Bucket:
    """Packed dataset in object storage; its cache folder describes it in `bucket.json`.

    Attributes:
        url: folder of the pack.
        shards: size in bytes and SHA-256 of the shards to be cached, by file name.
    """

    url: str
    shards: dict[str, tuple[int, str]]

    @classmethod
    def load(cls, folder: Path) -> "Bucket":
        """Read `bucket.json`."""
        content = json.loads((folder / FILE).read_text("utf-8"))
        return cls(
            content["url"], {name: tuple(shard) for name, shard in content["shards"].items()}
        )

    def save(self, folder: Path) -> None:
        """Write `bucket.json` atomically."""
        with atomic_write(folder / FILE) as partial:
            partial.write_text(json.dumps(asdict(self)), "utf-8")

    def fetch_shard(self, folder: Path, name: str) -> bool:
        """Fetch a shard to the cache folder; return False if another process is fetching it.

        A partial file is continued. If the result does not have the checksum, it is fetched again
        from the start the next time, or refused if it was fetched in one piece.
        """
        size, sha256 = self.shards[name]
        target, partial, url = folder / name, folder / f"{name}.part", f"{self.url}/{name}"
        with partial.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if target.exists():  # another process has finished it meanwhile
                partial.unlink(missing_ok=True)
                return True
            first = start = stream.seek(0, os.SEEK_END)
            while start < size:
                start += stream.write(fetch(url, start, min(start + _BLOCK, size)))
                stream.flush()
            with partial.open("rb") as content:
                is_same = hashlib.file_digest(content, "sha256").hexdigest() == sha256
            if is_same:
                os.fsync(stream.fileno())
                _set_time_of_index(partial, folder / f"{name}.names.json")
                partial.replace(target)
            else:
                stream.truncate(0)
            fcntl.flock(stream, fcntl.LOCK_UN)  # a forked process may have the file open
        if not is_same and not first:
            raise InputError(
                f"{url}: differs from its checksum in manifest.json: copy the pack to it again"
            )
        return True


def _set_time_of_index(shard: Path, names: Path) -> None:
    """Set the time of a shard to the time in its index, so that the index counts as current."""
    time_ns = int(json.loads(names.read_text("utf-8"))["mtime_ns"])
    os.utime(shard, ns=(time_ns, time_ns))


class _Fetcher(threading.Thread):
    """Thread that fetches the shards of a pack until the cache has all of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.bucket, self.folder = Bucket.load(folder), folder
        self.error: Exception | None = None

    def run(self) -> None:
        """Fetch every shard that no other process is fetching, until none is missing."""
        try:
            while missing := [n for n in self.bucket.shards if not (self.folder / n).exists()]:
                if not any(self.bucket.fetch_shard(self.folder, name) for name in missing):
                    time.sleep(0.5)
        except (OSError, InputError, ValueError, KeyError) as error:
            self.error = error


def is_uncached(path: Path) -> bool:
    """Return whether a shard is in a bucket but not yet in the cache."""
    return not path.exists() and path.with_name(FILE).is_file()


def read_range(path: Path, start: int, end: int) -> bytes:
    """Read bytes of a shard in a bucket, and start to cache the shards of its pack.

    An error of the fetching thread, such as a full disk or a wrong checksum, is raised here.
    """
    fetcher = _start_fetcher(path.parent, os.getpid())
    if fetcher.error:
        raise InputError(f"{path.parent}: {one_line(fetcher.error)}") from fetcher.error
    return fetch(f"{fetcher.bucket.url}/{path.name}", start, end)


@lru_cache(maxsize=8)
def _start_fetcher(folder: Path, _process: int) -> _Fetcher:
    """Start the thread once for each process, as threads do not survive a fork."""
    fetcher = _Fetcher(folder)
    fetcher.start()
    return fetcher
