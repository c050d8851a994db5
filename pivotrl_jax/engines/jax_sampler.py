"""The embedded engine: samples from a Linen policy, each shared token once.

The prompts of a call form a trie (`data/trees.py`). What is new of it is
prefilled in chunks, each token once, into a pool of keys and values, which
outlives the call (`prefix_cache.py`). Branches then decode in lines: the keys
of a part of the trie, gathered from the pool and read once a step for all
branches on it. A batch of lines has one of the few shapes of the engine's
`Room`, which `prepare` compiles up front; a long line is a batch by itself,
with the branches of several prompts. Rows that stopped are dropped between
chunks of steps once the others fit the next smaller shape.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax import compilations
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base
from pivotrl_jax.engines import prefix_cache
from pivotrl_jax.models import attention
from pivotrl_jax.models import backend
from pivotrl_jax.models import moe
from pivotrl_jax.models import qwen3


_SHORTEST = 64  # Tokens of the shortest line that has a program of its own.
_SMALLEST = 8  # Rows of the smallest batch, about.
_LAID_OUT = 1024  # Tokens of the smallest trie that is copied out of the pool.
_LONG = 2048  # Tokens of a line that is a batch by itself,
_WIDE, _WIDEST = 4, 64  # with as many prompts' branches, and so many at most.
_READ = 8  # What it costs to read a key, in rows that see it,
_STEP = 1024  # and all else of a row's step, in keys that it sees.
_PREFILLED = (2048, 512, 128)  # Tokens of a chunk of prefilling.
_PREFILL, _DECODE = "prefill", "decode"  # Kinds of programs.


@dataclasses.dataclass
class Stats:
  """What the last `sample` computed, in tokens."""

  prompt_tokens: int = 0  # Sum of the prompts, as separate sequences.
  trie_tokens: int = 0  # Of the prompts' trie, each token once.
  prefilled_tokens: int = 0  # Of it, those computed, padding included.
  sampled_tokens: int = 0
  decoded_slots: int = 0  # Branch slots times steps, padding included.

  @property
  def computed_tokens(self) -> int:
    """All that was computed."""
    return self.prefilled_tokens + self.decoded_slots


@dataclasses.dataclass(frozen=True)
class Room:
  """The shapes that batches may have.

  Attributes:
    lengths: of lines, ascending.
    lines: most lines of a batch.
    rows: most branches of a line.
    tokens: most prompt tokens of a batch, padding included.
    wide: most branches of a long line by itself; 0: it is as others are.
  """

  lengths: tuple[int, ...]
  lines: int
  rows: int
  tokens: int
  wide: int = 0

  def length(self, tokens: int) -> int:
    """The shortest line that holds `tokens`; a new one where none does."""
    fitting = (length for length in self.lengths if length >= tokens)
    return next(fitting, trees.bucket(tokens))

  def alone(self, length: int) -> bool:
    """Whether a line of so many tokens is a batch by itself."""
    return self.wide > 0 and length >= _LONG

  def shapes(self, length: int) -> list[tuple[int, int]]:
    """Lines and branches of a batch: the whole, then ever smaller ones."""
    if self.alone(length):
      halvings = (self.wide // _SMALLEST).bit_length()
      return [(1, self.wide >> n) for n in range(halvings)]
    size = min(self.lines, _round_up(self.tokens // length + 1) // 2)
    shapes = [(max(1, size), self.rows)]
    while (last := shapes[-1])[0] * last[1] > _SMALLEST:
      size, rows = last
      shapes.append(
        (size, -(-rows // 4)) if rows >= size else (size // 4, rows)
      )
    return shapes


@dataclasses.dataclass(frozen=True)
class Line:
  """A part of a call's trie and the rows that branch off it.

  Attributes:
    slots: `[T]` of its tokens in the pool, in the order of the trie.
    ends: `[T]` see `trees.Trie`, in the line.
    rows: `[n]` which rows, in the order of where they leave.
    past: `[n]` the place in the line where each leaves; -1 at its start.
  """

  slots: np.ndarray
  ends: np.ndarray
  rows: np.ndarray
  past: np.ndarray


class JaxSampler:
  """An `engines.base.Engine` in this process.

  Args:
    config: shape of the policy.
    dtype: of activations.
    attention: what computes it, one of `attention.BODIES`.
    batch_tokens: most prompt tokens of a batch, padding included, and most
      whose keys and values are kept.
    batch_rows: most branches of a batch.
    chunk: decode steps between two looks at which rows are done.
    routes: completions say which experts their tokens came from.
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
    routes: bool = False,
  ):
    self._config = config
    self._routed = config.sparse_layers if routes else ()
    self._model = qwen3.Qwen3(config, dtype=dtype, attention=attention)
    self._batch_tokens = batch_tokens
    self._batch_rows = batch_rows
    self._chunk = chunk
    self._params = None
    self._room: Room | None = None
    # What is not compiled yet, by kind and size -> what compiles it.
    self._cold: dict[tuple[str, int], list[Callable[[], None]]] = {}
    self._pool: Any = None
    self._cache = prefix_cache.PrefixCache(_PREFILLED[-1])
    self.version = ""
    self.stats = Stats()

  def load(self, weights: Any, version: str) -> None:
    """Samples from `weights`, a Qwen3 params tree, from now on."""
    self._params = weights
    self._cache.clear()
    self.version = version

  def prepare(
    self,
    lengths: Sequence[int],
    sampling: base.SamplingParams,
    *,
    prompts: int,
    rows: int,
    longest: int = 0,
  ) -> None:
    """See `engines.base.Engine`."""
    every = [*lengths, *[longest] * prompts] if longest else [*lengths]
    least = 1 if longest else min(every)
    self._room = room = self._fitting(
      least, max(every), prompts, rows, sampling
    )
    self._grow(pool_size(every, prompts, self._batch_tokens))
    self._pool = self._pool or self._empty_pool()
    self._cold = {
      (_PREFILL, size): [functools.partial(self._warm_up_prefill, size)]
      for size in self._laid_out
    }
    for length in room.lengths:
      shapes = room.shapes(length)
      self._cold[_DECODE, length] = [
        functools.partial(self._warm_up_decode, length, shapes[i:], sampling)
        for i in range(len(shapes))
      ]
    if len(lengths):
      least, most = min(lengths), room.length(max(lengths))
      self._warm(
        (kind, size)
        for kind, size in list(self._cold)
        if least <= size and (kind == _PREFILL or size <= most)
      )

  def _warm(self, keys):
    """Compiles what of `keys` is cold."""
    jobs = [job for key in keys for job in self._cold.pop(key, ())]
    if not jobs:
      return
    # Compiling mostly waits for a library that lets other threads run.
    with (
      compilations.expected(),
      concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
      list(threads.map(lambda job: job(), jobs))

  def _warm_up_prefill(self, size):
    ends = np.zeros(size, np.int32)
    trie = _compile(_taken, self._pool, ends)
    for n in _PREFILLED:
      some = (np.zeros(n, np.int32),) * 3
      _compile(_prefill, self._model, self._params, *some, trie, ends)
    _compile(_kept, self._pool, trie, ends)

  def _warm_up_decode(self, length, shapes, sampling):
    """The programs of a shape, and those that drop to the others."""
    size, rows = shapes[0]
    slots = np.zeros((size, length), np.int32)
    tries = _compile(_lines, self._model.attention, self._pool, slots), slots
    cache = _compile(_no_keys, *self._own(size, rows, sampling))
    state = _state(np.zeros((size, rows), np.int32), cache)
    state, *_ = _compile(_decode, *self._steps(tries, state, 0, 0, sampling))
    if sampling.goes_on:
      slots = np.zeros((size, rows, sampling.max_tokens), np.int32)
      _compile(_kept_own, self._pool, state["cache"], slots)
    for fewer, rows in shapes[1:]:
      lines = np.zeros(fewer, int)
      if fewer < size:
        _compile(_of_lines, tries, lines)
      _compile(_of_rows, state, lines, np.zeros((fewer, rows), int))

  @property
  def _laid_out(self):
    """Tokens of a trie that is laid out beside the pool, ascending."""
    sizes = [_LAID_OUT]
    while sizes[-1] < self._cache.size:
      sizes.append(8 * sizes[-1])
    return [*sizes[:-1], self._cache.size]

  def _empty_pool(self):
    c = self._config
    shape = (c.num_key_value_heads, self._cache.size, c.head_dim)
    one = functools.partial(jnp.zeros, shape, self._model.dtype)
    return tuple((one(), one()) for _ in range(c.num_hidden_layers))

  def _fitting(self, least, most, prompts, rows, sampling):
    """The room for prompts of so many tokens, `rows` at most on one."""
    longest = max(trees.bucket(most), _SHORTEST)
    used = {
      min(_line(n), longest)
      for n in range(least, longest + _SHORTEST, _SHORTEST)
    }
    rows = _round_up(min(rows, self._batch_rows))
    return Room(
      lengths=tuple(sorted(used)),
      lines=_round_up(min(prompts, max(1, self._batch_rows // rows))),
      rows=rows,
      tokens=self._batch_tokens,
      wide=self._wide(rows, sampling),
    )

  def _wide(self, rows, sampling):
    """`Room.wide` where a prompt has so many rows.

    None for rows that go on: they part ways; and on CPU only: elsewhere a step
    reads the weights, for few rows as for many.
    """
    wide = max(rows, min(_WIDE * rows, _WIDEST))
    if backend.name() != "cpu" or sampling.goes_on or wide <= _SMALLEST:
      return 0
    return wide

  def _grow(self, tokens):
    """Makes the pool hold so many, and keep what it holds."""
    if tokens > self._cache.size:
      room = _round_up(tokens)
      more = ((0, 0), (0, room - self._cache.size), (0, 0))
      self._pool = jax.tree.map(lambda x: jnp.pad(x, more), self._pool)
      self._cache.grow(room)

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
    order = trees.order(prompts)
    self.stats = Stats(
      prompt_tokens=sum(len(p) for p in prompts), trie_tokens=order.tokens()
    )
    room, longest = self._room, int(order.lengths.max())
    if room is None:
      distinct = 1 + int((order.lengths > order.shared).sum())
      rows = -(-len(prompts) // distinct)
      room = self._fitting(
        int(order.lengths.min()), longest, distinct, rows, sampling
      )
    wanted = 0 if self._room else min(order.tokens(), self._batch_tokens)
    self._grow(max(longest, wanted))
    out: list[base.Completion | None] = [None] * len(prompts)

    for part in self._cache.parts(order):
      held = self._cache.hold(prompts, part)
      self._prefill(held)
      groups = list(_plan(_cut_lines(held, part, room), room))
      for slots, found in self._decoded(
        groups, room, prompts, sampling, seeds
      ):
        self.stats.decoded_slots += slots
        for row, completion in found:
          self.stats.sampled_tokens += len(completion.ids)
          out[row] = completion
    return out

  def _prefill(self, held):
    """Computes what is new of a part of the prompts, and keeps it."""
    if self._pool is None:
      self._pool = self._empty_pool()
    if not len(held.new):
      return
    slots = held.slots
    if (slots == np.arange(len(slots))).all():
      # It stands in the pool as it is laid out: no copy.
      self._warm([(_PREFILL, self._cache.size)])
      self._pool = self._prefilled(held, self._pool, self._cache.size)
      return
    size = next(size for size in self._laid_out if size >= len(slots))
    self._warm([(_PREFILL, size)])
    taken = np.zeros(size, np.int32)
    taken[: len(slots)] = slots
    kv = self._prefilled(held, _taken(self._pool, taken), size)
    kept = np.full(size, self._cache.size, np.int32)  # Nowhere.
    kept[held.new] = slots[held.new]
    self._pool = _kept(self._pool, kv, kept)

  def _prefilled(self, held, kv, size):
    """`kv` of a trie, laid out as it is, with what is new of it."""
    trie, places = held.trie, held.new
    ends = np.zeros(size, np.int32)
    ends[: len(trie.ends)] = trie.ends
    for n in chunks(len(places)):
      now, places = places[:n], places[n:]
      chunk = np.zeros((3, n), np.int32)
      chunk[:, : len(now)] = trie.tokens[now], now, trie.depths[now]
      chunk[1, len(now) :] = size + np.arange(n - len(now))
      kv = _prefill(self._model, self._params, *chunk, kv, ends)
      self.stats.prefilled_tokens += n
    return kv

  def _decoded(self, groups, room, prompts, sampling, seeds):
    """What `_run` returns of each batch.

    On CPU small ones run at once, as many as one may have tokens: each has too
    little work for all cores; one more than cores, for each waits at times.
    """
    lengths = [
      room.length(max(len(line.slots) for line in group)) for group in groups
    ]
    self._warm((_DECODE, length) for length in lengths)
    device = jax.config.jax_default_device  # Of this thread.

    def run(group, length):
      with jax.default_device(device):
        return self._run(group, length, room, prompts, sampling, seeds)

    most = max(length * room.shapes(length)[0][0] for length in lengths)
    at_once = min((os.cpu_count() or 0) + 1, room.tokens // most)
    # Going on writes to the pool.
    if backend.name() != "cpu" or sampling.goes_on or at_once < 2:
      yield from map(run, groups, lengths)
      return
    with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
      # The longest first: none is left alone at the end.
      yield from threads.map(run, groups[::-1], lengths[::-1])

  def _run(self, group, length, room, prompts, sampling, seeds):
    """Samples one batch of lines.

    Returns:
      Branch slots times steps, and (row, Completion) of each row.
    """
    shapes = room.shapes(length)
    tries, state, rows = self._start(
      group, length, shapes, prompts, sampling, seeds
    )
    ids = np.zeros((*rows.shape, sampling.max_tokens), np.int32)
    log_probs = np.zeros(ids.shape, np.float32)
    routes = None
    if self._routed:
      each = (len(self._routed), self._config.num_experts_per_tok)
      routes = np.zeros((*ids.shape, *each), np.int16)
    length = np.zeros(rows.shape, np.int32)
    place, slots = np.indices(rows.shape), 0
    for start in range(0, sampling.max_tokens, self._chunk):
      end = min(start + self._chunk, sampling.max_tokens)
      state, new_ids, new_log_probs, new_routes = _decode(
        *self._steps(tries, state, start, end, sampling)
      )
      done, counted, new_ids, new_log_probs, new_routes = jax.device_get(
        (state["done"], state["length"], new_ids, new_log_probs, new_routes)
      )
      at = tuple(place)
      ids[(*at, slice(start, end))] = new_ids[..., : end - start]
      log_probs[(*at, slice(start, end))] = new_log_probs[..., : end - start]
      if self._routed:
        routes[(*at, slice(start, end))] = new_routes[:, :, : end - start]
      length[at] = counted
      slots += done.size * (end - start)
      if done.all():
        break
      keep = _compact(done, shapes)
      if keep is not None:
        if sampling.goes_on:
          leaving = np.where(done, rows[at], -1)
          self._keep(state, leaving, prompts, ids[at], length[at])
        lines, branches = keep
        if len(lines) < len(done):
          tries = _of_lines(tries, lines)
        state = _of_rows(state, lines, branches)
        place = place[:, lines[:, None], branches]
    if sampling.goes_on:
      at = tuple(place)  # The last chunk may have dropped some.
      self._keep(state, rows[at], prompts, ids[at], length[at])
    stopped = np.isin(
      np.take_along_axis(ids, np.maximum(length - 1, 0)[..., None], -1),
      sampling.stop_ids,
    )[..., 0]
    found = []
    for at in zip(*np.nonzero(rows >= 0), strict=True):
      size = length[at]
      completion = base.Completion(
        ids[at][:size].copy(),
        log_probs[at][:size].copy(),
        "stop" if stopped[at] else "length",
        self.version,
        routes=None if routes is None else routes[at][:size].copy(),
      )
      found.append((rows[at], completion))
    return slots, found

  def _keep(self, state, rows, prompts, ids, length):
    """Keeps the keys of what rows `[B, N]` said, the first `length` of `ids`;
    rows of -1 are passed over.
    """
    slots = np.full(ids.shape, self._cache.size, np.int32)  # Nowhere.
    for at in zip(*np.nonzero(rows >= 0), strict=True):
      said = ids[at][: length[at]]
      found = self._cache.extend(prompts[rows[at]], said)
      if found is not None:
        slots[at][: len(said)] = found
    self._pool = _kept_own(self._pool, state["cache"], slots)

  def _steps(self, tries, state, start, end, sampling):
    """What `_decode` takes, with this engine's weights."""
    unembed = qwen3.unembedding(self._params, self._config)
    filters = (sampling.top_k, sampling.top_p, self._routed)
    knobs = (jnp.float32(sampling.temperature), jnp.array(sampling.stop_ids))
    return (
      self._model, self._chunk, filters, self._params, unembed,
      tries, state, start, end, knobs,
    )  # fmt: skip

  def _start(self, group, length, shapes, prompts, sampling, seeds):
    """Arrays of a batch before its first step; rows are -1 in padding."""
    most = max(len(line.rows) for line in group)
    size, branches = _smallest(shapes, len(group), most)
    slots = np.zeros((size, length), np.int32)
    ends = np.zeros((size, length), np.int32)
    rows = np.full((size, branches), -1)
    cache = _no_keys(*self._own(size, branches, sampling))
    state = _state(np.full((size, branches), -1, np.int32), cache)
    for b, line in enumerate(group):
      n = len(line.rows)
      slots[b, : len(line.slots)] = line.slots
      ends[b, : len(line.ends)] = line.ends
      rows[b, :n] = line.rows
      state["past"][b, :n] = line.past
      for i, row in enumerate(line.rows):
        state["tokens"][b, i] = prompts[row][-1]
        state["depths"][b, i] = len(prompts[row]) - 1
        state["keys"][b, i] = divmod(seeds[row], 1 << 32)
    state["done"] = rows < 0
    return (_lines(self._model.attention, self._pool, slots), ends), state, rows

  def _own(self, size, branches, sampling):
    """What `_no_keys` takes, for so many lines of so many branches."""
    c = self._config
    slots = -(-sampling.max_tokens // self._chunk) * self._chunk
    shape = (size * branches, c.num_key_value_heads, slots, c.head_dim)
    return shape, c.num_hidden_layers, self._model.dtype


def pool_size(lengths: Sequence[int], prompts: int, most: int) -> int:
  """Tokens to hold for calls with so many prompts of these lengths.

  Args:
    lengths: of the longest prompts that share their beginnings.
    prompts: most of a call.
    most: tokens, but room for the longest prompt.
  """
  wanted = max(max(lengths), min(sum(sorted(lengths)[-prompts:]), most))
  return _round_up(wanted)


def _line(tokens):
  """Tokens of a line that holds so many; a long one costs by its length."""
  size = max(_SHORTEST, _round_up(tokens))
  return size * 3 // 4 if size > 4096 and tokens <= size * 3 // 4 else size


def chunks(tokens: int) -> list[int]:
  """The sizes in which so many tokens are prefilled, padding included."""
  found = []
  while tokens > 0:
    found.append(next((n for n in _PREFILLED if n <= tokens), _PREFILLED[-1]))
    tokens -= found[-1]
  return found


def _cut_lines(held, order, room):
  """The lines that decode the rows of a part for the least reading.

  Args:
    held: the part.
    order: of its rows.
    room: a line has one of its lengths.
  """
  trie, past = held.trie, held.trie.past
  # As long as the longest prompt alone wants, so that no shape is new.
  most = np.array([room.length(n) for n in order.lengths])
  lengths = np.unique([*room.lengths, *most])
  long = np.array([room.alone(n) for n in lengths])
  # Of a long line, by its rows.
  branches = np.array(
    [max(_SMALLEST, _round_up(n)) for n in range(len(order.rows) + 1)]
  )

  def cost(firsts, last, tokens):
    rows = last - firsts + 1
    fits = tokens <= np.maximum.accumulate(most[last::-1])[::-1]
    at = np.searchsorted(lengths, np.minimum(tokens, lengths[-1]))
    size, by_itself = lengths[at], long[at]
    fits &= rows <= np.where(by_itself, room.wide, room.rows)
    # All keys of a line are read at every step, and every row sees them.
    price = np.where(
      by_itself,
      (_READ + branches[rows]) * (_STEP + size),
      (_READ + rows) * size,
    )
    return np.where(fits, price, np.inf)

  for run in trees.cut(order, cost):
    places = trees.above(trie, past[run])
    upto = np.searchsorted(places, past[run], side="right") - 1
    yield Line(
      held.slots[places],
      np.searchsorted(places, trie.ends[places]),
      order.rows[run],
      upto,
    )


def _plan(lines, room):
  """Lines to batches of like lengths that have room."""
  lines = sorted(
    lines, key=lambda x: (len(x.slots), len(x.rows), x.rows.min())
  )
  group: list[Line] = []
  for line in lines:
    # The lines before it are no longer.
    most, _ = room.shapes(room.length(len(line.slots)))[0]
    if len(group) >= most:
      yield group
      group = []
    group.append(line)
  if group:
    yield group


def _compile(function, *args):
  """Makes a jitted function ready for arguments of these shapes, and computes
  nothing.

  Returns:
    The shapes of its results.
  """
  lowered = function.lower(*args)
  lowered.compile()
  return lowered.out_info


def _state(past, cache):
  """What branches `[B, N]` decode with, before any: where they leave their
  lines, and no keys of their own.
  """
  return {
    "tokens": np.zeros(past.shape, np.int32),
    "past": past,
    "depths": np.zeros(past.shape, np.int32),
    "done": np.zeros(past.shape, bool),
    "length": np.zeros(past.shape, np.int32),
    "keys": np.zeros((*past.shape, 2), np.uint32),
    "cache": cache,
  }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _no_keys(shape, layers, dtype):
  """Room for keys `[B * N, K, C, A]` and values `[B * N, K, A, C]` a layer."""
  *first, slots, width = shape
  return tuple(
    (jnp.zeros((*first, width, slots), dtype), jnp.zeros(shape, dtype))
    for _ in range(layers)
  )


@functools.partial(jax.jit, static_argnums=0, donate_argnames=("pool",))
def _prefill(model, params, tokens, places, depths, pool, ends):
  return model.apply(
    {"params": params}, tokens, places, depths, pool, ends, method="prefill"
  )


@jax.jit
def _taken(pool, slots):
  """Keys and values `[K, T, C]` of the tokens in `slots` `[T]`."""
  return jax.tree.map(lambda x: x[:, slots], pool)


@functools.partial(jax.jit, donate_argnums=0)
def _kept(pool, kv, slots):
  """The pool with `kv` `[K, T, C]` in `slots` `[T]`; those past it are none."""
  return jax.tree.map(
    lambda x, new: x.at[:, slots].set(new, mode="drop"), pool, kv
  )


@functools.partial(jax.jit, donate_argnums=0)
def _kept_own(pool, cache, slots):
  """The pool with what branches hold of their own, in slots `[B, N, A]`."""

  def put(x, own):  # `[B * N, K, A', C]`, A' >= A.
    own = jnp.moveaxis(own[:, :, : slots.shape[-1]], 1, 0)
    own = own.reshape(len(x), -1, x.shape[-1])
    return x.at[:, slots.reshape(-1)].set(own, mode="drop")

  return tuple(
    (put(k, jnp.swapaxes(own_k, -1, -2)), put(v, own_v))
    for (k, v), (own_k, own_v) in zip(pool, cache, strict=True)
  )


@functools.partial(jax.jit, static_argnums=0)
def _lines(body, pool, slots):
  """Keys and values of the lines in `slots` `[B, T]`, for decoding."""

  def taken(x):
    return jnp.moveaxis(x[:, slots], 1, 0)

  return tuple(
    (attention.trie_keys(taken(k), body=body), taken(v)) for k, v in pool
  )


@functools.partial(
  jax.jit, static_argnums=(0, 1, 2), donate_argnames=("state",)
)
def _decode(
  model, chunk, filters, params, unembed, tries, state, start, end, knobs
):
  """Steps `start..end` of every branch, or until all are done.

  Returns:
    The state after them, the chunk's ids and log-probs `[B, N, chunk]` (0
    after a row's end), and the experts `[B, N, chunk, L, k]` of the layers
    `routed` that they came from; () where there are none.
  """
  temperature, stop_ids = knobs
  *filters, routed = filters
  shape = state["tokens"].shape

  def body(carry):
    step, state, ids, log_probs, routes = carry
    (hidden, cache), found = model.apply(
        {"params": params}, state["tokens"], *tries, state["past"],
        state["depths"], state["cache"], step, method="decode",
        mutable=[moe.ROUTES] if routed else [],
    )  # fmt: skip
    if routed:
      new = moe.stacked(found[moe.ROUTES], routed, "routes")
      new = jnp.moveaxis(new, 0, 2).astype(routes.dtype)
      routes = routes.at[:, :, step - start].set(new)
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
    return step + 1, state, ids, log_probs, routes

  each = (len(routed), model.config.num_experts_per_tok)
  carry = (
    start,
    state,
    jnp.zeros((*shape, chunk), jnp.int32),
    jnp.zeros((*shape, chunk), jnp.float32),
    jnp.zeros((*shape, chunk, *each), jnp.int16) if routed else (),
  )
  carry = jax.lax.while_loop(
    lambda c: (c[0] < end) & ~c[1]["done"].all(), body, carry
  )
  _, *found = carry
  return tuple(found)


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
  """The last of the shapes that has room for as many lines and branches."""
  return [x for x in shapes if x[0] >= size and x[1] >= branches][-1]


def _compact(done, shapes):
  """Lines `[B']` and their branches `[B', N']` that hold the live rows.

  None where they need the shape that they have. Free places repeat a finished
  row.
  """
  live = ~done
  size, branches = _smallest(shapes, live.any(1).sum(), live.sum(1).max())
  if size * branches >= done.size:
    return None
  line_order = np.arange(len(done))
  if size < len(done):
    line_order = np.argsort(~live.any(1), kind="stable")[:size]
  branch_order = np.argsort(done, axis=1, kind="stable")[:, :branches]
  return line_order, branch_order[line_order]


@jax.jit
def _of_lines(tries, lines):
  return jax.tree.map(lambda x: x[lines], tries)


@jax.jit
def _of_rows(state, lines, branches):
  at = lines[:, None], branches
  flat = (lines[:, None] * state["past"].shape[1] + branches).reshape(-1)
  cache = jax.tree.map(lambda x: x[flat], state["cache"])
  rest = {name: x[at] for name, x in state.items() if name != "cache"}
  return rest | {"cache": cache}


def _round_up(count):
  return 1 << max(0, count - 1).bit_length()
