"""Kernels made of generated source text, kept on disk between processes."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import linecache
import os
import pickle
import secrets
import stat
import sys
import threading
import warnings
from collections.abc import Hashable
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "TINYGRAD_RNN_CACHE"  # names another folder; empty, it turns the disk off
PREFIX = "k_"
BINARIES = "__pycache__"  # the folder beside the sources, as numba names it
OTHERS = stat.S_IWGRP | stat.S_IWOTH
POSIX = hasattr(os, "geteuid")  # elsewhere the folder of a user is private by other means
REMEDY = f"; mend that, or set {VARIABLE} to a folder of your own (or to nothing to hide this)"

_lock = threading.RLock()
_modules: dict[str, ModuleType] = {}
_warned: set[str] = set()


class UnsafeError(OSError):
    """Somebody else could have written this file or folder."""


def load(source: str) -> ModuleType:
    r"""Return the module made of a source text, with its compiled kernels kept on disk.

    Functions decorated with ``@njit(cache=True)`` are compiled at their first call for types
    that are new to this machine; later processes read the machine code.  Their Python text lies
    in ``k_<sha256>.py`` in the cache folder, the machine code beside it, each file with its
    checksum: a broken one is removed and made again.  Numba's own cache, and thus
    ``NUMBA_CACHE_DIR``, is not used.  Equal texts give the same module within a process.

    The folder is ``tinygrad_rnn/kernels`` in the user's cache folder (``XDG_CACHE_HOME`` or
    ``~/.cache``), or what the environment variable ``TINYGRAD_RNN_CACHE`` names; where that is
    set and empty, nothing is kept.  Files and folders that others can write, or that belong to
    somebody else, are not used: a warning says so once, and kernels live in memory.

    Parameters
    ----------
    source
        The text of a Python module.

    Returns
    -------
    module
        The module; it stands in ``sys.modules`` as ``k_<sha256>`` too.

    Raises
    ------
    SyntaxError
        The text is not Python.

    Examples
    --------
    >>> load("def double(x):\n    return 2 * x\n").double(21)
    42
    """
    digest = hashlib.sha256(source.encode()).hexdigest()
    module = _modules.get(digest)
    if module is None:
        with _lock:
            module = _modules.get(digest)
            if module is None:
                module = _modules[digest] = _build(source, digest)
    return module


def folder() -> Path | None:
    """Return the folder in which kernels are kept, made if need be, or None for memory only."""
    try:
        return _folder()
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        _warn(f"kernels are not kept on disk ({_reason(error)}){REMEDY}")
        return None


def _folder() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named == "":
        return None
    if named is not None:
        path = Path(named).expanduser().absolute()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # the XDG specification has relative paths ignored
        path = (base if base.is_absolute() else Path.home() / ".cache") / "tinygrad_rnn/kernels"
    for part in (*reversed(path.parents), path, path / BINARIES):
        if not part.is_dir():
            with contextlib.suppress(FileExistsError):  # another process may be first
                part.mkdir(mode=0o700)
    for part in (path, path / BINARIES):
        _check(part.stat(), part)
    return path


def _check(found: os.stat_result, path: Path) -> None:
    """Raise `UnsafeError` unless only this user can have written a file or folder."""
    if not POSIX:
        return
    if found.st_uid != os.geteuid():
        raise UnsafeError(f"{path} belongs to user {found.st_uid}, not to you ({os.geteuid()})")
    if found.st_mode & OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise UnsafeError(f"{path} can be written by others: mode {mode:04o}; chmod go-w is right")


def _read(path: Path) -> bytes | None:
    """Return what a file holds, None where there is none, checking the file that is read."""
    try:
        # without O_NONBLOCK a named pipe would wait for a writer
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(number, "rb") as stream:
        _check(os.fstat(number), path)
        return stream.read()


def _write(path: Path, data: bytes) -> None:
    """Put a file in place whole; readers see the old one or the new one."""
    draft = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as stream:
            stream.write(data)
        draft.replace(path)
    except OSError as error:
        _remove(draft)
        # the folder, not the draft, is what a person can mend
        raise OSError(error.errno, error.strerror, str(path.parent)) from error
    except BaseException:
        _remove(draft)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _reason(error: Exception) -> str:
    """Say what went wrong, as the system or a check in this module says it."""
    where = getattr(error, "filename", None)
    said = getattr(error, "strerror", None)
    return f"{where}: {said}" if where and said else str(error)


def _warn(message: str) -> None:
    """Warn once of each thing."""
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _build(source: str, digest: str) -> ModuleType:
    name = PREFIX + digest
    code, kernels = _parse(source, name)
    place = folder()
    file = None if place is None else _store(place / f"{name}.py", source.encode())
    module = ModuleType(name)
    if file is None:  # tracebacks find the lines all the same
        filename = f"<kernel {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    else:
        filename = module.__file__ = str(file)
    sys.modules[name] = module  # where unpickled kernels look their globals up
    try:
        # the wanted text runs, never what the file holds
        exec(compile(code, filename, "exec", dont_inherit=True), module.__dict__)
        if file is not None:
            for kernel in kernels:
                _attach(module.__dict__.get(kernel), kernel, file, digest)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _parse(source: str, name: str) -> tuple[ast.Module, tuple[str, ...]]:
    """Return the text as a tree with numba's own cache turned off, and who had asked for it."""
    tree = ast.parse(source, f"<kernel {name}>")
    kernels = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            for word in call.keywords if isinstance(call, ast.Call) else ():
                if word.arg == "cache" and isinstance(word.value, ast.Constant):
                    if word.value.value:
                        kernels.append(node.name)
                    word.value = ast.copy_location(ast.Constant(False), word.value)
    return tree, tuple(kernels)


def _store(file: Path, data: bytes) -> Path | None:
    """Make sure that a file holds the source; a file that does is not touched."""
    try:
        if _read(file) != data:
            _write(file, data)
    except OSError as error:
        _warn(f"a kernel is not kept on disk ({_reason(error)}){REMEDY}")
        return None
    return file


def _attach(kernel: Any, name: str, file: Path, digest: str) -> None:
    """Give a kernel a cache of ours in the place of numba's."""
    if kernel is None or not hasattr(kernel, "_cache") or not hasattr(kernel, "py_func"):
        _warn(f"kernel {name!r} is not kept on disk: this release of numba is not known")
        return
    kernel._cache = Entries(file.parent / BINARIES, f"{file.stem}-{name}", digest)


@functools.cache
def _versions() -> tuple[str, ...]:
    """Return what machine code depends on beside its source, its types and its processor."""
    found = [sys.version, *(importlib.import_module(m).__version__ for m in ("numba", "llvmlite"))]
    config = importlib.import_module("numba.core.config")
    for flag in ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE"):
        found.append(f"{flag}={getattr(config, flag, None)}")
    # kernels have functions of this package inlined, so a new release makes new kernels
    here = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        here.update(path.read_bytes())
    return (*found, here.hexdigest())


class Entries:
    """The machine code of one kernel on disk: a file for each combination of types.

    It stands where a dispatcher of numba has its ``FunctionCache``.  Unlike there, an entry has
    a checksum and no index refers to it, so what another process writes meanwhile, or a crash
    leaves behind, costs at most a compilation.
    """

    def __init__(self, place: Path, stem: str, digest: str) -> None:
        self.cache_path = str(place)
        self._stem = stem
        self._digest = digest
        self._enabled = True

    def enable(self) -> None:
        """Read and write entries."""
        self._enabled = True

    def disable(self) -> None:
        """Neither read nor write entries."""
        self._enabled = False

    def flush(self) -> None:
        """Remove all entries of this kernel."""
        for path in Path(self.cache_path).glob(f"{self._stem}.*.nbc"):
            _remove(path)

    def load_overload(self, sig: Hashable, target_context: Any) -> Any:
        """Return the compiled kernel for these types, or None; called by numba."""
        if not self._enabled:
            return None
        target_context.refresh()
        key = self._key(sig, target_context.codegen())
        path = self._path(key)
        try:
            data = _read(path)
        except OSError as error:
            _warn(f"machine code on disk is not used ({_reason(error)}){REMEDY}")
            return None
        if data is None:
            return None
        body = data[32:]
        if data[:32] != hashlib.sha256(body).digest():
            _remove(path)
            return None
        try:
            found, payload = pickle.loads(body)
            if found != key:
                return None
            results = importlib.import_module("numba.core.compiler").CompileResult
            return results._rebuild(target_context, *payload)
        except Exception:  # whatever fails here, a compilation puts right
            _remove(path)
            return None

    def save_overload(self, sig: Hashable, data: Any) -> None:
        """Keep a compiled kernel; called by numba."""
        if not self._enabled:
            return
        if data.library.has_dynamic_globals or any(not part.can_cache for part in data.lifted):
            name = self._stem.rpartition("-")[2]
            _warn(
                f"kernel {name!r} is compiled anew in each process, for"
                " it holds an address (a ctypes pointer or a large global array); pass arrays"
                " as arguments, and functions by symbol"
            )
            return
        key = self._key(sig, data.codegen)
        path = self._path(key)
        try:
            dumps = importlib.import_module("numba.core.serialize").dumps
            body: bytes = dumps((key, data._reduce()))
            if path.exists():
                _check(path.stat(), path)
            _write(path, hashlib.sha256(body).digest() + body)
        except UnsafeError:  # told of when it was not read
            return
        except Exception as error:
            _warn(f"machine code is not kept on disk ({_reason(error)}){REMEDY}")

    def _key(self, sig: Hashable, codegen: Any) -> tuple[Hashable, ...]:
        return (self._digest, self._stem, sig, codegen.magic_tuple(), _versions())

    def _path(self, key: tuple[Hashable, ...]) -> Path:
        short = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
        return Path(self.cache_path, f"{self._stem}.{short}.nbc")


def _renew() -> None:
    """Start with a free lock after a fork: the thread that held the old one is not here."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
