"""Training across centres on Flower: `skinmm federate simulate`, `server` and `client`."""

import logging
import time
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from skinmm.config import Config, DataConfig, from_mapping, keys_with
from skinmm.config.federated_commands import (
    SHARED,
    FederateClientConfig,
    FederateServerConfig,
    FederateSimulateConfig,
    FederationConfig,
)
from skinmm.data.cohorts import load_cohort, require_images
from skinmm.data.splits import find_components
from skinmm.errors import InputError, print_line, require_new_output
from skinmm.training.fit import check_components
from skinmm.training.run_folder import write_config
from skinmm.training.trainer import silence_libraries

if TYPE_CHECKING:
    from skinmm.federated.agreement import Federation

NEVER: Final = 1e6  # minutes between checkpoints: a killed round starts from its beginning
NETWORK: Final = ("host", "port", "certificate", "private_key", "clients", "insecure")


def simulate(config: FederateSimulateConfig) -> int:
    """Train across the sources of a cohort in one process, without a network."""
    require_flower()
    from skinmm.federated.centre import Centre, build_app
    from skinmm.federated.node import SimulatedGrid
    from skinmm.federated.rounds import run_federation

    silence()
    federation = open_federation(config)
    trainer, model, overwrite = config.trainer, config.model, config.overwrite
    apps = {}
    for name, data in split_sources(config.data, federation).items():
        localise = build_localiser(
            data, trainer.accelerator, trainer.workers, cache=model.cache, overwrite=overwrite
        )
        folder = federation.folder / "clients" / name
        apps[name] = build_app(Centre(name, folder, localise, SHARED, b"simulated"))

    def refuse() -> None:
        raise InputError(f"too few clients; {federation.folder / 'log.txt'} has the reasons")

    run_federation(federation, SimulatedGrid(apps), NEVER, refuse)
    return 0


def serve(config: FederateServerConfig) -> int:
    """Coordinate the clients that connect to this process."""
    require_flower()
    from skinmm.federated.fleet import serve_fleet
    from skinmm.federated.rounds import run_federation

    silence()
    is_secure = config.certificate and config.private_key and config.clients
    if not (is_secure or is_loopback(config.host) or config.insecure):
        raise InputError(
            f"host={config.host}: off loopback the server needs certificate=PEM private_key=PEM "
            "and clients=KEYS; insecure=true starts it without, for everybody on the network"
        )
    if bool(config.certificate) != bool(config.private_key):
        raise InputError("certificate and private_key belong together; give both or none")
    federation = open_federation(config)
    files = (config.certificate, config.private_key, config.clients)
    grid = serve_fleet(config.host, config.port, *files)
    way = "TLS" if config.certificate else "without TLS"
    keys = "keys of clients" if config.clients else "any client"
    federation.log(f"listening on {config.host}:{config.port}, {way}, {keys}")
    run_federation(federation, grid, 60 * config.round_minutes, lambda: time.sleep(0.5))
    time.sleep(2)  # clients fetch nothing more, but end their connections
    return 0


def take_part(config: FederateClientConfig) -> int:
    """Train with the data of this centre, in the rounds of a server."""
    require_flower()
    from skinmm.federated.centre import Centre, build_app
    from skinmm.federated.node import read_private_key, run_client

    silence()
    if unknown := {*config.share} - {*SHARED}:
        raise InputError(f"share={min(unknown)}: choose from {', '.join(SHARED)}")
    host, _, port = config.server.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"server={config.server}: must be HOST:PORT")
    is_local = is_loopback(host.strip("[]"))
    if not (is_local or config.insecure or config.private_key):
        raise InputError(
            f"server={config.server}: off loopback a client needs private_key=FILE, whose public "
            "key the server has; insecure=true connects without key and TLS"
        )
    tls = bool(config.certificate) or not (is_local or config.insecure)
    key = Path(config.audit_key).read_bytes().strip() if config.audit_key else None
    centre = Centre(
        config.name,
        Path(config.output).absolute(),
        build_localiser(
            config.data,
            config.accelerator,
            config.workers,
            config.pretrained,
            overwrite=config.overwrite,
        ),
        config.share,
        key,
    )
    run_client(
        build_app(centre),
        config.server,
        tls=tls,
        certificate=config.certificate,
        keys=read_private_key(config.private_key) if config.private_key else None,
        is_finished=lambda: centre.is_finished,
    )
    print_line(f"run folder: {config.output}")
    return 0


def require_flower() -> None:
    """Refuse to continue without Flower, and keep alembic, which it imports, silent."""
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if find_spec("flwr") is None:
        raise InputError("training across centres needs Flower: pip install 'skinmm[federated]'")


def silence() -> None:
    """Silence the libraries; this package prints its own lines."""
    silence_libraries()
    for name in ("flwr", "httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def open_federation(config: FederationConfig) -> "Federation":
    """Return a new federation, or with `resume` the state of one whose server was stopped.

    A resumed federation has the settings of its folder, except for those of the network.
    """
    from skinmm.federated.agreement import Federation

    if config.resume:
        folder, kind = Path(config.resume), type(config)
        if not (folder / "config.yaml").is_file():
            raise InputError(f"resume={folder}: not the folder of a federation")
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        given = {name: getattr(config, name) for name in NETWORK if hasattr(config, name)}
        federation = Federation(from_mapping(kind, {**content, **given}), folder)
        federation.load()
        federation.log(f"resumed after round {federation.round}")
        return federation
    require_trainable(config)
    folder = Path(config.output).absolute()
    require_new_output("output", folder, overwrite=config.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    federation = Federation(config, folder)
    federation.file.unlink(missing_ok=True)
    write_config(folder / "config.yaml", config)
    return federation


def require_trainable(config: FederationConfig) -> None:
    """Refuse settings that rounds cannot follow."""
    check_components(config)
    refused = {
        "task": config.task != "classification",
        "head": config.head.name != "neural",
        "data.fold": config.data.fold == "all",
        "loss.teacher": config.loss.teacher is not None,
        "trainer.ema": config.trainer.ema > 0,
        "trainer.average_best": config.trainer.average_best > 1,
        "schedule": config.schedule.name == "plateau",
        "noise with strategy": config.noise > 0 and config.strategy == "fedadam",
    }
    if names := [name for name, is_refused in refused.items() if is_refused]:
        raise InputError(f"{names[0]}: this choice is not available in a federation; change it")


def split_sources(data: DataConfig, federation: "Federation") -> dict[str, DataConfig]:
    """Return the data of each simulated centre: every source is one with `data.split=source`.

    Patients and lesions of several sources are left out, so that no centre is tested on another's.
    """
    if data.split != "source":
        return {data.name: data}
    rows = require_images(load_cohort(data), data.missing, needed=data.missing == "drop")
    component = find_components(rows)
    is_linked = rows.groupby(component)["source"].transform("nunique").to_numpy() > 1
    if is_linked.any():
        federation.log(
            f"{int(is_linked.sum())} rows of patients or lesions in several sources: left out"
        )
    centres = {}
    for source in sorted(rows["source"].dropna().unique()):
        others = rows.loc[(rows["source"] != source) | is_linked, ["image_id"]]
        file = federation.folder / f"others_than_{source}.csv"
        others.to_csv(file, index=False)
        args = {**data.args, "exclude": str(file)}
        centres[str(source)] = replace(data, split="patients", args=args)
    return centres


def build_localiser(
    data: DataConfig,
    accelerator: str,
    workers: int | None,
    pretrained: str | None = None,
    cache: str | None = None,
    *,
    overwrite: bool = False,
) -> Callable[[Config], Config]:
    """Return a function that sets what is local in the configuration of the server.

    Raises:
        InputError: by that function, if a setting of the server has another value here.
    """
    names = {key.partition(".")[0] for key in keys_with(DataConfig, "local")}
    own = {item.name: getattr(data, item.name) for item in fields(DataConfig)}

    def localise(config: Config) -> Config:
        default = DataConfig()
        for name, value in own.items():
            agreed = getattr(config.data, name)
            if name not in names and value not in (agreed, getattr(default, name)):
                raise InputError(
                    f"data.{name}={value}: the server sets it to {agreed}; leave it out"
                )
        trainer = replace(
            config.trainer,
            accelerator=accelerator,
            workers=workers,
            devices=1,
            strategy="auto",
            progress=False,
            checkpoint_minutes=NEVER,
        )
        weights = pretrained or config.model.pretrained
        model = replace(config.model, pretrained=weights, cache=cache)
        values = {name: value for name, value in own.items() if name in names}
        config = replace(config, data=replace(config.data, **values), trainer=trainer, model=model)
        return replace(config, overwrite=overwrite)

    return localise
