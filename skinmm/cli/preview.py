"""`skinmm preview`: the training rows as the network receives them, on one small page."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skinmm.config import name_cohort
from skinmm.config.data_commands import PreviewConfig
from skinmm.errors import print_line, require_new_output

if TYPE_CHECKING:
    from skinmm.data.datamodule import LesionData
    from skinmm.report.blocks import Card, Table

COUNTED: Final = 10_000
"""Rows of an epoch whose classes are counted."""


def preview(config: PreviewConfig) -> int:
    """Write the page of the first rows that the sampler draws, augmented and decoded."""
    from skinmm.data.datamodule import LesionData
    from skinmm.report.blocks import Gallery, Note, Section
    from skinmm.report.write import write_page
    from skinmm.training.fit import check_components

    output = Path(config.output)
    require_new_output("output", output, overwrite=config.overwrite, suffix=".html")
    check_components(config)
    data = LesionData(config)
    data.setup()
    dataset = data.build_dataset(data.rows("train"))
    keys = [*islice(iter(data.train_dataloader().sampler), COUNTED)]
    cards = [_build_card(data, dataset, key) for key in keys[: config.examples]]
    mixed = f" Afterwards mix={config.mix.name} mixes pairs of rows." if config.mix.args else ""
    note = (
        f"Rows in the order of sampler={config.sampler.name}, with augment={config.augment.name} "
        f"at {config.model.image_size} pixels, seed {config.seed}.{mixed}"
    )
    sections = [
        Section(
            "samples",
            "What the network receives",
            [Note(note), Gallery("In the order of training", cards)],
        ),
        Section("classes", "Classes", [_count_classes(data, keys)]),
    ]
    columns = ", ".join(data.encoder.columns)
    facts = [f"{len(data.rows('train')):,} rows to train", f"record {columns}"]
    write_page(
        output, title=f"Preview of {name_cohort(vars(config.data))}", facts=facts, sections=sections
    )
    print_line(f"page: {output}")
    return 0


def _build_card(data: "LesionData", dataset: Any, key: tuple[int, int]) -> "Card":
    """Return the card of one sample: class, decoded record and augmented image."""
    from skinmm.data.dataset import apply_seeded
    from skinmm.report.blocks import Card, to_data_url

    sample = dataset[key]
    record = sample.get("record")
    lines = [data.classes[sample["target"]]]
    if record is not None:
        lines += [f"{name}: {value}" for name, value in data.encoder.decode(record.numpy()).items()]
    picture = None
    if sample.get("has_image", "image" in sample):
        image = sample["image"]
        if "seed" in sample:  # the GPU would augment it
            image = apply_seeded(data.transform, image, sample["seed"])
        picture = to_data_url(image.permute(1, 2, 0).numpy())
    row = data.cohort.iloc[data.rows("train")[key[0]]]
    return Card(str(row["image_id"]), lines, picture)


def _count_classes(data: "LesionData", keys: list[tuple[int, int]]) -> "Table":
    """Return the share of each class in the cohort and among the drawn rows."""
    from skinmm.report.blocks import Table, format_percent

    targets = data.training_targets
    drawn, present = Counter(targets[[row for row, _ in keys]].tolist()), Counter(targets.tolist())
    rows = [
        (
            name,
            *(
                f"{counts[index]:,} ({format_percent(counts[index] / counts.total())})"
                for counts in (present, drawn)
            ),
        )
        for index, name in enumerate(data.classes)
    ]
    return Table("", ("Class", "Rows to train", "Drawn in an epoch"), rows)
