"""Agreement of the centres before training, and the state of the server.

Messages, for clients in any language that Flower has (all JSON is text in a ConfigRecord):

- `query.describe`: `config.question` {config, audit}; the answer `config.answer` has the name of
  the centre, its classes, the states of its record columns without rare words, and `facts`.
- `train`: `arrays`, `config.agreement`, `config.server-round`, perhaps `config.proximal-mu`; the
  answer has `arrays` with the same names and shapes, and `metrics.num-examples`.
- `query.finish`: the final `arrays` and the agreement; the answer has `metrics`.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors import safe_open
from safetensors.numpy import save_file

from skinmm.config import Config, to_mapping
from skinmm.config.remote_commands import FederationConfig
from skinmm.config.schema import WEIGHTS
from skinmm.data.cohorts import list_positive_classes
from skinmm.data.cohorts.targets import BINARY, sort_key
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError, format_count, print_line
from skinmm.federated.arrays import describe_layout, digest_fixed, list_shared, to_record
from skinmm.federated.fleet import Nodes
from skinmm.federated.privacy import describe_links, from_plain
from skinmm.files import atomic_write
from skinmm.models.network import build_network
from skinmm.vocabulary import parse_diagnosis


@dataclass
class Federation:
    """Saved state of a federation, from which a restarted server continues.

    Attributes:
        config: configuration of the federation.
        folder: folder of the server.
        agreement: what the centres agreed on in round 0; empty before.
        arrays: the shared arrays after the last finished round.
        moments: moments of the server's optimiser, for fedadam.
        round: number of the last finished round.
        centres: name -> facts that it allows to state, `rounds` it took part in, and its metrics.
    """

    config: FederationConfig
    folder: Path
    agreement: dict[str, Any] = field(default_factory=dict)
    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    moments: dict[str, np.ndarray] = field(default_factory=dict)
    round: int = 0
    centres: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Path of the file that `save` writes and a restarted server reads."""
        return self.folder / "federation.safetensors"

    def log(self, line: str) -> None:
        """Print a line, and append it to log.txt with the time."""
        print_line(line)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def save(self) -> None:
        """Write the state atomically."""
        facts = {"agreement": self.agreement, "round": self.round, "centres": self.centres}
        arrays = {f"arrays.{name}": array.numpy() for name, array in self.arrays.items()}
        moments = {f"moments.{name}": np.asarray(value) for name, value in self.moments.items()}
        content = {name: np.asarray(v, order="C") for name, v in (arrays | moments).items()}
        with atomic_write(self.file) as partial:
            save_file(content, partial, {"federation": json.dumps(facts)})

    def load(self) -> None:
        """Read the state if `save` has written one."""
        if not self.file.is_file():
            return
        with safe_open(self.file, framework="np") as file:
            facts = json.loads(file.metadata()["federation"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.agreement, self.round = facts["agreement"], facts["round"]
        self.centres = facts["centres"]
        names = [*self.agreement["layout"]]
        self.arrays = ArrayRecord({name: Array(values[f"arrays.{name}"]) for name in names})
        moments = {name: value for name, value in values.items() if name.startswith("moments.")}
        self.moments = {name.removeprefix("moments."): value for name, value in moments.items()}


def greet(
    federation: Federation,
    grid: Nodes,
    asked: set[int],
    answers: dict[str, dict[str, Any]],
    timeout: float,
) -> None:
    """Ask new clients to describe their data, and accept compatible ones.

    A client whose parts share patients, lesions or images with those accepted before is refused.
    """
    config = federation.config
    question = {"config": to_client_mapping(config), "audit": config.audit}
    content: Any = {"config": ConfigRecord({"question": json.dumps(question)})}
    new = sorted(grid.list_connected() - asked)
    messages = [Message(RecordDict(content), node, "query.describe") for node in new]
    asked |= {*new}
    for reply in grid.send_and_receive(messages, timeout=timeout) if messages else ():
        node = reply.metadata.src_node_id
        try:
            answer = read_answer(reply)
            name = answer["name"]
            twins = {n for n in grid.get_node_ids() if grid.names[n] == name and n != node}
            require_fit(federation, {**answers, name: answer}, answer, is_taken=bool(twins))
        except InputError as error:
            federation.log(f"client {node % 10_000:04}: refused: {error}")
            continue
        returned = "again" if name in federation.centres else "joins"
        federation.log(f"{name}: {returned}, {describe_facts(answer['facts'])}")
        federation.centres.setdefault(name, {"rounds": []})["facts"] = answer["facts"]
        answers[name] = answer
        grid.accepted = grid.accepted - twins | {node}
        grid.names[node] = name


def read_answer(reply: Message) -> dict[str, Any]:
    """Return the checked answer to `query.describe`; raise InputError with the reason."""
    if reply.has_error():
        raise InputError(read_reason(reply))
    try:
        answer = json.loads(str(reply.content["config"]["answer"]))
        checked = {
            "name": " ".join(str(answer["name"]).split())[:60],
            "classes": [str(name) for name in answer["classes"]],
            "columns": [read_column(column) for column in answer["columns"]],
            "facts": {str(n): float(v) for n, v in dict(answer["facts"]).items()},
            "hashes": from_plain(answer.get("hashes") or {}),
        }
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"an entry is missing or invalid ({type(error).__name__})"
        raise InputError(f"its description of its data is unreadable: {reason}") from error
    if not checked["name"]:
        raise InputError("it has no name; set name=NAME")
    return checked


def read_column(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked state of a record column; raise ValueError if it cannot be used."""
    numbers = {name: float(state[name]) for name in ("mean", "scale", "rows")}
    is_usable = np.isfinite([*numbers.values()]).all() and numbers["scale"] > 0 <= numbers["rows"]
    if not is_usable or state["kind"] not in ("numeric", "categorical"):
        raise ValueError
    texts = {name: str(state[name]) for name in ("name", "kind", "unit")}
    words = [str(word) for word in state["values"]]
    return {**texts, **numbers, "values": words, "is_truth": bool(state["is_truth"])}


def read_reason(reply: Message) -> str:
    """Return the reason of an error on one line."""
    return " ".join(str(reply.error.reason or "").split())[:200] or "it failed"


def require_fit(
    federation: Federation,
    answers: Mapping[str, dict[str, Any]],
    answer: dict[str, Any],
    *,
    is_taken: bool = False,
) -> None:
    """Raise InputError if a centre has other classes or columns, or leaks with another centre.

    With keys of clients a name that `is_taken` belongs to another centre; without, to the same one
    that was started again. `data.allow_leaks` turns the refusal of leaks into a line of the log.
    """
    if is_taken and getattr(federation.config, "clients", None):
        raise InputError(f"another client is connected as {answer['name']}")
    data, agreed = federation.config.data, federation.agreement.get("columns")
    is_known = parse_diagnosis if data.target == "diagnosis" else BINARY.__contains__
    if unknown := [name for name in answer["classes"] if not (is_known(name) or data.positive)]:
        raise InputError(f"class {unknown[0]} is not in the vocabulary")
    agreed_columns = [[{**column, "rows": 0} for column in agreed]] if agreed else []
    merge_columns([*agreed_columns, *(other["columns"] for other in answers.values())])
    if leaks := describe_links({n: a["hashes"] for n, a in answers.items() if a["hashes"]}):
        text = f"the centres leak: {'; '.join(leaks[:4])}"
        if not data.allow_leaks:
            raise InputError(f"{text}; leave these rows out, or set data.allow_leaks=true")
        federation.log(text)


def start(
    federation: Federation, answers: Mapping[str, dict[str, Any]], epsilon: float | None
) -> None:
    """Agree on classes and record encoder, and build the network that round 1 starts from."""
    config = federation.config
    columns = merge_columns([answer["columns"] for answer in answers.values()])
    classes = sorted({c for answer in answers.values() for c in answer["classes"]}, key=sort_key)
    encoder = RecordEncoder.from_state({"columns": columns})
    pl.seed_everything(config.seed, workers=False, verbose=False)
    list_positive_classes(classes, config.data)  # refuses classes without a malignant one
    network = build_network(config, encoder.widths, len(classes), pretrained=True)
    names = list_shared(network, config, config.strategy, config.aggregate)
    federation.arrays = to_record(network, names)
    parameters = [name for name, _ in network.named_parameters() if name in federation.arrays]
    if config.noise and len(parameters) < len(names):
        raise InputError(
            "noise>0 does not protect statistics of normalisation layers; keep them local with "
            "strategy=fedbn, or share other arrays with aggregate=head"
        )
    settings = ("strategy", "aggregate", "rounds", "local_epochs")
    federation.agreement = {
        "id": secrets.token_hex(8),
        "classes": classes,
        "columns": columns,
        "parameters": parameters,
        "fixed": digest_fixed(network, names),
        "layout": describe_layout(federation.arrays),
        "config": to_client_mapping(config),  # for a client that was started again
        **{name: getattr(config, name) for name in settings},
    }
    if epsilon is not None:
        federation.agreement["epsilon"] = epsilon
    federation.log(
        f"round 0: {format_count(len(answers), 'centre')} ({', '.join(answers)}), {len(classes)} "
        f"classes, {format_count(sum(encoder.widths), 'record input')}, {len(names)} arrays of "
        f"{sum(a.numpy().size for a in federation.arrays.values()):,} numbers"
    )
    if unaudited := [name for name, answer in answers.items() if not answer["hashes"]]:
        federation.log(f"audit across centres: without {', '.join(unaudited)} (no hashes)")
    federation.save()


def merge_columns(answers: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Merge the record columns of all centres: the union of words, the pooled mean and scale."""
    if len({len(states) for states in answers}) > 1:
        raise InputError("the centres differ in the number of record columns")
    merged = []
    for states in zip(*answers, strict=True):
        names = {(state["name"], state["kind"], state["unit"]) for state in states}
        if len(names) > 1:
            kinds = " and ".join(sorted(f"{n} ({k}{f', {u}' if u else ''})" for n, k, u in names))
            raise InputError(f"the centres differ in a record column: {kinds}")
        rows = np.array([state["rows"] for state in states], float)
        words = {str(word) for state in states for word in state["values"]}
        shares = rows / max(rows.sum(), 1)
        means = np.array([state["mean"] for state in states], float)
        mean = float(shares @ means) if rows.sum() else 0.0
        spread = np.array([state["scale"] for state in states], float) ** 2 + (means - mean) ** 2
        scale = float(np.sqrt(shares @ spread)) if rows.sum() else 1.0
        merged.append(
            {
                **{key: states[0][key] for key in ("name", "kind", "unit")},
                "mean": mean if states[0]["kind"] == "numeric" else 0.0,
                "scale": scale if states[0]["kind"] == "numeric" else 1.0,
                "values": sorted(words),
                "is_truth": all(state["is_truth"] for state in states),
            }
        )
    return merged


def to_client_mapping(config: FederationConfig) -> dict[str, Any]:
    """Return the settings of a run for the clients, without machine settings."""
    settings = Config(**{item.name: getattr(config, item.name) for item in fields(Config)})
    data = replace(settings.data, name="demo", root=None, args={}, extra=[], masks=None)
    data = replace(data, split="patients")
    trainer = replace(settings.trainer, max_epochs=config.rounds * config.local_epochs)
    weights = config.model.pretrained
    weights = weights if str(weights).lower() in WEIGHTS else "auto"
    model = replace(settings.model, cache=None, pretrained=weights)
    settings = replace(settings, data=data, trainer=trainer, model=model, plugins=[], resume=None)
    return to_mapping(replace(settings, overwrite=False))


def describe_facts(facts: Mapping[str, float]) -> str:
    """Describe in words the facts that a centre discloses."""
    words = [format_count(facts["rows"], "row")] if "rows" in facts else []
    words += [f"{facts['prevalence']:.1%} malignant"] if "prevalence" in facts else []
    return ", ".join(words) or "which states nothing about its rows"
