"""What a server may set at a centre, what the centres agree on, and what is refused."""

import json
import math
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from micro_runs import micro_config, read_data, table_cohort

from skinmm.cli.compose import compose_config
from skinmm.config import Config, DataConfig, flatten, from_mapping, to_mapping
from skinmm.config.remote_commands import (
    FederateClientConfig,
    FederateServerConfig,
)
from skinmm.config.setting import setting
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Message, RecordDict

from skinmm.federated import serve, take_part
from skinmm.federated.agreement import (
    Federation,
    merge_columns,
    read_answer,
    require_fit,
    to_client_mapping,
)
from skinmm.federated.centre import Centre
from skinmm.federated.fleet import set_identity
from skinmm.federated.node import read_private_key
from skinmm.federated.privacy import (
    describe_column,
    describe_links,
    from_plain,
    hash_rows,
    localise,
    require_rows,
    require_shared,
    to_plain,
)


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


def test_the_composed_defaults_are_accepted() -> None:
    config = compose_config([])[0]
    require_shared(config)
    with pytest.raises(InputError, match=r"loss.teacher=test.csv: not available in a federation"):
        require_shared(replace(config, loss=replace(config.loss, teacher="test.csv")))


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
        {"model": {"name": "hf-hub:elsewhere/network"}},
        {"model": {"name": "open_clip:hf-hub:elsewhere/network"}},
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
        {"data": {"columns": ["area"], "relative": ["area"]}},
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


def test_licences_cannot_select_a_few_rows(tmp_path: Path) -> None:
    data = read_data(
        micro_config("tabular_only", table_cohort(tmp_path, patients=20)), frozenset({"record"})
    )
    require_rows(data)
    data.config.data.licences = ["CC-0"]
    with pytest.raises(InputError, match=r"\d+ training rows here; at least 32 are needed"):
        require_rows(data)


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
        ({"classes": ["benign", "Jane Doe"]}, "class Jane Doe is not in the vocabulary"),
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
    with pytest.raises(InputError, match="other machines can reach it, so it needs certificate"):
        serve(FederateServerConfig(host=host, output=str(tmp_path / "s"), data=DataConfig()))
    with pytest.raises(InputError, match="each client is one centre"):
        serve(FederateServerConfig(output=str(tmp_path / "s"), data=DataConfig(split="source")))
    with pytest.raises(InputError, match="another machine, so the client needs private_key"):
        take_part(FederateClientConfig(server=f"{host}:9092", name="a"))
    assert not (tmp_path / "s").exists()


def test_keys_of_another_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InputError, match=r"private_key=.*not readable"):
        read_private_key(str(tmp_path / "key"))


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
