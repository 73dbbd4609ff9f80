"""Named arrays in one file: written whole or not at all, read whole or not at all, no pickles."""

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, DtypeError, StateError
from .files import replacing

FORMAT = "tinygrad_rnn archive"
VERSION = 1
HEADER = "__tinygrad_rnn__"  # the member that lists the others and holds the meta data
LONGEST = 60_000  # bytes of a name in UTF-8; a ZIP has room for 65,535
KINDS = "biufcSUmM"  # of the dtypes that a .npy file stores faithfully without a pickle


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write named arrays to one file, replacing an older one only when the new one is complete.

    The file is an ``.npz`` (a ZIP of ``.npy`` members) under exactly the given name, readable
    with ``np.load`` too. Equal names, arrays and meta data in equal order give equal bytes.

    Parameters
    ----------
    path
        The file; a symbolic link is followed.
    arrays
        Arrays of any shape, of booleans, numbers, dates or fixed-width text, by name. Names may
        hold dots and slashes, but no backslash, NUL or lone surrogate, and 60,000 bytes of UTF-8.
    meta
        What JSON can hold; it comes back as JSON does, tuples as lists.

    Raises
    ------
    DtypeError
        An array is of Python objects or of another dtype that needs a pickle.
    StateError
        A name cannot be the name of a member.
    TypeError
        `meta` is not JSON.
    OSError
        The file cannot be written; what was there before is unchanged.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> write(folder.name + "/model.npz", {"L0.fwd.b": np.zeros(3)}, {"step": 7})
    >>> read(folder.name + "/model.npz")
    ({'L0.fwd.b': array([0., 0., 0.])}, {'step': 7})
    >>> folder.cleanup()
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        _check(name, array)
    header = {"format": FORMAT, "version": VERSION, "members": list(arrays), "meta": dict(meta)}
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise TypeError(f"meta must hold only what JSON can hold: {error}") from error
    members = {HEADER: np.frombuffer(text.encode(), np.uint8), **arrays}

    with replacing(path) as stream:
        _write_members(stream, members)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read all arrays and the meta data of a file that `write` wrote; nothing is ever unpickled.

    Returns
    -------
    arrays, meta
        As given to `write`, in the same order.

    Raises
    ------
    CheckpointError
        The file is damaged or of another kind.
    OSError
        The file is missing or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(folder + "/a.npz", {"W_x": np.ones((2, 3), np.float32)})
    ...     arrays, meta = read(folder + "/a.npz")
    >>> arrays["W_x"].shape, arrays["W_x"].dtype.name, meta
    ((2, 3), 'float32', {})
    """
    content = Path(path).read_bytes()
    try:
        return _parse(content)
    except MemoryError:
        raise
    except Exception as error:  # a damaged ZIP raises nearly anything
        what = str(error) or type(error).__name__
        raise CheckpointError(
            f"{os.fspath(path)}: {what}; expected a whole file written by tinygrad_rnn"
        ) from error


def _check(name: str, array: NDArray[Any]) -> None:
    if not isinstance(name, str) or name == HEADER or not _is_member(name):
        raise StateError(
            f"array name {name!r:.60}: expected text without NUL, backslash and lone surrogates, "
            f"of at most {LONGEST:,} bytes, other than {HEADER!r}"
        )
    if array.dtype.kind not in KINDS or array.dtype.hasobject:
        raise DtypeError(
            f"array {name!r} has dtype {array.dtype}, which only a pickle could hold; "
            "expected booleans, numbers, dates or fixed-width text"
        )


def _is_member(name: str) -> bool:
    try:
        return len(name.encode()) <= LONGEST and "\0" not in name and "\\" not in name
    except UnicodeEncodeError:
        return False


def _write_members(stream: BinaryIO, members: Mapping[str, NDArray[Any]]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the clock must not show in the file
            info.create_system = 3
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _parse(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if not content:
        raise CheckpointError("the file is empty")
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        if content.startswith(b"PK\3\4"):
            raise CheckpointError(f"the file is truncated or damaged ({error})") from error
        raise CheckpointError("not a ZIP file, so not an .npz") from error
    with archive:
        found = [info.filename.removesuffix(".npy") for info in archive.infolist()]
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise CheckpointError(f"duplicate members {twice}")
        if HEADER not in found:
            raise CheckpointError(f"no member {HEADER!r}: an .npz from elsewhere, or damaged")
        header = _header(_member(archive, HEADER))
        names = [name for name in found if name != HEADER]
        if header["members"] != names:
            raise CheckpointError(f"members {names} where {header['members']} were written")
        return {name: _member(archive, name) for name in names}, header["meta"]


def _header(array: NDArray[Any]) -> dict[str, Any]:
    try:
        header = json.loads(array.tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the meta data is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"the meta data does not name the format {FORMAT!r}")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"format version {header.get('version')}, but this tinygrad_rnn reads {VERSION}"
        )
    if not isinstance(header.get("members"), list) or not isinstance(header.get("meta"), dict):
        raise CheckpointError("the meta data lacks 'members' or 'meta'")
    return header


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"member {name!r} is compressed")
    try:
        content = archive.read(info)
    except Exception as error:
        raise CheckpointError(f"member {name!r} is damaged ({error})") from error
    stream = io.BytesIO(content)
    try:
        major = np.lib.format.read_magic(stream)[0]
        read_header = {
            1: np.lib.format.read_array_header_1_0,
            2: np.lib.format.read_array_header_2_0,
        }[major]
        shape, fortran, dtype = read_header(stream)
    except Exception as error:
        raise CheckpointError(f"member {name!r} has a bad .npy header ({error})") from error
    if dtype.kind not in KINDS or dtype.hasobject:
        raise CheckpointError(
            f"member {name!r} has dtype {dtype}: Python objects are never unpickled"
        )
    claimed, held = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if claimed != held:
        raise CheckpointError(
            f"member {name!r} claims shape {shape} of {dtype}, {claimed} bytes, but holds {held}"
        )
    view: NDArray[Any] = np.ndarray(
        shape, dtype, content, stream.tell(), order="F" if fortran else "C"
    )
    return view.copy(order="K")
