"""Every file under conf is composed as the commands compose it, typed, and names what exists."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import timm
import yaml
from hydra import compose, initialize_config_dir

from skinmm.cli.compose import CONF, store_config
from skinmm.cli.main import COMMANDS
from skinmm.config import Config, PredictConfig, ScheduleConfig, flatten, from_mapping, to_mapping
from skinmm.config.remote_commands import ServeConfig
from skinmm.config.schema import TrainerConfig
from skinmm.data.augment import AUGMENTS
from skinmm.data.cohorts import ADAPTERS
from skinmm.data.cohorts.tables import FORMATS
from skinmm.data.sampling import SAMPLERS
from skinmm.models.backbone import CUSTOM
from skinmm.models.fusion import FUSIONS
from skinmm.models.heads import HEADS
from skinmm.models.segmentation import SEGMENTERS
from skinmm.models.tabular import TABULAR
from skinmm.models.views import VIEWS
from skinmm.training.fit import check_components
from skinmm.training.losses import LOSSES
from skinmm.training.mixup import MIXES
from skinmm.training.optimizer import OPTIMIZERS
from skinmm.training.trackers import LOGGERS
from skinmm.training.trainer import PRECISIONS

TABLES: Final[dict[str, Mapping[str, Any]]] = {
    "augment": AUGMENTS,
    "data": ADAPTERS,
    "fusion": FUSIONS,
    "head": HEADS,
    "logger": LOGGERS,
    "loss": LOSSES,
    "mix": MIXES,
    "optimizer": OPTIMIZERS,
    "sampler": SAMPLERS,
    "segmenter": SEGMENTERS,
    "tabular": TABULAR,
    "views": VIEWS,
}
NOT_GROUPS: Final = ("sweep",)  # W&B sweep files
NEEDS: Final = {"views": ["data.unit=lesion"]}  # settings without which a group is refused


def stems(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS: Final = sorted(
    path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_GROUPS
)
OPTIONS: Final = [(group, option) for group in GROUPS for option in stems(group)]


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> Config:
    store_config(COMMANDS["train"])
    return from_mapping(Config, compose("config", list(overrides)))


def choices(schema: type[Any], name: str) -> Collection[str]:
    found: Collection[str] = schema.__dataclass_fields__[name].metadata["choices"]
    return found


@pytest.mark.parametrize("group", TABLES)
def test_the_files_of_a_group_are_the_keys_of_its_table(group: str) -> None:
    assert stems(group) == sorted(TABLES[group])


def test_every_group_is_tested() -> None:
    assert {*GROUPS} == {*TABLES, "experiment", "model", "schedule", "task", "trainer"}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_its_components_exist(group: str, option: str) -> None:
    config = composed(f"{group}={option}", *NEEDS.get(group, ()))
    check_components(config)
    if group in (*TABLES, "schedule"):
        assert getattr(config, group).name == option


@pytest.mark.parametrize("option", stems("model"))
def test_every_model_exists(option: str) -> None:
    name = composed(f"model={option}").model.name
    assert name in CUSTOM or timm.is_model(name)


@pytest.mark.parametrize("option", stems("experiment"))
def test_an_experiment_can_be_changed_from_the_command_line(option: str) -> None:
    config = composed(f"experiment={option}", "model=tiny", "trainer.max_epochs=1")
    assert (config.model.name, config.trainer.max_epochs) == ("test_efficientnet", 1)


@pytest.mark.parametrize("option", [name for name in stems("experiment") if "_study" in name])
def test_every_arm_of_a_study_composes(option: str) -> None:
    told = [item for arm in composed(f"experiment={option}").study.arms.values() for item in arm]
    dotted = [item for item in told if "." in item.partition("=")[0]]
    chosen = {tuple(item.split("=")) for item in told} - {tuple(item.split("=")) for item in dotted}
    assert chosen <= {*OPTIONS}
    composed(f"experiment={option}", "data.root=/data", *dotted)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_a_file_contains_values_of_the_schema_only(group: str, option: str) -> None:
    content = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    content.pop("defaults", None)
    values = content if group in ("experiment", "head", "task") else {group: content}
    if group == "views":
        values["data"] = {"unit": "lesion"}
    typed = flatten(to_mapping(from_mapping(Config, values)))
    assert flatten(values).items() <= typed.items()


def test_the_choices_of_the_schema_are_the_keys_of_the_tables() -> None:
    assert {*choices(type(Config().logger), "name")} == LOGGERS.keys()
    assert {*choices(ScheduleConfig, "name")} == {*stems("schedule")}
    assert [*choices(Config, "task")] == stems("task")
    assert {*choices(TrainerConfig, "precision")} == {"auto", *PRECISIONS}
    assert {*choices(type(Config().data), "format")} - {"auto"} <= FORMATS.keys()


def test_the_defaults_are_those_of_the_readme() -> None:
    config = composed()
    assert (config.data.name, config.model.name, config.fusion.name) == (
        "demo",
        "efficientnet_b3",
        "concat",
    )
    assert str(config.model.pretrained) == "auto"
    assert config.trainer.augment_on == "workers"


def test_the_prediction_job_composes() -> None:
    store_config(COMMANDS["predict"])
    config = compose("command", ["checkpoint=a.ckpt", "input=a.csv"])
    assert from_mapping(PredictConfig, config) == PredictConfig("a.ckpt", input="a.csv")


def test_the_service_composes() -> None:
    store_config(COMMANDS["serve"])
    config = compose("command", ["checkpoint=a.ckpt", "port=80"])
    assert from_mapping(ServeConfig, config) == ServeConfig("a.ckpt", port=80)


def test_no_file_instantiates_classes_by_path() -> None:
    files = [path for path in Path(CONF).rglob("*.yaml") if "_target_" in path.read_text()]
    assert files == []
