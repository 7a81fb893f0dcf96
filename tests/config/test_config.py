"""The schema: types, bounds, unknown keys, files, components and what a resumed run may change."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinmm.cli import main as cli
from skinmm.config import (
    Component,
    Config,
    PredictConfig,
    build_component,
    check_component,
    from_mapping,
    read_config,
    resume_config,
    to_mapping,
)
from skinmm.config.checkpoints import is_part_of_run
from skinmm.config.data_commands import AuditConfig, ExploreConfig, PackConfig, PackSparkConfig
from skinmm.config.load import check_settings
from skinmm.config.setting import keys_with
from skinmm.errors import InputError
from skinmm.training.run_folder import write_config


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a schema: its full key and its field."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as nested mappings."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def changed(key: str, value: Any) -> Config:
    """The defaults with another value at a key."""
    config = Config()
    config.evaluation.cost_ratio = 5.0  # one of the threshold rules needs it
    config.data.unit = keys_with(Config, "unit").get(key, "image")
    *path, name = key.split(".")
    setattr(reduce(getattr, path, config), name, value)
    return config


LEAVES = {
    f"{schema.__name__}.{key}": item
    for schema in (Config, AuditConfig, ExploreConfig, PackConfig, PackSparkConfig, PredictConfig)
    for key, item in leaves(schema())
}
BOUNDED = [
    (key, item.metadata[end], step)
    for key, item in leaves(Config())
    for end, step in (("low", -1), ("high", 1))
    if item.metadata[end] is not None
]
CHOICES = [key for key, item in leaves(Config()) if item.metadata["choices"]]


def test_the_defaults_are_within_their_own_bounds() -> None:
    assert from_mapping(Config, {}) == Config()


@pytest.mark.parametrize("key", LEAVES)
def test_every_setting_has_a_line_of_help(key: str) -> None:
    explanation = LEAVES[key].metadata["explanation"]
    assert explanation
    assert "\n" not in explanation


@pytest.mark.parametrize(("name", "schema"), [(c.name, c.schema) for c in cli.COMMANDS.values()])
def test_help_has_a_line_for_every_setting(
    name: str, schema: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    pairs = (line.partition("=") for line in capsys.readouterr().out.splitlines())
    told = {key: rest.partition("  # ")[2] for key, _, rest in pairs}
    for key, item in leaves(schema()):
        line = told.get(key) or next(told[each] for each in told if each.startswith(f"{key}."))
        assert line.startswith(item.metadata["explanation"])
        bounds = (item.metadata[end] for end in ("low", "high"))
        allowed = [
            *(item.metadata["choices"] or ()),
            *(each for each in bounds if each is not None),
        ]
        assert all(str(each) in line for each in allowed)


@pytest.mark.parametrize(("key", "bound", "step"), BOUNDED)
def test_a_bound_is_inclusive(key: str, bound: float, step: int) -> None:
    check_settings(changed(key, bound))
    with pytest.raises(InputError, match=rf"^{key}=\S+: must be (at|between) .*{bound}"):
        check_settings(changed(key, bound + step))


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_is_one_of_its_list(key: str) -> None:
    allowed = LEAVES[f"Config.{key}"].metadata["choices"]
    for choice in allowed:
        config = changed(key, choice)
        if choice in ("segmentation", "val/dice"):  # these two go together
            config.task, config.trainer.monitor = "segmentation", "val/dice"
        if choice == "cost" and key == "evaluation.call":  # needs costs
            config.evaluation.costs = {"mel": {"nv": 20.0}}
        check_settings(config)
    with pytest.raises(InputError, match=f"^{key}=nonsense: choose from {', '.join(allowed)}"):
        check_settings(changed(key, "nonsense"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_must_be_finite(value: float) -> None:
    with pytest.raises(InputError, match=r"^optimizer\.lr="):
        from_mapping(Config, nested("optimizer.lr", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.max_epochs", "three"),
        ("trainer.max_epochs", 1.5),
        ("trainer.progress", "perhaps"),
        ("data.columns", 3),
        ("optimizer.lr", None),
    ],
)
def test_a_wrong_type_is_named_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key.split(".")[-1]) as caught:
        from_mapping(Config, nested(key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trainer.max_epoch", "did you mean trainer.max_epochs?"),
        ("max_epochs", "did you mean trainer.max_epochs?"),
        ("lr", "did you mean optimizer.lr?"),
        ("trainer.lr", "did you mean optimizer.lr?"),
        ("logger.nam", "did you mean logger.name or "),
        ("modle", "did you mean model?"),
        ("schedule.zzz", "choose from schedule.name, "),
        ("zzz", "choose from task, data, model, "),
    ],
)
def test_an_unknown_key_gets_a_hint(key: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        from_mapping(Config, nested(key, 1))
    assert str(caught.value).startswith(f"unknown key '{key}'; {hint}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"fold": 5}}, r"data\.fold=5: must be 0 to 4 \(data\.folds=5\), or all"),
        ({"data": {"fold": "each"}}, r"data\.fold=each"),
        ({"data": {"columns": []}}, "image_only"),
        ({"trainer": {"devices": 0}}, r"trainer\.devices=0"),
        ({"trainer": {"devices": "many"}}, r"trainer\.devices=many"),
        ({"evaluation": {"threshold": "cost"}}, "cost_ratio above 0"),
    ],
)
def test_settings_that_depend_on_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_mapping(Config, values)


def test_a_prediction_job_needs_an_input_and_has_a_model() -> None:
    assert from_mapping(PredictConfig, {"input": "a.csv"}).checkpoint == "zoo:cc0"
    with pytest.raises(InputError, match=r"^input is missing"):
        from_mapping(PredictConfig, {"checkpoint": "a.ckpt", "input": ""})


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        dict,
        data=st.fixed_dictionaries(
            {"root": st.none() | st.text(), "fold": st.just("all") | st.integers(0, 4)}
        ),
        optimizer=st.fixed_dictionaries(
            {"args": st.dictionaries(st.text(), st.integers() | st.lists(st.text()))}
        ),
        seed=st.integers(0, 2**32 - 1),
    )
)
def test_a_mapping_round_trip(values: dict[str, Any]) -> None:
    config = from_mapping(Config, values)
    assert config.data.root == values["data"]["root"]
    assert config.optimizer.args == values["optimizer"]["args"]
    assert from_mapping(Config, to_mapping(config)) == config


def test_a_config_file_round_trip(tmp_path: Path) -> None:
    config = from_mapping(Config, {"data": {"root": "Hautläsionen (1) = a, b"}, "seed": 7})
    write_config(tmp_path / "config.yaml", config)
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("content", ["seed: [", "seed: x\n", "sed: 1\n", None])
def test_an_invalid_config_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml: ") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


class Block:
    """A component with context (`width`) and an argument of its own."""

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        """Refuses what is no share."""
        if dropout > 1:
            raise TypeError("dropout above 1")
        if dropout < 0:
            raise ValueError("dropout below 0")
        self.size = (width, dropout)


BLOCKS = {"block": Block}


def test_a_component_is_built_from_context_and_args() -> None:
    built = build_component(BLOCKS, "fusion", Component("block", {"dropout": 0.5}), width=3)
    assert built.size == (3, 0.5)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Component("blok"), "unknown fusion 'blok'; choose from block"),
        (Component("block", {"dropuot": 1}), "has no argument 'dropuot'; it has: dropout"),
        (Component("block", {"width": 1}), "has no argument 'width'"),
    ],
)
def test_the_signature_of_a_component_is_its_schema(component: Component, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_component(BLOCKS, "fusion", component, context=("width",))


@pytest.mark.parametrize(("dropout", "reason"), [(2.0, "above 1"), (-1.0, "below 0")])
def test_an_error_of_a_constructor_names_the_component(dropout: float, reason: str) -> None:
    with pytest.raises(InputError, match=f"fusion 'block': dropout {reason}"):
        build_component(BLOCKS, "fusion", Component("block", {"dropout": dropout}), width=3)


def a_run(folder: Path) -> Path:
    """A folder with nothing but the configuration of a run."""
    values = {"seed": 3, "trainer": {"max_epochs": 4, "batch_size": 8}, "logger": {"name": "none"}}
    write_config(folder / "config.yaml", from_mapping(Config, values))
    return folder


def test_a_resumed_run_takes_only_trainer_and_logger_settings(tmp_path: Path) -> None:
    composed = {
        "resume": str(a_run(tmp_path)),
        "seed": 9,
        "trainer": {"max_epochs": 6, "batch_size": 16},
        "logger": {"name": "csv", "project": "p"},
    }
    given = from_mapping(Config, composed)
    overrides = [f"resume={tmp_path}", "trainer.max_epochs=6", "logger=csv"]
    config = resume_config(given, overrides)
    assert config.seed == 3
    assert (config.trainer.max_epochs, config.trainer.batch_size) == (6, 8)
    assert config.logger == given.logger
    assert config.resume == str(tmp_path)


@pytest.mark.parametrize("override", ["seed=1", "model=tiny", "+data.args.x=1", "overwrite=true"])
def test_a_resumed_run_refuses_everything_else(tmp_path: Path, override: str) -> None:
    given = from_mapping(Config, {"resume": str(a_run(tmp_path))})
    with pytest.raises(
        InputError, match=r"only trainer\.\*, logger\.\*, final and plugins may be given, not "
    ):
        resume_config(given, ["resume=x", override])


def test_resume_names_a_folder_without_a_run(tmp_path: Path) -> None:
    given = from_mapping(Config, {"resume": str(tmp_path)})
    with pytest.raises(InputError, match=r"not a run folder \(config\.yaml is missing\)"):
        resume_config(given, [])


@pytest.mark.parametrize("name", ["fold_0", "fold_12", "final", "3"])
def test_folders_of_folds_runs_of_a_grid_and_the_final_network_are_parts(name: str) -> None:
    assert is_part_of_run(name)
    assert not is_part_of_run(f"{name}_copy")
    assert not is_part_of_run(f"demo_{name}")
