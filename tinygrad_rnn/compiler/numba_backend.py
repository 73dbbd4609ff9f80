"""The back end for speed: the loops over time are numba kernels, what is around them is NumPy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import numpy_backend
from .errors import CompileError
from .fused import Loop, Place, features
from .numpy_backend import Writer
from .passes import Schedule, Section
from .rows import VIEWS
from .threads import blas_alone, cpus, run
from .trace import Value

_WORTH = 1 << 15  # numbers of a state over all steps; fewer take less than a thread's start


def available() -> bool:
    """Return whether numba and scipy are installed."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("numba", "scipy"))


class Kernels(numpy_backend.Kernels):
    """The forward and the backward of a schedule."""

    name = "numba"

    def __init__(self, schedule: Schedule, threads: int | None = None) -> None:
        from .prelude import gemm_address

        self.threads = cpus() if threads is None else threads
        writer = FusedWriter(schedule)
        words = {
            "BLAS": gemm_address(writer.dtype), "tile": _tile, "run": run, "partial": partial,
            "alone": blas_alone, "threads": self.worth, "kernels": writer.kernels,
        }  # fmt: skip
        self.make(writer, words)
        module = _load("\n".join([loop.source for loop in writer.loops]))
        for loop in writer.loops:
            setattr(writer.kernels, loop.name, getattr(module, loop.name))

    def worth(self, numbers: int) -> int:
        """Return how many threads a loop over so many numbers is worth."""
        return self.threads if numbers > _WORTH else 1


_HEAD = '''

from numba import njit
from numba.core.compiler import CompilerBase, DefaultPassBuilder

CACHE = True
U = np.uint64  # as an index it cannot be negative, so that no check stands in the way of SIMD


class Apart(CompilerBase):
    """Compiles functions of which no two arrays overlap."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


'''


def _load(text: str) -> Any:
    from .cache import load

    head = (Path(__file__).parent / "prelude.py").read_text(encoding="utf-8")
    return load(head + _HEAD + text)


def _tile(N: int, width: int) -> int:
    """Return how many rows a tile has: few, where the weights fit into the cache beside them."""
    return N if width > 256 else 8


class FusedWriter(Writer):
    """Writes the sections around the loops for NumPy, and a call of a kernel for each loop."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.loops: list[Loop] = []
        self.dtype = schedule.program.y.dtype
        self.kernels = SimpleNamespace()  # what the loops become

    def call(self, loop: Loop) -> None:
        """Write the tiles of a loop."""
        self.loops.append(loop)
        for name in loop.arguments:
            if name.startswith("m"):
                self.put(f"{name} = s{name[1:]}.ravel()")
            elif name.startswith("s"):
                self.put(f"{name} = np.ravel({name})")
        arguments = ", ".join(loop.arguments)
        widest = max([features(v) for v in self.plan.program.states], default=1)
        self.put(f"rows = tile(N, {widest})")
        self.put("with alone():")
        self.put(
            f"    run([partial(kernels.{loop.name}, T, N, r0, min(N, r0 + rows), reverse, BLAS,"
        )
        self.put(f"        {arguments}) for r0 in range(0, N, rows)], threads(T * N * {widest}))")

    def outer(self, section: Section) -> dict[Value, Place]:
        """Return the places of the leaves and values that a loop reads from outside."""
        places: dict[Value, Place] = {}
        program = self.plan.program
        ends = program.seeds[1 : 1 + len(program.states)]
        outside = dict.fromkeys(section.outside)
        for v in section.values:
            outside.update(dict.fromkeys([i for i in v.inputs if i.op is None]))
        for v in outside:
            if v.role != "rows" or v.leaf == "constant" or v in ends:
                continue
            name, k = f"w{v.number}", features(v)
            if v.leaf == "state":
                places[v] = Place(f"S{v.name}", "(t + p) * N + n", k)
            elif v.leaf == "mask":
                self.put(f"f{v.number} = mask.ravel()")
                places[v] = Place(f"f{v.number}", "0 + n", k)
            else:
                self.put(f"f{v.number} = {name}.ravel()")
                places[v] = Place(f"f{v.number}", "t * N + n", k)
        return places

    def buffer(self, v: Value) -> Place:
        """Make a buffer for a value of all steps."""
        self.put(f"b{v.number} = np.empty(R * {features(v)}, {self.constant(v.dtype)})")
        return Place(f"b{v.number}", "t * N + n", features(v))

    def forward_loop(self, targets: dict[Value, int], buffers: list[Value]) -> None:
        """Write the call of the kernel of the forward loop."""
        plan, program = self.plan, self.plan.program
        loop = set(plan.loop.values)
        places = self.outer(plan.loop)
        for k in range(len(program.states)):
            self.put(f"S{k} = S[{k}].reshape(-1)")
        copies: list[tuple[Value, Place]] = []
        for k, v in enumerate(program.states):
            place = Place(f"S{k}", "(t + q) * N + n", features(v))
            if targets.get(v) == k:
                places[v] = place
            else:
                copies.append((v, place))
        for v, _ in copies:
            if v.op is not None and v not in loop and v.role == "rows":
                self.put(f"f{v.number} = w{v.number}.ravel()")
                places[v] = Place(f"f{v.number}", "t * N + n", features(v))
        for v in buffers:
            place = self.buffer(v)
            if v.op in VIEWS:
                copies.append((v, place))
            else:
                places[v] = place
        self.call(Loop("step_forward", plan.loop, places, copies, False, self.dtype))

    def backward_loop(self, needs: list[Value], seeds: list[Value]) -> None:
        """Write the call of the kernel that carries the cotangents back through time."""
        loop, program = self.plan.back_loop, self.plan.program
        inner = set(loop.values)
        n = len(program.states)
        ends = program.seeds[1 : 1 + n]
        places = self.outer(loop)
        for k in range(n):
            self.put(f"G{k} = gends[{k}].reshape(-1)")
            self.put(f"S{k} = S[{k}].reshape(-1)")
        for k, s in enumerate(ends):
            if s is not None:
                places[s] = Place(f"G{k}", "0 + n", features(s))
        copies: list[tuple[Value, Place]] = []
        for v in needs:
            places[v] = self.buffer(v)
        for v in seeds:
            copies.append((v, self.buffer(v)))
        twice = []
        for k, g in enumerate(program.state_grads):
            place = Place(f"G{k}", "0 + n", features(program.states[k]))
            if g is None:
                raise CompileError("a state without a gradient runs on NumPy")
            if g.op is not None and g not in inner:
                self.put(f"f{g.number} = w{g.number}.ravel()")
                places[g] = Place(f"f{g.number}", "t * N + n", features(g))
            elif g.op is None or g.op in VIEWS:
                twice.append(g)
            copies.append((g, place))
        if len(twice) > 1 or (twice and n > 1):
            raise CompileError("a cotangent that passes through as it is runs on NumPy")
        self.call(Loop("step_backward", loop, places, copies, True, self.dtype))
        self.put("G = gends")
