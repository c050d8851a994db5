"""Sums over the last axis, and products whose derivatives are such sums.

Written as matrix products: XLA for CPU computes `(x * y).sum(-1)` on one core
where the first axis is 1, as that of a batch of one line is.
"""

import jax
import jax.numpy as jnp


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """`(x * y).sum(-1)`, of x and y `[..., C]`."""
  return jnp.einsum("...c,...c->...", x, y, precision="highest")


def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
  """`x * factor[..., None]`, of x `[..., C]`."""
  return jnp.einsum("...c,...->...c", x, factor, precision="highest")
