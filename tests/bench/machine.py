"""What the figures were measured on, and with which versions."""

import os
import platform
from importlib import metadata
from pathlib import Path

import numpy as np

PEERS = (("PyTorch", "torch"), ("HIPS autograd", "autograd"), ("MyGrad", "mygrad"))


def describe() -> dict[str, str]:
    """Name the processor, the interpreter, NumPy with its BLAS, and the peers."""
    about = {
        "CPU": cpu_model(),
        "cores": f"{os.cpu_count()} in the machine, {len(affinity())} open to this process",
        "load": load(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "NumPy": np.__version__,
        "BLAS of NumPy": blas(),
        "system": platform.platform(),
    }
    for name, package in PEERS:
        try:
            about[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            about[name] = "not installed"
    return about


def affinity() -> list[int]:
    """List the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def load() -> str:
    """Say how busy the machine is: a figure from a busy one is a ratio at best."""
    return f"{os.getloadavg()[0]:.2f} at the start" if hasattr(os, "getloadavg") else "unknown"


def cpu_model() -> str:
    """Name the processor as the system does."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def blas() -> str:
    """Name the BLAS that NumPy was built with and, where it can be asked, the kernels it chose."""
    config = np.show_config(mode="dicts") or {}
    built = config.get("Build Dependencies", {}).get("blas", {})
    text = f"{built.get('name', 'unknown')} {built.get('version', '')}".strip()
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return text
    for pool in threadpool_info():
        if pool.get("user_api") == "blas" and "numpy" in pool.get("filepath", ""):
            text += f", {pool.get('architecture')} kernels, {pool.get('num_threads')} thread(s)"
    return text
