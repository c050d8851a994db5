"""Attention over a prefix trie: its tokens, and branches on it.

Laid out depth first (`data/trees.py`), a trie's token sees what stands before
it and does not end before it, and so does a branch from the place where it
leaves the trie, and a branch's token in its own branch. So one primitive is
enough, `attend`, whose mask is two integers: a place a query, an end a key.
What a branch token gets from the trie and from its own branch is joined by
`merge`, exactly, from the two log-sum-exps.

What computes it is the `body`, one of `BODIES`, all of one meaning:
- `dense` and `xla`: `attention_xla`, on every backend; `fine` is `xla` in small
  blocks, for long lines of many short branches: more of them are skipped;
- `pallas`: the kernels of `attention_pallas`;
- `cudnn`: a trie of one path over itself by cuDNN, all else by `pallas`;
- `auto`: `xla` on CPU and TPU; on GPU `cudnn` in 16 bits, else `pallas`.

Keys and values are kept heads first, `[B, K, S, C]`: then every product is a
plain batched matrix product, and a cache is never transposed, but for the
keys that decoding reads again and again.
"""

from collections.abc import Callable
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pivotrl_jax.models import attention_pallas
from pivotrl_jax.models import attention_xla
from pivotrl_jax.models import axes
from pivotrl_jax.models import backend
from pivotrl_jax.models import sums
from pivotrl_jax.models.attention_xla import MASKED

BODIES = ("auto", "dense", "xla", "fine", "pallas", "cudnn")
_FINE = 128, 128  # Queries and keys of a block of `fine`.
_APART = 256, 512  # The same of `attend_apart`.
_NEAR, _FAR = 32, 512  # `attend_near`: tokens of a block, longest reach.


def rotary_tables(
  positions: jax.Array, width: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """What `rotate` multiplies by, `[..., 1, 2, C/2]` of positions `[...]`."""
  half = width // 2
  inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * inverse
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.stack([cos, cos], -2), jnp.stack([-sin, sin], -2)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns `x` `[..., H, C]` to its position, halves as in HF."""
  cos, sin = tables
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
  turned = halves * cos + jnp.flip(halves, -2) * sin
  return turned.reshape(x.shape).astype(x.dtype)


def merge(
  first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Joins the attention over two disjoint sets of keys.

  Args:
    first, second: (output `[..., C]`, log-sum-exp `[...]`) of `attend`.

  Returns:
    `[..., C]` what attention over the union of the keys gives.
  """
  share = jax.nn.sigmoid(first[1] - second[1])
  joined = sums.scaled(first[0], share) + sums.scaled(second[0], 1.0 - share)
  return joined.astype(first[0].dtype)


def _on_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
  """Of `(q, k, v, *integers)`, for each device's lines and heads by itself.

  Left to XLA a kernel, or a library's call, gathers the lines of all devices;
  and loops as long as the longest line of any would make all others wait.
  """

  @functools.wraps(function)
  def wrapped(q, k, v, *integers, **options):
    run = functools.partial(function, **options)
    lines, heads = map(axes.given, (axes.LINES, (axes.TENSOR,)))
    if not lines + heads:
      return run(q, k, v, *integers)
    shares, have = axes.size(heads), k.shape[1]
    if not shares % have:  # A device has less than one of keys and values.
      k, v = (jnp.repeat(x, shares // have, axis=1) for x in (k, v))
    queries = PartitionSpec(lines, None, heads)
    keys, places = PartitionSpec(lines, heads), PartitionSpec(lines)
    return jax.shard_map(
      run,
      in_specs=(queries, keys, keys, *(places,) * len(integers)),
      out_specs=queries,
      check_vma=False,
    )(q, k, v, *integers)

  return wrapped


@_on_mesh
def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  place: jax.Array,
  ends: jax.Array,
  *,
  body: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention over the keys of a trie.

  Args:
    q: `[B, Q, H, C]` queries.
    k, v: `[B, K, S, C]` keys and values; K divides H.
    place: `[B, Q]` where each query stands among the keys; -1: it sees none.
    ends: `[B, S]` query i sees key j if `j <= place[b, i] < ends[b, j]`.
    body: one of `BODIES`.

  Returns:
    Outputs `[B, Q, H, C]` in q's dtype (0 where nothing is seen) and the
    float32 log-sum-exp of the scaled scores `[B, Q, H]`.
  """
  chex.assert_rank([q, k, v, place, ends], [4, 4, 4, 2, 2])
  chex.assert_equal_shape([k, v])
  chex.assert_shape(place, q.shape[:2])
  chex.assert_shape(ends, (k.shape[0], k.shape[2]))
  match _chosen(body, q.dtype):
    case "dense":
      return attention_xla.dense(q, k, v, place, ends)
    case "xla":
      return attention_xla.blockwise(q, k, v, place, ends)
    case "fine":
      return attention_xla.blockwise(q, k, v, place, ends, _FINE)
    case _:
      return attention_pallas.attend(q, k, v, place, ends)


def attend_apart(q, k, v, place, ends, *, body="auto"):
  """`attend` of queries that stand here and there in a trie, as what is new of
  it does: in smaller blocks more is skipped.
  """
  if _chosen(body, q.dtype) == "xla":
    return attention_xla.blockwise(q, k, v, place, ends, _APART)
  return attend(q, k, v, place, ends, body=body)


@_on_mesh
def attend_self(q, k, v, ends, *, body="auto"):
  """Outputs of tries over themselves, `[B, T, H, C]`.

  Args:
    q: `[B, T, H, C]`.
    k, v, ends: see `attend`; a token whose end is 0 is padding, behind all
      others, and its output of no use.
    body: one of `BODIES`.
  """
  place = jnp.broadcast_to(jnp.arange(q.shape[1]), ends.shape)
  if _chosen(body, q.dtype) != "cudnn":
    return attend(q, k, v, place, ends, body=body)[0]
  length = ends.max(1)
  # The library knows a path that begins at 0 only.
  return jax.lax.cond(
    ((ends == length[:, None]) | (ends == 0)).all(),
    lambda: by_library(q, k, v, length),
    lambda: attention_pallas.attend(q, k, v, place, ends)[0],
  )


@_on_mesh
def attend_near(q, k, v, ends, *, reach, body="auto"):
  """`attend` of tokens over themselves where all they see is near.

  Args:
    q: `[B, S, H, C]`.
    k, v: `[B, K, S, C]`.
    ends: `[B, S]`, see `attend`; no token sees a key before `i - reach`.
    reach: how far back, at most.
    body: one of `BODIES`.
  """
  size, width = q.shape[1], _NEAR
  blocks, back = -(-size // width), -(-reach // width)
  body = _chosen(body, q.dtype)
  place = jnp.broadcast_to(jnp.arange(size), ends.shape)
  # Kernels skip what is far; long reaches, loops of blocks do.
  if body != "xla" or back >= blocks or reach > _FAR:
    return attend(q, k, v, place, ends, body=body)

  def rows(x):
    x = attention_xla.pad(x, blocks * width, 1)
    return x.reshape(-1, width, *x.shape[2:])

  def near(x):
    """Each block's keys, those of the blocks before it first."""
    b, heads, _, c = x.shape
    x = attention_xla.pad(x, blocks * width, 2)
    x = jnp.moveaxis(x.reshape(b, heads, blocks, width, c), 2, 1)
    x = jnp.pad(x, ((0, 0), (back, 0), (0, 0), (0, 0), (0, 0)))
    x = jnp.concatenate([x[:, i : i + blocks] for i in range(back + 1)], 3)
    return x.reshape(-1, *x.shape[2:])

  before = (jnp.arange(blocks) - back) * width
  near_ends = near(ends[:, None, :, None])[:, 0, :, 0]
  found = attend(
    rows(q), near(k), near(v),
    rows(place - jnp.repeat(before, width)[:size]),
    near_ends - jnp.tile(before, len(q))[:, None], body=body,
  )  # fmt: skip
  return jax.tree.map(
    lambda x: x.reshape(q.shape[0], -1, *x.shape[2:])[:, :size], found
  )


def by_library(q, k, v, length, *, implementation="cudnn"):
  """Causal attention of the first `length` `[B]` tokens over themselves, by
  `jax.nn.dot_product_attention`.
  """
  length = jnp.maximum(length, 1)
  return jax.nn.dot_product_attention(
    q,
    jnp.moveaxis(k, 1, 2),
    jnp.moveaxis(v, 1, 2),
    is_causal=True,
    query_seq_lengths=length,
    key_value_seq_lengths=length,
    implementation=implementation,
  )


def trie_keys(k, *, body="auto"):
  """Keys `[B, K, S, C]` of lines, as `attend_trie` reads them at every step."""
  return k if _by_kernels(body, k.dtype) else jnp.swapaxes(k, 2, 3)


def attend_trie(q, k, v, place, ends, *, body="auto"):
  """`attend` of one query a branch, without a derivative.

  Args:
    q: `[B, N, H, C]`, the branches in the order of their places.
    k: of `trie_keys`.
    v, place, ends: see `attend`.
    body: one of `BODIES`.
  """
  if _by_kernels(body, q.dtype):
    return attention_pallas.decode(q, k, v, place, ends)
  return attention_xla.decode(q, k, v, place, ends)


def attend_own(q, k, v, length):
  """One query a branch over its own keys.

  Args:
    q: `[B, N, H, C]`.
    k: `[B*N, K, C, S]`: as the product wants them, for they are read at every
      step and written once.
    v: `[B*N, K, S, C]`.
    length: scalar, how many of the keys are seen.

  Returns:
    What `attend` does.
  """
  grouped = q.reshape(-1, k.shape[1], q.shape[2] // k.shape[1], q.shape[3])
  scores = attention_xla.product("nkgc,nkcs->nkgs", grouped, k)
  scores = jnp.where(
    jnp.arange(k.shape[3]) < length, scores * attention_xla.scale(q), MASKED
  )
  lse = jax.nn.logsumexp(scores, axis=-1)
  weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
  out = attention_xla.product("nkgs,nksc->nkgc", weights, v)
  return out.reshape(q.shape).astype(q.dtype), lse.reshape(q.shape[:3])


def in_both_modes(body: str, dtype: Any) -> str:
  """What to compute `body` by where forward mode is asked for too: the
  library of "cudnn" has none.
  """
  chosen = _chosen(body, dtype)
  return "pallas" if chosen == "cudnn" else chosen


def _by_kernels(body, dtype):
  return _chosen(body, dtype) in ("pallas", "cudnn")


def _chosen(body, dtype):
  if body != "auto":
    return body
  if backend.name() != "gpu":
    return "xla"
  return "cudnn" if jnp.dtype(dtype).itemsize == 2 else "pallas"
