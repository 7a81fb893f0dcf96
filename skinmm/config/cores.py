"""CPU cores that this process may use, and the environment of its threads; imports no torch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def count_cores(
    cgroup: Path = Path("/proc/self/cgroup"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the number of cores: the affinity, or the quota of the container, rounded up."""
    quotas = [math.ceil(quota) for quota in _iterate_quotas(cgroup, cgroups)]
    return max(min([len(os.sched_getaffinity(0)), *quotas]), 1)


def prepare_threads() -> None:
    """Set the environment of OpenMP, which is read once at the import of torch.

    Waiting threads sleep. By default they spin, which takes the cores from other processes: a
    network trains 4 to 39 times as slowly with two threads next to other work. Variables that the
    user has set are unchanged.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if (cores := count_cores()) < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def iterate_cgroups(controller: str, cgroup: Path, cgroups: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's control groups, and whether they are of version 1."""
    for line in cgroup.read_text().splitlines() if cgroup.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        parts = Path(path.strip("/")).parts
        # In a container the path may be that outside: the root then has the container's limit.
        for root in dict.fromkeys((cgroups / controllers, cgroups / (controllers and controller))):
            for count in range(len(parts) + 1):
                yield root.joinpath(*parts[:count]), bool(controllers)


def _iterate_quotas(cgroup: Path, cgroups: Path) -> Iterator[float]:
    """Yield the quotas of the control groups in cores."""
    for folder, is_old in iterate_cgroups("cpu", cgroup, cgroups):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_old else ("cpu.max",)
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            quota, period = map(int, words)
        except (OSError, ValueError):  # no such group, or no quota ("max")
            continue
        if quota > 0 and period > 0:
            yield quota / period
