"""The BLAS is held at one thread inside ``blas_alone``, and has its own number again after."""

import sys
import threading

import pytest

from tinygrad_rnn.compiler import threads

from .test_threads import LIMIT, forks, script


class FakeBlas:
    """A library as threadpoolctl describes it."""

    user_api = "blas"

    def __init__(self, number, internal="openblas", layer="pthreads"):
        self.internal_api, self.threading_layer = internal, layer
        self.number, self.calls = number, []

    def get_num_threads(self):
        return self.number

    def set_num_threads(self, number):
        self.calls.append(number)
        self.number = number


@pytest.fixture
def fake(monkeypatch):
    """Return a maker of contexts that hold the libraries given."""
    pytest.importorskip("threadpoolctl")

    def make(*libraries):
        monkeypatch.setattr(threads, "_controllers", lambda control: list(libraries))
        return threads.Alone()

    return make


def test_libraries_are_held_at_one_thread_and_restored(fake):
    many, one = FakeBlas(4), FakeBlas(1)
    alone = fake(many, one)
    with alone:
        assert many.number == 1
        with alone:
            assert many.number == 1
        assert many.number == 1
    assert many.number == 4
    assert many.calls == [1, 4]
    assert one.calls == []


def test_an_error_inside_restores(fake):
    many = FakeBlas(4)
    alone = fake(many)
    with pytest.raises(KeyError), alone:
        raise KeyError
    assert many.number == 4


def test_the_last_thread_to_leave_restores(fake):
    many, first, second = FakeBlas(4), threading.Event(), threading.Event()
    alone = fake(many)

    def other():
        with alone:
            first.set()
            assert second.wait(LIMIT)
        first.set()

    thread = threading.Thread(target=other)
    with alone:
        thread.start()
        assert first.wait(LIMIT)
    assert many.number == 1
    second.set()
    thread.join(LIMIT)
    assert many.number == 4


def test_numbers_that_belong_to_a_thread_are_held_for_each(fake):
    own = threading.local()

    class Mkl(FakeBlas):
        def get_num_threads(self):
            return getattr(own, "number", 4)

        def set_num_threads(self, number):
            own.number = number

    library, seen = Mkl(0, "mkl"), []
    alone = fake(library)

    def other():
        seen.append(library.get_num_threads())
        with alone:
            seen.append(library.get_num_threads())
        seen.append(library.get_num_threads())

    with alone:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(LIMIT)
        assert library.get_num_threads() == 1
    assert library.get_num_threads() == 4
    assert seen == [4, 1, 4]


def test_an_import_has_the_libraries_looked_for_again(fake, monkeypatch):
    alone = fake()
    with alone:
        pass
    many = FakeBlas(4)
    monkeypatch.setattr(threads, "_controllers", lambda control: [many])
    with alone:
        assert many.number == 4
    monkeypatch.setitem(sys.modules, "a_module_that_brings_a_library", threads)
    with alone:
        assert many.number == 1


def test_without_threadpoolctl_nothing_happens(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    alone = threads.Alone()
    with alone, alone:
        assert alone._shared == alone._own == []


REAL = """
import os, threading
import numpy, scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits
from tinygrad_rnn.compiler.threads import blas_alone
def numbers():
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
first, second = threading.Event(), threading.Event()
def other():
    with blas_alone():
        first.set()
        second.wait(30)
print(*numbers())
thread = threading.Thread(target=other)
with blas_alone():
    print(*numbers())
    thread.start()
    first.wait(30)
print(*numbers())
FORK
second.set()
thread.join()
print(*numbers())
with threadpool_limits(2):  # by this thread, while the other holds and leaves
    first.clear()
    second.clear()
    thread = threading.Thread(target=other)
    thread.start()
    first.wait(30)
    print(*numbers())
    second.set()
    thread.join()
print(*numbers())
"""
FORK = """
import sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
sys.stdout.flush()
if not os.fork():  # the thread that holds is not in the child
    print(*numbers())
    with blas_alone():
        print(*numbers(), flush=True)
    os._exit(0)
os.wait()
"""


@forks
def test_the_blas_that_are_loaded_are_held_whichever_thread_leaves_last():
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("scipy")
    code, out, err = script(REAL.replace("FORK", FORK), OPENBLAS_NUM_THREADS="2")
    if code == 0 and out[0] != "2":
        pytest.skip("no BLAS here that OPENBLAS_NUM_THREADS sets")
    assert (code, out) == (0, ["2", "1", "1", "2", "1", "2", "1", "2"]), err
