"""Independent tasks on threads."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Task = Callable[[], object]
Stop = NDArray[np.uint8]
PATIENCE = 1.0  # seconds that the interpreter's exit waits for each worker

_local = threading.local()


def cpus() -> int:
    """Return how many CPUs this process may use, by its affinity where the system has one.

    Examples
    --------
    >>> cpus() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Job:
    """The tasks of one call, handed out one by one to whoever asks."""

    def __init__(self, tasks: Sequence[Task], stop: Stop | None) -> None:
        self._tasks = deque(tasks)
        self._stop = stop
        self._lock = threading.Lock()
        self._busy = 0  # workers inside, the caller not counted
        self._closed = False
        self._left = threading.Event()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Run tasks until none is left."""
        take = self._tasks.popleft  # one step for all threads
        while True:
            try:
                task = take()
            except IndexError:
                return
            task()

    def help(self) -> None:
        """Do a worker's share; nothing where the call is over."""
        with self._lock:
            if self._closed:
                return
            self._busy += 1
        try:
            self.work()
        except BaseException as error:
            self.fail(error)
        finally:
            with self._lock:
                self._busy -= 1
                if self._closed and not self._busy:
                    self._left.set()

    def fail(self, error: BaseException) -> None:
        """Keep the first error, drop the tasks not begun, and tell the others to stop."""
        with self._lock:
            if self.error is None or isinstance(error, KeyboardInterrupt):
                self.error = error
        self._tasks.clear()
        if self._stop is not None:
            self._stop[...] = 1

    def close(self) -> None:
        """Wait until no worker is inside; none comes in any more."""
        with self._lock:
            self._closed = True
            if not self._busy:
                return
        self._left.wait()


class _Crew:
    """The workers of one process, and the queue that they wait at."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.workers: list[threading.Thread] = []
        self.over = False

    def grow(self, wanted: int) -> int:
        """Start workers up to a number; return how many there are, at most that many."""
        with self.lock:
            while len(self.workers) < wanted and not self.over:
                worker = threading.Thread(
                    target=_attend,
                    args=(self.queue,),
                    name=f"tinygrad_rnn-{len(self.workers) + 1}",
                    daemon=True,
                )
                try:
                    worker.start()
                except RuntimeError:  # the system gives no more, or the interpreter ends
                    break
                self.workers.append(worker)
            return 0 if self.over else min(wanted, len(self.workers))

    def __del__(self) -> None:
        if self.pid == os.getpid():
            for _ in self.workers:  # they know the queue only
                self.queue.put(None)

    def end(self) -> None:
        """Send the workers home."""
        with self.lock:
            self.over = True
            for _ in self.workers:
                self.queue.put(None)
        for worker in self.workers:
            worker.join(PATIENCE)
        self.workers.clear()


def _attend(jobs: queue.SimpleQueue[Job | None]) -> None:
    _local.inside = True
    while (job := jobs.get()) is not None:
        job.help()
        del job  # it holds arrays, which a waiting worker must not


class Pool:
    """Worker threads that run independent tasks beside the thread that calls.

    Workers are started when first needed and wait for the next call; a child made by
    ``os.fork`` starts its own.  Several threads may call at once: they share the workers, and
    none waits for another, since each can do all of its tasks itself.

    Examples
    --------
    >>> seen = [0, 0, 0]
    >>> Pool().run([lambda i=i: seen.__setitem__(i, i * i) for i in range(3)], 2)
    >>> seen
    [0, 1, 4]
    """

    def __init__(self) -> None:
        self._crew = _Crew()
        _pools.add(self)

    def run(self, tasks: Sequence[Task], threads: int, stop: Stop | None = None) -> None:
        """Run each task once, on at most that many threads, the calling thread among them.

        Which thread runs a task, and in which order, is left open, so tasks must not share
        what they write.  A call from inside a task runs its own tasks one after another.

        Parameters
        ----------
        tasks
            Callables without arguments; only those that release the interpreter's lock gain.
        threads
            How many threads; with one, the tasks run here in order.
        stop
            An array of one ``uint8`` that long tasks look at, also in compiled code: it is 0 at
            first, and 1 once a task has failed or the call was interrupted.

        Raises
        ------
        ValueError
            `threads` is less than 1.
        BaseException
            The first that a task raised, or the ``KeyboardInterrupt`` of Ctrl-C, after the tasks
            begun have come to their end and the others were dropped.  A second Ctrl-C does not
            wait for them.
        """
        if threads < 1:
            raise ValueError(f"threads is {threads}; it counts the caller, so 1 is the least")
        if stop is not None:
            stop[...] = 0
        if threads == 1 or len(tasks) < 2 or getattr(_local, "inside", False):
            _alone(tasks, stop)
            return
        crew = self._crew
        if crew.pid != os.getpid():  # a child of os.fork has none of the threads
            crew = self._crew = _Crew()
        helpers = crew.grow(min(threads, len(tasks)) - 1)
        job = Job(tasks, stop)
        try:
            _local.inside = True
            for _ in range(helpers):
                crew.queue.put(job)
            job.work()
            job.close()
        except BaseException as error:
            job.fail(error)
            job.close()
        finally:
            _local.inside = False
        first, job.error = job.error, None  # its traceback refers to the job: no circle
        if first is not None:
            try:
                raise first
            finally:
                del first

    def close(self) -> None:
        """Send the workers home; later calls run their tasks on the calling thread."""
        self._crew.end()


def _alone(tasks: Sequence[Task], stop: Stop | None) -> None:
    """Run the tasks here, one after another."""
    try:
        for task in tasks:
            task()
    except BaseException:
        if stop is not None:
            stop[...] = 1
        raise


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_pool = Pool()


def run(tasks: Sequence[Task], threads: int, stop: Stop | None = None) -> None:
    """Run independent tasks on the threads that all compiled layers share; see `Pool.run`.

    Examples
    --------
    >>> seen = []
    >>> run([lambda: seen.append(1), lambda: seen.append(2)], threads=1)
    >>> seen
    [1, 2]
    """
    _pool.run(tasks, threads, stop)


def _end() -> None:
    for pool in list(_pools):
        pool.close()


atexit.register(_end)
