"""One run by several processes: rank 0 leads, the others follow, and the first to fail says why."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist

from skinmm.config import Config, from_mapping, to_mapping
from skinmm.errors import InputError, one_line

FOREVER: Final = timedelta(days=365)
PATIENCE: Final = timedelta(seconds=30)  # with a process that may have been killed
_runs = count()  # that this process has led


def by_torchrun() -> bool:
    """Whether torchrun started this process and others, none of which knows of a run folder."""
    return dist.is_torchelastic_launched() and _world_size() > 1


def announce(config: Config, run: Path) -> None:
    """Rank 0 tells those that torchrun started beside it what to train, and where."""
    told = {"config": to_mapping(config), "run": str(run), "cwd": str(Path.cwd())}
    _meeting_place().set(f"run {next(_runs)}", json.dumps(told))


def dismiss(status: int) -> None:
    """Rank 0 lets them go, and waits until they have heard: it may be where they meet."""
    if by_torchrun():
        store = _meeting_place()
        store.set(f"run {next(_runs)}", json.dumps({"status": status}))
        with suppress(RuntimeError):  # whoever was killed does not answer
            store.wait([f"left {rank}" for rank in range(1, _world_size())], PATIENCE)


def follow(train: Callable[[Config, Path], object]) -> int:
    """Another process that torchrun started joins every run that rank 0 announces.

    It makes no folder, and paths mean what they mean where rank 0 was started.

    Returns:
        The exit status that rank 0 has.
    """
    for number in count():
        told = json.loads(_meeting_place().get(f"run {number}"))
        if "status" in told:
            _meeting_place().set(f"left {os.environ['RANK']}", "")
            return int(told["status"])
        os.chdir(told["cwd"])
        try:
            train(from_mapping(Config, told["config"]), Path(told["run"]))
        except SystemExit as error:
            if error.code:
                raise
    raise AssertionError


def meet(run: Path, minutes: float) -> None:
    """Waits until all processes are ready to train: one that is not ends the run here.

    Raises:
        RuntimeError: another process failed, or did not come in time.
    """
    rank, store = int(os.environ["RANK"]), _meeting_place()
    store.set(f"{run} {rank}", "")
    everyone = [f"{run} {each}" for each in range(_world_size())]
    ends = time.monotonic() + 60 * minutes
    while not store.check(everyone):
        if store.check([f"{run} failed"]) or time.monotonic() > ends:
            raise RuntimeError(f"not all processes were ready within {minutes:g} minutes")
        time.sleep(0.1)


def failed(error: Exception, run: Path) -> BaseException:
    """What a process raises in place of its error: the reason of the one that failed first.

    The others' errors only say that they were left alone. Rank 0 speaks for all; another process
    speaks for itself only where rank 0 did not hear of it.
    """
    store = _store()
    if store is None:
        return error
    rank, size = _place()
    if rank and os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    reason = _reason(error)
    own = json.dumps([rank, isinstance(error, InputError), reason])
    first: Any = None
    try:
        first = json.loads(store.compare_set(f"{run} failed", "", own))
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()  # so that the others notice; NCCL's would wait for them
        store.set(f"{run} heard {rank}", "")
        if rank == 0:
            others = [f"{run} heard {each}" for each in range(1, size)]
            return _told(error, first, store, others)
        store.wait([f"{run} heard 0"], PATIENCE)
    except RuntimeError:  # torch's errors of a lost store are of many kinds
        if first and first[0] == 0:  # which has told it, and is gone already
            return SystemExit(0)
        print(f"error: process {rank}: {reason}", file=sys.stderr)  # noqa: T201
        return SystemExit(1)
    return SystemExit(0)


def end_with_parent() -> None:
    """Ends this process once the one that started it has been killed: nobody else would."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ["RANK"]), _world_size()


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


@cache
def _meeting_place() -> Any:
    """Where the processes that torchrun started find each other, before and between the runs."""
    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    store.set_timeout(FOREVER)
    return dist.PrefixStore("skinmm", store)  # type: ignore[attr-defined]


def _store() -> Any:
    if by_torchrun():
        return _meeting_place()
    return dist.distributed_c10d._get_default_store() if dist.is_initialized() else None


def _told(error: Exception, first: list[Any], store: Any, others: list[str]) -> Exception:
    """The reason that rank 0 gives, once all who are alive have heard that there is one."""
    rank, is_input, reason = first
    if rank == 0 and _is_lost(error):
        return RuntimeError(reason)
    with suppress(RuntimeError):
        store.wait(others, PATIENCE)
    if rank == 0:
        return error
    return (InputError if is_input else RuntimeError)(f"process {rank}: {reason}")


def _is_lost(error: Exception) -> bool:
    """Whether the network speaks: of another process, not of a fault of this one."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _reason(error: Exception) -> str:
    line = one_line(error)
    if not _is_lost(error):
        return line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"
    return (
        f"another process was killed, or did not answer within trainer.timeout ({line[:120]}); "
        "resume= goes on from the last checkpoint"
    )
