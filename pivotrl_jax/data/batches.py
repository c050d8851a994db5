"""Scored rows -> the trunk-and-branch batch that `train_step` takes.

The host's text, lists and rewards end here; what leaves is a pytree of
arrays. Trees stand side by side in lines of a fixed length, so that little is
padding and every step of a run has one `Shape`, hence one program. Rows of
one group may lie on different trunks or in different micro-batches: their
advantage was fixed before, so the sums are the same.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import math

import flax.struct
import jax
import numpy as np

from pivotrl_jax.data import trees

PLANNED = 8  # Steps whose content plans the shape of a run's batches.
_TRIED = 6  # Lengths of a trunk line that `plan` tries, and of a branch line.


@flax.struct.dataclass
class TrainBatch:
  """Micro-batches of trajectory trees; padding has mask 0.

  Attributes:
    trunks: `[M, B, T]` token ids, trunk after trunk.
    starts: `[M, B, N]` where each branch's trunk begins in its line.
    attach: `[M, B, N]` prompt length p >= 1 of each branch: it follows
      `trunk[start : start + p]`.
    actions: `[M, B, N, A]` token ids.
    places: `[M, B, S]` the action tokens that are computed, branch after
      branch, as n * A + a; N * A where there are no more.
    mask: `[M, B, N, A]` float32 weight of each action token in the loss.
    advantages: `[M, B, N]`.
    sampler_log_probs: `[M, B, N, A]` as the engine reported them.
    old_log_probs: `[M, B, N, A]` under the trainer's policy before the first
      update on this batch; None where this is the first update.
    ref_log_probs: `[M, B, N, A]` under the reference policy, or None.
  """

  trunks: jax.Array
  starts: jax.Array
  attach: jax.Array
  actions: jax.Array
  places: jax.Array
  mask: jax.Array
  advantages: jax.Array
  sampler_log_probs: jax.Array
  old_log_probs: jax.Array | None = None
  ref_log_probs: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
  """Actions to train on, one a row: what `pack` takes.

  Attributes:
    prompts: token ids `[P_i]` of each row's prompt.
    actions: token ids `[A_i]`.
    weights: `[A_i]` loss weight of each action token.
    advantages: `[R]`.
    sampler_log_probs: `[A_i]` each; zeros where nothing was sampled.
  """

  prompts: Sequence[np.ndarray]
  actions: Sequence[np.ndarray]
  weights: Sequence[np.ndarray]
  advantages: np.ndarray
  sampler_log_probs: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a batch, in tokens where not said otherwise.

  Attributes:
    micro_batches: M; twice as many, and so on, where they do not suffice.
    least: micro-batches that are used at least.
    lines: B, a multiple of the device count.
    trunk: T, room for trunks in a line.
    branch: S, room for branches in a line.
    branches: N, most branches of a line.
    width: A, the longest action.
  """

  micro_batches: int
  least: int
  lines: int
  trunk: int
  branch: int
  branches: int
  width: int


def plan(
  steps: Iterable[tuple[Sequence[np.ndarray], Sequence[int]]],
  *,
  longest: int,
  width: int,
  micro_batches: int = 1,
  multiple_of: int = 1,
  batch_tokens: int = 0,
) -> Shape:
  """The shape in which steps like these compute the fewest tokens.

  Args:
    steps: the prompts and the lengths of the actions of each.
    longest: tokens of the longest prompt of any step.
    width: of the longest action of any step.
    micro_batches: least M, gradient accumulation steps.
    multiple_of: B, the device count.
    batch_tokens: trunk tokens of a line: half of them to all, but room for the
      longest prompt.
  """
  forests = [(trees.build(p), np.asarray(lengths)) for p, lengths in steps]
  trunks = max(sum(len(t.trunk) for t in forest) for forest, _ in forests)
  tokens = max(lengths.sum() for _, lengths in forests)
  mean = np.mean(np.concatenate([lengths for _, lengths in forests]))
  best, least_cost = None, np.inf
  for trunk, share in itertools.product(
    np.linspace(
      max(longest, batch_tokens // 2), max(longest, batch_tokens), _TRIED
    ),
    np.linspace(1.0, 2.0, _TRIED),
  ):
    branch = _round_up(max(width, tokens * min(share * trunk / trunks, 1)))
    shape = Shape(
      micro_batches=micro_batches,
      least=micro_batches,
      lines=multiple_of,
      trunk=_round_up(trunk),
      branch=branch,
      branches=int(max(1, 2 * branch / mean)),
      width=width,
    )
    counts = [
      len(_lines(forest, lengths, shape)) // multiple_of
      for forest, lengths in forests
    ]
    cost = sum(counts) * (shape.trunk + shape.branch)
    if cost < least_cost:
      # Half as many again: other steps may need more.
      count = max(counts) + max(counts) // 2
      best, least_cost = dataclasses.replace(shape, micro_batches=count), cost
  return best


def pack(
  rows: Rows, shape: Shape | None = None, **layout: int
) -> tuple[TrainBatch, np.ndarray]:
  """Packs rows into trees and trees into lines.

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
  lengths = np.array([len(a) for a in rows.actions])
  longest = max(len(p) for p in rows.prompts)
  if shape is None:
    shape = plan(
        [(rows.prompts, lengths)], longest=longest, width=int(lengths.max()),
        **layout,
    )  # fmt: skip
  if longest > shape.trunk or lengths.max() > shape.width:
    raise ValueError(
      f"a prompt of {longest} and an action of {lengths.max()} tokens;"
      f" expected at most {shape.trunk} and {shape.width}"
    )
  lines = _lines(trees.build(rows.prompts), lengths, shape)
  count = shape.micro_batches
  while count * shape.lines < len(lines):
    count *= 2
  lead, n, a = (count, shape.lines), shape.branches, shape.width
  batch = TrainBatch(
    trunks=np.zeros((*lead, shape.trunk), np.int32),
    starts=np.zeros((*lead, n), np.int32),
    attach=np.ones((*lead, n), np.int32),
    actions=np.zeros((*lead, n, a), np.int32),
    places=np.full((*lead, shape.branch), n * a, np.int32),
    mask=np.zeros((*lead, n, a), np.float32),
    advantages=np.zeros((*lead, n), np.float32),
    sampler_log_probs=np.zeros((*lead, n, a), np.float32),
  )
  where = np.zeros(len(rows.prompts), np.int64)
  for i, line in enumerate(lines):
    at = divmod(i, shape.lines)
    start = branch = used = 0
    for tree in line:
      batch.trunks[at][start : start + len(tree.trunk)] = tree.trunk
      for row, attach in zip(tree.rows, tree.attach, strict=True):
        end = lengths[row]
        batch.starts[at][branch] = start
        batch.attach[at][branch] = attach
        batch.actions[at][branch, :end] = rows.actions[row]
        batch.places[at][used : used + end] = branch * a + np.arange(end)
        batch.mask[at][branch, :end] = rows.weights[row]
        batch.advantages[at][branch] = rows.advantages[row]
        batch.sampler_log_probs[at][branch, :end] = rows.sampler_log_probs[row]
        where[row] = i * n + branch
        branch, used = branch + 1, used + end
      start += len(tree.trunk)
  return batch, where


def _lines(forest, lengths, shape):
  """Trees to lines that have room for them, as even as may be.

  Returns:
    As many lists of trees as fill whole micro-batches.
  """
  # Who takes at least its share of places never meets the bound on branches.
  sizes = np.maximum(lengths, -(-shape.branch // shape.branches))
  forest = [p for t in forest for p in trees.split(t, shape.branch, sizes)]
  forest.sort(key=lambda t: (-len(t.trunk), t.rows[0]))
  needs = np.array([(len(t.trunk), sizes[t.rows].sum()) for t in forest])
  room = np.array([shape.trunk, shape.branch])
  count = max(shape.least, math.ceil((needs.sum(0) / room).max() / shape.lines))
  count *= shape.lines
  lines = [[] for _ in range(count)]
  used = np.zeros((count, 2), np.int64)
  for tree, need in zip(forest, needs, strict=True):
    load = ((used + need) / room).max(1)
    i = int(load.argmin())
    if load[i] > 1:
      i = len(lines)
      lines.append([])
      used = np.concatenate([used, np.zeros((1, 2), np.int64)])
    lines[i].append(tree)
    used[i] += need
  lines.extend([] for _ in range(-len(lines) % shape.lines))
  return lines


def _round_up(size, unit=16):
  return -(-int(size) // unit) * unit


def computed_tokens(batch: TrainBatch) -> int:
  """Tokens of trunks and branches that a step computes, padding included."""
  used = np.flatnonzero(batch.mask.any((1, 2, 3)))
  line = batch.trunks[0].size + batch.places[0].size
  return int(used.max() + 1) * line


def padding_share(batch: TrainBatch) -> float:
  """The share of computed tokens that is padding."""
  count, width = batch.actions.shape[-2:]
  live = batch.mask.any(-1)
  used = (batch.places < count * width).sum()
  used += np.where(live, batch.starts + batch.attach, 0).max(-1).sum()
  return 1.0 - float(used) / computed_tokens(batch)
