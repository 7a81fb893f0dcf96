"""Packs in object storage: `data=packed data.root=s3://BUCKET/DIR`, through a local cache."""

import fcntl
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skinmm.config import DataConfig
from skinmm.data.packed import COHORT, FILE, INDEX_ENDINGS, PackError, require_complete
from skinmm.errors import InputError
from skinmm.files import atomic_write, user_cache
from skinmm.images.bucket import FILE as BUCKET
from skinmm.images.bucket import Bucket, fetch
from skinmm.images.shards import PLAIN, format_location
from skinmm.images.tfrecord import load_stored_index

if TYPE_CHECKING:
    import pandas as pd

CACHE_GB: Final = 100.0


def is_in_bucket(data: DataConfig) -> bool:
    """Return whether a cohort is a pack in object storage (`data.root=s3://BUCKET/DIR`)."""
    return data.name == "packed" and "://" in (data.root or "")


def find_pack(data: DataConfig) -> Path:
    """Return the folder of a pack, or its cache folder if it is in object storage."""
    if not is_in_bucket(data):
        return Path(data.root or "")
    options = {name: data.args[name] for name in ("cache", "cache_gb") if name in data.args}
    return locate_pack(str(data.root), **options)


def locate_pack(url: str, cache: str = "", cache_gb: float = CACHE_GB) -> Path:
    """Return the cache folder of a pack in object storage, with its table and indices.

    Args:
        url: folder of the pack, such as `s3://BUCKET/DIR`.
        cache: folder for the caches of all packs; empty: that of the user.
        cache_gb: gigabytes of shards in it.
    """
    if cache_gb < 0:
        raise InputError(f"+data.args.cache_gb={cache_gb}: must be at least 0")
    folder = Path(cache).expanduser().absolute() if cache else user_cache() / "packs"
    return _open_bucket(url.rstrip("/"), folder, int(cache_gb * 1e9))


@lru_cache  # once for a process
def _open_bucket(url: str, cache: Path, limit: int) -> Path:
    """Fetch the table and indices of a pack, and choose the shards to cache.

    The folder depends on the manifest, so another pack under the same URL has another folder.
    """
    text = fetch(f"{url}/{FILE}")
    folder = cache / hashlib.sha256(url.encode() + text).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other ranks wait
        _write(folder / FILE, text)
        manifest = require_complete(folder)
        if unsafe := [name for name in manifest.files if Path(name).name != name]:
            raise PackError(f"{url}/{FILE}: '{unsafe[0]}' is not the name of a shard")
        _write(folder / COHORT, fetch(f"{url}/{COHORT}"))
        names = [f"{file}{ending}" for file in manifest.files for ending in INDEX_ENDINGS]
        absent = [name for name in names if not (folder / name).exists()]
        with ThreadPoolExecutor(8) as pool:
            contents = pool.map(fetch, [f"{url}/{name}" for name in absent])
            for name, content in zip(absent, contents, strict=True):
                _write(folder / name, content)
        present = sum(file.stat().st_size for file in folder.glob("*.tfrec*"))
        limit = min(limit, present + int(0.9 * shutil.disk_usage(folder).free))
        shards: dict[str, tuple[int, str]] = {}
        total = 0
        for file, shard in manifest.shards.items():
            if total + shard.bytes <= limit:
                shards[file] = shard.bytes, shard.sha256
                total += shard.bytes
        _make_room(cache, {folder / file for file in shards}, limit - total)
        Bucket(url, shards).save(folder)
    return folder


def _write(file: Path, content: bytes) -> None:
    with atomic_write(file) as partial:
        partial.write_bytes(content)


def _make_room(cache: Path, planned: set[Path], limit: int) -> None:
    """Remove unplanned shards from a cache until at most `limit` bytes of them remain.

    Those of packs used longest ago go first; a run that uses them reads their records from the
    bucket.
    """
    others = [file for file in cache.glob("*/*.tfrec") if file not in planned]
    others.sort(key=lambda file: (file.parent / BUCKET).stat().st_mtime, reverse=True)
    for file in others:
        limit -= file.stat().st_size
        if limit < 0:
            file.unlink(missing_ok=True)


def locate_images(folder: Path, names: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the location of each image of a pack in object storage, from the indices."""
    manifest = require_complete(folder)
    locations: dict[str, str] = {}
    for file, shard in manifest.shards.items():
        index = load_stored_index(folder / file, [PLAIN.name, PLAIN.image])
        if index is None or index.size != shard.bytes:
            raise PackError(f"{file}: its index belongs to another file: copy the pack again")
        locations |= {image: format_location(folder / file, image) for image in index.names}
    paths = names.map(locations).astype(object)
    if paths.isna().any():
        first = names[paths.isna()].iloc[0]
        raise PackError(
            f"{int(paths.isna().sum())} images of {COHORT} are in no shard, such as {first}: copy "
            "the pack again"
        )
    return paths


def describe_cache(folder: Path) -> str:
    """Describe where a pack is cached, and how much of it."""
    bucket, manifest = Bucket.load(folder), require_complete(folder)
    cached, total = (
        sum(shard.bytes for name, shard in manifest.shards.items() if name in names) / 1e9
        for names in (bucket.shards, manifest.shards)
    )
    rest = "; records of the others are read one by one" if cached < total else ""
    return (
        f"{bucket.url}: {len(bucket.shards)} of {len(manifest.shards)} shards ({cached:.2f} of "
        f"{total:.2f} GB) are cached in {folder}{rest}"
    )
