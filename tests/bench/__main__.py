"""Measure tinygrad_rnn and its peers in one process, on one thread: ``python -m tests.bench``."""

import os
import sys


def one_thread() -> None:
    """Set the BLAS libraries to one thread; they read the environment when they are loaded."""
    if "numpy" in sys.modules:
        raise RuntimeError("NumPy was imported before the number of threads could be set")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # the kernels that users get
        os.environ.pop(name, None)


if __name__ == "__main__":
    one_thread()
    from .cli import main

    sys.exit(main())
