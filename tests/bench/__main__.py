"""Measure tinygrad_rnn and its peers in one process, on one thread: ``python -m tests.bench``."""

import os
import sys


def one_thread() -> dict[str, str]:
    """Set the BLAS libraries to one thread; they read the environment when they are loaded.

    Return what was removed from it.
    """
    if "numpy" in sys.modules:
        raise RuntimeError("NumPy was imported before the number of threads could be set")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    names = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # unset: the kernels that users get
    return {name: os.environ.pop(name) for name in names if name in os.environ}


if __name__ == "__main__":
    unset = one_thread()
    from .cli import main

    sys.exit(main(unset=unset))
