"""What the centres agree on, what is refused, and the arithmetic of the rounds."""

import json
import math
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_config, read_data, table_cohort
from scipy.stats import norm

from skinmm.config import Config, DataConfig, flatten, from_mapping, to_mapping
from skinmm.config.federated_commands import (
    FederateClientConfig,
    FederateServerConfig,
    FederationConfig,
)
from skinmm.config.setting import setting
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import Network, build_network

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from skinmm.federated import serve, take_part
from skinmm.federated.agreement import (
    Federation,
    merge_columns,
    read_answer,
    require_fit,
    to_client_mapping,
)
from skinmm.federated.arrays import describe_layout, find_problem, list_shared, to_record
from skinmm.federated.centre import Centre, ServerArrays
from skinmm.federated.fleet import set_identity
from skinmm.federated.node import read_private_key
from skinmm.federated.privacy import (
    describe_column,
    describe_links,
    from_plain,
    hash_rows,
    localise,
    require_shared,
    to_plain,
)
from skinmm.federated.rounds import build_strategy, combine, compute_epsilon


def described(table: pd.DataFrame, columns: list[str]) -> list[dict[str, Any]]:
    states = RecordEncoder.fit(table, columns).to_state()["columns"]
    return [describe_column(state, table) for state in states]


def columns_of(rng: np.random.Generator, rows: int, shift: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": [f"P{row}" for row in range(rows)],
            "age": rng.normal(50 + shift, 10, rows),
            "sex": rng.choice(["female", "male"], rows),
            "device": rng.choice(["Alpha", "Beta"], rows),
        }
    )


def test_the_agreed_encoder_is_that_of_all_rows_together() -> None:
    rng, names = np.random.default_rng(0), ["age", "sex", "device"]
    first, second = columns_of(rng, 300, 0), columns_of(rng, 100, 20)
    second.loc[:20, "device"] = "Gamma"
    second.loc[30:32, "device"] = "Jane Doe's own"  # fewer than five rows
    merged = merge_columns([described(table, names) for table in (first, second)])
    whole = RecordEncoder.fit(pd.concat([first, second]), names).to_state()["columns"]
    assert merged[0]["mean"] == pytest.approx(whole[0]["mean"], rel=1e-12)
    assert merged[0]["scale"] == pytest.approx(whole[0]["scale"], rel=1e-12)
    assert merged[1]["values"] == ["female", "male"]
    assert merged[2]["values"] == ["Alpha", "Beta", "Gamma"]
    assert RecordEncoder.from_state({"columns": merged}).transform(second).shape == (100, 9)


def test_the_agreed_encoder_of_one_centre_is_its_own() -> None:
    table = columns_of(np.random.default_rng(1), 97, 3.3)
    states = RecordEncoder.fit(table, ["age", "sex"]).to_state()["columns"]
    assert merge_columns([described(table, ["age", "sex"])]) == states


def test_columns_of_another_type_are_refused() -> None:
    rng = np.random.default_rng(0)
    table = columns_of(rng, 50, 0)
    other = table.assign(device=1.5)
    with pytest.raises(InputError, match=r"device \(categorical\) and device \(numeric\)"):
        merge_columns([described(t, ["device"]) for t in (table, other)])


def test_only_local_settings_of_a_client_are_its_own() -> None:
    server = replace(micro_config(), data=DataConfig(columns=["age"], root="/server", folds=4))
    own = FederateClientConfig(data=DataConfig(name="csv", root="/clinic"), workers=0)
    config = localise(server, own)
    assert (config.data.root, config.data.folds, config.data.columns) == ("/clinic", 4, ["age"])
    with pytest.raises(InputError, match=r"data.folds=7: the server sets it to 4"):
        localise(server, replace(own, data=DataConfig(name="csv", folds=7)))


@pytest.mark.parametrize(
    "settings",
    [
        {"logger": {"name": "wandb", "images": True, "entity": "elsewhere"}},
        {"plugins": ["/elsewhere/evil.py"]},
        {"model": {"pretrained": "https://elsewhere/weights.bin"}},
        {"model": {"name": "local-dir:/etc"}},
        {"model": {"args": {"checkpoint_path": "/etc/passwd"}}},
        {"data": {"segmenter": "/elsewhere/x.ckpt"}},
        {"data": {"limit": 2}},
        {"trainer": {"limit_batches": 1}},
        {"loss": {"teacher": "/elsewhere/x.ckpt"}},
        {"evaluation": {"call": "cost", "costs": "/etc/passwd"}},
        {"resume": "/elsewhere/run"},
        {"tabular": {"name": "raw", "args": {"words": ["/etc/passwd"]}}},
        {"head": {"name": "boosting"}},
        {"schedule": {"name": "plateau"}},
        {"data": {"fold": 2}},
        {"study": {"arms": {"a": [], "b": []}}},
    ],
)
def test_a_server_cannot_read_upload_or_run_anything_at_a_centre(settings: Any) -> None:
    asked = from_mapping(Config, settings)
    with pytest.raises(InputError, match="not available in a federation"):
        localise(asked, FederateClientConfig(data=DataConfig(root="/clinic")))


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"limit": 32, "columns": ["age"]}, "evaluation": {"call": "f1"}},
        {"evaluation": {"call": "cost", "costs": {"mel": {"nv": 20}}}},
        {"model": {"args": {"drop_rate": 0.1}, "pretrained": "zoo:cc0"}},
        {"mix": {"name": "mixup", "args": {"alpha": 0.2}}, "logger": {"name": "none"}},
        {"schedule": {"name": "one_cycle", "warmup": 0.2}, "optimizer": {"lr": "auto"}},
    ],
)
def test_a_server_sets_what_is_shared(settings: Any) -> None:
    config = from_mapping(Config, settings)
    assert (
        flatten(to_mapping(localise(config, FederateClientConfig()))).items()
        >= {**flatten(settings)}.items()
    )


def test_a_setting_that_nobody_has_classified_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Extended(Config):
        fresh: str = setting("", "a new setting")

    monkeypatch.setattr("skinmm.federated.privacy.Config", Extended)
    require_shared(Extended())
    with pytest.raises(InputError, match=r"^fresh=x: not available in a federation; leave it out"):
        require_shared(Extended(fresh="x"))


def list_unclassified(schema: Any, prefix: str = "") -> list[str]:
    """Settings that are neither local to a centre, nor shared, nor refused by name."""
    keys = []
    for item in fields(schema):
        if is_dataclass(item.type) and item.metadata.get("shared") is not False:
            keys += list_unclassified(item.type, f"{prefix}{item.name}.")
        elif not {"local", "shared"} & item.metadata.keys():
            keys.append(f"{prefix}{item.name}")
    return keys


def test_every_setting_is_classified() -> None:
    assert list_unclassified(Config) == []
    assert list_unclassified(FederateClientConfig)[0] == "server"


def test_an_agreement_cannot_name_a_folder_outside_the_run(tmp_path: Path) -> None:
    own = FederateClientConfig(output=str(tmp_path / "run"))
    for name in ("../../elsewhere", str(tmp_path / "absolute")):
        folder = Centre(own)._federation({"id": name})
        assert folder.parent == tmp_path / "run" / "federation"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_fewer_than_five_patients_have_does_not_leave() -> None:
    table = columns_of(np.random.default_rng(0), 100, 0)
    table["thickness"] = np.nan
    table.loc[3, "thickness"] = 1.2345  # the mean of one cell is the cell
    table.loc[:9, "device"], table.loc[:9, "patient_id"] = "Jane Doe's own", "P0"
    described_columns = described(table, ["thickness", "device"])
    assert described_columns[0]["rows"] == 0
    assert (described_columns[0]["mean"], described_columns[0]["scale"]) == (0, 1)
    assert described_columns[1]["values"] == ["Alpha", "Beta"]


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.key").write_text("melanoma2026\n")
    with pytest.raises(InputError, match="fewer than 32 characters"):
        take_part(
            FederateClientConfig(
                server="127.0.0.1:1", name="a", audit_key=str(tmp_path / "audit.key")
            )
        )


def answered(**changes: Any) -> Message:
    column = {"name": "age", "kind": "numeric", "unit": "", "mean": 50.0, "scale": 9.0, "rows": 40}
    column |= {"values": [], "is_truth": False}
    content = {"name": "a", "classes": ["benign", "malignant"], "columns": [column], "facts": {}}
    for name, value in changes.items():
        target = column if name in column and name != "name" else content
        target[name] = value
    set_identity(1, 1)
    answer = ConfigRecord({"answer": json.dumps(content)})
    return Message(RecordDict({"config": answer}), reply_to=Message(RecordDict(), 2, "query"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": math.nan},
        {"scale": 0},
        {"kind": "x"},
        {"columns": [{}]},
        {"columns": 3},
        {"name": " "},
        {"hashes": {"patient": 1}},
        {"hashes": [1]},
        {"facts": {"rows": "many"}},
    ],
)
def test_a_description_that_cannot_be_used_is_refused(changes: dict[str, Any]) -> None:
    read_answer(answered())
    with pytest.raises(InputError):
        read_answer(answered(**changes))


def test_a_centre_that_does_not_fit_is_refused_alone(tmp_path: Path) -> None:
    federation = Federation(FederateServerConfig(clients="keys"), tmp_path)
    first = read_answer(answered())
    hashes = {"patient": {"trained": [1, 2], "evaluated": [3]}}
    leak = {"patient": {"trained": [7], "evaluated": [2]}}
    with_hashes = {**first, "hashes": from_plain(hashes)}
    for changes, problem in (
        ({"classes": ["benign", "Jane Doe"]}, "its class Jane Doe is not in the vocabulary"),
        ({"columns": []}, "differ in the number of record columns"),
        ({"kind": "categorical"}, "differ in a record column"),
        ({"hashes": leak}, "the centres leak: 1 patient of a"),
    ):
        answer = read_answer(answered(name="b", **changes))
        with pytest.raises(InputError, match=problem):
            require_fit(federation, {"a": with_hashes, "b": answer}, answer)
    with pytest.raises(InputError, match="another client is connected as a"):
        require_fit(federation, {"a": first}, first, is_taken=True)
    require_fit(federation, {"a": first, "b": first}, first)


def test_paths_of_the_server_are_not_sent() -> None:
    data = DataConfig(name="csv", root="/server/secret", args={"table": "x.csv"})
    sent = to_client_mapping(FederateServerConfig(data=data, rounds=3, local_epochs=2))
    assert "secret" not in json.dumps(sent)
    assert sent["trainer"]["max_epochs"] == 6
    assert "rounds" not in sent


@pytest.mark.parametrize("host", ["192.168.0.7", "10.1.2.3", "hospital.example"])
def test_off_loopback_certificates_and_keys_are_needed(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not loopback: the server needs certificate"):
        serve(FederateServerConfig(host=host, output=str(tmp_path / "s"), data=DataConfig()))
    with pytest.raises(InputError, match="not loopback: a client needs private_key"):
        take_part(FederateClientConfig(server=f"{host}:9092", name="a"))
    assert not (tmp_path / "s").exists()


def test_keys_of_another_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InputError, match=r"private_key=.*not readable"):
        read_private_key(str(tmp_path / "key"))


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


def test_links_between_centres_are_those_of_the_names(tmp_path: Path) -> None:
    config = replace(micro_config("tabular_only"), data=table_cohort(tmp_path))
    cohort = read_data(config, FUSIONS["tabular_only"].inputs).cohort
    first = cohort[cohort["patient_id"].str[1:].astype(int) < 40]
    second = cohort[cohort["patient_id"].str[1:].astype(int) >= 35].assign(part="test")
    tokens = {
        name: from_plain(json.loads(json.dumps(to_plain(hash_rows(rows, ["patient"], b"secret")))))
        for name, rows in (("A", first), ("B", second))
    }
    shared = {*first.loc[first["part"] == "train", "patient_id"]} & {*second["patient_id"]}
    assert shared
    plural = "s" if len(shared) > 1 else ""
    assert describe_links(tokens) == [f"{len(shared)} patient{plural} of A (training) in B (test)"]
    assert not describe_links({**tokens, "B": hash_rows(second, ["patient"], b"another")})
    with pytest.raises(InputError, match="audit=name: choose from patient, lesion, image"):
        hash_rows(first, ["name"], b"secret")


def test_keyed_hashes_find_the_same_picture(pictures: Path) -> None:
    paths = sorted(pictures.glob("*.jpg"))[:6]
    table = pd.DataFrame({"image_id": [p.stem for p in paths], "path": map(str, paths)})
    parts = {"A": table[:4].assign(part="train"), "B": table[2:].assign(part="test")}
    tokens = {name: hash_rows(rows, ["image"], b"secret") for name, rows in parts.items()}
    assert describe_links(tokens) == ["2 images of A (training) in B (test)"]


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
