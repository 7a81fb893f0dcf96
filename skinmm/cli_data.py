"""The commands that look at a cohort or make it small: audit, explore, pack."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skinmm.cli_hydra import once
from skinmm.config import AuditConfig, DataConfig, ExploreConfig, PackConfig, PackSparkConfig

if TYPE_CHECKING:
    import pandas as pd

    from skinmm.data.near_duplicates import Fingerprints
    from skinmm.data.shard_writer import PackSettings
    from skinmm.report.cohorts import Cohort

PACKED: Final = "packed {images:,} images; to use them: data=packed data.root={out}"


def audit(argv: list[str]) -> int:
    """Finds leaks and shortcuts of a cohort and its split; 1 when there is a leak."""
    return once(argv, "audit", AuditConfig, _audit, "skinmm audit takes one cohort")


def explore(argv: list[str]) -> int:
    """Makes a page about a cohort: counts, what is missing, ages, sites, sizes, pictures."""
    return once(argv, "explore", ExploreConfig, _explore, "skinmm explore takes one cohort")


def pack(argv: list[str]) -> int:
    """Makes a cohort's images small and puts them into TFRecord shards; or checks such a pack."""
    return once(argv, "pack", PackConfig, _pack, "skinmm pack takes one cohort")


def _audit(config: AuditConfig, _: Path) -> int:
    from skinmm.data.audit import audit as audited
    from skinmm.data.cohorts import absent
    from skinmm.data.near_duplicates import near_duplicates
    from skinmm.data.splits import split
    from skinmm.report import audit_page, refuse_existing
    from skinmm.training.run_folder import write_json

    data, folder = config.data, Path(config.output)
    page, facts = folder / "audit.html", folder / "audit.json"
    for file in (page, facts):
        refuse_existing(file, config.overwrite)
    table = _cohort(data, images=config.near)
    near, pixels = None, dict[str, Any](absent=absent(table))
    if config.near:
        found = _fingerprints(table)
        near, table = near_duplicates(found), _with_sizes(table, found)
        pixels |= {"compared": len(found.image_id), "unreadable": found.unreadable}
    table = split(table, data.folds, int(data.fold), data.split_seed)
    cohort = _seen(table, data)
    findings = audited(table, positive=cohort.positive, columns=data.columns, near=near) | pixels
    folder.mkdir(parents=True, exist_ok=True)
    write_json(facts, findings)
    audit_page(cohort, findings, page)
    print(f"audit: {page}")  # noqa: T201
    for warning in filter(None, [*findings["warnings"], findings["absent"]]):
        print(f"WARNING: {warning}", file=sys.stderr)  # noqa: T201
    if findings["leaks"]:
        print(f"leaks found: {'; '.join(findings['leaks'])}", file=sys.stderr)  # noqa: T201
        return 1
    print("no leaks found")  # noqa: T201
    return 0


def _explore(config: ExploreConfig, _: Path) -> int:
    from skinmm.report import explore_page, refuse_existing

    output = Path(config.output)
    refuse_existing(output, config.overwrite)
    cohort = _seen(_cohort(config.data), config.data)
    explore_page(cohort, output, examples=config.examples)
    print(f"page: {output}")  # noqa: T201
    return 0


def _pack(config: PackConfig, _: Path) -> int:
    from skinmm.data.manifest import verify_pack
    from skinmm.data.pack import pack as packed
    from skinmm.images.source import read_source

    out = Path(config.out)
    if config.verify:
        manifest = verify_pack(out)
        print(f"{out}: {manifest.images:,} images, all as they were packed")  # noqa: T201
        return 0
    table, settings = to_pack(config)
    packed(table, out, read_source, settings, workers=config.workers, overwrite=config.overwrite)
    print(PACKED.format(images=len(table), out=out))  # noqa: T201
    return 0


def to_pack(config: PackConfig | PackSparkConfig) -> "tuple[pd.DataFrame, PackSettings]":
    """The rows, all with their image, and how they are packed."""
    from skinmm.data.shard_writer import PackSettings

    data = config.data
    settings = PackSettings(
        size=config.size,
        quality=config.quality,
        icc="srgb" if data.icc == "srgb" else "ignore",
        steps=tuple(data.preprocess),
        # Workers of Spark start elsewhere.
        segmenter=data.segmenter and str(Path(data.segmenter).absolute()),
    )
    return _cohort(data, images=True), settings


def _cohort(data: DataConfig, *, images: bool = False) -> "pd.DataFrame":
    """The rows, as `data.missing` says where their images are needed."""
    from skinmm.data.cohorts import load_cohort, require_images

    return require_images(load_cohort(data), data.missing, needed=images)


def _seen(table: "pd.DataFrame", data: DataConfig) -> "Cohort":
    from skinmm.data.cohorts import classes_of, positives_of
    from skinmm.report import Cohort

    classes = classes_of(table, data)
    return Cohort(data.name, table, classes, positives_of(classes, data), data.columns)


def _fingerprints(table: "pd.DataFrame") -> "Fingerprints":
    from tqdm import tqdm

    from skinmm.data.near_duplicates import fingerprints
    from skinmm.images.source import read_source

    with tqdm(total=len(table), desc="comparing", unit=" images", disable=None) as bar:
        return fingerprints(table, read_source, bar.update)


def _with_sizes(table: "pd.DataFrame", found: "Fingerprints") -> "pd.DataFrame":
    """Sizes that the table lacks, as the images have them, so that they can be probed."""
    import pandas as pd

    sizes = pd.DataFrame(found.sizes, found.image_id, ["width", "height"], dtype=float)
    names = table["image_id"]
    return table.assign(
        width=table["width"].fillna(names.map(sizes["width"])),
        height=table["height"].fillna(names.map(sizes["height"])),
    )
