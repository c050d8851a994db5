"""Scored rows -> the trunk-and-branch batch that `train_step` takes.

The host's text, lists and rewards end here; what leaves is a pytree of
arrays. Rows of one group may lie on different trunks or in different
micro-batches: their advantage was fixed before, so the sums are the same.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np

from pivotrl_jax.data import trees


@flax.struct.dataclass
class TrainBatch:
  """Micro-batches of trajectory trees; padding has mask 0.

  Attributes:
    trunks: `[M, B, T]` token ids.
    attach: `[M, B, N]` prompt length p >= 1 of each branch: it follows
      `trunk[:p]`.
    actions: `[M, B, N, A]` token ids.
    mask: `[M, B, N, A]` float32 weight of each action token in the loss.
    advantages: `[M, B, N]`.
    sampler_log_probs: `[M, B, N, A]` as the engine reported them.
    old_log_probs: `[M, B, N, A]` under the trainer's policy before the first
      update on this batch; None where this is the first update.
    ref_log_probs: `[M, B, N, A]` under the reference policy, or None.
  """

  trunks: jax.Array
  attach: jax.Array
  actions: jax.Array
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


def pack(
  rows: Rows,
  *,
  micro_batches: int = 1,
  multiple_of: int = 1,
  batch_tokens: int = 0,
) -> tuple[TrainBatch, np.ndarray]:
  """Packs rows into trees and trees into equal micro-batches.

  Args:
    rows: see `Rows`; empty actions are not allowed.
    micro_batches: least M, gradient accumulation steps.
    multiple_of: B is padded to a multiple of this (the device count).
    batch_tokens: most trunk tokens of a micro-batch, padding included (but
      for what `multiple_of` asks); 0 sets no bound.

  Returns:
    The batch (numpy arrays), and `[R]` the flat index into `[M * B * N]` at
    which each row stands.
  """
  # Every size in a few buckets: a new one is a new program to compile.
  width = trees.bucket(max(len(a) for a in rows.actions), least=32)
  forest = trees.build(rows.prompts)
  branches = trees.branches(forest, width)
  forest = [p for t in forest for p in trees.split(t, branches)]
  # Like lengths side by side: attention stops at a micro-batch's longest.
  forest.sort(key=lambda t: (-len(t.trunk), t.rows[0]))
  length = trees.bucket(len(forest[0].trunk))
  count = trees.bucket(len(forest), least=1)
  if batch_tokens:
    most = max(1, batch_tokens // length)
    micro_batches = max(micro_batches, -(-count // most))
  size = -(-count // micro_batches)
  size = -(-size // multiple_of) * multiple_of
  lead = (micro_batches, size)
  batch = TrainBatch(
    trunks=np.zeros((*lead, length), np.int32),
    attach=np.ones((*lead, branches), np.int32),
    actions=np.zeros((*lead, branches, width), np.int32),
    mask=np.zeros((*lead, branches, width), np.float32),
    advantages=np.zeros((*lead, branches), np.float32),
    sampler_log_probs=np.zeros((*lead, branches, width), np.float32),
  )
  places = np.zeros(len(rows.prompts), np.int64)
  for i, tree in enumerate(forest):
    at = divmod(i, size)
    batch.trunks[at][: len(tree.trunk)] = tree.trunk
    for n, (row, attach) in enumerate(zip(tree.rows, tree.attach, strict=True)):
      end = len(rows.actions[row])
      batch.attach[at][n] = attach
      batch.actions[at][n, :end] = rows.actions[row]
      batch.mask[at][n, :end] = rows.weights[row]
      batch.advantages[at][n] = rows.advantages[row]
      batch.sampler_log_probs[at][n, :end] = rows.sampler_log_probs[row]
      places[row] = (at[0] * size + at[1]) * branches + n
  return batch, places


def padding_share(batch: TrainBatch) -> float:
  """The share of computed tokens (trunks and branches) that is padding."""
  used = (batch.mask > 0).sum()
  for trunk, attach, mask in zip(
    batch.trunks.reshape(-1, batch.trunks.shape[-1]),
    batch.attach.reshape(-1, batch.attach.shape[-1]),
    batch.mask.reshape(-1, *batch.mask.shape[-2:]),
    strict=True,
  ):
    live = mask.any(-1)
    used += min(attach[live].max(), len(trunk)) if live.any() else 0
  return 1.0 - float(used) / (batch.trunks.size + batch.actions.size)
