"""Arrays on the wire, and the arithmetic of the rounds."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_runs import micro_config
from scipy.stats import norm

from skinmm.config.remote_commands import FederationConfig
from skinmm.models.network import Network, build_network

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from skinmm.federated.agreement import Federation
from skinmm.federated.arrays import describe_layout, find_problem, list_shared, to_record
from skinmm.federated.centre import ServerArrays
from skinmm.federated.fleet import set_identity
from skinmm.federated.rounds import build_strategy, combine, compute_epsilon


def network_of(config: Any) -> Network:
    return build_network(config, [2, 3], 2, pretrained=False)


def test_arrays_that_cross_the_wire() -> None:
    config = micro_config()
    network = network_of(config)
    names = {
        (s, a): {*list_shared(network, config, s, a)}
        for s in ("fedavg", "fedbn")
        for a in ("all", "backbone", "head")
    }
    whole = names["fedavg", "all"]
    assert whole == {*network.state_dict()} - {"image.mean", "image.std"}
    assert names["fedavg", "backbone"] | names["fedavg", "head"] == whole
    assert not names["fedavg", "backbone"] & names["fedavg", "head"]
    local = {
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if "Norm" in type(module).__name__
        for name in module.state_dict()
    }
    assert local
    assert names["fedbn", "all"] == whole - local
    frozen = replace(config, model=replace(config.model, tune="head"))
    shared = list_shared(network_of(frozen), frozen, "fedavg", "all")
    assert shared
    assert not any(name.startswith("image.") for name in shared)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda arrays: arrays.pop("b"), "another architecture: 1 arrays differ by name, e.g. b"),
        (lambda arrays: arrays.update(c=Array(np.ones(1))), "e.g. c"),
        (
            lambda arrays: arrays.update(a=Array(np.ones((3, 2), np.float32))),
            r"is float32 \[3, 2\]",
        ),
        (
            lambda arrays: arrays.update(a=Array(np.full((2, 3), np.nan, np.float32))),
            "a is not finite",
        ),
        (  # finite, but infinite in the type of the network
            lambda arrays: arrays.update(a=Array(np.full((2, 3), 1e300))),
            "a is float64",
        ),
        (lambda arrays: arrays.update(a=Array("f4", (2, 3), "numpy.ndarray", b"x")), "unreadable"),
        (
            lambda arrays: arrays.update(
                a=Array("object", (1,), "numpy.ndarray", np.array([{}], object).dumps())
            ),
            "unreadable",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: Any, problem: str) -> None:
    arrays = {"a": Array(np.ones((2, 3), np.float32)), "b": Array(np.array(4))}
    layout = describe_layout(arrays)
    assert find_problem(ArrayRecord(dict(arrays)), layout) == ""
    change(arrays)
    text = find_problem(arrays, layout)
    assert re.search(problem, text), text


def test_the_proximal_term_has_the_gradient_of_its_formula() -> None:
    config = micro_config("tabular_only")
    network = network_of(config)
    arrays = to_record(network, list_shared(network, config, "fedprox", "all"))
    module = torch.nn.Module()
    module.network = network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.25)
    moved = [p.detach().clone() for p in network.parameters()]
    callback = ServerArrays(arrays, mu=2.0)
    callback.on_train_start(None, module)
    start = [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), moved, strict=True):
            parameter.copy_(value)
            parameter.grad = torch.ones_like(parameter)
    callback.on_before_optimizer_step()
    for parameter, origin in zip(network.parameters(), start, strict=True):
        distance = parameter.detach().clone().requires_grad_()
        torch.autograd.backward((2.0 / 2) * (distance - origin).square().sum())
        assert distance.grad is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 1 + distance.grad)


def test_epsilon_is_that_of_the_gaussian_mechanism() -> None:
    # Renyi divergence of order a between N(0, s^2) and N(1, s^2) is a / (2 s^2); epsilon is the
    # least of a rho + log(1/delta) / (a - 1) over a (Mironov 2017).
    noise, rounds, delta = 1.5, 10, 1e-5
    orders = np.linspace(1.001, 500, 2_000_000)
    bounds = rounds * orders / (2 * noise**2) + math.log(1 / delta) / (orders - 1)
    assert compute_epsilon(noise, rounds, delta) == pytest.approx(bounds.min(), rel=1e-4)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.5, 10), (5.0, 20), (20.0, 100)])
def test_epsilon_is_above_the_exact_one_of_the_analytic_gaussian(noise: float, rounds: int) -> None:
    # Balle and Wang 2018 (arXiv:1805.06530), theorem 8; rounds are one with noise / sqrt(rounds).
    epsilon, mu = compute_epsilon(noise, rounds), math.sqrt(rounds) / noise

    def delta(value: float) -> float:
        upper = norm.cdf(mu / 2 - value / mu)
        return float(upper - math.exp(value) * norm.cdf(-mu / 2 - value / mu))

    assert delta(epsilon) < 1e-5
    assert delta(0.75 * epsilon) > 1e-5  # not far above


def reply_with(arrays: dict[str, np.ndarray], rows: int) -> Message:
    """An answer to a round."""
    set_identity(1, 1)
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    content: Any = {"arrays": record, "metrics": MetricRecord({"num-examples": rows})}
    return Message(RecordDict(content), reply_to=Message(RecordDict(), 2, "train"))


def combined(tmp_path: Path, sent: list[tuple[np.ndarray, int]], **settings: Any) -> np.ndarray:
    """The array after a round, of clients with an array and a number of rows each."""
    values = {"weight": np.zeros_like(sent[0][0]), "batches": np.array(0)}
    start = ArrayRecord({name: Array(value) for name, value in values.items()})
    layout = describe_layout(start)
    if "noise" in settings:
        layout.pop("batches")
    config = FederationConfig(**settings)
    agreement = {"parameters": ["weight"], "layout": layout}
    federation = Federation(config, tmp_path, agreement, start)
    replies = []
    for value, rows in sent:
        replies.append(reply_with({"weight": value, "batches": np.array(rows)}, rows))
    result = combine(federation, build_strategy(config), 1, replies, layout)
    if "noise" not in settings:
        expected = round(np.average([rows for _, rows in sent], weights=[rows for _, rows in sent]))
        assert result["batches"].numpy() == expected
        assert result["batches"].numpy().dtype == np.int64
    return result["weight"].numpy()


def test_updates_are_weighted_by_rows(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), [10, 20, 70]
    values = [rng.normal(size=(4, 3)).astype(np.float32) for _ in rows]
    result = combined(tmp_path, [*zip(values, rows, strict=True)])
    np.testing.assert_allclose(result, np.average(values, axis=0, weights=rows), rtol=1e-5)
    assert result.dtype == np.float32
    alone = combined(tmp_path, [(values[0], 17)])
    np.testing.assert_array_equal(alone, values[0])


def test_private_updates_are_clipped_and_have_the_noise_of_the_setting(tmp_path: Path) -> None:
    size, clip, noise = 40_000, 2.0, 1.5
    large = np.full(size, 1.0, np.float32)  # its norm is 200
    sent = [(large, 10), (large, 1000), (large, 10)]
    results = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002 - the seed of the run, which the clients know
        results.append(combined(tmp_path, sent, noise=noise, clip_norm=clip))
    result = results[0]
    assert result.mean() == pytest.approx(clip / np.sqrt(size), abs=0.03)
    assert result.std() == pytest.approx(noise * clip / 3, rel=0.02)
    assert not np.isclose(results[1], result, atol=1e-3).mean() > 0.01


def test_fedadam_follows_its_formula_over_two_rounds(tmp_path: Path) -> None:
    # Reddi et al. 2021 (arXiv:2003.00295), algorithm 2, with Flower's correction of the bias.
    rate, first, second, tau = 0.05, 0.9, 0.99, 1e-3
    config = FederationConfig(strategy="fedadam", server_lr=rate)
    x, m, v = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
    arrays = ArrayRecord({"weight": Array(x.astype(np.float32))})
    layout = describe_layout(arrays)
    federation = Federation(config, tmp_path, {"parameters": ["weight"], "layout": layout}, arrays)
    for number in (1, 2):
        values = [np.full((2, 2), 1.0 * number, np.float32), np.eye(2, dtype=np.float32)]
        delta = np.average(values, axis=0, weights=[10, 30]) - x
        m, v = first * m + (1 - first) * delta, second * v + (1 - second) * delta**2
        scale = np.sqrt(1 - second ** (number + 1)) / (1 - first ** (number + 1))
        x = x + rate * scale * m / (np.sqrt(v) + tau)
        replies = [
            reply_with({"weight": value}, rows)
            for value, rows in zip(values, (10, 30), strict=True)
        ]
        federation.save()  # as if the server was killed
        federation.load()
        strategy: Any = build_strategy(config)
        strategy.current_arrays = {"weight": federation.arrays["weight"].numpy()}
        federation.arrays = combine(federation, strategy, number, replies, layout)
        np.testing.assert_allclose(federation.arrays["weight"].numpy(), x, rtol=1e-4)
