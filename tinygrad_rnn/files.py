"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a draft that takes the place of the file at `path` once all of it is on the disk.

    A symbolic link is followed, and the permissions of an older file are kept.  Whatever
    interrupts it, the old file stays whole and no draft is left behind.

    Raises
    ------
    OSError
        The file cannot be written; the message says that the old one is unchanged.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/a.txt") as stream:
    ...         _ = stream.write(b"whole")
    ...     Path(folder + "/a.txt").read_text()
    'whole'
    """
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            code = errno.EISDIR if target.is_dir() else errno.EINVAL
            raise OSError(code, "it exists and is not a regular file")
        with draft.open("xb") as stream:
            if target.exists():
                shutil.copymode(target, draft)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
    except OSError as error:
        _remove(draft)
        old = "the old file is unchanged" if target.exists() else "no file was written"
        reason = error.strerror or str(error)
        code = error.errno or errno.EIO
        raise OSError(code, f"cannot save ({reason}); {old}", os.fspath(path)) from error
    except BaseException:
        _remove(draft)
        raise


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):
        draft.unlink()
