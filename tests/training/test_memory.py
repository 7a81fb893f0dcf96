"""Memory of training against what autograd stores, and what is free against files of the kernel."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from micro_runs import micro_classifier, micro_config, with_model
from quick_runs import QUICK, train
from torch import nn

from skinmm.config import Component, OptimizerConfig, read_config
from skinmm.config.schema import TrainerConfig
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import build_network
from skinmm.models.tabular import TABULAR
from skinmm.training import memory
from skinmm.training.memory import count_stored_bytes, find_free_memory, require_memory

CPU = torch.device("cpu")
GB = 10**9


def test_bytes_of_a_perceptron_are_those_of_its_layers() -> None:
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5), nn.Tanh())
    # For their backward pass: the input, the rectified and the final values, four bytes each.
    expected = 4 * (10 + 20 + 5)
    assert count_stored_bytes(network, [torch.empty(2, 10, device="meta")]) == expected


def real_bytes(network: nn.Module, *inputs: torch.Tensor | None) -> int:
    """Bytes that a real forward pass of two rows stores, besides the weights."""
    weights = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    stored: dict[int, Any] = {}

    def store(value: torch.Tensor) -> torch.Tensor:
        stored[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    with torch.autograd.graph.saved_tensors_hooks(store, lambda value: value):
        network(*inputs)
    return sum(s.nbytes() for address, s in stored.items() if address not in weights) // 2


WIDTHS = [1, 3, 7]


@pytest.mark.parametrize(
    ("name", "fusion", "tabular"),
    [
        *product(["test_efficientnet", "test_vit", "simple_cnn"], FUSIONS, ["mlp"]),
        *product(["test_vit"], ["cross_attention"], TABULAR),
    ],
)
def test_bytes_counted_are_those_that_are_stored(name: str, fusion: str, tabular: str) -> None:
    config = with_model(micro_config(fusion), name=name)
    config = replace(config, tabular=Component(tabular))
    network = build_network(config, WIDTHS, 2, pretrained=False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8) if network.image else None
    record = torch.zeros(2, sum(WIDTHS)) if network.record else None
    inputs = [None if value is None else value.to("meta") for value in (image, record)]
    counted = count_stored_bytes(network, inputs)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert counted == pytest.approx(real_bytes(network, image, record), rel=0.03)


MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\nSwapFree: 1000000 kB\nHugePages: 0\n"


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("memory_", "memory.")).write_text(f"{content}\n")


def free(root: Path, cgroup: str) -> int | None:
    write(root, meminfo=MEMINFO, cgroup=cgroup)
    return find_free_memory(CPU, root / "meminfo", root / "cgroup", root / "groups")


def test_free_memory_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert free(tmp_path, "0::/") == 10_000_000 * 1024
    assert find_free_memory(CPU, tmp_path / "absent") is None
    assert find_free_memory(torch.device("meta")) is None


def test_free_memory_is_what_the_control_groups_leave(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    stat = "anon 5\ninactive_file 50000000\nactive_file 100000000\nslab_reclaimable 50000000"
    write(groups / "a" / "b", memory_max="max", memory_current=0, memory_stat=stat)
    assert free(tmp_path, "0::/a/b") == 10_000_000 * 1024
    write(groups / "a", memory_max=4 * GB, memory_current=GB, memory_stat=stat)
    assert free(tmp_path, "0::/a/b") == 3.2 * GB
    # In a container, the root has its limit, and the path is that outside.
    write(groups, memory_max=3 * GB, memory_current=GB, memory_stat=stat)
    assert free(tmp_path, "0::/outside/c") == 2.2 * GB


def test_free_memory_is_what_older_control_groups_leave(tmp_path: Path) -> None:
    job = tmp_path / "groups" / "memory" / "job"
    stat = "inactive_file 7\ntotal_inactive_file 300000000\ntotal_active_file 200000000"
    write(job, memory_limit_in_bytes=2 * GB, memory_usage_in_bytes=GB, memory_stat=stat)
    assert free(tmp_path, "9:cpu,cpuacct:/x\n4:memory:/job\n0::/") == 1.5 * GB
    write(job, memory_limit_in_bytes=2**63 - 4096)
    assert free(tmp_path, "4:memory:/job") == 10_000_000 * 1024


def check(monkeypatch: pytest.MonkeyPatch, available: float, batch_size: int) -> None:
    """Check a micro network at 32 px with this many free bytes."""
    monkeypatch.setattr(memory, "find_free_memory", lambda _: int(available))
    config = micro_config(batch_size=batch_size)
    network = build_network(config, WIDTHS, 2, pretrained=False)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    require_memory(network, config, trainer, WIDTHS)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"needs about .* for trainer\.batch_size=1000") as caught:
        check(monkeypatch, 1e8, 1000)
    fits = int(str(caught.value).split("trainer.batch_size=")[2].split()[0])
    assert 0 < fits < 1000
    assert f"trainer.accumulate={-(-1000 // fits)} for the same updates" in str(caught.value)
    check(monkeypatch, 1e8, fits)
    assert capsys.readouterr().err == ""
    check(monkeypatch, 1e8, fits + 1)
    assert "may not fit: it needs about 0.1 GB" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"choose a smaller network or model\.image_size"):
        check(monkeypatch, 1e4, 2)


@pytest.mark.parametrize(("precision", "is_halved"), [("bf16", True), ("auto", False)])
def test_auto_counts_32_bits_on_a_cpu_because_it_may_choose_them(
    precision: str, is_halved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "find_free_memory", lambda _: 10**8)
    network = build_network(micro_config(), WIDTHS, 2, pretrained=False)
    options: Any = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    fits = []
    for setting, used in (("32", "32-true"), (precision, "bf16-mixed")):
        config = micro_config(batch_size=1000, precision=setting)
        trainer = pl.Trainer(**options, precision=used)  # type: ignore[arg-type]
        with pytest.raises(InputError) as caught:
            require_memory(network, config, trainer, WIDTHS)
        fits.append(int(str(caught.value).split("trainer.batch_size=")[2].split()[0]))
    assert fits[1] == pytest.approx(fits[0] * (2 if is_halved else 1), abs=1)


def test_a_small_batch_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(memory, "count_stored_bytes", fail)
    check(monkeypatch, 16e9, 32)


def test_the_default_batch_is_divided_until_it_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(micro_config(), trainer=TrainerConfig())
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert memory.divide_batch(config, trainer, 11)
    assert (config.trainer.batch_size, config.trainer.accumulate) == (8, 4)
    assert trainer.accumulate_grad_batches == 4
    assert "32 rows do not fit; trainer.batch_size=8" in capsys.readouterr().out
    for other, fits in (
        (TrainerConfig(batch_size=64), 11),
        (TrainerConfig(accumulate=2), 11),
        (TrainerConfig(), 3),
    ):
        assert not memory.divide_batch(replace(config, trainer=other), trainer, fits)
    resumed = replace(config, trainer=TrainerConfig(), resume="runs/a")
    assert not memory.divide_batch(resumed, trainer, 11)


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "available", "rows", "lr"),
    [
        ("adamw", 1, 1e12, 16, 0.000707),  # 420 training rows: 21 for each of 20 updates
        ("sgd", 1, 1e12, 16, 0.0005),
        ("adamw", 4, 1e12, 8, 0.0005),
        ("adamw", 1, 3.5e6, 4, 0.000354),  # what fits, though fewer than 8
    ],
)
def test_auto_is_the_largest_batch_that_fits(
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    accumulate: int,
    available: float,
    rows: int,
    lr: float,
) -> None:
    monkeypatch.setattr(memory, "find_free_memory", lambda _: int(available))
    config = micro_config(batch_size="auto", accumulate=accumulate)
    config = replace(config, optimizer=OptimizerConfig(name=optimizer))
    data = LesionData(config)
    data.setup()
    module = micro_classifier(replace(config, trainer=TrainerConfig()), data)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    memory.choose_batch(module, data, trainer)
    assert (config.trainer.batch_size, config.optimizer.lr) == (rows, lr)
    assert module.card.config["trainer"]["batch_size"] == rows
    assert module.card.config["optimizer"]["lr"] == lr


def test_all_folds_and_a_resumed_run_keep_the_chosen_batch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*QUICK, "fusion=tabular_only", "data.fold=all", "data.folds=3"]
    assert train(*settings, "trainer.batch_size=auto", f"hydra.run.dir={run}") == 0
    config = read_config(run / "config.yaml")
    assert (config.trainer.batch_size, config.optimizer.lr) == (8, 0.00015)
    folds = [read_config(run / f"fold_{i}" / "config.yaml") for i in range(3)]
    assert [(fold.trainer.rows, fold.optimizer.lr) for fold in folds] == [(8, 0.00015)] * 3
    for folder in (run, run / "fold_2"):
        (folder / "metrics.json").unlink()
    assert train(f"resume={run}", "trainer.batch_size=auto") == 0
    assert (run / "fold_2" / "metrics.json").is_file()
    resumed = read_config(run / "config.yaml")
    assert (resumed.trainer, resumed.optimizer) == (config.trainer, config.optimizer)
