"""The back end that is always there: Python source of NumPy calls into buffers made beforehand."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from .. import ops
from .passes import Schedule, Section
from .rows import VIEWS
from .trace import Value

_PREFIX = {"all": "w", "step": "v"}


class Kernels:
    """The forward and the backward of a schedule, as functions of one generated module."""

    name = "NumPy"

    def __init__(self, schedule: Schedule) -> None:
        self.make(Writer(schedule), {})

    def told(self) -> list[str]:
        """Return what the report says of the functions beside the schedule."""
        return []

    def make(self, writer: Writer, words: dict[str, Any]) -> None:
        """Make functions of what was written; `words` are what they may call."""
        self.source = writer.source()
        names: dict[str, Any] = {"np": np, **writer.constants, **words}
        exec(compile(self.source, "<compiled step>", "exec"), names)
        self.forward, self.backward = names["forward"], names["backward"]


class Writer:
    """Writes the source of a schedule: in names, s is shared, w of all steps, v of one step."""

    def __init__(self, schedule: Schedule) -> None:
        self.plan = schedule
        self.constants: dict[str, Any] = {}
        self.lines: list[str] = []
        self.indent = 1
        self.parameters = [v for v in schedule.program.values if v.leaf == "parameter"]

    def source(self) -> str:
        """Return the text of both functions."""
        self.forward()
        if self.plan.backward:
            self.backward()
        else:
            self.lines += ["def backward(*_):", "    raise RuntimeError('nothing was kept')"]
        return "\n".join(self.lines) + "\n"

    def put(self, text: str) -> None:
        """Add a line."""
        self.lines.append("    " * self.indent + text)

    def constant(self, value: Any) -> str:
        """Return the name of an object that the source cannot spell."""
        name = f"C{len(self.constants)}"
        self.constants[name] = value
        return name

    # --- references

    def ref(self, v: Value, mode: str) -> str:
        """Return how a value is called in a mode."""
        return f"s{v.number}" if v.role == "shared" else f"{_PREFIX[mode]}{v.number}"

    def shape(self, v: Value, mode: str, of: tuple[int | None, ...] | None = None) -> str:
        """Return the shape of a value in a mode, or the shape `of` that its op asks for."""
        rows = "R" if mode == "all" else "N"
        lengths = v.shape if of is None else of
        return "(" + "".join([f"{rows if n is None else n}, " for n in lengths]) + ")"

    # --- what both directions begin with

    def head(self, sections: Iterable[Section], needless: Collection[Value] = ()) -> None:
        """Bind leaves and compute what is shared, but for what is `needless`."""
        program = self.plan.program
        ends = [program.y, *program.states, *program.marks.values()]  # a leaf is in no section
        stack = [v for s in sections for v in s.values]
        stack += [v for v in ends if v.op is None or v.role == "shared"]
        seen = set(stack)
        while stack:
            for i in stack.pop().inputs:
                if i not in seen:
                    seen.add(i)
                    stack.append(i)
        self.put("R = T * N")
        names = {v.name: k for k, v in enumerate(self.parameters)}
        for v in sorted(seen.difference(needless), key=lambda v: v.number):
            if v.role == "shared" and v.leaf == "parameter":
                self.put(f"s{v.number} = parameters[{names[v.name]}]")
            elif v.role == "shared" and v.leaf == "constant":
                self.put(f"s{v.number} = {self.constant(v.array)}")
            elif v.role == "shared":
                self.compute(v, "all", None)
            elif v.leaf == "constant":
                a = self.constant(v.array)
                self.put(f"w{v.number} = np.broadcast_to({a}, {self.shape(v, 'all')})")
                self.put(f"v{v.number} = np.broadcast_to({a}, {self.shape(v, 'step')})")
            elif v.leaf == "x":
                self.put(f"w{v.number} = x")
            elif v.leaf == "inside":
                self.put(f"w{v.number} = inside")
            elif v.leaf == "mask":
                self.put(f"v{v.number} = mask")
                self.put(f"w{v.number} = np.broadcast_to(mask, (T, *mask.shape))"
                         f".reshape((R, *mask.shape[1:]))")  # fmt: skip
            elif v.leaf == "state":
                k = int(v.name)
                self.put(f"w{v.number} = S[{k}][p : p + T].reshape({self.shape(v, 'all')})")

    def slices(self, section: Section, more: Iterable[Value] = ()) -> list[str]:
        """Return the lines that cut, at each step, what a loop reads from outside."""
        lines = []
        outside = dict.fromkeys([*section.outside, *[v for v in more if v.leaf == "x"]])
        for v in section.values:
            outside.update(dict.fromkeys([i for i in v.inputs if i.leaf in ("x", "inside")]))
        for v in outside:
            self.put(f"p{v.number} = w{v.number}.reshape((T, N, *w{v.number}.shape[1:]))")
            lines.append(f"v{v.number} = p{v.number}[t]")
        return lines

    # --- the two functions

    def forward(self) -> None:
        """Write the forward function."""
        plan, program = self.plan, self.plan.program
        self.lines.append("def forward(T, N, reverse, x, S, parameters, inside, mask):")
        self.put("p, q = (1, 0) if reverse else (0, 1)")
        self.head((plan.pre, plan.loop, plan.post))
        for v in plan.pre.values:
            self.compute(v, "all", None)
        loop = set(plan.loop.values)
        outer = [*plan.kept, program.y, *(program.marks.values() if plan.traced else []),
                 *plan.post.outside]  # fmt: skip
        targets: dict[Value, int] = {}
        for k, v in enumerate(program.states):
            if v in loop and v.op not in VIEWS:
                targets.setdefault(v, k)
        buffers = [v for v in dict.fromkeys(outer) if v in loop and v not in targets]
        self.forward_loop(targets, buffers)
        for v in buffers:
            self.put(f"w{v.number} = b{v.number}.reshape({self.shape(v, 'all')})")
        for v, k in targets.items():
            self.put(f"w{v.number} = S[{k}][q : q + T].reshape({self.shape(v, 'all')})")
        for v in plan.post.values:
            self.compute(v, "all", None)
        kept = "".join([f"w{v.number}, " for v in plan.kept])
        marks = "".join(
            [f"{self.ref(v, 'all')}, " for v in (program.marks.values() if plan.traced else [])]
        )
        self.put(f"return {self.ref(program.y, 'all')}, ({marks}), ({kept})")

    def forward_loop(self, targets: dict[Value, int], buffers: list[Value]) -> None:
        """Write the loop over time: `targets` are new states, `buffers` are wanted after it."""
        plan, program = self.plan, self.plan.program
        cuts = self.slices(plan.loop, program.states)
        for v in buffers:
            shape = self.shape(v, "step")[1:]
            self.put(f"b{v.number} = np.empty((T, {shape}, {self.constant(v.dtype)})")
        out = {v: f"b{v.number}[t]" for v in buffers if v.op not in VIEWS}
        out.update({v: f"S[{k}][t + q]" for v, k in targets.items()})
        scratch = self.scratch(plan.loop, out, buffers)
        self.put("for t in range(T - 1, -1, -1) if reverse else range(T):")
        self.indent += 1
        for v in [v for v in program.values if v.leaf == "state"]:
            self.put(f"v{v.number} = S[{v.name}][t + p]")
        for line in cuts:
            self.put(line)
        for v in plan.loop.values:
            self.compute(v, "step", out.get(v) or scratch.get(v))
        for v in buffers:
            if v.op in VIEWS:
                self.put(f"b{v.number}[t] = v{v.number}")
        for k, v in enumerate(program.states):
            if targets.get(v) != k:
                self.put(f"S[{k}][t + q] = {self.ref(v, 'step')}")
        self.indent -= 1

    def backward(self) -> None:
        """Write the backward function."""
        plan, program = self.plan, self.plan.program
        self.lines.append(
            "def backward(T, N, reverse, x, S, parameters, inside, mask, kept, gy, gends, gmarks):"
        )
        self.put("p = 1 if reverse else 0")
        self.head((plan.back_pre, plan.back_loop, plan.sink))
        if plan.kept:
            self.put("".join([f"w{v.number}, " for v in plan.kept]) + "= kept")
        n = len(program.states)
        y_seed, *rest = program.seeds
        if y_seed is not None:
            self.put(f"w{y_seed.number} = gy")
        for k, seed in enumerate(rest[n:]):
            if seed is not None:
                self.put(f"w{seed.number} = gmarks[{k}]")
        for v in plan.back_pre.values:
            self.compute(v, "all", None)
        x_grad = program.x_grad if plan.x_grad else None
        read = {x_grad, *[i for v in plan.sink.values for i in v.inputs]}
        inner = set(plan.back_loop.values)
        needs = [v for v in plan.sink.outside if v in inner]
        seeds = [s for s in rest[:n] if s is not None and s in read]
        self.backward_loop(needs, seeds)
        for v in (*needs, *seeds):
            self.put(f"w{v.number} = b{v.number}.reshape({self.shape(v, 'all')})")
        for v in plan.sink.values:
            self.compute(v, "all", None)
        gx = "None" if x_grad is None else f"np.array({self.ref(x_grad, 'all')})"
        wanted = [program.parameter_grads[p] for p in plan.parameters]
        found = "".join([f"np.array({self.ref(v, 'all')}), " for v in wanted])
        self.put(f"return {gx}, G, ({found})")

    def backward_loop(self, needs: list[Value], seeds: list[Value]) -> None:
        """Write the loop that carries the cotangents of the states back through time.

        Buffers are made of `needs`, and of the cotangents `seeds` that arrive at each step.
        """
        loop, program = self.plan.back_loop, self.plan.program
        inner = set(loop.values)
        n = len(program.states)
        y_seed, *rest = program.seeds
        ends = rest[:n]
        cuts = self.slices(loop)
        for seed in [y_seed, *rest[n:]]:
            if seed is not None and (
                seed in program.state_grads or any(seed in v.inputs for v in loop.values)
            ):
                self.put(f"p{seed.number} = w{seed.number}.reshape("
                         f"(T, N, *w{seed.number}.shape[1:]))")  # fmt: skip
                cuts.append(f"v{seed.number} = p{seed.number}[t]")
        for v in program.state_grads:
            if v is not None and v not in inner and v.op is not None and v.role != "shared":
                self.put(f"p{v.number} = w{v.number}.reshape((T, N, *w{v.number}.shape[1:]))")
                cuts.append(f"v{v.number} = p{v.number}[t]")
        for v in (*needs, *seeds):
            self.put(f"b{v.number} = np.empty((T, {self.shape(v, 'step')[1:]}, "
                     f"{self.constant(v.dtype)})")  # fmt: skip
        grads = program.state_grads
        for k in range(n):
            self.put(f"G{k} = gends[{k}]")
        self.put("H = [(np.empty_like(g), np.empty_like(g)) for g in gends]")
        out = {v: f"b{v.number}[t]" for v in needs}
        targets: dict[Value, int] = {}
        for k, g in enumerate(grads):
            if g is not None and g in inner and g.op not in VIEWS and g not in out:
                targets.setdefault(g, k)
        out.update({v: f"H[{k}][t & 1]" for v, k in targets.items()})
        scratch = self.scratch(loop, out, needs)
        self.put("for t in range(T) if reverse else range(T - 1, -1, -1):")
        self.indent += 1
        for v in [v for v in program.values if v.leaf == "state"]:
            self.put(f"v{v.number} = S[{v.name}][t + p]")
        for k, s in enumerate(ends):
            if s is not None:
                self.put(f"v{s.number} = G{k}")
        for line in cuts:
            self.put(line)
        for v in seeds:
            self.put(f"b{v.number}[t] = v{v.number}")
        for v in loop.values:
            self.compute(v, "step", out.get(v) or scratch.get(v))
        for k, g in enumerate(grads):
            if g is None:
                self.put(f"H[{k}][t & 1][...] = 0")
            elif targets.get(g) != k:
                self.put(f"H[{k}][t & 1][...] = {self.ref(g, 'step')}")
        for k in range(n):
            self.put(f"G{k} = H[{k}][t & 1]")
        self.indent -= 1
        self.put("G = [" + ", ".join([f"G{k}" for k in range(n)]) + "]")

    # --- buffers

    def scratch(
        self, section: Section, taken: dict[Value, str], late: Iterable[Value]
    ) -> dict[Value, str]:
        """Give the values of a loop buffers that are used again when nothing reads them."""
        root: dict[Value, Value] = {}
        last: dict[Value, int] = {}
        for k, v in enumerate(section.values):
            root[v] = root.get(v.inputs[0], v.inputs[0]) if v.op in VIEWS else v
            for i in v.inputs:
                last[root.get(i, i)] = k
            last.setdefault(root[v], k)
        program = self.plan.program
        for v in (*program.states, *[g for g in program.state_grads if g is not None]):
            last[root.get(v, v)] = len(section.values)  # read after the last
        for v in late:
            last[root.get(v, v)] = len(section.values)
        free: dict[tuple[str, Any], list[str]] = {}
        names: dict[Value, str] = {}
        dying: dict[int, list[Value]] = {}
        for v, k in last.items():
            dying.setdefault(k, []).append(v)
        for k, v in enumerate(section.values):
            if v.op not in VIEWS and v not in taken and _has_out(v):
                key = self.shape(v, "step"), v.dtype
                if free.get(key):
                    names[v] = free[key].pop()
                else:
                    names[v] = f"z{v.number}"
                    self.put(f"z{v.number} = np.empty({key[0]}, {self.constant(v.dtype)})")
            for d in dying.get(k, []):
                if d in names:
                    free.setdefault((self.shape(d, "step"), d.dtype), []).append(names[d])
        return names

    # --- one op

    def compute(self, v: Value, mode: str, out: str | None) -> None:
        """Write the line that computes a value, into `out` where it is given."""
        assert v.op is not None
        name = self.ref(v, mode)
        args = [self.ref(i, mode) for i in v.inputs]
        if v.role == "shared":
            attrs = self.constant(v.attrs)
            self.put(f"{name} = {self.constant(v.op.forward)}({', '.join(args)}, **{attrs})")
            return
        op = v.op
        if out and op not in VIEWS and not _has_out(v):
            self.compute(v, mode, None)
            self.put(f"{out}[...] = {name}")
        elif op in VIEWS or op is ops.scatter:
            self.view(v, name, args, mode)
        elif isinstance(op.forward, np.ufunc):
            word = "out=" if op in (ops.maximum, ops.minimum) else ""  # a third input to them
            tail = f", {word}{out}" if out else ""
            self.put(f"{name} = {self.constant(op.forward)}({', '.join(args)}{tail})")
        elif op is ops.sigmoid and out:
            self.put(f"{name} = np.negative({args[0]}, {out})")
            quiet = self.constant(ops._quiet)  # exp may overflow, as in `ops.sigmoid`
            self.put(f"{quiet}.run(np.exp, {name}, {name}); np.add({name}, 1, {name})")
            self.put(f"np.reciprocal({name}, {name})")
        elif op is ops.sum and out:
            axis, keep = v.attrs.get("axis"), v.attrs.get("keepdims", False)
            self.put(f"{name} = np.add.reduce({args[0]}, {axis!r}, None, {out}, {keep})")
        elif op is ops.concat and out:
            self.put(f"{name} = np.concatenate(({', '.join(args)},), {v.attrs['axis']}, {out})")
        elif op is ops.where and out:
            mask, a, b = args
            self.put(f"{name} = {out}; np.copyto({name}, {b})")
            self.put(f"np.copyto({name}, {a}, where={mask})")
        else:
            attrs = self.constant(v.attrs)
            self.put(f"{name} = {self.constant(op.forward)}({', '.join(args)}, **{attrs})")

    def view(self, v: Value, name: str, args: list[str], mode: str) -> None:
        """Write the line of an op that moves or adds nothing but places."""
        attrs = v.attrs
        if v.op is ops.part:
            index = (slice(None),) * attrs["axis"] + (slice(attrs["start"], attrs["stop"]),)
            self.put(f"{name} = {args[0]}[{self.constant(index)}]")
        elif v.op is ops.getitem:
            self.put(f"{name} = {args[0]}[{self.constant(attrs['index'])}]")
        elif v.op is ops.reshape:
            self.put(f"{name} = {args[0]}.reshape({self.shape(v, mode, attrs['shape'])})")
        elif v.op is ops.transpose:
            self.put(f"{name} = {args[0]}.transpose({attrs.get('axes')!r})")
        elif v.op is ops.broadcast:
            self.put(f"{name} = np.broadcast_to({args[0]}, {self.shape(v, mode, attrs['shape'])})")
        else:
            index = self.constant(attrs["index"])
            scatter = self.constant(ops.scatter.forward)
            self.put(f"{name} = {scatter}({', '.join(args)}, index={index}, "
                     f"shape={self.shape(v, mode, attrs['shape'])})")  # fmt: skip


def _has_out(v: Value) -> bool:
    assert v.op is not None
    return isinstance(v.op.forward, np.ufunc) or v.op in (
        ops.sigmoid, ops.sum, ops.concat, ops.where
    )  # fmt: skip
