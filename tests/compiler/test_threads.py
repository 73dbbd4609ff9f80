"""Tasks on threads: each once, errors and Ctrl-C after all have stopped, no deadlock anywhere."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn.compiler import threads
from tinygrad_rnn.compiler.threads import Pool, cpus, run

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds after which something that should have happened has not
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
forks_beside_threads = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def script(code, **env):
    """Run a process of its own, which must end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | env, cwd=ROOT, text=True, capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    return done.returncode, done.stdout.split(), done.stderr


def meeting(number):
    """Give tasks that end only when all of them run at once, and the threads they ran on."""
    barrier, names = threading.Barrier(number, timeout=LIMIT), set()

    def task():
        barrier.wait()
        names.add(threading.current_thread())

    return [task] * number, names


def in_child(check):
    """Fork, and return what the child's check gives as its exit status."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            signal.alarm(LIMIT)
            code = check()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_cpus_follow_the_affinity(monkeypatch):
    assert 1 <= cpus() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 5}, raising=False)
    assert cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpus() == 1


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 50])
def test_each_task_runs_once(number, tasks):
    seen = [0] * tasks

    def task(i):
        seen[i] += 1

    run([lambda i=i: task(i) for i in range(tasks)], number)
    assert seen == [1] * tasks


def test_tasks_run_at_once_and_the_caller_takes_part():
    tasks, names = meeting(3)
    run(tasks, 3)
    assert len(names) == 3
    assert threading.current_thread() in names


def test_workers_are_kept():
    pool = Pool()
    tasks, names = meeting(2)
    for _ in range(5):
        pool.run(tasks, 2)
    assert len(names) == 2


def test_one_thread_runs_in_order_on_the_caller():
    pool, seen = Pool(), []
    pool.run([lambda i=i: seen.append((i, threading.get_ident())) for i in range(4)], 1)
    assert seen == [(i, threading.get_ident()) for i in range(4)]
    assert not pool._crew.workers


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_threads_than_the_caller_are_refused(number):
    with pytest.raises(ValueError, match=f"threads is {number}; .*1 is the least"):
        run([int], number)


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_error_is_raised_once_all_have_stopped(number):
    stop = np.ones(1, np.uint8)
    ended, later = [], []
    began = threading.Event()

    def long():
        began.set()
        while not stop[0]:
            time.sleep(0.001)
        time.sleep(0.05)
        ended.append(1)

    def wrong():
        if number > 1:
            assert began.wait(LIMIT)
        raise ZeroDivisionError("this one")

    tasks = [wrong] if number == 1 else [long, wrong]
    with pytest.raises(ZeroDivisionError, match="this one"):
        run([*tasks, *[lambda: later.append(1)] * 20], number, stop)
    assert len(ended) == number - 1
    assert not later
    assert stop[0] == 1
    run([int, int], number, stop)
    assert stop[0] == 0


def test_an_error_in_a_worker_reaches_the_caller_and_leaves_the_pool_usable():
    pool, me = Pool(), threading.current_thread()
    barrier = threading.Barrier(2, timeout=LIMIT)

    def task():
        barrier.wait()
        if threading.current_thread() is not me:
            raise SystemExit("from a worker")

    for _ in range(3):
        with pytest.raises(SystemExit, match="from a worker"):
            pool.run([task, task], 2)
    tasks, names = meeting(2)
    pool.run(tasks, 2)
    assert len(names) == 2


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_kept_of_the_tasks_and_their_errors(fail):
    class Big:
        pass

    def call():
        big, barrier, me = Big(), threading.Barrier(2, timeout=LIMIT), threading.get_ident()

        def task():
            barrier.wait()
            if fail and threading.get_ident() != me:
                raise KeyError(big)

        with contextlib.suppress(KeyError):
            run([task, task], 2)
        return weakref.ref(big)

    kept = call()
    deadline = time.monotonic() + 5
    while kept() is not None and time.monotonic() < deadline:
        time.sleep(0.001)  # a worker may just be letting go
    assert kept() is None


def test_ctrl_c_comes_before_the_error_of_a_task():
    job, interrupt = threads.Job([], None), KeyboardInterrupt()
    for error in (KeyError(), interrupt, ValueError()):
        job.fail(error)
    assert job.error is interrupt


def test_a_call_inside_a_task_runs_there():
    pool, where = Pool(), []
    pool.run(meeting(6)[0], 6)  # so that there are workers who would like to help
    lock = threading.Lock()

    def inner():
        where.append(threading.get_ident())
        time.sleep(0.005)

    def outer():
        with lock:
            before = len(where)
            pool.run([inner] * 4, 4)
            assert where[before:] == [threading.get_ident()] * 4

    pool.run([outer] * 3, 2)
    assert len(where) == 12


def test_several_callers_share_the_workers():
    pool, totals = Pool(), [0, 0, 0, 0]

    def caller(k):
        for _ in range(200):
            seen = []
            pool.run([lambda i=i, s=seen: s.append(i) for i in range(5)], 3)
            assert sorted(seen) == list(range(5))
            totals[k] += 1

    callers = [threading.Thread(target=caller, args=(k,), daemon=True) for k in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(LIMIT)
    assert totals == [200] * 4
    assert len(pool._crew.workers) == 2


def test_a_caller_does_not_wait_for_workers_that_are_busy_elsewhere():
    pool, gate, inside = Pool(), threading.Event(), threading.Barrier(3, timeout=LIMIT)

    def block():
        inside.wait()
        assert gate.wait(LIMIT)

    other = threading.Thread(target=lambda: pool.run([block, block], 2), daemon=True)
    other.start()
    inside.wait()
    seen = []
    pool.run([lambda i=i: seen.append(i) for i in range(4)], 2)
    assert sorted(seen) == [0, 1, 2, 3]
    gate.set()
    other.join(LIMIT)
    assert not other.is_alive()


def test_without_new_threads_the_caller_does_it_all(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen = []
    Pool().run([lambda i=i: seen.append(i) for i in range(4)], 4)
    assert seen == [0, 1, 2, 3]


def test_a_closed_or_dropped_pool_sends_its_workers_home():
    pool = Pool()
    tasks, _ = meeting(3)
    pool.run(tasks, 3)
    workers = list(pool._crew.workers)
    pool.close()
    assert not any(w.is_alive() for w in workers)
    seen = []
    pool.run([lambda: seen.append(1)] * 3, 3)
    assert seen == [1, 1, 1]
    pool = Pool()
    pool.run(tasks, 3)
    workers = list(pool._crew.workers)
    del pool
    for worker in workers:
        worker.join(LIMIT)
    assert not any(w.is_alive() for w in workers)


@forks
@forks_beside_threads
def test_a_child_of_fork_makes_its_own_workers():
    tasks, _ = meeting(2)
    run(tasks, 2)

    def check():
        tasks, names = meeting(2)
        run(tasks, 2)
        return len(names)

    assert in_child(check) == 2
    run(tasks, 2)


@forks
@forks_beside_threads
def test_a_child_forked_while_others_run_does_not_wait_for_them():
    gate, inside = threading.Event(), threading.Barrier(3, timeout=LIMIT)

    def block():
        inside.wait()
        assert gate.wait(LIMIT)

    other = threading.Thread(target=lambda: run([block, block], 2), daemon=True)
    other.start()
    inside.wait()

    def check():
        tasks, names = meeting(2)
        run(tasks, 2)
        return len(names)

    try:
        with threads._pool._crew.lock:
            assert in_child(check) == 2
    finally:
        gate.set()
        other.join(LIMIT)


CTRL_C = """
import os, signal, threading, time
import numpy as np
from tinygrad_rnn.compiler.threads import run
stop = np.zeros(1, np.uint8)
main = threading.current_thread()
began, ended = threading.Barrier(2, timeout=30), []
def task():
    began.wait()
    if threading.current_thread() is main and WAIT:
        return
    if threading.current_thread() is not main:
        os.kill(os.getpid(), signal.SIGINT)
    while not stop[0]:
        time.sleep(0.001)
    ended.append(1)
try:
    run([task, task], 2, stop)
except KeyboardInterrupt:
    print("interrupted", len(ended))
tasks = [lambda: ended.append(2)] * 4
run(tasks, 2, stop)
print(len(ended))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.parametrize("wait", ["True", "False"], ids=["waiting", "working"])
def test_ctrl_c_interrupts_after_the_workers_have_stopped(wait):
    code, out, err = script(CTRL_C.replace("WAIT", wait))
    assert (code, out) == (0, ["interrupted", "1", "5"]), err


def test_the_interpreter_ends_with_workers_waiting_and_working():
    code, out, err = script(
        "import threading, time, atexit\n"
        "def late(): run([lambda: print('late')] * 2, 2)\n"
        "atexit.register(late)\n"
        "from tinygrad_rnn.compiler.threads import run\n"
        "run([lambda: time.sleep(0.01)] * 4, 3)\n"
        "t = threading.Thread(target=lambda: run([lambda: time.sleep(1e4)] * 2, 2), daemon=True)\n"
        "t.start(); time.sleep(0.1); print('end')\n"
    )
    assert (code, out, err) == (0, ["end", "late", "late"], "")
