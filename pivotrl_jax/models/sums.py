"""Sums over the last axis, and products whose derivatives are such sums.

On CPU written as products with ones: there XLA computes `(x * y).sum(-1)` on
one core where the first axis is 1, as that of a batch of one line is.
"""

import functools

import jax
import jax.numpy as jnp

from pivotrl_jax.models import backend


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """`(x * y).sum(-1)`, of x and y `[..., C]`."""
  if backend.name() != "cpu":
    return (x * y).sum(-1)
  ones = jnp.ones((x.shape[-1], 1), x.dtype)
  return jnp.matmul(x * y, ones, precision="highest")[..., 0]


def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
  """`x * factor[..., None]`, of x `[..., C]`."""
  if backend.name() != "cpu":
    return x * factor[..., None]
  return _spread(x, factor)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _spread(x, factor):
  # Not kept for the backward pass as large as x: made again.
  ones = jnp.ones((1, x.shape[-1]), factor.dtype)
  return x * jnp.matmul(factor[..., None], ones, precision="highest")
