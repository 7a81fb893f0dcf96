"""What a pack's `manifest.json` says: how it was made, and the checksum of every finished shard."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from skinmm.errors import InputError
from skinmm.files import atomic_write

FILE: Final = "manifest.json"
_SCHEMA: Final = 1


class PackError(InputError):
    """A pack cannot be made or used; the message says what to do."""


@dataclass(frozen=True)
class Shard:
    """A finished shard: its size in bytes and SHA-256 belong to the file as it was read back."""

    images: int
    patients: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """A pack's plan and progress.

    Attributes:
        digest: SHA-256 of the cohort and the settings: the same digest is the same pack.
        settings: how images are packed.
        images: in the whole pack.
        files: shards in the whole pack, by file name.
        shards: finished ones, by file name.
    """

    digest: str
    settings: dict[str, Any]
    images: int
    files: list[str]
    shards: dict[str, Shard] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `manifest.json`; what is there before is whole until the new one is."""
        content = {"schema": _SCHEMA, "complete": self.complete, **asdict(self)}
        content["shards"] = dict(sorted(content["shards"].items()))  # in whatever order they came
        with atomic_write(folder / FILE) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    @property
    def complete(self) -> bool:
        """Whether every shard is finished."""
        return set(self.files) == set(self.shards)


def load_manifest(folder: Path) -> Manifest | None:
    """A folder's manifest, or None where no pack was begun.

    Raises:
        PackError: it cannot be understood.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
        schema, _ = content.pop("schema"), content.pop("complete")
        shards = {name: Shard(**shard) for name, shard in content.pop("shards").items()}
        manifest = Manifest(**content, shards=shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackError(f"{file}: not the manifest of a pack: choose another folder") from error
    if schema != _SCHEMA:
        raise PackError(f"{file}: of another version of skinmm: choose another folder")
    return manifest


def load_packed_steps(folder: Path) -> tuple[tuple[str, ...], str | None]:
    """Preprocessing that a pack's images have been through, and the digest of what found lesions.

    Raises:
        PackError: a manifest that cannot be understood.
    """
    manifest = load_manifest(folder)
    settings = manifest.settings if manifest else {}
    return tuple(settings.get("steps", ())), settings.get("segmenter")


def describe(file: Path, images: int, patients: int) -> Shard:
    """Measure a finished shard."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Shard(images, patients, file.stat().st_size, digest)


def verify_pack(folder: Path) -> Manifest:
    """Compare every shard of a pack with its checksum, as after copying it.

    Raises:
        PackError: no pack, an unfinished one, or a shard that is missing or was changed.
    """
    manifest = load_manifest(folder)
    if manifest is None:
        raise PackError(f"{folder}: no {FILE}: name a folder that skinmm pack wrote")
    if not manifest.complete:
        done, planned = len(manifest.shards), len(manifest.files)
        raise PackError(f"{folder}: {done} of {planned} shards packed: run the same pack again")
    for name, shard in manifest.shards.items():
        file = folder / name
        if not file.is_file() or describe(file, shard.images, shard.patients) != shard:
            raise PackError(f"{file}: missing, or not as it was packed: copy it again")
    return manifest
