"""Kernels on disk: found again, rebuilt when broken, shared, and used only where it is safe."""

import hashlib
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
from tinygrad_rnn.compiler import cache

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
from numba import njit

@njit(cache=True, nogil=True)
def twice(x):
    return x + x

@njit(cache=True, nogil=True)
def total(a):
    s = 0.0
    for i in range(a.shape[0]):
        s += twice(a[i])
    return s
"""
RUN = f"""
import sys, warnings
import numpy as np
from tinygrad_rnn.compiler import cache
module = cache.load({SOURCE!r})
assert module.total(np.arange(4.0)) == 12.0
assert module.total(np.arange(4, dtype=np.float32)) == 12.0
stats = module.total.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
ONCE = RUN.replace("assert module.total(np.arange(4, dtype=np.float32)) == 12.0\n", "")

posix = pytest.mark.skipif(not cache.POSIX, reason="modes and owners are POSIX")


def process(place, code=RUN, **more):
    """Start a process of its own whose kernels lie in `place`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    env |= {"TINYGRAD_RNN_CACHE": str(place), **more}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def counts(process):
    """Return the hits and misses that a process printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return tuple(map(int, out.split()))


def snapshot(place):
    return {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Give a folder for kernels, with nothing kept or warned of in this process so far."""
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(cache, "_modules", {})
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "kernels"


def again():
    """Load as a new process would."""
    cache._modules.clear()
    return cache.load(SOURCE)


def summed():
    """Load as a new process would, and call."""
    module = again()
    assert module.total(np.ones(3)) == 6.0
    return module


def source_file(place):
    (file,) = place.glob("k_*.py")
    return file


def entries(place):
    return sorted((place / "__pycache__").glob("*.nbc"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Give a folder that one process has filled."""
    place = tmp_path_factory.mktemp("filled") / "kernels"
    assert counts(process(place)) == (0, 2)
    return place


def test_importing_it_loads_neither_numba_nor_llvmlite():
    code = (
        "import sys, tinygrad_rnn.compiler.cache, tinygrad_rnn.compiler.threads as t;"
        "t.run([int, int], 2); print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    )
    done = process("", code)
    assert done.communicate()[0].split() == ["False", "False"]


def test_another_process_finds_the_machine_code_and_rewrites_nothing(filled):
    before = snapshot(filled)
    assert counts(process(filled)) == (2, 0)
    assert snapshot(filled) == before


def test_numbas_own_folder_does_no_harm(filled, tmp_path):
    foreign = tmp_path / "numba"
    assert counts(process(filled, NUMBA_CACHE_DIR=str(foreign))) == (2, 0)
    assert not foreign.exists()
    file = tmp_path / "file"
    file.touch()
    assert counts(process(filled, NUMBA_CACHE_DIR=str(file / "x"))) == (2, 0)
    assert counts(process(filled, NUMBA_CACHE_LOCATOR_CLASSES="nonsense")) == (2, 0)


def test_compiler_flags_of_the_environment_get_entries_of_their_own(filled):
    assert counts(process(filled, ONCE, NUMBA_BOUNDSCHECK="1")) == (0, 1)
    assert counts(process(filled)) == (2, 0)


def test_the_source_is_kept_under_its_hash_in_private_files(filled):
    assert source_file(filled).read_text() == SOURCE
    if cache.POSIX:
        modes = {stat.S_IMODE(p.stat().st_mode) for p in filled.rglob("*")}
        assert modes == {0o600, 0o700}
        assert stat.S_IMODE(filled.stat().st_mode) == 0o700


def test_the_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("TINYGRAD_RNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg/tinygrad_rnn/kernels"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.folder() == tmp_path / "home/.cache/tinygrad_rnn/kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == tmp_path / "home/.cache/tinygrad_rnn/kernels"


def test_an_empty_variable_turns_the_disk_off(tmp_path):
    assert counts(process("", HOME=str(tmp_path))) == (0, 2)
    assert not list(tmp_path.iterdir())


def test_memory_only_writes_and_warns_nothing(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", "")
    assert cache.folder() is None
    assert not hasattr(summed(), "__file__")
    assert not list(tmp_path.iterdir())


def test_one_module_per_text_and_process(place):
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(cache.load(SOURCE))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(m) for m in seen}) == 1
    assert cache.load(SOURCE + "\n") is not seen[0]


def test_a_source_that_differs_is_replaced_and_never_run(place):
    again()
    file = source_file(place)
    file.write_text("raise SystemExit\n")
    file.chmod(0o600)
    assert again().total(np.ones(2)) == 4.0
    assert file.read_text() == SOURCE


@pytest.mark.parametrize("on_disk", [True, False])
def test_tracebacks_show_the_lines(place, monkeypatch, on_disk):
    if not on_disk:
        monkeypatch.setenv("TINYGRAD_RNN_CACHE", "")
    with pytest.raises(ZeroDivisionError) as caught:
        cache.load("def f(x):\n    return 1 // x  # here\n").f(0)
    assert "# here" in "".join(traceback.format_exception(caught.value))


def test_text_that_is_not_python_is_refused_and_forgotten(place):
    before = set(sys.modules)
    with pytest.raises(SyntaxError):
        cache.load("def")
    with pytest.raises(ZeroDivisionError):
        cache.load("1 / 0")
    assert not cache._modules
    assert set(sys.modules) == before


def flip(data):
    """Change one bit of machine code, which no format would notice."""
    return data[:-500] + bytes([data[-500] ^ 1]) + data[-499:]


@pytest.mark.parametrize(
    "spoil",
    [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"garbage" * 99, flip],
    ids=["empty", "truncated", "garbage", "one bit"],
)
def test_a_broken_entry_is_rebuilt(place, spoil):
    summed()
    before = {p: p.read_bytes() for p in entries(place)}
    for path, data in before.items():
        path.write_bytes(spoil(data))
    module = summed()
    assert not module.total.stats.cache_hits
    module = summed()
    assert module.total.stats.cache_hits
    assert set(entries(place)) == set(before)


def test_an_entry_that_cannot_be_unpickled_is_rebuilt(place):
    summed()
    for path in entries(place):
        body = pickle.dumps(("another key", ()))
        path.write_bytes(hashlib.sha256(body).digest() + body)
    summed()
    for path in entries(place):
        body = b"cno_such_module\nname\n."
        path.write_bytes(hashlib.sha256(body).digest() + body)
    summed()
    module = summed()
    assert module.total.stats.cache_hits


def test_an_entry_for_other_types_is_not_run(place):
    again().total(np.ones(3))
    first = set(entries(place))
    again().total(np.ones(3, np.float32))
    (one,) = (p for p in first if "-total" in p.name)
    (two,) = (p for p in set(entries(place)) - first if "-total" in p.name)
    two.write_bytes(one.read_bytes())
    module = again()
    assert module.total(np.ones(3, np.float32)) == 6.0
    assert not module.total.stats.cache_hits


def test_another_release_of_the_compiler_makes_its_own_entries(place, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    seen = set()
    for text in ("one", "two", "two"):
        (tmp_path / "prelude.py").write_text(text)
        seen.add(cache._versions.__wrapped__())
    assert len(seen) == 2


def test_processes_share_it_at_once(tmp_path):
    place = tmp_path / "kernels"
    both = [process(place, code) for code in (RUN, RUN.replace("module.total(np.arange(4.0))",
            "module.total(np.arange(4))", 1), RUN)]  # fmt: skip
    for each in both:
        counts(each)
    assert counts(process(place)) == (2, 0)
    assert not list(place.rglob("*.tmp"))


@posix
@pytest.mark.parametrize("mode", [0o770, 0o702])
@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_that_others_can_write_is_not_used(place, mode, inner):
    summed()
    (place / "__pycache__" if inner else place).chmod(mode)
    with pytest.warns(RuntimeWarning, match="can be written by others.*chmod go-w") as caught:
        module = summed()
    assert len(caught) == 1
    summed()  # warns no more
    assert not module.total.stats.cache_hits
    assert not hasattr(module, "__file__")


@posix
def test_a_folder_of_somebody_else_is_not_used(place, monkeypatch):
    summed()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.warns(RuntimeWarning, match=f"belongs to user {me}, not to you"):
        module = again()
    assert not hasattr(module, "__file__")


@posix
def test_files_that_others_can_write_are_neither_read_nor_replaced(place):
    summed()
    for path in entries(place):
        path.chmod(0o666)
    before = snapshot(place)
    with pytest.warns(RuntimeWarning, match=r"nbc can be written by others") as caught:
        module = summed()
    assert len(caught) == 2  # one for each kernel
    assert not module.total.stats.cache_hits
    source_file(place).chmod(0o620)
    with pytest.warns(RuntimeWarning, match=r"py can be written by others"):
        summed()
    assert snapshot(place) == before


def test_where_no_folder_can_be_made_kernels_live_in_memory(tmp_path, place, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(tmp_path / "file" / "kernels"))
    with pytest.warns(RuntimeWarning, match="not kept on disk.*TINYGRAD_RNN_CACHE") as caught:
        summed()
    assert len(caught) == 1
    summed()  # warns no more


def test_a_disk_that_fails_costs_a_warning_and_leaves_no_draft(place, monkeypatch):
    again()

    def full(self, target):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        summed()
    assert len(caught) == 1
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert cache.load(SOURCE + "\n# other").total(np.ones(3)) == 6.0
    assert not entries(place)
    assert not list(place.rglob("*.tmp"))


def test_a_kernel_that_holds_an_address_says_that_it_is_compiled_anew(place):
    text = """
import ctypes
from numba import njit
cos = ctypes.CDLL(None).cos
cos.argtypes, cos.restype = [ctypes.c_double], ctypes.c_double

@njit(cache=True)
def f(x):
    return cos(x)
"""
    with pytest.warns(RuntimeWarning, match="'f' is compiled anew in each process"):
        assert cache.load(text).f(0.0) == 1.0
    assert not entries(place)


def test_kernels_that_do_not_ask_are_not_kept(place):
    assert cache.load(SOURCE.replace("cache=True, ", "")).total(np.ones(3)) == 6.0
    assert not entries(place)


def test_a_numba_that_is_not_known_compiles_in_memory(place):
    with pytest.warns(RuntimeWarning, match="this release of numba is not known"):
        cache._attach(object(), "f", place / "k_0.py", "0")


def test_entries_can_be_flushed_and_turned_off(place):
    module = again()
    module.total(np.ones(3))
    module.total._cache.flush()
    assert len(entries(place)) == 1  # the other kernel's
    module = again()
    module.total._cache.disable()
    assert module.total(np.ones(3)) == 6.0
    assert len(entries(place)) == 1
    module.total._cache.enable()
    module.total(np.ones(3, np.float32))
    assert len(entries(place)) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_fork_can_load_while_the_parent_was_loading(place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        held, done = threading.Event(), threading.Event()

        def hold():
            with cache._lock:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            os._exit(cache.load("x = 3\n").x)
        status = os.waitpid(pid, 0)[1]
        done.set()
        thread.join()
    assert os.waitstatus_to_exitcode(status) == 3
