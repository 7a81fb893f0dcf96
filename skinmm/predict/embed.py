"""`skinmm embed` and `skinmm similar`: embeddings of images, and search for similar images.

A Parquet file of embeddings has one row an image, in the order of the input, with the columns of
`Embedder.embed`. Its metadata `skinmm` records, as JSON, the network and the preprocessing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from skinmm.config import Config, ModelConfig
from skinmm.config.checkpoints import announce_included, find_checkpoints
from skinmm.config.commands import EmbedConfig, EmbeddingConfig, SimilarConfig
from skinmm.data.dataset import View
from skinmm.errors import InputError, print_error, print_line, suggest_path
from skinmm.files import IMAGE_SUFFIXES, atomic_write, import_parquet
from skinmm.models.backbone import Backbone
from skinmm.predict.embedder import KEY, NAMES, Embedder, EmbeddingIndex
from skinmm.predict.ensemble import load_models
from skinmm.predict.inputs import ImageFolder, Images, read_input, rename_training_columns
from skinmm.predict.job import count_workers, find_image_folder, require_images
from skinmm.predict.predictor import select_device
from skinmm.predict.writer import require_output_file, to_csv
from skinmm.vocabulary import match_columns

CHUNK: Final = 256  # rows read at a time, rounded up to whole batches
GROUP: Final = 8192
"""Rows of a row group in the file, which are in memory at a time."""
NO_ROWS: Final = "the input has no rows"


def build_embedder(config: EmbeddingConfig, columns: Sequence[str] = ()) -> Embedder:
    """Build the embedder of a checkpoint, or of the pretrained network `model.name`."""
    device = select_device(config.accelerator)
    if bool(config.checkpoint) == bool(config.model.name):
        raise InputError(
            "name one network: checkpoint=RUN/checkpoints/best.ckpt, or model.name=NAME"
        )
    if config.checkpoint:
        files = find_checkpoints(config.checkpoint)
        announce_included(files)
        models = [model for f in files for model in load_models(f, device, uncalibrated=True)]
        return Embedder.from_model(models, columns)
    options = ModelConfig(**asdict(config.model))
    network = Backbone(options, pretrained=True).to(device).to(memory_format=torch.channels_last)
    print_line(f"image network {options.name}: {network.origin}")
    view = View(options.image_size, Config().data.icc)
    return Embedder(network.requires_grad_(requires_grad=False), view, options.name, columns)


def embed_file(config: EmbedConfig) -> int:
    """Write the embeddings of a table; return 0, or 3 if some rows have no embedding."""
    path = Path(config.output)
    require_output_file("output", path, overwrite=config.overwrite)
    if path.suffix.lower() != ".parquet":
        raise InputError(f"output={path}: embeddings are written as .parquet")
    images = ImageFolder(find_image_folder(config))
    embedder = build_embedder(config, config.columns)
    require_columns(config.input, config.columns, embedder.column_names)
    require_images(config, images, embedder.column_names)
    counts = write_embeddings(_stream(config, embedder, images), path, embedder.metadata)
    return _finish(*counts, f"embeddings: {path} ({counts[0]} rows of {embedder.score_width})")


def find_similar(config: SimilarConfig) -> int:
    """Write the most similar rows of an embedding file for every image; return 0 or 3."""
    path = Path(config.output)
    require_output_file("output", path, overwrite=config.overwrite)
    source, is_image = Path(config.input), config.input.lower().endswith(IMAGE_SUFFIXES)
    if is_image and not source.is_file():
        raise InputError(f"input={source}: no such file{suggest_path(source)}")
    images = ImageFolder(source.parent if is_image else find_image_folder(config))
    index = EmbeddingIndex.read(Path(config.index))
    embedder = build_embedder(config)
    index.require_same_network(embedder.metadata)
    if is_image:
        row = pd.DataFrame({"image": [source.name]})
        tables: Iterable[pd.DataFrame] = embedder.embed([row], images, workers=0)
    else:
        require_images(config, images, embedder.column_names)
        tables = _stream(config, embedder, images)
    rows = failed = 0
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        for table in tables:
            file.write(to_csv(index.describe(table, config.count), header=not rows))
            rows, failed = rows + len(table), failed + int((table["error"] != "").sum())
        if not rows:
            raise InputError(NO_ROWS)
    return _finish(
        rows, failed, f"similar images: {path} (of {rows} {'image' if rows == 1 else 'images'})"
    )


def require_columns(source: str, columns: Sequence[str], column_names: dict[str, str]) -> None:
    """Raise InputError if a column to copy is not in the table."""
    for table in islice(read_input(source, 1), 1):
        names = [*map(str, rename_training_columns(table, column_names)), *NAMES]
        for column in columns:
            if column not in {*names, *match_columns(names, [column]).values()}:
                near = get_close_matches(column, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
                raise InputError(f"columns={column}: {source} has no such column; {hint}")


def _stream(
    config: EmbedConfig | SimilarConfig, embedder: Embedder, images: Images
) -> Iterator[pd.DataFrame]:
    chunk = config.batch_size * -(-CHUNK // config.batch_size)
    return embedder.embed(
        read_input(config.input, chunk),
        images,
        batch_size=config.batch_size,
        workers=count_workers(config.workers),
    )


def _finish(rows: int, failed: int, text: str) -> int:
    if failed:
        print_error(f"{failed} of {rows} rows have no embedding; see the column error")
    print_line(text)
    return 3 if failed else 0


def write_embeddings(
    tables: Iterable[pd.DataFrame], path: Path, metadata: Mapping[str, Any]
) -> tuple[int, int]:
    """Write embeddings as Parquet in constant memory; the file appears when it is complete.

    Returns:
        Number of rows, and of rows with an error.
    """
    parquet = import_parquet(f"output={path}")
    rows = failed = 0
    with atomic_write(path) as partial:
        writer = None
        for table in _group(tables):
            columns = _to_arrow(table).replace_schema_metadata({KEY: json.dumps(metadata)})
            writer = writer or parquet.ParquetWriter(partial, columns.schema)
            writer.write_table(columns)
            rows, failed = rows + len(table), failed + int((table["error"] != "").sum())
        if writer is None:
            raise InputError(NO_ROWS)
        writer.close()
    return rows, failed


def _group(tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    waiting: list[pd.DataFrame] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP:
            yield pd.concat(waiting, ignore_index=True)
            waiting = []
    if sum(map(len, waiting)):
        yield pd.concat(waiting, ignore_index=True)


def _to_arrow(table: pd.DataFrame) -> Any:
    import pyarrow as arrow

    arrays = [
        arrow.array(cells.to_numpy())
        if cells.dtype == np.float32
        else arrow.array([None if pd.isna(cell) else str(cell) for cell in cells], arrow.string())
        for _, cells in table.items()
    ]
    return arrow.table(arrays, names=[*table.columns])
