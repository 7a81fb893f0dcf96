"""Checkpoints: plain data there and back, whatever is damaged is named, nothing is half written."""

import pickle
from dataclasses import asdict, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from skinmm.models.checkpoint import (
    KEY,
    PREFIX,
    Card,
    CheckpointError,
    average_checkpoints,
    is_calibrated,
    is_checkpoint,
    load_card,
    read_task,
    save_checkpoint,
    save_compact,
    update_card,
)

CARD = Card(
    config={"model": {"name": "test_vit", "args": {}}, "seed": 0},
    classes=["benign", "malignant"],
    positive=["malignant"],
    encoder={"columns": []},
    initialisation="from scratch",
    prior={"trained": [0.5, 0.5], "deployed": [0.98, 0.02]},
)
WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.tensor([1.0, 2.0])}


def content(card: Card = CARD) -> dict[str, Any]:
    """What Lightning would save, in short."""
    state: dict[str, Tensor] = {f"{PREFIX}{name}": tensor for name, tensor in WEIGHTS.items()}
    state["loss.other"] = torch.zeros(1)
    return {"epoch": 3, "optimizer_states": [{"lr": 0.1}], "state_dict": state, KEY: asdict(card)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(content(), tmp_path / "deep" / "best.ckpt")
    return tmp_path / "deep" / "best.ckpt"


def test_card_and_weights_come_back_without_the_module_s_prefix(path: Path) -> None:
    card, weights = load_card(path)
    assert card == CARD
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


def test_a_new_card_leaves_the_rest_as_it_was(path: Path) -> None:
    threshold = {"value": 0.1, "rule": "sensitivity", "guaranteed": False}
    card = update_card(path, threshold=threshold)
    assert card == load_card(path)[0] == replace(CARD, threshold=threshold)
    whole = torch.load(path, weights_only=True)
    assert (whole["epoch"], whole["optimizer_states"]) == (3, [{"lr": 0.1}])
    assert torch.equal(whole["state_dict"]["loss.other"], torch.zeros(1))


@cache
def whole_bytes() -> bytes:
    stream = BytesIO()
    torch.save(content(), stream)
    return stream.getvalue()


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_are_refused_by_name_or_change_nothing(
    data: st.DataObject, tmp_path: Path
) -> None:
    damaged = bytearray(whole_bytes())
    if data.draw(st.booleans(), label="truncate"):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    for _ in range(data.draw(st.integers(0, 20)) if damaged else 0):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(damaged)
    refusal, card, weights = "", CARD, WEIGHTS
    try:
        card, weights = load_card(path)
    except CheckpointError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(f"{path}: ")
    assert "\n" not in refusal
    assert card == CARD
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in content().items() if name not in names}


def test_what_is_no_checkpoint_of_ours_is_named(tmp_path: Path) -> None:
    card = asdict(CARD)
    foreign: dict[str, list[Any]] = {
        "it has no 'skinmm' entry": [without(KEY), [1, 2], {KEY: "text"}, torch.zeros(2)],
        "schema 2; this version reads schema 1": [{**content(), KEY: {**card, "schema": 2}}],
        "the checkpoint lacks classes, prior": [
            {**content(), KEY: {k: v for k, v in card.items() if k not in ("classes", "prior")}}
        ],
        "the checkpoint lacks state_dict": [without("state_dict"), {KEY: card, "state_dict": 1}],
    }
    for message, contents in foreign.items():
        for each in contents:
            torch.save(each, tmp_path / "foreign.ckpt")
            with pytest.raises(CheckpointError, match=message):
                load_card(tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_card(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        update_card(tmp_path / "gone.ckpt")


@pytest.mark.parametrize(
    ("fusion", "name"),
    [("patient_context", "patient_context"), ("metablock", "metablock without a hidden layer")],
)
def test_a_network_that_is_no_longer_there_is_named(fusion: str, name: str, path: Path) -> None:
    config = {**CARD.config, "fusion": {"name": fusion, "args": {}}}
    save_checkpoint(content(replace(CARD, config=config)), path)
    for read in (load_card, update_card):
        with pytest.raises(CheckpointError) as refusal:
            read(path)
        assert str(refusal.value) == (
            f"{path}: trained with fusion={name}, which this version no longer has; use the skinmm "
            "that trained it, or train again with another fusion"
        )


def test_entries_that_this_version_no_longer_has_are_passed_over(path: Path) -> None:
    for fusion in ({"name": "concat", "args": {"dropout": 0.3}}, {}, None):
        card = replace(CARD, config={**CARD.config, "fusion": fusion})
        save_checkpoint({**content(), KEY: {**asdict(card), "alone": None}}, path)
        assert load_card(path)[0] == card


class Payload:
    """Ends the test where it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """What unpickling calls."""
        return pytest.fail, ("the checkpoint's code ran",)


@pytest.mark.parametrize("write", [torch.save, lambda it, path: path.write_bytes(pickle.dumps(it))])
def test_code_in_a_checkpoint_is_not_run(write: Any, tmp_path: Path) -> None:
    write({**content(), "callbacks": Payload()}, tmp_path / "code.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint, or damaged"):
        load_card(tmp_path / "code.ckpt")


def test_the_mean_of_several_checkpoints_takes_their_place(path: Path, tmp_path: Path) -> None:
    whole = torch.load(path, weights_only=True)
    paths = []
    for number in (1, 2, 6):
        state = {
            name: value * number if value.is_floating_point() else value
            for name, value in whole["state_dict"].items()
        }
        paths.append(tmp_path / f"best-epoch={number}.ckpt")
        save_checkpoint({**whole, "state_dict": state}, paths[-1])
    average_checkpoints(paths, tmp_path / "best.ckpt")
    assert not any(each.exists() for each in paths)
    mean = torch.load(tmp_path / "best.ckpt", weights_only=True)
    for name, value in whole["state_dict"].items():
        expected = 3 * value if value.is_floating_point() else value
        torch.testing.assert_close(mean["state_dict"][name], expected)
    assert load_card(tmp_path / "best.ckpt")[0] == load_card(path)[0]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint({**content(), "callbacks": lambda: None}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_compact_file_reads_like_the_checkpoint(path: Path, tmp_path: Path) -> None:
    background = {"image": torch.randn(4, 3).bfloat16(), "record": torch.randn(4, 2)}
    whole = content(replace(CARD, background=background, threshold={"value": 0.1}))
    matrix, small = torch.randn(9, 7), torch.tensor([1e-9, 3e5])  # beyond 16 bits
    whole["state_dict"] |= {
        f"{PREFIX}a": matrix,
        f"{PREFIX}b": small,
        f"{PREFIX}n": torch.tensor(7),
    }
    save_checkpoint(whole, path)
    compact = tmp_path / "model.safetensors"
    save_compact(path, compact, initialisation="elsewhere")
    card, weights = load_card(compact)
    assert replace(card, background={}) == replace(
        CARD, threshold={"value": 0.1}, initialisation="elsewhere"
    )
    assert all(torch.equal(card.background[name], background[name]) for name in background)
    assert {*weights} == {*WEIGHTS, "a", "b", "n"}
    assert torch.equal(weights["a"], matrix.half().float())
    assert torch.equal(weights["b"], small)
    assert torch.equal(weights["n"], torch.tensor(7))
    assert is_checkpoint(compact)
    assert is_calibrated(compact)
    assert read_task(compact) == "classification"


def test_another_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, file)
    assert not is_checkpoint(file)
    with pytest.raises(CheckpointError, match="not a skinmm checkpoint"):
        load_card(file)
    file.write_bytes(file.read_bytes()[:20])
    assert not is_checkpoint(file)
    with pytest.raises(CheckpointError, match="not a checkpoint, or damaged"):
        load_card(file)
