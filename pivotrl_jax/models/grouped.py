"""Products of rows with one matrix a group of rows.

What experts compute: `[M, D]` rows, sorted by group, times `[E, D, F]`. On TPU
by `ragged_dot`, elsewhere by a loop over blocks of rows, as many as there are:
there XLA's `ragged_dot` multiplies every row with every matrix, on GPU by
forming `[M, E * D]`. The gradient of the matrices is such a loop everywhere:
that of `ragged_dot` multiplies every row once a group on TPU too.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from pivotrl_jax.models import backend

BODIES = ("auto", "blocks", "ragged")
_LEAST, _MOST = 8, 256  # Rows of a block.


def product(
  rows: jax.Array, matrices: jax.Array, sizes: jax.Array, *, body: str = "auto"
) -> jax.Array:
  """Each row times the matrix of its group.

  Differentiable in both modes, in rows and in matrices.

  Args:
    rows: `[M, D]`, those of the first group first.
    matrices: `[E, D, F]`.
    sizes: `[E]` rows of each group; their sum is at most M.
    body: one of `BODIES`, all of one meaning.

  Returns:
    `[M, F]`; 0 for rows behind those of all groups.
  """
  chex.assert_rank([rows, matrices, sizes], [2, 3, 1])
  chex.assert_equal(rows.shape[1], matrices.shape[1])
  chex.assert_equal(matrices.shape[0], sizes.shape[0])
  if body == "auto":
    body = "ragged" if backend.name() == "tpu" else "blocks"
  return (_by_blocks if body == "blocks" else _ragged)(rows, matrices, sizes)


def _differentiable(products):
  """`products(rows, matrices, sizes, over=1)`, whose derivatives are the same
  over the other axis and `_outer`.
  """

  @jax.custom_jvp
  def run(rows, matrices, sizes):
    return products(rows, matrices, sizes, over=1)

  @run.defjvp
  def _(primals, tangents):
    # Two calls, as only one of the two may be differentiated.
    rows, matrices, sizes = primals
    of_rows = jax.custom_derivatives.linear_call(
      lambda saved, moved: products(moved, *saved, over=1),
      lambda saved, cotangent: products(cotangent, *saved, over=2),
      (matrices, sizes),
      tangents[0],
    )
    of_matrices = jax.custom_derivatives.linear_call(
      lambda saved, moved: products(saved[0], moved, saved[1], over=1),
      lambda saved, cotangent: _outer(saved[0], cotangent, saved[1]).astype(
        matrices.dtype
      ),
      (rows, sizes),
      tangents[1],
    )
    return run(*primals), of_rows + of_matrices

  return run


def _products(rows, matrices, sizes, *, over):
  """`product`, summing over axis `over` of the matrices."""
  count, size = len(rows), _block_size(rows, sizes)
  padded = jnp.pad(rows, ((0, size), (0, 0)))
  width, total = matrices.shape[3 - over], sizes.sum()

  def body(i, out):
    group, start, _ = _block(i, sizes, size)
    found = jax.lax.dot_general(
      jax.lax.dynamic_slice_in_dim(padded, start, size),
      jax.lax.dynamic_index_in_dim(matrices, group, keepdims=False),
      (((1,), (over - 1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    used = start + jnp.arange(size) < total
    found = jnp.where(used[:, None], found, 0)
    # Rows of a block that are of later groups are written again after it.
    return jax.lax.dynamic_update_slice_in_dim(
      out, found.astype(out.dtype), start, 0
    )

  out = _zeros_after(rows, (count + size, width), rows.dtype)
  return jax.lax.fori_loop(0, _blocks(sizes, size).sum(), body, out)[:count]


def _outer(rows, others, sizes):
  """Sums `[E, D, F]` of the outer products of each group's rows."""
  size = _block_size(rows, sizes)
  rows, others = (jnp.pad(x, ((0, size), (0, 0))) for x in (rows, others))

  def body(i, out):
    group, start, end = _block(i, sizes, size)
    part = jax.lax.dynamic_slice_in_dim(rows, start, size)
    part = jnp.where((start + jnp.arange(size) < end)[:, None], part, 0)
    found = jax.lax.dot_general(
      part,
      jax.lax.dynamic_slice_in_dim(others, start, size),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return out.at[group].add(found)

  shape = (len(sizes), rows.shape[1], others.shape[1])
  out = _zeros_after(others, shape, jnp.float32)
  return jax.lax.fori_loop(0, _blocks(sizes, size).sum(), body, out)


_by_blocks = _differentiable(_products)


def _ragged_products(rows, matrices, sizes, *, over):
  """`_products` by the library."""
  used = jnp.arange(len(rows)) < sizes.sum()
  if over == 2:
    matrices = jnp.swapaxes(matrices, 1, 2)
  # Selected on both sides: what stands behind the groups may be anything.
  found = jax.lax.ragged_dot(jnp.where(used[:, None], rows, 0), matrices, sizes)
  return jnp.where(used[:, None], found, 0)


_ragged = _differentiable(_ragged_products)


def _zeros_after(x, shape, dtype):
  """Zeros that exist no sooner than `x`: those of nothing XLA makes for all
  layers at once, at the start of a step.
  """
  zero = x[0, 0] > jnp.inf  # Never, which XLA does not know.
  return jnp.broadcast_to(zero.astype(dtype), shape)


def _block_size(rows, sizes):
  """Rows of a block: about those of an even group, a power of two."""
  even = max(1, len(rows) // len(sizes))
  return min(_MOST, max(_LEAST, 1 << (even - 1).bit_length()))


def _blocks(sizes, size):
  """How many blocks each group has."""
  return -(-sizes // size)


def _block(i, sizes, size):
  """Of block i: its group, its first row, and where its group ends."""
  ends = jnp.cumsum(_blocks(sizes, size))
  group = (ends <= i).sum()
  before = i - (ends - _blocks(sizes, size))[group]
  end = jnp.cumsum(sizes)[group]
  return group, end - sizes[group] + before * size, end


def permuted(
  rows: jax.Array, order: jax.Array, inverse: jax.Array
) -> jax.Array:
  """`rows[order]` of a permutation, whose transpose, by its inverse, is a
  gather too.

  Autodiff's is a scatter: slow on CPU, of no fixed order on GPU.
  """
  return jax.custom_derivatives.linear_call(
    functools.partial(_take, 0), functools.partial(_take, 1),
    (order, inverse), rows,
  )  # fmt: skip


def _take(which, orders, rows):
  return jnp.take(rows, orders[which], axis=0)
