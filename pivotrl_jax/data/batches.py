"""Scored rows -> the batch of tries and branches that `train_step` takes.

The host's text, lists and rewards end here; what leaves is a pytree of
arrays. Parts of the prompts' trie, cut where a cut costs least, stand side by
side in lines of a fixed length, so that little is padding and every step of a
run has one `Shape`, hence one program. Rows of one group may lie in different
parts or micro-batches: their advantage was fixed before, so the sums are the
same.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import math
from typing import Any

import flax.struct
import jax
import numpy as np

from pivotrl_jax.data import trees

PLANNED = 8  # Steps whose content plans the shape of a run's batches.
_TRIED = 6  # Lengths of a line of prompts that `plan` tries, and of branches.


@flax.struct.dataclass
class TrainBatch:
  """Micro-batches of prefix tries with branches; padding has mask 0.

  Attributes:
    tries: `[M, B, T]` token ids, trie after trie, each depth first.
    ends: `[M, B, T]` the place in the line behind all that follows each
      token; 0 is padding.
    depths: `[M, B, T]` tokens above each.
    past: `[M, B, N]` the place where each branch leaves its trie; -1 where its
      prompt is one token.
    first: `[M, B, N]` the last prompt token, the first that a branch reads.
    actions: `[M, B, N, A]` token ids.
    places: `[M, B, S]` the action tokens that are computed, branch after
      branch, as n * A + a; N * A where there are no more.
    mask: `[M, B, N, A]` float32 weight of each action token in the loss.
    advantages: `[M, B, N]`.
    sampler_log_probs: `[M, B, N, A]` as the engine reported them.
    left_out: `[M, B]` what rows that are not here, for they move nothing, add
      to the divisor of the loss.
    old_log_probs: `[M, B, N, A]` under the trainer's policy before the first
      update on this batch; None where this is the first update.
    ref_log_probs: `[M, B, N, A]` under the reference policy, or None.
    routes: `[M, B, N, A, L, k]` the experts that each sampled token came from
      in each sparse layer, or None; -1 on padding.
    keys: of one micro-batch, what `qwen3.Qwen3.keys` gives of its tries where
      that is known; else None.
    parts: the branches of a micro-batch are run in so many parts, each of
      N / parts branches and S / parts tokens; none lies in two.
  """

  tries: jax.Array
  ends: jax.Array
  depths: jax.Array
  past: jax.Array
  first: jax.Array
  actions: jax.Array
  places: jax.Array
  mask: jax.Array
  advantages: jax.Array
  sampler_log_probs: jax.Array
  left_out: jax.Array
  old_log_probs: jax.Array | None = None
  ref_log_probs: jax.Array | None = None
  routes: jax.Array | None = None
  keys: Any = None
  parts: int = flax.struct.field(pytree_node=False, default=1)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Actions to train on, one a row: what `pack` takes.

  Attributes:
    prompts: token ids `[P_i]` of each row's prompt.
    actions: token ids `[A_i]`.
    weights: `[A_i]` loss weight of each action token.
    advantages: `[R]`.
    sampler_log_probs: `[A_i]` each; zeros where nothing was sampled.
    routes: `[A_i, L, k]` each, as `engines.base.Completion` has them; None
      where none are replayed.
  """

  prompts: Sequence[np.ndarray]
  actions: Sequence[np.ndarray]
  weights: Sequence[np.ndarray]
  advantages: np.ndarray
  sampler_log_probs: Sequence[np.ndarray]
  routes: Sequence[np.ndarray] | None = None


def even_rows(
  prompts: Sequence[np.ndarray],
  actions: Sequence[np.ndarray],
  sampler_log_probs: Sequence[np.ndarray] | None = None,
) -> Rows:
  """Rows whose every action token weighs 1, without advantages."""
  if sampler_log_probs is None:
    sampler_log_probs = [np.zeros(len(a), np.float32) for a in actions]
  return Rows(
    prompts=prompts,
    actions=actions,
    weights=[np.ones(len(a), np.float32) for a in actions],
    advantages=np.zeros(len(actions), np.float32),
    sampler_log_probs=sampler_log_probs,
  )


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a batch, in tokens where not said otherwise.

  Attributes:
    micro_batches: M; twice as many, and so on, where they do not suffice.
    least: micro-batches that are used at least.
    lines: B, a multiple of the device count.
    trie: T, room for prompts in a line.
    branch: S, room for branches in a line.
    branches: N, most branches of a line.
    width: A, the longest action.
    parts: of the branches of a line; they divide S and N.
  """

  micro_batches: int
  least: int
  lines: int
  trie: int
  branch: int
  branches: int
  width: int
  parts: int = 1


def plan(
  steps: Iterable[tuple[Sequence[np.ndarray], Sequence[int]]],
  *,
  longest: int,
  width: int,
  micro_batches: int = 1,
  multiple_of: int = 1,
  batch_tokens: int = 0,
  branch_tokens: int = 0,
) -> Shape:
  """The shape in which steps like these compute the fewest tokens.

  Args:
    steps: the prompts and the lengths of the actions of each.
    longest: tokens of the longest prompt of any step.
    width: of the longest action of any step.
    micro_batches: least M, gradient accumulation steps.
    multiple_of: B, the device count.
    batch_tokens: prompt tokens of a line: half of them to all; where the
      longest prompt has more, once to twice as many as it.
    branch_tokens: action tokens of a line at a time, about; 0: all of them.
  """
  forests = [(p, trees.order(p), np.asarray(sizes)) for p, sizes in steps]
  least = max(order.tokens() for _, order, _ in forests)
  tokens = max(lengths.sum() for _, _, lengths in forests)
  mean = np.mean(np.concatenate([lengths for _, _, lengths in forests]))
  best, least_cost = None, np.inf
  # Lines that hold no more than the longest prompt would share little.
  most = batch_tokens if batch_tokens >= longest else 2 * longest
  for trie, share in itertools.product(
    np.linspace(max(longest, batch_tokens // 2), max(most, longest), _TRIED),
    np.linspace(1.0, 2.0, _TRIED),
  ):
    branch = tokens * min(share * trie / max(least, 1), 1)
    parts = math.ceil(branch / branch_tokens) if branch_tokens else 1
    if parts > 1:  # Each may end before an action that has no room left.
      branch = branch / parts + width
    branch = parts * _round_up(max(width, branch))
    shape = Shape(
      micro_batches=micro_batches,
      least=micro_batches,
      lines=multiple_of,
      trie=_round_up(trie),
      branch=branch,
      branches=parts * int(max(1, 2 * branch / parts / mean)),
      width=width,
      parts=parts,
    )
    counts = [
      len(_lines(order, _sizes(lengths, shape), shape)) // multiple_of
      for _, order, lengths in forests
    ]
    cost = sum(counts) * (shape.trie + shape.branch)
    if cost < least_cost:
      # Half as many again: other steps may need more.
      count = max(counts) + max(counts) // 2
      best, least_cost = dataclasses.replace(shape, micro_batches=count), cost
  return best


def pack(
  rows: Rows, shape: Shape | None = None, **layout: int
) -> tuple[TrainBatch, np.ndarray]:
  """Packs rows into tries and tries into lines.

  Args:
    rows: see `Rows`; empty actions are not allowed.
    shape: of the batch; by default what `plan` finds for these rows alone.
    **layout: of `plan`, where there is no shape.

  Returns:
    The batch (numpy arrays), and `[R]` the flat index into `[M * B * N]` at
    which each row stands.

  Raises:
    ValueError: a prompt or an action has no room in the shape.
  """
  lengths = np.array([len(a) for a in rows.actions], int)
  longest = max((len(p) for p in rows.prompts), default=0)
  if shape is None:
    shape = plan(
        [(rows.prompts, lengths)], longest=longest, width=int(lengths.max()),
        **layout,
    )  # fmt: skip
  widest = lengths.max(initial=0)
  if longest > shape.trie + 1 or widest > shape.width:
    raise ValueError(
      f"a prompt of {longest} and an action of {widest} tokens;"
      f" expected at most {shape.trie + 1} and {shape.width}"
    )
  sizes = _sizes(lengths, shape)
  lines = _lines(trees.order(rows.prompts), sizes, shape)
  count = shape.micro_batches
  while count * shape.lines < len(lines):
    count *= 2
  n, a = shape.branches, shape.width
  batch = empty(dataclasses.replace(shape, micro_batches=count))
  if rows.routes is not None:
    size = (*batch.actions.shape, *rows.routes[0].shape[1:])
    batch = batch.replace(routes=np.full(size, -1, rows.routes[0].dtype))
  where = np.zeros(len(rows.prompts), np.int64)
  for i, line in enumerate(lines):
    at = divmod(i, shape.lines)
    start, room = 0, _Room(shape)
    for part in line:
      trie = trees.build(rows.prompts, part)
      place = slice(start, start + len(trie.tokens))
      batch.tries[at][place] = trie.tokens
      batch.ends[at][place] = start + trie.ends
      batch.depths[at][place] = trie.depths
      for row, past in zip(trie.rows, trie.past, strict=True):
        end = lengths[row]
        branch, used = room.take(sizes[row], end)
        batch.past[at][branch] = start + past if past >= 0 else -1
        batch.first[at][branch] = rows.prompts[row][-1]
        batch.actions[at][branch, :end] = rows.actions[row]
        batch.places[at][used : used + end] = branch * a + np.arange(end)
        batch.mask[at][branch, :end] = rows.weights[row]
        batch.advantages[at][branch] = rows.advantages[row]
        batch.sampler_log_probs[at][branch, :end] = rows.sampler_log_probs[row]
        if rows.routes is not None:
          batch.routes[at][branch, :end] = rows.routes[row]
        where[row] = i * n + branch
      start = place.stop
  return batch, where


def empty(shape: Shape) -> TrainBatch:
  """A batch of padding alone, numpy arrays."""
  lead, n, a = (shape.micro_batches, shape.lines), shape.branches, shape.width
  return TrainBatch(
    tries=np.zeros((*lead, shape.trie), np.int32),
    ends=np.zeros((*lead, shape.trie), np.int32),
    depths=np.zeros((*lead, shape.trie), np.int32),
    past=np.full((*lead, n), -1, np.int32),
    first=np.zeros((*lead, n), np.int32),
    actions=np.zeros((*lead, n, a), np.int32),
    places=np.full((*lead, shape.branch), n * a, np.int32),
    mask=np.zeros((*lead, n, a), np.float32),
    advantages=np.zeros((*lead, n), np.float32),
    sampler_log_probs=np.zeros((*lead, n, a), np.float32),
    left_out=np.zeros(lead, np.float32),
    parts=shape.parts,
  )


class _Room:
  """Where the branches of a line stand, one behind the other in each part."""

  def __init__(self, shape: Shape):
    self._tokens = shape.branch // shape.parts
    self._branches = shape.branches // shape.parts
    self._part = self._sizes = self._branch = self._used = 0

  def take(self, size: int, tokens: int) -> tuple[int, int]:
    """The place of the next branch, and that of its first token.

    Args:
      size: what it counts as, of `_sizes`.
      tokens: of its action.
    """
    if self._sizes + size > self._tokens:
      self._part += 1
      self._sizes = self._branch = self._used = 0
    found = (
      self._part * self._branches + self._branch,
      self._part * self._tokens + self._used,
    )
    self._sizes += size
    self._branch += 1
    self._used += tokens
    return found


def _sizes(lengths, shape):
  """What branches count as where a part has room for S / parts.

  Who takes at least its share of places never meets the bound on branches.
  """
  return np.maximum(lengths, -(-shape.branch // shape.branches))


def _lines(order, sizes, shape):
  """Parts of a trie to lines that have room for them, as even as may be.

  Returns:
    As many lists of `trees.Order` as fill whole micro-batches.
  """
  # Of a part all may be left but for what the next branch needs.
  lost = (shape.parts - 1) * (int(sizes.max(initial=1)) - 1)
  most = shape.branch - lost
  sums = np.concatenate([[0], np.cumsum(sizes[order.rows])])

  def cost(firsts, last, tokens):
    fits = tokens <= shape.trie
    fits &= sums[last + 1] - sums[firsts] <= most
    return np.where(fits, tokens, np.inf)

  parts = [order.part(run) for run in trees.cut(order, cost)]
  parts.sort(key=lambda part: (-part.tokens(), part.rows.min()))
  needs = np.array([(p.tokens(), sizes[p.rows].sum()) for p in parts])
  room = np.array([shape.trie, most])
  count = max(shape.least, math.ceil((needs.sum(0) / room).max() / shape.lines))
  count *= shape.lines
  lines = [[] for _ in range(count)]
  used = np.zeros((count, 2), np.int64)
  for part, need in zip(parts, needs, strict=True):
    load = ((used + need) / room).max(1)
    i = int(load.argmin())
    if load[i] > 1:
      i = len(lines)
      lines.append([])
      used = np.concatenate([used, np.zeros((1, 2), np.int64)])
    lines[i].append(part)
    used[i] += need
  lines.extend([] for _ in range(-len(lines) % shape.lines))
  return lines


def _round_up(size, unit=16):
  return -(-int(size) // unit) * unit


def computed_tokens(batch: TrainBatch) -> int:
  """Tokens of tries and branches that a step computes, padding included."""
  live = (
    batch.mask.any((1, 3)).reshape(len(batch.mask), batch.parts, -1).any(-1)
  )
  used = np.flatnonzero(live.any(1)).max(initial=-1) + 1
  parts = [np.flatnonzero(row).max(initial=-1) + 1 for row in live[:used]]
  branch = batch.places[0].size // batch.parts
  return int(used * batch.tries[0].size + sum(parts) * branch)


def padding_share(batch: TrainBatch) -> float:
  """The share of computed tokens that is padding."""
  count, width = batch.actions.shape[-2:]
  used = (batch.places < count * width).sum() + (batch.ends > 0).sum()
  return 1.0 - float(used) / computed_tokens(batch)
