"""The peer that compiles: ``jax.jit`` of ``lax.scan`` over the LSTM's step, with its vjp."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .compiled import Case, Contestant
from .problem import Array


def scan(case: Case) -> Contestant:
    """Output and gradients from one compiled function; gates i, f, g, o from a state of 0."""
    H, N, _, _ = case.size
    P = {k: jnp.asarray(w) for k, w in case.weights.items()}
    x, cotangent = jnp.asarray(case.x), jnp.asarray(case.cotangent)

    def net(P: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], x_t: jax.Array):
            h, c = state
            i, f, g, o = jnp.split(x_t @ P["W_x"] + P["b"] + h @ P["W_h"], 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((N, H), jnp.float32)
        return lax.scan(step, (zero, zero), x)[1]

    @jax.jit
    def both(P: dict[str, jax.Array], x: jax.Array, cotangent: jax.Array):
        out, pullback = jax.vjp(net, P, x)
        return out, pullback(cotangent)

    last = []

    def run() -> None:
        last[:] = jax.block_until_ready(both(P, x, cotangent))

    def gradients() -> dict[str, Array]:
        of_weights, of_x = last[1]
        return {"x": np.asarray(of_x), **{k: np.asarray(g) for k, g in of_weights.items()}}

    return Contestant(run, gradients)
