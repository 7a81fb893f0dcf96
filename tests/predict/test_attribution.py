"""ExplanationWriter: closed forms, identities, and maps that depend on what was learnt."""

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_config, with_model
from scipy.stats import spearmanr
from torch import Tensor

from skinmm.config import Config
from skinmm.data.record import RecordEncoder
from skinmm.models.network import Network, build_network
from skinmm.predict import attribution
from skinmm.predict.attribution import (
    Contributions,
    compute_contributions,
    mean_contributions,
)
from skinmm.predict.heat_maps import compute_heat_map
from skinmm.predict.shapley import (
    compute_shapley_values,
    estimate_shapley_values,
    list_subsets,
)

BACKBONES = ("test_efficientnet", "test_vit", "test_convnext", "test_resnet", "simple_cnn")
TRAINING = pd.DataFrame({"age": [30.0, 50.0, 70.0], "sex": ["female", "male", None]})
ROW = pd.DataFrame({"age": [64.0], "sex": ["male"]})
ENCODER = RecordEncoder.fit(TRAINING, ["age", "sex"])


def last_two(raw: np.ndarray) -> Any:
    return raw[:, 1:].sum(axis=1)


def network(config: Config, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    widths = [column.stop - column.start for column in ENCODER.layout]
    built = build_network(config, widths, 3, pretrained=False).eval()
    return built.requires_grad_(False)


def micro(
    name: str = "test_efficientnet", fusion: str = "concat", *, seed: int = 0, **model: Any
) -> Network:
    return network(with_model(micro_config(fusion), name=name, image_size=96, **model), seed)


def lesion(size: int = 96, seed: int = 0) -> Tensor:
    noise = np.random.default_rng(seed).integers(0, 60, (1, 3, size, size))
    y, x = np.mgrid[:size, :size] / size
    blob = 150 * (np.hypot(x - 0.3, y - 0.6) > 0.2)
    return torch.from_numpy((noise + blob).astype(np.uint8))


def record() -> Tensor:
    return torch.from_numpy(ENCODER.transform(ROW))


def of(model: Network, row: pd.DataFrame = ROW, **how: Any) -> Contributions:
    image = lesion() if model.image is not None else None
    return compute_contributions(model, ENCODER, last_two, dict(row.iloc[0]), image, **how)


def malignancy(model: Network, row: pd.DataFrame, image: Tensor | None, **how: Any) -> float:
    said = model.predict(image, torch.from_numpy(ENCODER.transform(row)), **how)[0]
    return float(said.double().softmax(dim=1)[0, 1:].sum())


def test_shapley_values_are_the_mean_over_all_orders() -> None:
    values = np.random.default_rng(0).normal(size=16)
    gains = np.zeros(4)
    orders = list(permutations(range(4)))
    for order in orders:
        there = 0
        for player in order:
            gains[player] += values[there | 1 << player] - values[there]
            there |= 1 << player
    np.testing.assert_allclose(compute_shapley_values(values), gains / len(orders), atol=1e-12)


def test_shapley_values_of_the_glove_game() -> None:
    # One left glove, two right ones: a pair is worth 1 (Shapley's own example).
    values = np.array([0, 0, 0, 1, 0, 1, 0, 1], float)
    np.testing.assert_allclose(compute_shapley_values(values), [2 / 3, 1 / 6, 1 / 6])
    assert compute_shapley_values(np.array([0.3])).shape == (0,)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("fusion", ["concat", "metablock", "cross_attention", "image_only"])
def test_contributions_add_up_to_the_prediction(fusion: str, views: int) -> None:
    model = micro(fusion=fusion)
    found = of(model, symmetries=views)
    there = {"image"} if fusion == "image_only" else {"image", "age", "sex"}
    assert found.added.keys() == there
    predicted = malignancy(model, ROW, lesion(), symmetries=views)
    assert found.start + sum(found.added.values()) == pytest.approx(predicted, abs=1e-6)


def background(model: Network, rows: int = 5) -> dict[str, Tensor]:
    """Features of other images, and other records."""
    ages = np.linspace(20, 80, rows)
    records = ENCODER.transform(pd.DataFrame({"age": ages, "sex": ["female", "male"] * 2 + [None]}))
    images = torch.cat([lesion(seed=seed) for seed in range(1, rows + 1)])
    parts = {"record": torch.from_numpy(records)} if model.record is not None else {}
    if model.image is not None:
        parts["image"] = model.encode_image(images)
    return parts


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("fusion", ["concat", "cross_attention", "image_only", "tabular_only"])
def test_contributions_start_at_the_mean_of_background_rows(fusion: str, views: int) -> None:
    model = (
        network(micro_config("tabular_only")) if fusion == "tabular_only" else micro(fusion=fusion)
    )
    rows = background(model)
    found = of(model, symmetries=views, background=rows)
    logits = model.predict(rows.get("image"), rows.get("record"))[0]
    mean = logits.double().softmax(dim=1)[:, 1:].sum(dim=1).mean()
    assert found.start == pytest.approx(float(mean), abs=1e-6)
    assert found.is_average
    image = None if fusion == "tabular_only" else lesion()
    predicted = malignancy(model, ROW, image, symmetries=views)
    assert found.start + sum(found.added.values()) == pytest.approx(predicted, abs=1e-6)


def test_the_image_replaces_that_of_the_background_rows() -> None:
    model = micro(fusion="concat")
    rows = background(model)
    found = of(model, ROW.assign(age=np.nan, sex=None), background=rows)
    empty = torch.from_numpy(ENCODER.transform(ROW.assign(age=np.nan, sex=None)))
    logits = model.predict(rows["image"], empty.expand(5, -1))[0]
    mean = float(logits.double().softmax(dim=1)[:, 1:].sum(dim=1).mean())
    assert found.added.keys() == {"image"}  # missing columns are missing everywhere
    assert found.start == pytest.approx(mean, abs=1e-6)


def test_what_is_missing_adds_nothing_and_is_where_all_begins() -> None:
    model = micro(drop_image=0.5)
    empty = ROW.assign(age=np.nan, sex=None)
    assert of(model, empty, has_image=False).added == {}
    hidden = {"has_image": torch.tensor([False])}
    nothing = malignancy(model, empty, lesion(), **hidden)
    assert of(model).start == pytest.approx(nothing, abs=1e-6)
    half = of(model, ROW.assign(sex=None), has_image=False)
    assert half.added.keys() == {"age"}
    told = malignancy(model, ROW.assign(sex=None), lesion(), **hidden)
    assert half.start + half.added["age"] == pytest.approx(told, abs=1e-6)


def test_a_model_of_the_record_alone_is_explained() -> None:
    model = network(micro_config("tabular_only"))
    found = of(model)
    assert found.added.keys() == {"age", "sex"}
    assert found.start + sum(found.added.values()) == pytest.approx(malignancy(model, ROW, None))
    assert found.share("age") == pytest.approx(1 - (found.share("sex") or 0))
    assert found.share("image") == 0


def columns_model(columns: int, rows: int) -> tuple[Network, RecordEncoder, dict[str, Any], Any]:
    """A model of many numeric columns, a row, and background rows."""
    names = [f"c{number}" for number in range(columns)]
    training = pd.DataFrame(
        np.random.default_rng(0).normal(size=(rows + 1, columns)), columns=names
    )
    encoder = RecordEncoder.fit(training, names)
    torch.manual_seed(0)
    model = build_network(micro_config("tabular_only"), [2] * columns, 2, pretrained=False).eval()
    records = torch.from_numpy(encoder.transform(training.iloc[1:]))
    return model, encoder, dict(training.iloc[0]), {"record": records}


@pytest.mark.parametrize("rows", [1, 5])
def test_values_of_many_columns_are_estimated_within_their_errors(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder, row, background = columns_model(12, rows)
    estimated = compute_contributions(model, encoder, last_two, row, None, background=background)
    assert estimated.added.keys() == estimated.errors.keys() == row.keys()
    monkeypatch.setattr(attribution, "MAX_COLUMNS", 12)
    exact = compute_contributions(model, encoder, last_two, row, None, background=background)
    assert exact.errors == {}
    assert estimated.start == pytest.approx(exact.start, abs=1e-7)
    total = sum(estimated.added.values())
    assert total == pytest.approx(sum(exact.added.values()), abs=1e-7)  # without error
    off = [(estimated.added[n] - exact.added[n]) / estimated.errors[n] for n in row]
    assert max(map(abs, off)) < 4
    assert 0.5 < np.sqrt(np.mean(np.square(off))) < 1.6  # as large as the errors state
    some = row | dict.fromkeys([*row][:5])
    assert compute_contributions(model, encoder, last_two, some, None).added.keys() == {*row} - {
        *[*row][:5]
    }


def test_the_values_of_a_sum_and_of_products_are_known() -> None:
    weights = np.linspace(-1, 1, 20)
    start, added, errors = estimate_shapley_values(lambda s, _: 3 + s @ weights, 20, 4)
    assert start == pytest.approx(3)
    np.testing.assert_allclose(added, weights, atol=1e-12)
    assert errors.max() < 1e-12
    _, added, errors = estimate_shapley_values(
        lambda s, _: (s[:, 0] & s[:, 1]).astype(float), 20, 4
    )
    np.testing.assert_allclose(added, [0.5, 0.5] + 18 * [0], atol=1e-12)  # an order or its reverse

    def majority(subsets: np.ndarray, _: slice) -> Any:
        return (subsets.sum(axis=1) > 6).astype(float)

    exact = compute_shapley_values(majority(list_subsets(12), slice(None)))
    np.testing.assert_allclose(exact, 1 / 12)
    _, added, errors = estimate_shapley_values(majority, 12, 32)
    assert np.abs((added - exact) / errors).max() < 4


def test_the_others_are_summed_on_a_page() -> None:
    added = {f"c{number}": number / 10 * (-1) ** number for number in range(13)}
    shown = Contributions(0.1, added).largest()
    assert [*shown] == [*[f"c{number}" for number in range(12, 2, -1)], "3 others"]
    assert sum(shown.values()) == pytest.approx(sum(added.values()))


def test_the_mean_of_models_has_the_mean_of_contributions() -> None:
    mean = mean_contributions([Contributions(0.1, {"age": 0.2}), Contributions(0.3, {"sex": -0.4})])
    assert mean.start == pytest.approx(0.2)
    assert mean.added == pytest.approx({"age": 0.1, "sex": -0.2})
    assert Contributions(0.5, {}).share("age") is None


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_of_network_shows_where(name: str, fusion: str) -> None:
    model = micro(name, fusion)
    image = lesion()
    before = model(image, record())
    seen = compute_heat_map(model, image, record(), positive=[1, 2])
    assert min(seen.shape) > 1
    assert seen.min() >= 0
    assert seen.max() in (0, pytest.approx(1))
    torch.testing.assert_close(model(image, record()), before)


def test_the_map_of_average_pooling_is_the_class_activation_map() -> None:
    # Zhou et al. 2016: features before pooling times the weights of the head.
    model = micro("test_resnet", "image_only")
    net: Any = model.image.net  # type: ignore[union-attr]
    maps: list[Tensor] = []
    net.layer4.register_forward_hook(lambda *inside: maps.append(inside[2]))
    logits = model(lesion(), None)
    share = logits[0, 1:].softmax(dim=0)
    head: Any = model.head
    weights = share @ head.weight[1:] - head.weight[0]
    expected = torch.einsum("chw,c->hw", maps[0][0], weights).relu()
    seen = compute_heat_map(model, lesion(), None, positive=[1, 2])
    np.testing.assert_allclose(seen, (expected / expected.max()).numpy(), atol=1e-5)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one.ravel(), other.ravel()).statistic)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_the_map_changes_when_what_was_learnt_is_lost(name: str) -> None:
    """Adebayo et al. 2018, arXiv:1810.03292: with random weights throughout, or in the head."""
    model = micro(name)
    before = compute_heat_map(model, lesion(), record(), positive=[1, 2])
    again = compute_heat_map(model, lesion(), record(), positive=[1, 2])
    np.testing.assert_array_equal(before, again)
    others = [micro(name, seed=seed) for seed in range(1, 6)]
    maps = [compute_heat_map(other, lesion(), record(), positive=[1, 2]) for other in others]
    assert np.nanmean([abs(agreement(before, each)) for each in maps]) < 0.5
    model.head = others[0].head
    headless = compute_heat_map(model, lesion(), record(), positive=[1, 2])
    assert np.abs(headless - before).max() > 0.05
