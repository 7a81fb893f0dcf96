"""Runs of several processes: common start with one configuration, and common end on failure.

Rank 0 reads the configuration and writes the run folder. Processes that Lightning starts read the
configuration from that folder. Processes that torchrun starts wait until rank 0 publishes a run in
torchrun's key-value store. The first process that fails stores its reason; rank 0 reports it.
"""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only

from skinmm.config import Config, from_mapping, to_mapping
from skinmm.errors import InputError, one_line, print_error
from skinmm.training.run_folder import RunFolder

PATIENCE: Final = timedelta(seconds=30)  # for the answer of a process that may have been killed
_run_numbers = count()  # of the runs that rank 0 has published


def is_leader() -> bool:
    """Return whether this process is rank 0, the only one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def is_torchrun() -> bool:
    """Return whether torchrun started this process and others."""
    return dist.is_torchelastic_launched() and _world_size() > 1


def open_run(run: RunFolder, minutes: float) -> None:
    """Prepare the folder of a run or fold, and wait until all processes are ready to train.

    Raises:
        RuntimeError: another process failed, or was not ready within the given number of minutes.
    """
    if run.is_open:
        return
    if run.parent:
        open_run(run.parent, minutes)
    if is_leader():
        run.prepare()
    if is_torchrun() and not run.parent:
        if is_leader():
            folders = {"run": str(run.path), "cwd": str(Path.cwd())}
            _publish({"config": to_mapping(run.config), **folders})
        store, deadline = _torchrun_store(), time.monotonic() + 60 * minutes
        store.set(f"{run.path} {os.environ['RANK']}", "")
        ready = [f"{run.path} {rank}" for rank in range(_world_size())]
        while not store.check(ready):
            if store.check([f"{run.path} failed"]) or time.monotonic() > deadline:
                raise RuntimeError(f"not all processes were ready within {minutes:g} minutes")
            time.sleep(0.1)
    run.is_open = True


def follow(train: Callable[[Config, Path], object]) -> int:
    """Join every run of rank 0, in its working directory, and return its exit status."""
    for number in count():
        message = json.loads(_torchrun_store().get(f"run {number}"))
        if "status" in message:
            _torchrun_store().set(f"left {os.environ['RANK']}", "")
            return int(message["status"])
        os.chdir(message["cwd"])
        try:
            train(from_mapping(Config, message["config"]), Path(message["run"]))
        except SystemExit as error:
            if error.code:
                raise
    raise AssertionError


def dismiss(status: int) -> None:
    """Release the processes started by torchrun, and wait: rank 0 may host their store."""
    if is_torchrun():
        _publish({"status": status})
        left = [f"left {rank}" for rank in range(1, _world_size())]
        with suppress(RuntimeError):  # a killed process does not answer
            _torchrun_store().wait(left, PATIENCE)


def end_with_parent() -> None:
    """End this process if the one that started it is killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Failure(NamedTuple):
    """Failure of a process, as the other processes receive it."""

    rank: int
    is_input_error: bool
    reason: str


def shared_failure(error: Exception, run: Path) -> BaseException:
    """Report a failure to the other processes, and return the exception to raise here.

    The processes that fail later only report a lost connection. So the first failure counts, and
    rank 0 reports it. Another process reports its own only if rank 0 cannot have received it. The
    run folder identifies the run.
    """
    if is_torchrun():
        store = _torchrun_store()
    elif dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
    else:
        return error  # the only process
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ["RANK"])
    world_size = dist.get_world_size() if dist.is_initialized() else _world_size()
    if rank and os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    failure, first = Failure(rank, isinstance(error, InputError), _describe(error)), None
    try:
        first = Failure(*json.loads(store.compare_set(f"{run} failed", "", json.dumps(failure))))
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()  # the others notice; with NCCL this would wait for them
        store.set(f"{run} heard {rank}", "")
        if rank == 0:
            others = [f"{run} heard {other}" for other in range(1, world_size)]
            return _select_error(error, first, store, others)
        store.wait([f"{run} heard 0"], PATIENCE)
    except RuntimeError:  # torch has several errors for a lost store
        if first and first.rank == 0:  # rank 0 has reported its own failure, and ended
            return SystemExit(0)
        print_error(f"error: process {rank}: {failure.reason}")
        return SystemExit(1)
    return SystemExit(0)


def _select_error(error: Exception, first: Failure, store: Any, others: list[str]) -> Exception:
    """Return the error to raise on rank 0, after informing all other processes."""
    if first.rank == 0 and _is_connection_error(error):
        return RuntimeError(first.reason)
    with suppress(RuntimeError):
        store.wait(others, PATIENCE)
    if first.rank == 0:
        return error
    kind = InputError if first.is_input_error else RuntimeError
    return kind(f"process {first.rank}: {first.reason}")


def _describe(error: Exception) -> str:
    line = one_line(error)
    if not _is_connection_error(error):
        return line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"
    return (
        f"another process was killed, or did not answer within trainer.timeout ({line[:120]}); "
        "resume=RUN continues from the last checkpoint"
    )


def _is_connection_error(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _publish(message: dict[str, Any]) -> None:
    _torchrun_store().set(f"run {next(_run_numbers)}", json.dumps(message))


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


@cache
def _torchrun_store() -> Any:
    """Return the store shared by the processes of torchrun; it outlives a run."""
    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    store.set_timeout(timedelta(days=365))
    return dist.PrefixStore("skinmm", store)  # type: ignore[attr-defined]
