"""The commands: literal paths, one line for every mistake, exit statuses, nothing left behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from quick_runs import ROOT, command

from skinmm import __version__
from skinmm.cli import main as cli
from skinmm.cli.compose import CONF
from skinmm.cli.hydra_app import run_cli
from skinmm.cli.overrides import quote_override
from skinmm.config import Config, PredictConfig, from_mapping, keys_with, read_config
from skinmm.errors import InputError, Terminated
from skinmm.training.run_folder import write_config

Captured = pytest.CaptureFixture[str]
PATHS: Final = [
    (schema, key)
    for schema in (Config, PredictConfig)
    for key in (*keys_with(schema, "path"), "hydra.run.dir", "hydra.sweep.dir")
    if "[]" not in key
]

# What is wrong on the command line alone, the option that is wrong, and what the line says.
MISTAKES = [
    ("modle=tiny", "unknown key 'modle'; did you mean model?"),
    ("trainer.max_epoch=3", "unknown key 'trainer.max_epoch'; did you mean trainer.max_epochs?"),
    ("+trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
    ("loss.args.gama=1", "unknown key 'loss.args.gama'; to pass it to the constructor write +loss"),
    ("model=effnet_b33", "unknown model 'effnet_b33'; choose from convnext_tiny, "),
    ("experiment=none", "unknown experiment 'none'; choose from demo, "),
    ("trainer.max_epochs=many", "trainer.max_epochs: must be a whole number, e.g. 10, not 'many'"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0: must be between 1 and 1000000"),
    ("data.format=png", "data.format=png: choose from auto, jpeg, dicom, hdf5, tfrecord"),
    ("data.fold=5", "data.fold=5: must be 0 to 4 (data.folds=5), or all"),
    ("optimizer.lr=inf", "optimizer.lr=inf: must be at least 0"),
    ("trainer.batch_size=99999999999999999999", "must be between 1 and 100000"),
    ("trainer.max_epochs=1e9", "trainer.max_epochs: must be a whole number, e.g. 10, not "),
    ("hydra.run.dir=/sys/x", "hydra.run.dir=/sys/x: not writable: "),
    ("seed", "seed: settings are written KEY=VALUE"),
    ("=3", "=3: settings are written KEY=VALUE"),
    ("--seed=3", "--seed=3: settings have no dashes: write seed=3"),
    ("--foo", "unknown option --foo; options are -m, --config-dir DIR and --help, settings are"),
    ("-x", "unknown option -x; options are -m, "),
    ("trainer=3", "trainer=3: must be the name of an option, see --help"),
    ("data.columns=[age", "data.columns=[age: not understood; close each bracket and quotation"),
    ("model.name='a", "model.name='a: not understood; close each bracket and quotation mark"),
    ("optimizer.lr=1e-4x", "optimizer.lr=1e-4x: must be a number, e.g. 0.001, or auto"),
    ("optimizer.lr=[1]", "optimizer.lr: must be a number, e.g. 0.001, not '[1]'"),
    ("data.columns=age", "data.columns: must be a list, e.g. [a,b], not 'age'"),
    ("data.columns={a:1}", "data.columns: must be a list, e.g. [a,b], not '{a:1}'"),
    (
        "data.columns=age,sex",
        "data.columns=age,sex: several values; a list is data.columns=[age,sex], -m trains one run",
    ),
    ("fusion=concat,image_only", "fusion=concat,image_only: several values; -m trains one run"),
    ("trainer.max_epochs=null", "trainer.max_epochs: must be a whole number, e.g. 10, not 'null'"),
    ("data.format=[a]", "data.format: must be text, not '[a]'"),
    ("loss.args=3", "loss.args: must be pairs, e.g. {name: value}, not '3'"),
    ("data.extra=[a]", "data.extra[0]: must be pairs, e.g. {name: value}, not '[a]'"),
]


def only_error(said: Captured) -> str:
    """The one line on standard error, without its prefix."""
    (line,) = said.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(PATHS),
    st.text("ab \\'\"(){}[],=#:éü皮$/.~*@!?%&;<>|`^", min_size=1),
)
@example((PredictConfig, "input"), "a\\'b")
@example((PredictConfig, "input"), "ends in a backslash\\")
def test_a_path_is_read_literally(setting: tuple[type, str], path: str) -> None:
    schema, key = setting
    if path[0] in "'\"" or (path[0] == "[" and path[-1] == "]"):
        return  # quoted or a list already
    parsed = OverridesParser.create().parse_override(quote_override(f"{key}={path}", schema))
    assert (parsed.key_or_group, resolved(parsed.value())) == (key, path)


def resolved(value: object) -> object:
    """What OmegaConf makes of a value; `${...}` it looks up."""
    return OmegaConf.to_container(OmegaConf.create([value]), resolve=True)[0]  # type: ignore[index]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text("ab \\'\"()=#:éü皮$/{.", min_size=1).map(str.strip), max_size=3))
@example(["/a b/(c), d=e#f", "${oc.env:HOME}/Läsionen", "ends }"])
def test_roots_of_extra_cohorts_are_read_literally(roots: list[str]) -> None:
    if any(not root or root[0] in "'\"" or root in ("null", "}") for root in roots):
        return
    both = [f"{{name:csv,root:{root}}}" for root in roots]
    both += [f"{{ root: {root}, name: isic_2019 }}" for root in roots]
    quoted = quote_override(f"+data.extra=[{','.join(both)}]", Config)
    parsed = OverridesParser.create().parse_override(quoted)
    expected = [{"name": name, "root": root} for name in ("csv", "isic_2019") for root in roots]
    assert resolved(parsed.value()) == expected


def test_dollars_in_a_path_survive_every_reading(tmp_path: Path) -> None:
    config = from_mapping(Config, {"data": {"root": "a/${b}\\${c}", "args": {"t": ["${d}"]}}})
    assert (config.data.root, config.data.args) == ("a/${b}\\${c}", {"t": ["${d}"]})
    write_config(tmp_path / "config.yaml", config)
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("given_override", "value"),
    [
        ("checkpoint=[a (1).ckpt, b=2.ckpt]", ["a (1).ckpt", "b=2.ckpt"]),
        ("checkpoint=['a,1.ckpt',b.ckpt]", ["a,1.ckpt", "b.ckpt"]),
        ("data.root='quoted already'", "quoted already"),
        ("data.root=null", None),
        ("data.root=", ""),
        ("trainer.max_epochs=3", 3),
        ("data.positive=[Melanom_häufig, bcc]", ["Melanom_häufig", "bcc"]),
        ("data.columns=['Größe, mm',Größe (mm), age]", ["Größe, mm", "Größe (mm)", "age"]),
        ("data=klinik_süd", "klinik_süd"),
    ],
)
def test_lists_quotes_and_null_keep_their_meaning(given_override: str, value: object) -> None:
    schema = PredictConfig if given_override.startswith("checkpoint") else Config
    parsed = OverridesParser.create().parse_override(quote_override(given_override, schema))
    found = parsed.value()
    assert ([str(item) for item in found] if isinstance(found, list) else found) == value


def test_sweeps_and_functions_of_hydra_keep_their_meaning() -> None:
    for value in ("klinik_süd,csv", "choice(klinik_süd, csv)", "tag(x,choice('klinik_süd',csv))"):
        parsed = OverridesParser.create().parse_override(quote_override(f"data={value}", Config))
        found = [getattr(item, "text", item) for item in parsed.sweep_iterator()]
        assert found == ["klinik_süd", "csv"]
    assert quote_override("data=glob(klinik_ü*)", Config) == "data=glob('klinik_ü*')"
    assert quote_override("logger.project=ä\\,b", Config) == "logger.project=ä\\,b"


def test_a_file_named_like_a_list_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[x]").touch()
    monkeypatch.chdir(tmp_path)
    assert quote_override("checkpoint=[x]", PredictConfig) == "checkpoint='[x]'"


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: Captured, override: str, message: str
) -> None:
    assert cli.train([override, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in only_error(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=zoo:no", "input=a"], "zoo:no: no such included model; choose from zoo:cc0"),
        (["checkpoint=a.ckpt"], "input is missing; for example input=patients.csv"),
        (["checkpont=a.ckpt"], "unknown key 'checkpont'; did you mean checkpoint?"),
        (["checkpoint=a", "input=b", "threshold=2"], "threshold=2.0: must be between 0 and 1"),
        (["-m", "checkpoint=a", "input=b"], "skinmm predict does not accept -m"),
        (
            ["checkpoint=a", "input=b", "output=/sys/x.csv"],
            "output=/sys/x.csv: not writable: ",
        ),
    ],
)
def test_a_mistake_of_a_prediction_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", *overrides]) == 2
    assert message in only_error(capsys)
    assert list(tmp_path.iterdir()) == []


MEASURED = """
import sys, time
from skinmm.cli.main import main, train
for command in (*["train"] * 4, "predict"):
    assert main([command, sys.argv.pop(1)]) == 2
    seconds = time.process_time()  # of the whole process: interpreter, imports, composition
    assert "torch" not in sys.modules and "pandas" not in sys.modules
    print(seconds)
for data in (["ham10000"], ["ham10000", "data.root=no"], ["csv", "data.root=.", "+data.args.a=1"]):
    assert train([f"data={data[0]}", *data[1:]]) == 2
    assert "torch" not in sys.modules
"""


def test_bad_usage_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "measured.py"
    script.write_text(MEASURED)
    mistakes = ("trainer.max_epochs=0", "modle=x", "model=x", "seed=x", "threshold=2")
    environment = {"PYTHONPATH": str(ROOT)}
    done = command(str(script), *mistakes, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    *lines, needed, absent, argument = done.stderr.splitlines()
    assert len(lines) == len(mistakes)
    assert needed == "error: data=ham10000 needs data.root=DIR, the folder of the dataset"
    assert absent == "error: data.root=no: no such folder; give the folder of the dataset"
    assert argument.startswith("error: data 'csv' has no argument 'a'; it has: ")
    assert float(done.stdout.split()[0]) < 1.5


def test_the_reader_of_a_pipe_may_end() -> None:
    """As `predict.py --help | head -1` does."""
    script = [sys.executable, str(ROOT / "predict.py"), "--help"]
    started = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout
    started.stdout.close()
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (1, b"")


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_help_lists_the_settings(script: str) -> None:
    done = command(script, "--help")
    assert done.returncode == 0, done.stderr
    assert ("python train.py" if script == "train.py" else "skinmm predict") in done.stdout
    listed = ("|effnet_b3|", "max_epochs=10 ") if script == "train.py" else ("probabilities=cal",)
    assert all(text in done.stdout for text in listed)


def test_help_shows_the_composed_values(capsys: Captured) -> None:
    assert cli.main(["train", "model=tiny", "--help", "data.root=a (1)", "loss=focal"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = ("model.image_size=64 ", "data.root=a (1) ", "loss.args.gamma=2.0 ")
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert cli.main(["train", "--help", "-m", "model=tiny,resnet50", "seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = ("seed=3 ", "hydra.run.dir=DIR", "-m  ")
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert cli.main(["train", "modle=tiny", "--help"]) == 2
    assert "did you mean model?" in only_error(capsys)


def test_a_real_command_ends_with_the_status_of_bad_usage(tmp_path: Path) -> None:
    done = command("train.py", "modle=tiny", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown key 'modle'")
    assert list(tmp_path.rglob("*.yaml")) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.name=nonsense", "unknown loss 'nonsense'; choose from cross_entropy, "),
        ("+augment.args.zom=1", "augment 'standard' has no argument 'zom'"),
        ("+optimizer.args.lr=1", "optimizer 'adamw' has no argument 'lr'"),
    ],
)
def test_a_component_is_refused_before_data_is_read(
    tmp_path: Path, capsys: Captured, override: str, message: str
) -> None:
    empty = ["data=siim_isic", f"data.root={tmp_path}"]
    assert cli.train([override, *empty, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in only_error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_another_launcher_started_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.train(["trainer=ddp"]) == 2
    assert "not by torchrun" in capsys.readouterr().err


def test_environment_and_arguments_are_restored(tmp_path: Path, capsys: Captured) -> None:
    environment, argv = dict(os.environ), list(sys.argv)
    assert cli.train(["loss.name=nonsense", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert (dict(os.environ), sys.argv) == (environment, argv)
    assert only_error(capsys)


@pytest.mark.parametrize("name", ["train", "predict"])
def test_an_empty_working_folder_is_not_removed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([name, "hydra.run.dir=.", "+nonsense=1"]) == 2
    assert tmp_path.is_dir()


def failing(error: BaseException) -> Callable[[], int]:
    def job() -> int:
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("no such file"), 2, "error: no such file"),
        (KeyError("x"), 1, "error: KeyError: 'x' (set HYDRA_FULL_ERROR=1 for the traceback)"),
        (
            RuntimeError("two\nlines"),
            1,
            "error: RuntimeError: two (set HYDRA_FULL_ERROR=1 for the traceback)",
        ),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated("to resume: x"), 143, "terminated; to resume: x"),
    ],
)
def test_exit_status_and_message_of_an_error(
    error: BaseException, status: int, line: str, capsys: Captured
) -> None:
    assert run_cli(failing(error)) == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--foo"], "unknown option --foo; options are"),
        (["train", "--model", "tiny"], "--model: settings have no dashes: write model=tiny"),
        (["train", "model=tiny", "--optimizer.lr", "1"], "write optimizer.lr=1"),
        (["-m", "train"], "-m: options follow the command, as in skinmm train -m"),
        (["predict", "threshold=0.1,0.2"], "threshold=0.1,0.2: several values; give one value"),
    ],
)
def test_words_that_are_no_settings_get_no_page_of_usage(
    words: list[str], message: str, capsys: Captured
) -> None:
    assert cli.main(words) == 2
    assert message in only_error(capsys)


def test_a_mapping_in_a_list_of_words_is_refused() -> None:
    done = command("train.py", "data.columns=[{a:1}]")  # here, the types of tests refuse it
    assert done.returncode == 2
    assert done.stderr == "error: data.columns=[{'a': 1}]: must be a list of words, e.g. [a,b]\n"


def test_options_of_hydra_remain(capsys: Captured) -> None:
    assert cli.main(["train", "--cfg", "job", "--package", "seed", "seed=7"]) == 0
    assert capsys.readouterr().out.strip() == "7"


def test_invisible_characters_are_shown(capsys: Captured) -> None:
    text = (
        "row 3: sex 'male\N{ZERO WIDTH SPACE}', \N{ZERO WIDTH NO-BREAK SPACE}age\N{NO-BREAK SPACE}é"
    )
    assert run_cli(failing(InputError(text))) == 2
    expected = "error: row 3: sex 'male\\u200b', \\ufeffage\\u00a0é\n"
    assert capsys.readouterr().err == expected


def test_the_full_error_is_shown_on_demand(capsys: Captured) -> None:
    assert run_cli(failing(InputError("no such file")), full=True) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("error: no such file\n")


def test_the_command_lists_its_commands(capsys: Captured) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_an_unknown_command_gets_the_list(capsys: Captured) -> None:
    assert cli.main(["trian"]) == 2
    assert only_error(capsys).startswith("unknown command 'trian'; choose from train, predict")


def test_the_command_prints_its_version(capsys: Captured) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"skinmm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "input is missing; for example input=predictions.csv"),
        (["a.csv", "b.csv"], "skinmm report takes one path, not a.csv, b.csv"),
        (["a.csv", "lables=b.csv"], "unknown key 'lables'; did you mean labels?"),
        (["a.csv", "--multirun"], "skinmm report does not accept -m"),
    ],
)
def test_bad_usage_of_a_report(arguments: list[str], message: str, capsys: Captured) -> None:
    assert cli.main(["report", *arguments]) == 2
    assert only_error(capsys).startswith(message)


def test_a_report_names_the_missing_file(tmp_path: Path, capsys: Captured) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "predictions/test.csv is missing" in only_error(capsys)
    assert cli.main(["report", str(tmp_path / "a=b.csv"), f"output={tmp_path / 'r.html'}"]) == 2
    assert "a=b.csv" in only_error(capsys)


def test_conf_is_next_to_the_package() -> None:
    assert (CONF / "config.yaml").is_file()


@pytest.mark.parametrize(
    "words", [["-m", "seed=x,y", "model=tiny"], ["seed=x,y", "model=tiny", "-m"]]
)
def test_the_option_of_a_grid_may_stand_first_or_last(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "seed" in error
    assert "unrecognized arguments" not in error
