"""The embedded engine: samples from a Linen policy, one prefill a trunk.

Rows that share a prefix share its keys and values: `trees.build` finds the
trunks, `prefill` runs each once, and a decode step reads a trunk's cache once
for all its branches. A batch has one of the few shapes of its `Room`, which
`prepare` compiles up front. Rows that stopped are dropped between chunks of
steps once the others fit the next smaller shape.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax.data import trees
from pivotrl_jax.engines import base
from pivotrl_jax.models import qwen3


_SHORTEST = 256  # Tokens of the shortest trunk that has a program of its own.
_SMALLEST = 8  # Rows of the smallest batch, about.


@dataclasses.dataclass
class Stats:
  """What the last `sample` computed, in tokens."""

  prompt_tokens: int = 0  # Sum of the prompts, as separate sequences.
  trunk_tokens: int = 0  # Prefilled.
  padded_trunk_tokens: int = 0  # Prefilled, padding included.
  sampled_tokens: int = 0
  decoded_slots: int = 0  # Branch slots times steps, padding included.


@dataclasses.dataclass(frozen=True)
class Room:
  """The shapes that batches may have.

  Attributes:
    lengths: of trunks, ascending.
    trees: most trunks of a batch.
    rows: most branches of a trunk.
    tokens: most trunk tokens of a batch, padding included.
  """

  lengths: tuple[int, ...]
  trees: int
  rows: int
  tokens: int

  def length(self, tokens: int) -> int:
    """The shortest trunk that holds `tokens`; a new one where none does."""
    fitting = (length for length in self.lengths if length >= tokens)
    return next(fitting, trees.bucket(tokens))

  def shapes(self, length: int) -> list[tuple[int, int]]:
    """Trunks and branches of a batch: the whole, then ever smaller ones."""
    size = min(self.trees, _round_up(self.tokens // length + 1) // 2)
    shapes = [(max(1, size), self.rows)]
    while (last := shapes[-1])[0] * last[1] > _SMALLEST:
      size, rows = last
      shapes.append(
        (size, -(-rows // 4)) if rows >= size else (size // 4, rows)
      )
    return shapes


class JaxSampler:
  """An `engines.base.Engine` in this process.

  Args:
    config: shape of the policy.
    dtype: of activations.
    attention: what computes it, one of `attention.BODIES`.
    batch_tokens: most trunk tokens of a batch, padding included.
    batch_rows: most branches of a batch.
    chunk: decode steps between two looks at which rows are done.
  """

  def __init__(
    self,
    config: qwen3.Config,
    *,
    dtype: Any = jnp.float32,
    attention: str = "auto",
    batch_tokens: int = 65536,
    batch_rows: int = 512,
    chunk: int = 16,
  ):
    self._config = config
    self._model = qwen3.Qwen3(config, dtype=dtype, attention=attention)
    self._batch_tokens = batch_tokens
    self._batch_rows = batch_rows
    self._chunk = chunk
    self._params = None
    self._room: Room | None = None
    self.version = ""
    self.stats = Stats()

  def load(self, weights: Any, version: str) -> None:
    """Samples from `weights`, a Qwen3 params tree, from now on."""
    self._params = weights
    self.version = version

  def prepare(
    self,
    lengths: Sequence[int],
    sampling: base.SamplingParams,
    *,
    prompts: int,
    rows: int,
  ) -> None:
    """See `engines.base.Engine`."""
    self._room = self._fitting(lengths, prompts, rows)
    jobs = [
      (length, shapes[i:])
      for length in self._room.lengths
      for shapes in [self._room.shapes(length)]
      for i in range(len(shapes))
    ]
    # Compiling mostly waits for a library that lets other threads run.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      list(pool.map(lambda job: self._warm_up(*job, sampling), jobs))

  def _warm_up(self, length, shapes, sampling):
    """Runs the programs of a shape without a step, and drops to the others."""

    def start():
      state = self._state(np.ones(shapes[0], np.int32), sampling)
      trunk = np.zeros((shapes[0][0], length), np.int32)
      return state, _prefill(self._model, self._params, trunk, state["visible"])

    state, trunk_kv = start()
    self._steps(trunk_kv, state, 0, 0, sampling)
    for size, rows in shapes[1:]:
      state, trunk_kv = start()
      _gather(trunk_kv, state, np.zeros(size, int), np.zeros((size, rows), int))

  def _fitting(self, lengths, prompts, rows):
    """The room for prompts of these lengths, `rows` at most on a trunk."""
    longest = max(trees.bucket(max(lengths)), _SHORTEST)
    used = {min(max(_SHORTEST, _round_up(n)), longest) for n in lengths}
    rows = _round_up(min(rows, self._batch_rows))
    return Room(
      lengths=tuple(sorted(used)),
      trees=_round_up(min(prompts, max(1, self._batch_rows // rows))),
      rows=rows,
      tokens=self._batch_tokens,
    )

  def sample(
    self,
    prompts: Sequence[np.ndarray],
    sampling: base.SamplingParams,
    seeds: Sequence[int],
  ) -> list[base.Completion]:
    """See `engines.base.Engine`."""
    if self._params is None:
      raise ValueError("no weights: call load before sample")
    if len(prompts) != len(seeds):
      raise ValueError(f"{len(seeds)} seeds; expected {len(prompts)}")
    self.stats = Stats(prompt_tokens=sum(len(p) for p in prompts))
    out: list[base.Completion | None] = [None] * len(prompts)
    forest = trees.build(prompts)
    room = self._room
    if room is None:
      rows = trees.branches(forest, sampling.max_tokens)
      count = sum(-(-len(t.rows) // rows) for t in forest)
      room = self._fitting([len(t.trunk) for t in forest], count, rows)
    for group in _plan(forest, room):
      for row, completion in self._run(group, room, sampling, seeds):
        out[row] = completion
    return out

  def _run(self, group, room, sampling, seeds):
    """Samples one batch of trees; yields (row, Completion)."""
    trunk_length = room.length(max(len(t.trunk) for t in group))
    shapes = room.shapes(trunk_length)
    state, trunk, rows = self._start(
      group, trunk_length, shapes, sampling, seeds
    )
    trunk_kv = _prefill(self._model, self._params, trunk, state["visible"])
    ids = np.zeros((*rows.shape, sampling.max_tokens), np.int32)
    log_probs = np.zeros(ids.shape, np.float32)
    length = np.zeros(rows.shape, np.int32)
    place = np.indices(rows.shape)
    for start in range(0, sampling.max_tokens, self._chunk):
      end = min(start + self._chunk, sampling.max_tokens)
      state, new_ids, new_log_probs = self._steps(
        trunk_kv, state, start, end, sampling
      )
      done, counted, new_ids, new_log_probs = jax.device_get(
        (state["done"], state["length"], new_ids, new_log_probs)
      )
      at = tuple(place)
      ids[(*at, slice(start, end))] = new_ids[..., : end - start]
      log_probs[(*at, slice(start, end))] = new_log_probs[..., : end - start]
      length[at] = counted
      self.stats.decoded_slots += done.size * (end - start)
      if done.all():
        break
      keep = _compact(done, shapes)
      if keep is not None:
        trunk_kv, state = _gather(trunk_kv, state, *keep)
        place = place[:, keep[0][:, None], keep[1]]
    stopped = np.isin(
      np.take_along_axis(ids, np.maximum(length - 1, 0)[..., None], -1),
      sampling.stop_ids,
    )[..., 0]
    for at in zip(*np.nonzero(rows >= 0), strict=True):
      size = length[at]
      self.stats.sampled_tokens += int(size)
      yield (
        rows[at],
        base.Completion(
          ids[at][:size].copy(),
          log_probs[at][:size].copy(),
          "stop" if stopped[at] else "length",
          self.version,
        ),
      )

  def _steps(self, trunk_kv, state, start, end, sampling):
    """`_decode` with this engine's weights."""
    unembed = qwen3.unembedding(self._params, self._config)
    filters = (sampling.top_k, sampling.top_p)
    knobs = (jnp.float32(sampling.temperature), jnp.array(sampling.stop_ids))
    return _decode(
        self._model, self._chunk, filters, self._params, unembed,
        trunk_kv, state, start, end, knobs,
    )  # fmt: skip

  def _start(self, group, length, shapes, sampling, seeds):
    """Arrays of a batch before its first step; rows are -1 in padding."""
    most = max(len(t.rows) for t in group)
    size, branches = _smallest(shapes, len(group), most)
    trunk = np.zeros((size, length), np.int32)
    rows = np.full((size, branches), -1)
    attach = np.ones((size, branches), np.int32)
    keys = np.zeros((size, branches, 2), np.uint32)
    for b, tree in enumerate(group):
      n = len(tree.rows)
      # By what they see: neighbours skip the same blocks of the trunk.
      order = np.argsort(tree.attach, kind="stable")
      trunk[b, : len(tree.trunk)] = tree.trunk
      rows[b, :n] = tree.rows[order]
      attach[b, :n] = tree.attach[order]
      keys[b, :n] = [divmod(seeds[row], 1 << 32) for row in rows[b, :n]]
      self.stats.trunk_tokens += len(tree.trunk)
    self.stats.padded_trunk_tokens += trunk.size
    state = self._state(attach, sampling) | {
      "tokens": np.take_along_axis(trunk, attach - 1, 1),
      "done": rows < 0,
      "keys": keys,
    }
    return state, trunk, rows

  def _state(self, attach, sampling):
    """What a batch of branches `[B, N]` decodes with, before any."""
    size, branches = attach.shape
    c = self._config
    slots = -(-sampling.max_tokens // self._chunk) * self._chunk
    shape = (size, branches, c.num_key_value_heads)
    own = functools.partial(jnp.zeros, dtype=self._model.dtype)
    return {
      "tokens": np.zeros(attach.shape, np.int32),
      "visible": attach - 1,
      "done": np.zeros(attach.shape, bool),
      "length": np.zeros(attach.shape, np.int32),
      "keys": np.zeros((*attach.shape, 2), np.uint32),
      "cache": tuple(
        (own((*shape, c.head_dim, slots)), own((*shape, slots, c.head_dim)))
        for _ in range(c.num_hidden_layers)
      ),
    }


def _plan(forest, room):
  """Trees to batches of like trunks that have room."""
  forest = [p for t in forest for p in trees.split(t, room.rows)]
  forest.sort(key=lambda t: (len(t.trunk), len(t.rows), t.rows[0]))
  group: list[trees.Tree] = []
  for tree in forest:
    # The trunks before it are no longer.
    most, _ = room.shapes(room.length(len(tree.trunk)))[0]
    if len(group) >= most:
      yield group
      group = []
    group.append(tree)
  if group:
    yield group


@functools.partial(jax.jit, static_argnums=0)
def _prefill(model, params, trunk, visible):
  def run():
    return model.apply(
      {"params": params}, trunk, visible.max(1), method="prefill"
    )

  def nothing():
    return jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run)
    )

  return jax.lax.cond((visible > 0).any(), run, nothing)


@functools.partial(
  jax.jit, static_argnums=(0, 1, 2), donate_argnames=("state",)
)
def _decode(
  model, chunk, filters, params, unembed, trunk_kv, state, start, end, knobs
):
  """Steps `start..end` of every branch, or until all are done.

  Returns:
    The state after them, and the chunk's ids and log-probs `[B, N, chunk]`
    (0 after a row's end).
  """
  temperature, stop_ids = knobs
  shape = state["tokens"].shape

  def body(carry):
    step, state, ids, log_probs = carry
    hidden, cache = model.apply(
        {"params": params}, state["tokens"], trunk_kv, state["visible"],
        state["cache"], step, method="decode",
    )  # fmt: skip
    logits = (hidden @ unembed).astype(jnp.float32)
    scale = jnp.where(temperature > 0, temperature, 1.0)
    token, log_prob = _draw(
      logits / scale, state["keys"], step, temperature > 0, filters
    )
    live = ~state["done"]
    ids = ids.at[..., step - start].set(jnp.where(live, token, 0))
    log_probs = log_probs.at[..., step - start].set(
      jnp.where(live, log_prob, 0.0)
    )
    state = state | {
      "tokens": token,
      "cache": cache,
      "length": state["length"] + live,
      "done": state["done"] | (token[..., None] == stop_ids).any(-1),
    }
    return step + 1, state, ids, log_probs

  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), state["cache"])
  carry = (
    start,
    state | {"cache": flat},
    jnp.zeros((*shape, chunk), jnp.int32),
    jnp.zeros((*shape, chunk), jnp.float32),
  )
  carry = jax.lax.while_loop(
    lambda c: (c[0] < end) & ~c[1]["done"].all(), body, carry
  )
  _, state, ids, log_probs = carry
  cache = jax.tree.map(
    lambda x: x.reshape(*shape, *x.shape[1:]), state["cache"]
  )
  return state | {"cache": cache}, ids, log_probs


def _draw(logits, keys, step, at_random, filters):
  """One token a row `[B, N]`, and its log-prob before the filters.

  The token is where one uniform number of the row's own key falls in the
  cumulative weights, which are summed by blocks of tokens; not `at_random`,
  the likeliest.
  """
  top = logits.max(-1, keepdims=True)
  weights = jnp.exp(logits - top)
  total = weights.sum(-1)
  top_k, top_p = filters
  if top_k or top_p < 1.0:
    kept = _filter(logits - top - jnp.log(total)[..., None], top_k, top_p)
    weights = jnp.where(kept, weights, 0.0)

  def uniform(key):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
    return jax.random.uniform(key)

  token = jax.lax.cond(
    at_random,
    lambda: _falls_on(weights, jax.vmap(jax.vmap(uniform))(keys)),
    lambda: jnp.argmax(logits, -1),
  )
  return token, _at(logits, token) - top[..., 0] - jnp.log(total)


def _falls_on(weights, uniform):
  """Where `uniform` `[B, N]`, in [0, 1), falls in weights `[B, N, V]`."""
  blocks = math.isqrt(weights.shape[-1] - 1) + 1
  room = blocks**2 - weights.shape[-1]
  weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, room)])
  weights = weights.reshape(*weights.shape[:-1], blocks, blocks)
  of_block = weights.sum(-1)
  sums = _cumulative(of_block)
  # Under the total, so that what it falls on has a weight.
  aim = uniform * sums[..., -1]
  block = _weighty(of_block, _first_over(sums, aim))
  before = jnp.where(block > 0, _at(sums, jnp.maximum(block - 1, 0)), 0.0)
  inside = jnp.take_along_axis(weights, block[..., None, None], -2)[..., 0, :]
  place = _weighty(inside, _first_over(_cumulative(inside), aim - before))
  return block * blocks + place


def _cumulative(x):
  """Cumulative sums of the last axis, as a product: fast on every backend."""
  size = x.shape[-1]
  upto = jnp.triu(jnp.ones((size, size), x.dtype))
  return jnp.matmul(x, upto, precision=jax.lax.Precision.HIGHEST)


def _weighty(weights, place):
  """`place`, or the heaviest where rounding has led to one without weight."""
  return jnp.where(_at(weights, place) > 0, place, jnp.argmax(weights, -1))


def _first_over(sums, aim):
  """The first place whose cumulative sum is over the aim, or the last."""
  over = (sums <= aim[..., None]).sum(-1)
  return jnp.minimum(over, sums.shape[-1] - 1)


def _at(x, index):
  return jnp.take_along_axis(x, index[..., None], -1)[..., 0]


def _filter(log_probs, top_k, top_p):
  """Which tokens are among the top_k likeliest and in the top_p nucleus."""
  ranked = -jnp.sort(-log_probs, -1)
  before = jnp.cumsum(jnp.exp(ranked), -1) - jnp.exp(ranked)
  kept = before < top_p
  if top_k:
    kept &= jnp.arange(ranked.shape[-1]) < top_k
  floor = jnp.min(jnp.where(kept, ranked, jnp.inf), -1, keepdims=True)
  return log_probs >= floor


def _smallest(shapes, size, branches):
  """The last of the shapes that has room for as many trunks and branches."""
  return [x for x in shapes if x[0] >= size and x[1] >= branches][-1]


def _compact(done, shapes):
  """Trunks `[B']` and their branches `[B', N']` that hold the live rows.

  None where they need the shape that they have. Free places repeat a finished
  row.
  """
  live = ~done
  size, branches = _smallest(shapes, live.any(1).sum(), live.sum(1).max())
  if size * branches >= done.size:
    return None
  trunk_order = np.argsort(~live.any(1), kind="stable")[:size]
  branch_order = np.argsort(done, axis=1, kind="stable")[:, :branches]
  return trunk_order, branch_order[trunk_order]


@jax.jit
def _gather(trunk_kv, state, trunks, branches):
  trunk_kv = jax.tree.map(lambda x: x[trunks], trunk_kv)
  state = jax.tree.map(lambda x: x[trunks[:, None], branches], state)
  return trunk_kv, state


def _round_up(count):
  return 1 << max(0, count - 1).bit_length()
