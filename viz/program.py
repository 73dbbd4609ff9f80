"""Running Graphviz's program ``dot`` under a time limit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile

TIMEOUT = 10.0  # seconds that one picture may take


def render(source: str, kind: str) -> bytes:
    """Return the picture of a DOT text: `kind` is ``svg``, ``png`` or ``pdf``.

    Raises
    ------
    RuntimeError
        If ``dot`` is not installed, cannot be run, or fails.
    TimeoutError
        If it took longer than ``TIMEOUT``; it was killed then.
    """
    program = shutil.which("dot")
    if program is None:
        raise RuntimeError(
            "Graphviz's program dot is not installed: install the package graphviz of your "
            "operating system (apt install graphviz, brew install graphviz, conda install "
            "graphviz; pip does not bring it), or save to a .dot file, which works without"
        )
    # files, not pipes: a child of a killed wrapper script would hold a pipe open
    with (
        tempfile.TemporaryFile() as text,
        tempfile.TemporaryFile() as picture,
        tempfile.TemporaryFile() as errors,
    ):
        text.write(source.encode())
        text.seek(0)
        try:
            process = subprocess.Popen(
                [program, f"-T{kind}"],
                stdin=text,
                stdout=picture,
                stderr=errors,
                start_new_session=True,  # a group that can be killed as a whole
            )
        except OSError as error:
            raise RuntimeError(f"dot cannot be run: {error}") from error
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"dot took longer than {TIMEOUT:g} s") from None
        finally:
            _kill(process)
        picture.seek(0)
        errors.seek(0)
        content = picture.read()
        if code != 0 or not content:
            reason = errors.read().decode(errors="replace").strip() or "no picture"
            raise RuntimeError(f"dot failed with status {code}: {reason}")
        return content


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what still runs of the program and of what it started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
