"""`attention.attend` as Pallas kernels, in Triton, for GPUs.

Scores live in registers only, in all passes (FlashAttention-2, Dao 2023), and
a block of keys that no query of a block sees is not read. On CPU the kernels
run interpreted, for the tests.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from pivotrl_jax.models import attention_xla as xla
from pivotrl_jax.models import backend
from pivotrl_jax.models.attention_xla import LEAST
from pivotrl_jax.models.attention_xla import MASKED

_ROWS, _KEYS = 64, 64  # Queries and keys of a block; powers of two.
_SPLIT = 512  # Keys that a decoding program reads: enough programs for a GPU.


@jax.custom_jvp
def attend(q, k, v, place, ends):
  """See `attention.attend`: same arguments, shapes and meaning."""
  return _attend_forward(q, k, v, place, ends)[0]


def decode(q, k, v, place, ends):
  """`attend` for few queries on many keys, without a derivative.

  The keys are cut into parts, as further heads, so that there is work for the
  whole device; the parts are joined by their log-sum-exps.
  """
  b, heads, keys, width = k.shape
  size = min(_SPLIT, keys)
  parts = -(-keys // size)
  grouped, place = (
    jnp.repeat(x, parts, axis=1)
    for x in (xla.group(q, heads), _places(q, k, place))
  )
  before = size * jnp.tile(jnp.arange(parts), heads)[:, None]
  k, v = (
    xla.pad(x, parts * size, 2).reshape(b, heads * parts, size, width)
    for x in (k, v)
  )
  ends = xla.pad(ends, parts * size, 1).reshape(b, parts, size)
  ends = jnp.tile(ends, (1, heads, 1))
  out, lse = _forward(grouped, k, v, place - before, ends - before)
  lse = lse.reshape(b, heads, parts, -1)
  total = jax.nn.logsumexp(lse, axis=2)
  share = jnp.exp(lse - total[:, :, None])[..., None]
  out = (share * out.reshape(b, heads, parts, -1, width)).sum(2)
  return (
    xla.ungroup(out, q.shape).astype(q.dtype),
    xla.ungroup(total, q.shape[:3]),
  )


def _attend_forward(q, k, v, place, ends):
  grouped = xla.group(q, k.shape[1])
  seen = (
    _places(q, k, place),
    jnp.repeat(ends[:, None], k.shape[1], axis=1),
  )
  out, lse = _forward(grouped, k, v, *seen)
  result = (
    xla.ungroup(out.astype(q.dtype), q.shape),
    xla.ungroup(lse, q.shape[:3]),
  )
  return result, (grouped, k, v, *seen, out, lse)


@attend.defjvp
def _attend_jvp(primals, tangents):
  out, saved = _attend_forward(*primals)
  return xla.with_derivatives(
    out, saved, tangents[:3],
    forward=_attend_tangent, backward=_attend_backward,
  )  # fmt: skip


def _attend_tangent(saved, tangents):
  d_q, d_k, d_v = tangents
  grouped = xla.group(d_q, d_k.shape[1])
  d_out, d_lse = _tangent(*saved, grouped, d_k, d_v)
  return (
    xla.ungroup(d_out, d_q.shape).astype(d_q.dtype),
    xla.ungroup(d_lse, d_q.shape[:3]),
  )


def _attend_backward(saved, cotangents):
  shape = cotangents[0].shape
  heads = saved[1].shape[1]
  d_q, d_k, d_v = _backward(*saved, *(xla.group(x, heads) for x in cotangents))
  return xla.ungroup(d_q, shape), d_k, d_v


def _forward(q, k, v, places, ends):
  """Outputs `[B, K, M, C]` (float32) and log-sum-exps `[B, K, M]`.

  Args:
    q: `[B, K, M, C]`.
    k, v: `[B, K, S, C]`.
    places: `[B, K, M]` where each query stands among the keys.
    ends: `[B, K, S]` the place behind all that sees each key.
  """
  size = q.shape[2]
  rows, q, places, k, v, ends = _padded(q, places, k, v, ends)
  out, lse = _call(
    _forward_kernel,
    grid=(q.shape[0], q.shape[1], q.shape[2] // rows),
    inputs=[
      (q, rows), (k, None), (v, None), (places, rows), (ends, None),
    ],
    outputs=[
      (q.shape, jnp.float32, rows),
      ((*q.shape[:3], 1), jnp.float32, rows),
    ],
  )  # fmt: skip
  return out[:, :, :size], lse[:, :, :size, 0]


def _forward_kernel(
  q_ref, k_ref, v_ref, places_ref, ends_ref, out_ref, lse_ref
):
  q, places = q_ref[...], places_ref[...]
  shape = (q.shape[0], 1)

  def body(at, first, ends, carry):
    top, total, out = carry
    scores = _scores(q, k_ref[at, :], places, ends, first)
    new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - new_top)
    decay = jnp.exp(top - new_top)
    total = total * decay + weights.sum(-1, keepdims=True)
    out = out * decay + _dot(weights.astype(v_ref.dtype), v_ref[at, :])
    return new_top, total, out

  top, total, out = _each_block(
    places,
    ends_ref,
    body,
    (
      jnp.full(shape, LEAST, jnp.float32),
      jnp.zeros(shape, jnp.float32),
      jnp.zeros(q.shape, jnp.float32),
    ),
  )
  safe = jnp.where(total > 0, total, 1.0)
  out_ref[...] = out / safe
  lse_ref[...] = jnp.where(total > 0, top + jnp.log(safe), MASKED)


def _tangent(q, k, v, places, ends, out, lse, d_q, d_k, d_v):
  """Tangents of `_forward`'s results along those of q, k and v."""
  size = q.shape[2]
  # A query that sees nothing: far under 0, its masked scores weigh nothing.
  lse = jnp.maximum(lse, LEAST)
  rows, q, places, k, v, ends = _padded(q, places, k, v, ends)
  lse = xla.pad(lse, q.shape[2], 2)[..., None]
  d_q = xla.pad(d_q, q.shape[2], 2)
  d_k, d_v = (xla.pad(x, k.shape[2], 2) for x in (d_k, d_v))
  d_out, d_lse = _call(
    _tangent_kernel,
    grid=(q.shape[0], q.shape[1], q.shape[2] // rows),
    inputs=[
      (q, rows), (k, None), (v, None), (places, rows), (ends, None),
      (lse, rows), (d_q, rows), (d_k, None), (d_v, None),
    ],
    outputs=[
      (q.shape, jnp.float32, rows),
      ((*q.shape[:3], 1), jnp.float32, rows),
    ],
  )  # fmt: skip
  d_lse = d_lse[:, :, :size]
  return d_out[:, :, :size] - d_lse * out, d_lse[..., 0]


def _tangent_kernel(
  q_ref, k_ref, v_ref, places_ref, ends_ref, lse_ref, d_q_ref, d_k_ref,
  d_v_ref, d_out_ref, d_lse_ref,
):  # fmt: skip
  q, lse, d_q = q_ref[...], lse_ref[...], d_q_ref[...]
  places = places_ref[...]

  def body(at, first, ends, carry):
    d_lse, d_out = carry
    k = k_ref[at, :]
    weights = jnp.exp(_scores(q, k, places, ends, first) - lse)
    d_scores = _dot(d_q, k.T) + _dot(q, d_k_ref[at, :].T)
    d_scores *= weights * xla.scale(q)
    d_out += _dot(d_scores.astype(k.dtype), v_ref[at, :])
    d_out += _dot(weights.astype(k.dtype), d_v_ref[at, :])
    return d_lse + d_scores.sum(-1, keepdims=True), d_out

  d_lse_ref[...], d_out_ref[...] = _each_block(
    places,
    ends_ref,
    body,
    (jnp.zeros(lse.shape, jnp.float32), jnp.zeros(q.shape, jnp.float32)),
  )


def _backward(q, k, v, places, ends, out, lse, d_out, d_lse):
  """Gradients of q, k and v, from `_forward`'s arguments and results."""
  size, keys = q.shape[2], k.shape[2]
  delta = (d_out.astype(jnp.float32) * out).sum(-1) - d_lse
  # A query that sees nothing: far under 0, its masked scores weigh nothing.
  lse = jnp.maximum(lse, LEAST)
  rows, q, places, k, v, ends = _padded(q, places, k, v, ends)
  d_out = xla.pad(d_out.astype(v.dtype), q.shape[2], 2)
  lse, delta = (xla.pad(x, q.shape[2], 2)[..., None] for x in (lse, delta))
  b, heads, _, width = q.shape
  (d_q,) = _call(
    _query_kernel,
    grid=(b, heads, q.shape[2] // rows),
    inputs=[
      (q, rows), (k, None), (v, None), (places, rows), (ends, None),
      (lse, rows), (delta, rows), (d_out, rows),
    ],
    outputs=[(q.shape, q.dtype, rows)],
  )  # fmt: skip
  d_k, d_v = _call(
    functools.partial(_key_kernel, rows),
    grid=(b, heads, k.shape[2] // _KEYS),
    inputs=[
      (q, None), (k, _KEYS), (v, _KEYS), (places, None), (ends, _KEYS),
      (lse, None), (delta, None), (d_out, None),
    ],
    outputs=[(k.shape, k.dtype, _KEYS), (v.shape, v.dtype, _KEYS)],
  )  # fmt: skip
  return d_q[:, :, :size], d_k[:, :, :keys], d_v[:, :, :keys]


def _query_kernel(
  q_ref, k_ref, v_ref, places_ref, ends_ref, lse_ref, delta_ref, d_out_ref,
  d_q_ref,
):  # fmt: skip
  q, lse, places = q_ref[...], lse_ref[...], places_ref[...]
  delta, d_out = delta_ref[...], d_out_ref[...]

  def body(at, first, ends, d_q):
    k = k_ref[at, :]
    weights = jnp.exp(_scores(q, k, places, ends, first) - lse)
    d_scores = weights * (_dot(d_out, v_ref[at, :].T) - delta)
    return d_q + _dot(d_scores.astype(k.dtype), k)

  d_q = _each_block(places, ends_ref, body, jnp.zeros(q.shape, jnp.float32))
  d_q_ref[...] = (d_q * xla.scale(q)).astype(d_q_ref.dtype)


def _key_kernel(
  rows, q_ref, k_ref, v_ref, places_ref, ends_ref, lse_ref, delta_ref,
  d_out_ref, d_k_ref, d_v_ref,
):  # fmt: skip
  k, v, ends = k_ref[...], v_ref[...], ends_ref[...].T
  first = pl.program_id(2) * _KEYS

  def body(i, carry):
    at = pl.ds(i * rows, rows)
    places = places_ref[at, :]

    def seen(d_k, d_v):
      q, d_out = q_ref[at, :], d_out_ref[at, :]
      weights = jnp.exp(_scores(q, k, places, ends, first) - lse_ref[at, :])
      d_scores = weights * (_dot(d_out, v.T) - delta_ref[at, :])
      d_k += _dot(d_scores.astype(q.dtype).T, q)
      return d_k, d_v + _dot(weights.astype(d_out.dtype).T, d_out)

    return jax.lax.cond(
      _sees(places, ends, first), seen, lambda *same: same, *carry
    )

  zeros = jnp.zeros(k.shape, jnp.float32)
  d_k, d_v = jax.lax.fori_loop(0, q_ref.shape[0] // rows, body, (zeros, zeros))
  d_k_ref[...] = (d_k * xla.scale(k)).astype(d_k_ref.dtype)
  d_v_ref[...] = d_v.astype(d_v_ref.dtype)


def _call(kernel, *, grid, inputs, outputs):
  """A kernel over `[B, K, _, _]` arrays: blocks of axis 2, or all of it."""

  def spec(shape, block):
    return pl.BlockSpec(
      (None, None, block or shape[2], shape[3]),
      lambda b, k, i: (b, k, i if block else 0, 0),
    )

  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[spec(x.shape, block) for x, block in inputs],
    out_specs=[spec(shape, block) for shape, _, block in outputs],
    out_shape=[jax.ShapeDtypeStruct(s, dtype) for s, dtype, _ in outputs],
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    interpret=backend.name() == "cpu",
  )(*(x for x, _ in inputs))


def _scores(q, k, places, ends, first):
  """Scaled scores of a block of keys from `first` on; else `MASKED`."""
  at = first + jax.lax.broadcasted_iota(jnp.int32, (q.shape[0], k.shape[0]), 1)
  scores = _dot(q, k.T) * xla.scale(q)
  return jnp.where((at <= places) & (places < ends), scores, MASKED)


def _dot(x, y):
  return jnp.dot(x, y, preferred_element_type=jnp.float32)


def _places(q, k, place):
  """Places `[B, Q]` as those of the grouped queries, `[B, K, M]`."""
  return jnp.repeat(xla.group_places(q, k, place), k.shape[1], axis=1)


def _sees(places, ends, first):
  """Whether one of the queries may see one of the keys from `first` on."""
  none = jnp.iinfo(places.dtype).max
  lowest = jnp.min(jnp.where(places < 0, none, places))
  return (jnp.max(places) >= first) & (jnp.max(ends) > lowest)


def _each_block(places, ends_ref, body, carry):
  """`body(at, first, ends, carry)` for each block of keys that is seen."""

  def one(i, carry):
    at = pl.ds(i * _KEYS, _KEYS)
    ends = ends_ref[at, :].T
    return jax.lax.cond(
      _sees(places, ends, i * _KEYS),
      lambda carry: body(at, i * _KEYS, ends, carry),
      lambda carry: carry,
      carry,
    )

  last = jnp.minimum(jnp.max(places), ends_ref.shape[0] - 1)
  return jax.lax.fori_loop(0, last // _KEYS + 1, one, carry)


def _padded(q, places, k, v, ends):
  """Rows of a block, and the arrays padded to whole blocks."""
  rows = min(_ROWS, max(16, pl.next_power_of_2(q.shape[2])))
  size = -(-q.shape[2] // rows) * rows
  keys = -(-k.shape[2] // _KEYS) * _KEYS
  q, places = (xla.pad(x, size, 2) for x in (q, places[..., None] + 1))
  k, v, ends = (xla.pad(x, keys, 2) for x in (k, v, ends[..., None]))
  return rows, q, places - 1, k, v, ends
