"""Settings of `skinmm federate`; a docstring is the help of its command."""

from dataclasses import dataclass
from typing import Final

from skinmm.config.schema import Config, DataConfig
from skinmm.config.setting import literal_path, output_path, section, setting

STRATEGIES: Final = ("fedavg", "fedprox", "fedbn", "fedadam")
SHARED: Final = ("rows", "prevalence", "auroc")
INSECURE: Final = "allow other addresses than loopback without TLS and client keys"


@dataclass
class FederationConfig(Config):
    """Settings of a federation and of the run that its centres train."""

    rounds: int = setting(10, "rounds of training", low=1, high=100_000)
    local_epochs: int = setting(1, "epochs of a client in a round", low=1, high=1000)
    min_clients: int = setting(2, "minimum number of clients in a round", low=1, high=10_000)
    strategy: str = setting(
        "fedavg",
        "how updates are combined; fedbn: normalisation layers stay local",
        choices=STRATEGIES,
    )
    aggregate: str = setting(
        "all", "shared arrays; the others stay local", choices=("all", "backbone", "head")
    )
    mu: float = setting(0.01, "weight of the proximal term of fedprox", low=0, high=1000)
    server_lr: float = setting(0.01, "learning rate of fedadam on the server", low=0, high=100)
    noise: float = setting(
        0.0, "noise multiplier of differential privacy; 0: none", low=0, high=1000
    )
    clip_norm: float = setting(1.0, "maximum norm of an update if noise>0", low=1e-6, high=1e6)
    audit: list[str] = setting(
        ["patient", "lesion"],
        "links between centres to search by keyed hashes: patient, lesion, image",
    )
    output: str = output_path("federation", "folder of the server, and of simulated clients")


@dataclass
class FederateSimulateConfig(FederationConfig):
    """Train across simulated clients on this machine, one for each source (data.split=source)."""

    min_clients: int = setting(1, "minimum number of clients in a round", low=1, high=10_000)


@dataclass
class FederateServerConfig(FederationConfig):
    """Coordinate training across centres; it sends the configuration and receives arrays only."""

    host: str = setting("127.0.0.1", "address to listen on; another needs TLS and client keys")
    port: int = setting(9092, "port to listen on", low=1, high=65535)
    certificate: str | None = literal_path(None, "TLS certificate of the server, PEM")
    private_key: str | None = literal_path(None, "private key of the certificate, PEM")
    clients: str | None = literal_path(None, "public keys of the centres, one a line")
    insecure: bool = setting(False, INSECURE)
    round_minutes: float = setting(60.0, "minutes that a round waits for clients", low=0.05)


@dataclass
class FederateClientConfig:
    """Take part in a federation with the data of this centre; no row leaves it."""

    server: str = setting("", "address of the server", example="HOST:9092")
    name: str = setting("", "name of this centre in the server's model card", example="clinic_a")
    data: DataConfig = section(DataConfig, usage="csv data.root=DIR")
    accelerator: str = setting("auto", "device to train on", choices=("auto", "cpu", "gpu"))
    workers: int | None = setting(
        None, "data loader processes; null: CPU cores, at most 8", low=0, high=1000
    )
    pretrained: str | None = literal_path(
        None, "weights file of the image network; null: model.pretrained of the server"
    )
    share: list[str] = setting(
        ["rows", "prevalence"], f"facts that the model card may state: {', '.join(SHARED)}"
    )
    audit_key: str | None = literal_path(
        None, "file with the secret of all centres for the audit; never the server's"
    )
    certificate: str | None = literal_path(
        None, "certificate of the server's authority, PEM; null: those of the system"
    )
    private_key: str | None = literal_path(
        None, "private key of this centre, as ssh-keygen -t ecdsa -b 384 writes it"
    )
    insecure: bool = setting(False, INSECURE)
    output: str = output_path("federation_client", "run folder of this centre")
    overwrite: bool = setting(False, "replace an existing run in the folder")
