"""What the kernel says of a process: its CPU time and its memory."""

import resource
from pathlib import Path

__all__ = ["cpu_seconds", "forget_peak", "memory", "peak_memory"]


def cpu_seconds(pid: int) -> float:
    """Return the seconds that the threads of a process have been on a core; see proc(5), schedstat."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int(Path(thread, "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB; see proc_pid_statm(5)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def forget_peak(pid: int) -> None:
    """Have the peak begin anew at what is resident now; see proc_pid_clear_refs(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(pid: int) -> float:
    """Return the most that was resident since `forget_peak`, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"the kernel does not say what the peak of {pid} was")
