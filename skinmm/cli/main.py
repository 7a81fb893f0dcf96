"""The `skinmm` command: the table of commands, and training.

Exit status: 0 success, 1 failure, 2 bad usage or input, 3 some rows not predicted, 130 Ctrl-C,
143 SIGTERM.
Nothing here imports torch before the configuration has been checked.
"""

import os
import re
import shlex
import sys
from dataclasses import fields
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from skinmm import __version__
from skinmm.cli.commands import Command
from skinmm.cli.hydra_app import changed_environment, refuse, run_cli, run_hydra
from skinmm.cli.overrides import FLAGS, quote, quote_list
from skinmm.cli.study import absolutize_paths, study
from skinmm.config import Config, keys_with, read_config, resume_config
from skinmm.config import commands as schemas
from skinmm.config import data_commands as data_schemas
from skinmm.config import remote_commands as remote
from skinmm.config.cores import prepare_threads
from skinmm.config.outputs import PushConfig
from skinmm.config.registry import load_plugins
from skinmm.errors import InputError, delay_sigterm, print_line

# Run folder, set while rank 0 trains: the processes that it starts join this run.
JOIN: Final = "SKINMM_JOIN"
TORCHRUN: Final = "TORCHELASTIC_RUN_ID"
DEFAULT: Final = "experiment=demo"  # what `train` without arguments trains

TRAIN: Final = Command(
    "train",
    Config,
    "skinmm.cli.main:train",
    config_name="config",
    usage="""\
  python train.py experiment=demo
  python train.py model=effnet_b3 fusion=concat data=siim_isic data.root=DIR
  python train.py -m model=effnet_b0,resnet50 fusion=image_only,concat
hydra.run.dir=DIR  run folder; default: runs/DATE_MODEL_FUSION
-m                 train every combination of values with commas, in hydra.sweep.dir=DIR""",
)
_COMMANDS: Final = (
    TRAIN,
    Command("predict", schemas.PredictConfig, "skinmm.cli.commands:run_predict"),
    Command("predict-spark", schemas.PredictSparkConfig, "skinmm.spark:predict_spark"),
    Command(
        "embed",
        schemas.EmbedConfig,
        "skinmm.predict.embed:embed_file",
        usage="""\
  skinmm embed checkpoint=RUN input=patients.csv images=DIR
  skinmm embed model.name=NAME input=DIR""",
    ),
    Command(
        "similar",
        schemas.SimilarConfig,
        "skinmm.predict.embed:find_similar",
        usage="  skinmm similar checkpoint=RUN index=embeddings.parquet input=lesion.jpg",
    ),
    Command("export", schemas.ExportConfig, "skinmm.cli.commands:run_export"),
    Command("push", PushConfig, "skinmm.predict.hub:push"),
    Command("dicom-sr", remote.DicomConfig, "skinmm.predict.dicom_sr:write_results"),
    Command("dicomweb", remote.DicomwebConfig, "skinmm.serve.dicomweb:exchange"),
    Command("fhir", remote.FhirConfig, "skinmm.serve.fhir:export_cases"),
    Command("serve", remote.ServeConfig, "skinmm.serve.run:serve"),
    Command("feedback", schemas.FeedbackConfig, "skinmm.cli.commands:run_feedback", draws=True),
    Command("report", schemas.ReportPageConfig, "skinmm.cli.commands:run_report", draws=True),
    Command("compare", schemas.CompareConfig, "skinmm.cli.commands:run_compare", draws=True),
    Command("adapt", schemas.AdaptConfig, "skinmm.training.adapt:adapt", draws=True),
    Command("plan", schemas.PlanConfig, "skinmm.report.sites:run_plan", draws=True),
    Command("runs", schemas.RunsConfig, "skinmm.cli.commands:run_runs"),
    Command("init", data_schemas.InitConfig, "skinmm.cli.init:init"),
    Command("audit", data_schemas.AuditConfig, "skinmm.cli.commands:run_audit", draws=True),
    Command(
        "preview",
        data_schemas.PreviewConfig,
        "skinmm.cli.preview:preview",
        config_name="config",
        usage="  skinmm preview data=siim_isic data.root=DIR sampler=balanced augment=strong",
    ),
    Command("explore", data_schemas.ExploreConfig, "skinmm.cli.commands:run_explore", draws=True),
    Command("pack", data_schemas.PackConfig, "skinmm.cli.commands:run_pack"),
    Command("pack-spark", data_schemas.PackSparkConfig, "skinmm.cli.commands:run_pack"),
    Command(
        "federate simulate",
        remote.FederateSimulateConfig,
        "skinmm.federated:simulate",
        config_name="config",
        usage="  skinmm federate simulate data=ham10000 data.root=DIR data.split=source rounds=10",
    ),
    Command(
        "federate server",
        remote.FederateServerConfig,
        "skinmm.federated:serve",
        config_name="config",
        usage="""\
  skinmm federate server rounds=10 min_clients=3 model=effnet_b0 host=0.0.0.0 \\
    certificate=server.pem private_key=server.key clients=centres.txt""",
    ),
    Command("federate client", remote.FederateClientConfig, "skinmm.federated:take_part"),
)
COMMANDS: Final = {command.name: command for command in _COMMANDS}


def main(argv: list[str] | None = None) -> int:
    """Run the `skinmm` command and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = [f"  {command.name:<18}{command.help}" for command in COMMANDS.values()]
        print_line("\n".join(["usage: skinmm COMMAND ...", "", *rows]))
        return 0
    name, *rest = arguments
    if name == "federate" and rest:
        name, rest = f"federate {rest[0]}", rest[1:]
    if name == "--version":
        print_line(f"skinmm {__version__}")
        return 0
    if name.startswith("-"):
        if name not in FLAGS:
            return refuse(f"unknown option {name}; choose --help or --version, or give a command")
        return refuse(f"{name}: options follow the command, as in skinmm train {name}")
    if name not in COMMANDS:
        return refuse(f"unknown command '{name}'; choose from {', '.join(COMMANDS)}")
    return train(rest) if name == TRAIN.name else run_single(rest, COMMANDS[name])


def run_single(argv: list[str], command: Command) -> int:
    """Run a command once; arguments without KEY= set its positional setting."""
    prepare_threads()
    if {"-m", "--multirun"} & {*argv}:
        return refuse(f"skinmm {command.name} does not accept -m; start it once for each value")
    schema = command.schema
    for key in keys_with(schema, "positional"):
        names = {item.name for item in fields(schema)}
        paths = [item for item in argv if _is_positional(item, names)]
        argv = [item for item in argv if item not in paths]
        if paths and isinstance(getattr(schema(), key), list):
            argv.append(f"{key}={quote_list(paths)}")
        elif len(paths) > 1:
            return refuse(f"skinmm {command.name} takes one path, not {', '.join(paths)}")
        else:
            argv += [f"{key}={quote(path)}" for path in paths]
    argv = [_bracket_list(item, schema()) for item in argv]
    return run_hydra(argv, command, lambda config, _: command(config))


def predict(argv: list[str]) -> int:
    """Predict: `predict.py checkpoint=... input=... output=...`."""
    return run_single(argv, COMMANDS["predict"])


def train(argv: list[str]) -> int:
    """Train, evaluate and report: `train.py KEY=VALUE ...`, `-m` for several runs."""
    prepare_threads()
    if (status := _other_process()) is not None:
        return status
    if not argv:
        argv = [DEFAULT]
        print_line(
            f"no settings given: training the example, {DEFAULT} (--help lists all settings)"
        )
    if {"-m", "--multirun"} & {*argv} and any(item.startswith("resume=") for item in argv):
        return refuse("resume= continues one run; remove -m")
    studies: list[tuple[Config, Path]] = []

    def job(config: Config, folder: Path) -> int:
        if not config.study.arms:
            return start(config, folder, argv)
        studies.append((config, folder))
        return 0

    status = 1
    try:
        status = run_hydra(argv, TRAIN, job)
        for config, folder in studies:
            status = max(status, study(config, folder.absolute(), argv, TRAIN, start))
    finally:
        if TORCHRUN in os.environ:
            from skinmm.training.distributed import dismiss

            dismiss(status)
    return status


def _is_positional(item: str, names: set[str]) -> bool:
    """Return whether an item of the command line is a file name, not a flag or an override."""
    key, separator, _ = item.partition("=")
    if item.startswith("-") or not separator:
        return not item.startswith("-")
    is_key = re.fullmatch(r"[+~]{0,2}\w+([./@]\w+)*", key) is not None
    is_setting = key.lstrip("+~").partition(".")[0] in names
    return not is_setting and (not is_key or Path(item).exists())


def _bracket_list(item: str, settings: Any) -> str:
    """Split `key=a,b` into a list if the setting is a list, so that no brackets are needed."""
    key, _, value = item.partition("=")
    default = reduce(lambda part, name: getattr(part, name, None), key.split("."), settings)
    if not isinstance(default, list) or value in ("", "null") or value[0] in "[{'\"":
        return item
    values = [value] if Path(value).exists() else value.split(",")
    return f"{key}={quote_list(text.strip() for text in values)}"


def start(config: Config, folder: Path, argv: list[str]) -> int:
    """Start a run, or resume one that the configuration names."""
    from skinmm.data.cohorts import verify_cohort

    if config.resume is None:
        config, folder = absolutize_paths(config), folder.absolute()
    else:
        overrides = [item for item in argv if "=" in item and not item.startswith("-")]
        is_given, config = bool(config.plugins), resume_config(config, overrides)
        if config.plugins and not is_given:
            raise InputError(f"resume={config.resume}: give its plugins={config.plugins} again")
        folder = Path(config.resume or "").absolute()
        if _import_training(config).is_finished(config, folder):
            print_line(f"{folder}: this run is finished; its report: {folder / 'report.html'}")
            if config.logger.name == "wandb":
                print_line("to upload it to W&B again, remove its metrics.json and resume it")
            return 0
    verify_cohort(config.data)  # before torch, whose import takes seconds
    from skinmm.report.terminal import print_summary, summarize_run

    try:
        with changed_environment(**{JOIN: str(folder)}):
            is_single = not {"-m", "--multirun"} & {*argv}
            _import_training(config).fit(config, folder, starts_processes=is_single)
    except KeyboardInterrupt as error:
        if not (folder / "config.yaml").is_file():
            raise
        hint = f"to resume: python train.py {shlex.quote(f'resume={folder}')}"
        raise type(error)(hint) from error
    print_summary(summarize_run(folder))
    print_line(f"run folder: {folder}\nreport: {folder / 'report.html'}")
    return 0


def _import_training(config: Config) -> ModuleType:
    """Import training, and the package of the task, which registers itself with training."""
    from skinmm.training import fit

    if config.task == "segmentation":
        import skinmm.segmentation.train  # noqa: F401
    return fit


def _other_process() -> int | None:
    """Take part in a run as a rank above 0 and return the exit status; None in other processes."""
    if "LOCAL_RANK" in os.environ:
        # Our own message reports that another process ended.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if JOIN in os.environ:
            return run_cli(_take_part)
    if TORCHRUN in os.environ:
        return run_cli(_take_part) if os.environ["RANK"] != "0" else None
    if "LOCAL_RANK" in os.environ:
        return refuse("LOCAL_RANK is set, but not by torchrun: unset it, or start with torchrun")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return refuse("srun started several processes; docker/slurm.sh shows how to use srun")
    return None


def _take_part() -> int:
    """Join the runs of rank 0 in a process started by Lightning or torchrun."""
    from skinmm.training.distributed import end_with_parent, follow

    delay_sigterm()
    if JOIN not in os.environ:
        return follow(lambda config, folder: _import_training(config).fit(config, folder))
    end_with_parent()
    folder = Path(os.environ[JOIN])
    config = read_config(folder / "config.yaml")  # of the run that rank 0 has started
    load_plugins(config.plugins)
    _import_training(config).fit(config, folder)
    return 0
