"""Runs mutants: each in a child of its own, which imports the mutated package and checks it.

The parent holds what takes long to import, and not the package: a child that imported it could
only mutate it halfway.
"""

import importlib.util
import os
import resource
import select
import signal
import sys
import time
from collections import Counter, defaultdict
from importlib.machinery import SourceFileLoader
from typing import NamedTuple

import hypothesis.extra.numpy
import hypothesis.stateful  # noqa: F401
import numpy as np  # noqa: F401
import pytest  # noqa: F401

from .areas import AREAS, PACKAGE, file_of

SECONDS = 10  # of processor time, for one check: what takes longer will never end
MEMORY = 4 << 30
SURVIVED, KILLED = 0, 1


def load_mutators():
    """Return the module of the mutators, without the package that it is part of."""
    spec = importlib.util.spec_from_file_location("mutators", file_of("testing.mutators"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Job(NamedTuple):
    area: str
    module: str
    mutant: object  # None: the package as it is

    @property
    def key(self):
        """What the list of equivalent mutants calls it."""
        return self.module, self.mutant.key


class Result(NamedTuple):
    job: Job
    outcome: str  # "survived", or how it was killed: "check", "error", "import", "time"
    by: str  # the check
    message: str
    seconds: float


def jobs(areas=None, match=""):
    """Return every mutant of some areas."""
    mutants = load_mutators().mutants
    found = []
    for area in areas or AREAS:
        for module, where in AREAS[area].items():
            source = file_of(module).read_text()
            found += [Job(area, module, m) for m in mutants(source, where) if match in m.key]
    return found


# --- in the child ------------------------------------------------------------------------------


class _Loader(SourceFileLoader):
    """Compiles one module with the fault in it; reads and writes no cache."""

    def __init__(self, name, path, mutant):
        super().__init__(name, path)
        self.mutant = mutant

    def get_code(self, fullname):
        return self.mutant.compile(self.path)


class _Finder:
    def __init__(self, module, mutant):
        self.name, self.path, self.mutant = f"{PACKAGE}.{module}", str(file_of(module)), mutant

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        loader = _Loader(fullname, self.path, self.mutant)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def _child(job, pipe, suite, first):
    """Import the mutated package, run the checks until one fails, and say which."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.dont_write_bytecode = True
    where, code, text = "import", SURVIVED, ""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        if job.mutant is not None:
            sys.meta_path.insert(0, _Finder(job.module, job.mutant))
        kill = importlib.import_module("tests.mutation.kill")
        checks = kill.checks(job.area, job.mutant.function if job.mutant else "", suite)
        ranks = {name: k for k, name in enumerate(first)}
        for check in sorted(checks, key=lambda c: ranks.get(c.__name__, len(ranks))):
            where = check.__name__
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            check()
        where = ""
    except BaseException as error:
        code = KILLED
        text = f"{type(error).__name__}: {error}"
        if where != "import" and not isinstance(error, AssertionError):
            text = "!" + text
    os.write(pipe, f"{where}\n{text}".encode(errors="replace")[:2000])
    os._exit(code)


def _start(job, suite, first):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _child(job, writing, suite, first)
        finally:
            os._exit(KILLED)
    os.close(writing)
    return pid, reading, time.monotonic()


def _finish(job, pid, reading, began):
    text = b""
    while more := os.read(reading, 4096):
        text += more
    os.close(reading)
    status = os.waitpid(pid, 0)[1]
    seconds = time.monotonic() - began
    where, _, message = text.decode(errors="replace").partition("\n")
    if os.WIFSIGNALED(status):
        hung = os.WTERMSIG(status) == signal.SIGPROF
        return Result(
            job, "time" if hung else "error", "", f"signal {os.WTERMSIG(status)}", seconds
        )
    if os.WEXITSTATUS(status) == SURVIVED:
        return Result(job, "survived", "", "", seconds)
    outcome = "import" if where == "import" else "error" if message[:1] == "!" else "check"
    return Result(job, outcome, where, message.removeprefix("!"), seconds)


def run(todo, workers=2, suite="all", see=lambda result: None):
    """Run the jobs, some at a time; return the results in the order of the jobs.

    What has killed mutants of a function, and then of a module, is tried first on the next one.
    """
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} was imported before: its mutants would be mixed with it")
    waiting, running = list(enumerate(todo))[::-1], {}
    results = [None] * len(todo)
    killers = defaultdict(Counter)
    while waiting or running:
        while waiting and len(running) < workers:
            k, job = waiting.pop()
            function = job.mutant.function if job.mutant else ""
            known = [killers[job.module, function], killers[job.module]]
            first = [name for counts in known for name, _ in counts.most_common(8)]
            pid, reading, began = _start(job, suite, list(dict.fromkeys(first)))
            running[reading] = (k, job, pid, began)
        ready, _, _ = select.select(list(running), [], [])
        for reading in ready:
            k, job, pid, began = running.pop(reading)
            results[k] = result = _finish(job, pid, reading, began)
            see(result)
            if job.mutant and result.outcome in ("check", "error") and result.by:
                killers[job.module, job.mutant.function][result.by] += 1
                killers[job.module][result.by] += 1
    return results
