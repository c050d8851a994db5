"""Sums as products: what they stand for, also as many directions at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pivotrl_jax.models import sums


def _plain_dot(x, y):
  return (x * y).sum(-1)


def _plain_scaled(x, factor):
  return x * factor[..., None]


@pytest.mark.parametrize("shape", [(1, 700, 4, 32), (2, 5, 7), (3,)])
@pytest.mark.parametrize(
  ("function", "plain", "width"),
  [(sums.dot, _plain_dot, slice(None)), (sums.scaled, _plain_scaled, 0)],
)
def test_values_and_derivatives(function, plain, width, shape):
  rng = np.random.default_rng(0)
  x, y, ct = (jnp.array(rng.normal(size=shape), jnp.float32) for _ in range(3))
  y, ct = y[..., width], ct if function is sums.scaled else ct[..., 0]
  directions = jnp.array(rng.normal(size=(8, *shape)), jnp.float32)

  def all_of(f):
    def along(d):
      # As `natural` does: forward along each of some directions, and back.
      tangent = jax.jvp(f, (x, y), (d, d[..., width]))[1]
      return tangent, jax.vjp(f, x + d, y)[1](ct)

    return f(x, y), jax.vjp(f, x, y)[1](ct), jax.vmap(along)(directions)

  got, want = (jax.jit(lambda f=f: all_of(f))() for f in (function, plain))
  chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-4)


def test_dtypes_are_those_of_plain_products():
  x, factor = jnp.ones((1, 3, 4), jnp.bfloat16), jnp.ones((1, 3), jnp.float32)
  assert sums.scaled(x, factor).dtype == jnp.float32
  assert sums.scaled(x, factor.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  assert sums.dot(x, x).dtype == jnp.bfloat16
