"""Products by group: both bodies, both modes of differentiation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pivotrl_jax.models import grouped

# Groups without rows, of more rows than a block, and rows behind all groups.
_SIZES = {
  "even": (4, 4, 4),
  "empty": (0, 9, 0, 1, 0),
  "one": (20, 0),
  "none": (0, 0),
}


def _given(sizes, behind=3):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(sum(sizes) + behind, 5)).astype(np.float32)
  matrices = rng.normal(size=(len(sizes), 5, 4)).astype(np.float32)
  return rows, matrices, jnp.array(sizes)


def _naive(sizes):
  """The product, group after group."""
  ends = np.cumsum((0, *sizes))

  def product(rows, matrices):
    parts = [
      rows[a:b] @ m for a, b, m in zip(ends, ends[1:], matrices, strict=False)
    ]
    parts.append(jnp.zeros((len(rows) - ends[-1], matrices.shape[2])))
    return jnp.concatenate(parts)

  return product


def _fisher(function, rows, matrices):
  """Forward mode, then the transpose of the same."""
  _, push = jax.linearize(lambda *x: jnp.tanh(function(*x)), rows, matrices)
  along = push(0.5 * rows, -matrices)
  return along, jax.linear_transpose(push, rows, matrices)(along)


@pytest.mark.parametrize("body", ["blocks", "ragged"])
@pytest.mark.parametrize("name", _SIZES)
def test_products_and_derivatives(name, body):
  rows, matrices, sizes = _given(_SIZES[name])

  def product(rows, matrices):
    return grouped.product(rows, matrices, sizes, body=body)

  naive = _naive(_SIZES[name])
  got = product(rows, matrices), _fisher(product, rows, matrices)
  want = naive(rows, matrices), _fisher(naive, rows, matrices)
  chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.parametrize("body", ["blocks", "ragged"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_may_be_differentiated(which, body):
  *given, sizes = _given((2, 7))
  product, naive = (
    jax.grad(lambda *x, f=f: jnp.tanh(f(*x)).sum(), which)(*given)
    for f in (
      lambda *x: grouped.product(*x, sizes, body=body),
      _naive((2, 7)),
    )
  )
  np.testing.assert_allclose(product, naive, atol=1e-5)


@pytest.mark.parametrize("body", ["blocks", "ragged"])
def test_rows_behind_the_groups_may_hold_anything(body):
  rows, matrices, sizes = _given((2, 7))
  rows[9:] = np.nan

  def loss(rows, matrices):
    return grouped.product(rows, matrices, sizes, body=body).sum()

  value, grads = jax.value_and_grad(loss, (0, 1))(rows, matrices)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)
  np.testing.assert_array_equal(grads[0][9:], 0.0)


def test_permuted_is_a_gather_both_ways():
  order = jnp.array([2, 0, 3, 1])
  rows = jnp.arange(8.0).reshape(4, 2)
  inverse = jnp.argsort(order)
  out, back = jax.vjp(lambda x: grouped.permuted(x, order, inverse), rows)
  np.testing.assert_array_equal(out, rows[order])
  np.testing.assert_array_equal(back(out)[0], rows)
  _, moved = jax.jvp(
    lambda x: grouped.permuted(x, order, inverse), (rows,), (2 * rows,)
  )
  np.testing.assert_array_equal(moved, 2 * rows[order])
