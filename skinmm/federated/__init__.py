"""Training across centres on Flower: `skinmm federate simulate`, `server` and `client`."""

import logging
import os
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from skinmm.config import Config, DataConfig, from_mapping
from skinmm.config.addresses import is_loopback
from skinmm.config.remote_commands import (
    SHARED,
    FederateClientConfig,
    FederateServerConfig,
    FederateSimulateConfig,
    FederationConfig,
)
from skinmm.data.cohorts import load_cohort, require_images
from skinmm.data.splits import find_components
from skinmm.errors import InputError, print_line, require_new_output
from skinmm.federated.privacy import NEVER, require_shared
from skinmm.training.fit import check_components
from skinmm.training.run_folder import write_config
from skinmm.training.trainer import silence_libraries

if TYPE_CHECKING:
    from skinmm.federated.agreement import Federation

KEY_LENGTH: Final = 32  # characters of the secret of the audit
NETWORK: Final = ("host", "port", "certificate", "private_key", "clients", "insecure")


def simulate(config: FederateSimulateConfig) -> int:
    """Train across the sources of a cohort in one process, without a network."""
    require_flower()
    from skinmm.federated.centre import Centre, build_app
    from skinmm.federated.node import SimulatedGrid
    from skinmm.federated.rounds import run_federation

    federation = open_federation(config)
    trainer, weights, apps = config.trainer, config.model.pretrained, {}
    for name, data in split_sources(config.data, federation).items():
        client = FederateClientConfig(
            name=name,
            data=data,
            accelerator=trainer.accelerator,
            workers=trainer.workers,
            pretrained=weights if isinstance(weights, str) else None,
            share=[*SHARED],
            output=str(federation.folder / "clients" / name),
            overwrite=config.overwrite,
        )
        apps[name] = build_app(Centre(client, b"simulated", config.model.cache))

    def refuse() -> None:
        raise InputError(f"too few clients; {federation.folder / 'log.txt'} has the reasons")

    run_federation(federation, SimulatedGrid(apps), NEVER, refuse)
    return 0


def serve(config: FederateServerConfig) -> int:
    """Coordinate the clients that connect to this process."""
    require_flower()
    from skinmm.federated.fleet import serve_fleet
    from skinmm.federated.rounds import run_federation

    is_secure = config.certificate and config.private_key and config.clients
    if not (is_secure or is_loopback(config.host) or config.insecure):
        raise InputError(
            f"host={config.host}: other machines can reach it, so it needs certificate=PEM "
            "private_key=PEM clients=KEYS; insecure=true starts the server without them"
        )
    if config.data.split == "source":
        raise InputError(
            "data.split=source: not available with a server, where each client is one centre; "
            "remove data.split"
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
    """Take part in the rounds of a server with the data of this centre."""
    require_flower()
    from skinmm.federated.centre import Centre, build_app
    from skinmm.federated.node import read_private_key, run_client

    if unknown := {*config.share} - {*SHARED}:
        raise InputError(f"share={min(unknown)}: choose from {', '.join(SHARED)}")
    host, _, port = config.server.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"server={config.server}: must be HOST:PORT")
    is_local = is_loopback(host.strip("[]"))
    if not (is_local or config.insecure or config.private_key):
        raise InputError(
            f"server={config.server}: another machine, so the client needs private_key=FILE, with "
            "its public key in clients= of the server; insecure=true connects without key and TLS"
        )
    key = Path(config.audit_key).read_bytes().strip() if config.audit_key else None
    if key is not None and len(key) < KEY_LENGTH:
        raise InputError(
            f"audit_key={config.audit_key}: fewer than {KEY_LENGTH} characters, which the server "
            "could guess; use openssl rand -hex 32"
        )
    centre = Centre(config, key)
    run_client(
        build_app(centre),
        config.server,
        tls=bool(config.certificate) or not (is_local or config.insecure),
        certificate=config.certificate,
        keys=read_private_key(config.private_key) if config.private_key else None,
        is_finished=lambda: centre.is_finished,
    )
    print_line(f"run folder: {config.output}")
    return 0


def require_flower() -> None:
    """Require Flower; silence its messages and switch off its telemetry."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if find_spec("flwr") is None:
        raise InputError("training across centres needs Flower: pip install 'skinmm[federated]'")
    silence_libraries()
    for name in ("flwr", "httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def open_federation(config: FederationConfig) -> "Federation":
    """Return a new federation, or the saved state of a stopped one (`resume`).

    A resumed federation uses the settings in its folder, except the settings in `NETWORK`.
    """
    from skinmm.federated.agreement import Federation, to_client_mapping

    if config.resume:
        folder, kind = Path(config.resume), type(config)
        if not (folder / "config.yaml").is_file():
            raise InputError(f"resume={folder}: not the folder of a federation")
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        network = {name: getattr(config, name) for name in NETWORK if hasattr(config, name)}
        federation = Federation(from_mapping(kind, {**content, **network}), folder)
        federation.load()
        federation.log(f"resumed after round {federation.round}")
        return federation
    check_components(config)
    require_shared(from_mapping(Config, to_client_mapping(config)))
    if config.noise and config.strategy == "fedadam":
        raise InputError("noise>0: not available with strategy=fedadam; choose another strategy")
    folder = Path(config.output).absolute()
    require_new_output("output", folder, overwrite=config.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    federation = Federation(config, folder)
    federation.file.unlink(missing_ok=True)
    write_config(folder / "config.yaml", config)
    return federation


def split_sources(data: DataConfig, federation: "Federation") -> dict[str, DataConfig]:
    """Return the data of each simulated centre: one per source with `data.split=source`, else one.

    Patients and lesions of several sources are left out, so that no centre is tested on another's.
    """
    if data.split != "source":
        return {data.name: data}
    rows = require_images(load_cohort(data), data.missing, needed=data.missing == "drop").rows
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
