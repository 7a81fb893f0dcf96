"""Training rounds on the server: Flower's strategies, checks of answers, and the model card."""

import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
)

from skinmm.config.remote_commands import FederationConfig
from skinmm.errors import InputError, format_count
from skinmm.federated.agreement import Federation, greet, read_reason, start
from skinmm.federated.arrays import Layout, cast_record, find_problem
from skinmm.federated.fleet import Nodes
from skinmm.files import atomic_write

DELTA: Final = 1e-5
AWAY: Final = 60.0  # seconds that the last round waits for a client that is away
MANY: Final = 1e9  # rows
REPEATS: Final = 5
"""Attempts of a round, after which the server stops."""


def build_strategy(config: FederationConfig) -> FedAvg:
    """Return Flower's strategy, without its own choice of clients."""
    counts = {"min_train_nodes": 1, "min_available_nodes": 1, "min_evaluate_nodes": 1}
    if config.strategy == "fedprox":
        return FedProx(**counts, proximal_mu=config.mu)  # type: ignore[arg-type]
    if config.strategy == "fedadam":
        return FedAdam(**counts, eta=config.server_lr)  # type: ignore[arg-type]
    return FedAvg(**counts)  # type: ignore[arg-type]


def compute_epsilon(noise: float, rounds: int, delta: float = DELTA) -> float:
    """Return the epsilon of several rounds of the Gaussian mechanism, per centre.

    By zero-concentrated differential privacy: rho = rounds / (2 noise^2), and epsilon = rho +
    2 sqrt(rho log(1/delta)) (Bun and Steinke 2016, arXiv:1605.02065, proposition 1.3). All centres
    take part in each round, so that nothing is gained by sampling.
    """
    rho = rounds / (2 * noise**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def run_federation(
    federation: Federation, grid: Nodes, timeout: float, wait: Callable[[], None] = lambda: None
) -> None:
    """Run all rounds: 0 (agreement), training, and the last one, which finishes the clients' runs.

    Args:
        federation: its state, new or loaded.
        grid: the clients.
        timeout: seconds that a round waits for an answer.
        wait: called between two looks for clients.
    """
    config, asked = federation.config, set[int]()
    strategy = build_strategy(config)
    answers: dict[str, dict[str, Any]] = {}
    failures = 0
    while federation.round < config.rounds:
        greet(federation, grid, asked, answers, timeout)
        if len(grid.accepted & grid.list_connected()) < config.min_clients:
            wait()
            continue
        if not federation.agreement:
            epsilon = compute_epsilon(config.noise, config.rounds) if config.noise else None
            start(federation, answers, epsilon)
        failures = 0 if run_round(federation, grid, strategy, timeout) else failures + 1
        if failures == REPEATS:
            raise InputError(
                f"round {federation.round + 1} failed {failures} times: "
                f"{federation.folder / 'log.txt'} has the reasons; correct them and continue with "
                f"resume={federation.folder}"
            )
    end = time.monotonic() + min(timeout, AWAY)
    while True:
        greet(federation, grid, asked, answers, timeout)
        centres = federation.centres.items()
        missing = {name for name, c in centres if c["rounds"] and "metrics" not in c}
        if not missing - {grid.names[node] for node in grid.get_node_ids()}:
            break
        if time.monotonic() > end:
            break
        wait()
    finish(federation, grid, timeout)


def run_round(federation: Federation, grid: Nodes, strategy: FedAvg, timeout: float) -> bool:
    """Train one round on all accepted clients, combine usable answers; False if too few."""
    number, config = federation.round + 1, federation.config
    layout = {name: (tuple(s), t) for name, (s, t) in federation.agreement["layout"].items()}
    parameters = federation.agreement["parameters"]
    weights = ArrayRecord({name: federation.arrays[name] for name in parameters})
    sent = ConfigRecord({"agreement": json.dumps(federation.agreement)})
    messages = [*strategy.configure_train(number, weights, sent, grid)]
    for message in messages:  # with the statistics of normalisation layers
        message.content["arrays"] = federation.arrays
    replies = [*grid.send_and_receive(messages, timeout=timeout)]
    answered = {reply.metadata.src_node_id for reply in replies}
    for message in messages:
        if (node := message.metadata.dst_node_id) not in answered:
            federation.log(f"round {number}: {name_of(grid, node)}: no answer within the time")
    usable: dict[str, Message] = {}
    for reply in sorted(replies, key=lambda reply: name_of(grid, reply.metadata.src_node_id)):
        name = name_of(grid, reply.metadata.src_node_id)
        if problem := find_problem_of(reply, layout):
            federation.log(f"round {number}: {name}: left out: {problem}")
        else:
            usable[name] = reply
    if len(usable) < config.min_clients:
        federation.log(
            f"round {number}: {len(usable)} of {config.min_clients} clients; the round is repeated"
        )
        time.sleep(1)
        return False
    federation.arrays = combine(federation, strategy, number, [*usable.values()], layout)
    federation.round = number
    for name in usable:
        federation.centres[name]["rounds"].append(number)
    federation.save()
    federation.log(f"round {number} of {config.rounds}: {', '.join(usable)}")
    return True


def find_problem_of(reply: Message, layout: Layout) -> str:
    """Return the problem of an answer to a round, or ""."""
    if reply.has_error():
        return read_reason(reply)
    try:
        rows = float(reply.content["metrics"]["num-examples"])  # type: ignore[arg-type]
        arrays: Any = reply.content["arrays"]
        if not 0 < rows < MANY:
            return f"num-examples is {rows}"
        return find_problem(arrays, layout)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"its answer lacks arrays or num-examples ({type(error).__name__})"


def combine(
    federation: Federation,
    strategy: FedAvg,
    number: int,
    replies: list[Message],
    layout: Layout,
) -> ArrayRecord:
    """Return the arrays after a round: weights by the strategy, statistics by the mean."""
    config, parameters = federation.config, [*federation.agreement["parameters"]]
    statistics = [name for name in layout if name not in {*parameters}]

    def select(reply: Message, names: Iterable[str]) -> Message:
        rows: Any = 1 if config.noise else reply.content["metrics"]["num-examples"]
        arrays: Any = reply.content["arrays"]
        content: Any = {
            "arrays": ArrayRecord({name: arrays[name] for name in names}),
            "metrics": MetricRecord({"num-examples": rows}),
        }
        return Message(RecordDict(content), metadata=reply.metadata)  # type: ignore[call-overload]

    if isinstance(strategy, FedAdam) and federation.moments:
        for moment in ("m_t", "v_t"):
            prefix = f"{moment}."
            values = {n: v for n, v in federation.moments.items() if n.startswith(prefix)}
            setattr(strategy, moment, {n.removeprefix(prefix): v for n, v in values.items()})
    aggregator: Any = strategy
    if config.noise:
        aggregator = DifferentialPrivacyServerSideFixedClipping(
            strategy, config.noise, config.clip_norm, len(replies)
        )
        weights = {name: federation.arrays[name] for name in parameters}
        aggregator.current_arrays = ArrayRecord(weights)
        np.random.seed()  # noqa: NPY002 - Flower draws from it, and clients know the seed of the run
    combined, _ = aggregator.aggregate_train(number, [select(r, parameters) for r in replies])
    if combined is None:
        raise InputError(f"round {number}: the strategy returned no arrays")
    if isinstance(strategy, FedAdam):
        federation.moments = {
            f"{moment}.{name}": value
            for moment in ("m_t", "v_t")
            for name, value in (getattr(strategy, moment) or {}).items()
        }
    arrays = dict(combined)
    if statistics:
        means, _ = FedAvg().aggregate_train(number, [select(r, statistics) for r in replies])
        arrays |= dict(means or {})
    return cast_record(arrays, layout)


def finish(federation: Federation, grid: Nodes, timeout: float) -> None:
    """Send the final arrays, so that every client writes its run folder; write the card."""
    sent: Any = {
        "agreement": json.dumps(federation.agreement),
        "server-round": federation.config.rounds + 1,
    }
    content: Any = {"arrays": federation.arrays, "config": ConfigRecord(sent)}
    nodes = sorted(grid.accepted & grid.list_connected())
    messages = [Message(RecordDict(content), node, "query.finish") for node in nodes]
    for reply in grid.send_and_receive(messages, timeout=timeout) if messages else ():
        name = name_of(grid, reply.metadata.src_node_id)
        if reply.has_error():
            federation.log(f"{name}: its run folder was not written: {read_reason(reply)}")
            continue
        values: Any = reply.content.metric_records.get("metrics", {})
        metrics = {n: float(v) for n, v in values.items() if n == "auroc"}
        federation.centres[name]["metrics"] = metrics
        federation.log(
            f"{name}: run folder written{''.join(f', AUROC {v:.3f}' for v in metrics.values())}"
        )
    federation.save()
    write_card(federation)
    federation.log(f"model card: {federation.folder / 'card.md'}")


def write_card(federation: Federation) -> None:
    """Write the server's model card, with the facts that each centre discloses."""
    config, agreement = federation.config, federation.agreement
    rows = []
    for name, centre in sorted(federation.centres.items()):
        facts = centre.get("facts", {}) | centre.get("metrics", {})
        cells = [f"{facts['rows']:,.0f}" if "rows" in facts else "not stated"]
        cells += [f"{facts['prevalence']:.1%}" if "prevalence" in facts else "not stated"]
        cells += [f"{facts['auroc']:.3f}" if "auroc" in facts else "not stated"]
        rows.append(f"| {name.replace('|', '/')} | {len(centre['rounds'])} | {' | '.join(cells)} |")
    lines = [
        "# Federated model",
        "",
        f"{config.strategy}, {format_count(federation.round, 'round')} of "
        f"{format_count(config.local_epochs, 'epoch')}; "
        f"image network {config.model.name}, fusion {config.fusion.name}; shared arrays: "
        f"{config.aggregate}; classes: {', '.join(agreement['classes'])}.",
        "",
        "| centre | rounds | rows | malignant | AUROC on its test rows |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Centres count {'equally' if config.noise else 'by their training rows'}. Sampling prior, "
        "calibration, decision threshold and the out-of-distribution score belong to each centre's "
        "own checkpoint, not to the shared arrays, which are in federation.safetensors.",
    ]
    if "epsilon" in agreement:
        lines += [
            "",
            f"Differential privacy of the weights that a centre sends: epsilon "
            f"{agreement['epsilon']:.3g} at delta {DELTA:g} (noise {config.noise:g}, clipped at "
            f"{config.clip_norm:g}; the server, which is trusted, adds the noise). The facts "
            "above and the means and words of the record have no noise.",
        ]
    with atomic_write(federation.folder / "card.md") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def name_of(grid: Nodes, node: int) -> str:
    """Return the name of an accepted client."""
    return str(grid.names.get(node, node))
