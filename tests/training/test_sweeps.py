"""Sweeps: W&B's own agent starts what a sweep file says; a local grid runs in parallel."""

import itertools
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from quick_runs import CONTRACT, QUICK, ROOT, command, files_in, metrics_of
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.wandb_agent import Agent

from skinmm.cli.compose import CONF
from skinmm.cli.overrides import quote_override
from skinmm.config import Config, from_mapping, read_config
from skinmm.config.schema import TrainerConfig
from skinmm.training.fit import check_components

BLOCK = 32768
SWEEPS = sorted(CONF.glob("sweep/*.yaml"))


def sweep_of(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return content


def choices(parameter: dict[str, Any]) -> list[Any]:
    """Every value of a parameter, of a distribution its ends."""
    return parameter.get("values") or [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_value_of_a_sweep_is_one_that_hydra_takes(file: Path) -> None:
    sweep = sweep_of(file)
    monitors = TrainerConfig.__dataclass_fields__["monitor"].metadata["choices"]
    assert sweep["metric"]["name"] in monitors
    assert "${args_no_hyphens}" in sweep["command"]
    fixed = [each for each in sweep["command"] if "=" in each]
    values = {name: choices(each) for name, each in sweep["parameters"].items()}
    longest = max(map(len, values.values()))
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for place in range(longest):
            some = {name: {"value": held[place % len(held)]} for name, held in values.items()}
            expanded = create_sweep_command_args({"args": some})["args_no_hyphens"]
            composed = compose(
                "config", [quote_override(each, Config) for each in [*expanded, *fixed]]
            )
            config = from_mapping(Config, composed)
            check_components(config)
            assert config.logger.name == "wandb"
            assert config.data.columns == some["data.columns"]["value"].strip("[]").split(",")


def test_a_bad_run_is_ended_early() -> None:
    assert any(sweep_of(file).get("early_terminate") for file in SWEEPS)


def records(folder: Path) -> list[Record]:
    """What an offline run would send: a log of LevelDB's format after seven bytes."""
    (file,) = folder.glob("run-*.wandb")
    data, place, body, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:  # no room for a header
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        body += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(body))
            body = b""
    return found


def test_the_agent_s_command_line_trains_and_reports_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")  # the checkout that the agent stands in
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them for good
        monkeypatch.setenv(name, "")
    sweep = sweep_of(CONF / "sweep" / "demo.yaml")
    first = {name: {"value": choices(each)[0]} for name, each in sweep["parameters"].items()}
    agent = Agent.__new__(Agent)
    agent.__dict__.update(
        _in_jupyter=False,
        _function=None,
        _forward_signals=False,
        _run_processes={},
        _sweep_command=sweep["command"],
    )
    agent._command_run(  # type: ignore[no-untyped-call]
        {"run_id": "abc", "program": sweep["program"], "args": first}
    )
    assert agent._run_processes["abc"].wait() == 0

    (run,) = (tmp_path / "runs").iterdir()
    assert files_in(run) >= {name for name in CONTRACT if "missing" not in name}  # fewer columns
    config = read_config(run / "config.yaml")
    assert (config.data.columns, config.optimizer.lr, config.tabular.args["hidden"]) == (
        ["age"],
        0.01,
        [32],
    )
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert offline.name.endswith("-abc")
    sent = records(offline)
    text = "".join(map(str, sent))
    items = [item for each in sent for item in (*each.history.item, *each.summary.update)]
    names = {item.key or "/".join(item.nested_key) for item in items}
    assert {"train/loss", "val/auroc", "test/auroc", "test/auroc_low", "report/path"} <= names
    tables = ("predictions", "confusion_table", "roc_table", "precision_recall_table")
    assert {f"test/{each}/path" for each in tables} <= names
    assert [each.artifact.type for each in sent].count("model") == 1
    configured = (item for each in sent for item in (*each.config.update, *each.run.config.update))
    assert {"data", "model", "trainer"} <= {item.key for item in configured}
    shared = "".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in (offline / "files").rglob("*")
        if path.suffix in (".html", ".json")
    )
    assert "<html" in shared
    assert not re.search(r"ISIC_\d{7}", shared + text)
    assert "data:image/jpeg" not in shared


def test_a_grid_runs_in_parallel_and_tells_of_its_failure(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    grid = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1"]
    bad = "loss.name=cross_entropy,nonsense"
    done = command("train.py", "-m", *QUICK, "fusion=tabular_only", *grid, bad, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: unknown loss 'nonsense'") == 2
    (sweep,) = (tmp_path / "runs").iterdir()
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["0", "2"]
    for run, seed in zip(runs, itertools.count()):
        assert files_in(run) >= CONTRACT
        assert read_config(run / "config.yaml").seed == seed
        assert metrics_of(run)["test"]["n"] == 140
    *_, first, second, hint = done.stdout.splitlines()
    listed = {line.split()[-1] for line in (first, second)}  # in parallel, either may start first
    assert listed == {f"runs/{sweep.name}/{number}" for number in (0, 2)}
    assert hint == f"to compare them: skinmm compare runs/{sweep.name}"
