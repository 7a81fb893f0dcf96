"""Settings of commands that read a cohort; a docstring is the help of its command."""

from dataclasses import dataclass

from skinmm.config.commands import MASTER
from skinmm.config.schema import Config, DataConfig
from skinmm.config.setting import PLUGINS, literal_path, output_path, section, setting


@dataclass
class AuditConfig:
    """Find leaks and shortcuts in a cohort; exit status 1 if its split leaks."""

    data: DataConfig = section(DataConfig, usage="siim_isic data.root=DIR")
    plugins: list[str] = literal_path([], PLUGINS)
    near: bool = setting(False, "also compare all pixels, to find near duplicates", usage="true")
    output: str = output_path("audit", "folder for audit.json and audit.html")
    overwrite: bool = setting(False, "replace an existing audit")


@dataclass
class ExploreConfig:
    """Show the classes, missing values and images of a cohort on one page."""

    data: DataConfig = section(DataConfig, usage="siim_isic data.root=DIR")
    plugins: list[str] = literal_path([], PLUGINS)
    examples: int = setting(12, "images shown per class", low=0, high=500)
    output: str = output_path("explore.html", "page to write")
    overwrite: bool = setting(False, "replace an existing page")


@dataclass
class PreviewConfig(Config):
    """Show augmented images and decoded records as a network would receive them in training."""

    examples: int = setting(24, "rows shown", low=1, high=200)
    output: str = output_path("preview.html", "page to write")


@dataclass
class InitConfig:
    """Infer the meaning of the columns of your table, and write a data configuration for it."""

    input: str = literal_path("", "folder of the table and images", example="DIR", positional=True)
    table: str | None = setting(None, "table in that folder; null: the only one")
    name: str | None = setting(None, "name of the configuration; null: that of the folder")
    output: str | None = output_path(None, "folder of configurations; null: conf in that folder")
    overwrite: bool = setting(False, "replace an existing configuration")


@dataclass
class PackingConfig:
    """Resized copies of the images of a cohort in TFRecord shards."""

    data: DataConfig = section(DataConfig, usage="siim_isic data.root=DIR")
    out: str = output_path("", "folder to write", example="packed")
    plugins: list[str] = literal_path([], PLUGINS)
    size: int = setting(512, "shorter side in pixels; images are not enlarged", low=16, high=8192)
    quality: int = setting(95, "JPEG quality", low=1, high=100)
    overwrite: bool = setting(False, "replace a pack of other rows or settings")


@dataclass
class PackConfig(PackingConfig):
    """Write resized images of a cohort into TFRecord shards; run it again to resume."""

    workers: int | None = setting(None, "processes; null: number of CPU cores", low=1, high=1000)
    verify: bool = setting(False, "only compare shards with checksums", disables_output=True)


@dataclass
class PackSparkConfig(PackingConfig):
    """Write the shards of `skinmm pack` on Apache Spark; executors must reach all paths."""

    master: str = literal_path("local[*]", MASTER)
