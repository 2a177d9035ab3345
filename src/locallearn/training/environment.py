"""What a process must set up before a run, what it must put back after it, and what the manifest says of it."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from locallearn import __version__, accelerator
from locallearn.config.settings import Settings
from locallearn.errors import UserError

_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn", "wandb")


def choose_device(name: str) -> torch.device:
    """The torch device for `device=`; auto is the first GPU if there is one."""
    kind = accelerator.KIND
    if name == "auto":
        return torch.device(kind if accelerator.count() else "cpu")
    kinds = UserError(f"device={name}: choose auto, cpu, {kind} or {kind}:INDEX")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise kinds from None
    if device.type not in ("cpu", kind):
        raise kinds
    if device.type == kind and (device.index or 0) >= (here := accelerator.count()):
        raise UserError(f"device={name}: this machine has {here} {kind.upper()} devices; choose device=cpu")
    return device


def choose_threads(threads: int | str, processes: int = 1) -> int:
    """CPU threads for `threads=`; auto is every core this process may use, or OMP_NUM_THREADS if that is set.
    `processes` of the run share the cores of this machine; where torchrun started them, as many as it says."""
    if isinstance(threads, int):
        return threads
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdigit() and int(limit) > 0 else max(1, len(os.sched_getaffinity(0)) // here)


@contextmanager
def process_settings(settings: Settings, processes: int = 1) -> Iterator[dict[str, Any]]:
    """Threads, allocator and determinism for one run; what can be put back is put back, so that runs in one process do
    not leak into each other. Yields what was set, for the manifest."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    generators = torch.get_rng_state()
    torch.set_num_threads(choose_threads(settings.threads, processes))
    allocator = settings.allocator and keep_freed_memory()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    reset_peak_memory()
    try:
        yield {"threads": torch.get_num_threads(), "allocator_keeps_memory": allocator}
    finally:
        torch.set_num_threads(threads)
        if settings.deterministic:  # the call imports the compiler, which takes as long as PyTorch
            torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(generators)
        if settings.compile:
            torch._dynamo.reset()  # its limit of compilations counts those of earlier runs


def keep_freed_memory() -> bool:
    """Tell glibc not to give large freed blocks back to the kernel: saves some 100,000 page faults a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3
        one_gib = 1 << 30
        return bool(libc.mallopt(m_mmap_threshold, one_gib) and libc.mallopt(m_trim_threshold, 2 * one_gib - 1))
    except (OSError, AttributeError):
        return False


def reset_peak_memory() -> None:
    """Start counting at what this process needs now: what an earlier run in it has freed goes back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    accelerator.reset_peak_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, which else carries over from an earlier run


def peak_memory_bytes(device: torch.device) -> int:
    """The most bytes held since the run began: allocated on a GPU, else resident in this process. 0 if unknown."""
    allocated = accelerator.peak_memory_bytes(device)
    return allocated if allocated is not None else int((_proc("self/status", "VmHWM").split() or ["0"])[0]) * 1024


def _proc(file: str, name: str) -> str:
    """What the first line of a file of /proc that begins with `name` says; empty where there is none."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""


def device_facts(device: torch.device) -> dict[str, Any]:
    """What the manifest says of the device of a run."""
    cpu = _proc("cpuinfo", "model name") or platform.processor() or platform.machine()
    rounded = accelerator.rounded(device)
    tf32 = {} if rounded is None else {"tf32": rounded}
    return {"device": accelerator.name(device) or cpu, "device_type": device.type} | tf32


def new_manifest(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, machine and command of a run: what decides its bits, and nothing of the environment's variables."""
    versions = {"locallearn": __version__, "python": platform.python_version()} | dict.fromkeys(_PACKAGES, "missing")
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": versions,
        "command": shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "git": checkout(Path.cwd()),
        "system": platform.platform(),
        **{name: getattr(settings, name) for name in ("precision", "channels_last", "compile", "deterministic")},
        **facts,
    }


def checkout(folder: Path) -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout the command was run in, or None outside one."""
    run = partial(subprocess.run, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    try:
        commit, changes = (run(["git", *words]).stdout for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}
