"""What sharing prefixes leaves to compute, and whether it computes the same."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from absl import logging
import jax
import numpy as np

from pivotrl_jax.data import batches
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base

# Largest gap of a token's log-prob that rounding explains, by dtype.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}


def tokens(
  prompts: Sequence[np.ndarray],
  actions: Sequence[np.ndarray],
  batch: batches.TrainBatch,
  stats: base.Stats | None = None,
) -> dict[str, float]:
  """`trie/` scalars of a step, in tokens of prompts and actions.

  Args:
    prompts, actions: of the rows that are trained on.
    batch: their batch.
    stats: of the engine that sampled the step; None: nothing was sampled.

  Returns:
    What is computed were each row a sequence of its own, sampled and trained
    on; least, with nothing twice; and what is computed, padding included.
  """
  sizes = sum(len(a) for a in actions)
  found = np.array([
      sum(len(p) for p in prompts) + sizes,
      trees.order(prompts).tokens() + sizes,
      batches.computed_tokens(batch),
  ])  # fmt: skip
  if stats is not None:
    found += base.trie_tokens(stats)
  return dict(zip(base.TRIE_TOKENS, found.astype(float).tolist(), strict=True))


def gap(
  score: Callable[..., Any],
  params: Any,
  rows: batches.Rows,
  shape: batches.Shape | None,
  *,
  count: int,
  dtype: str,
) -> dict[str, float]:
  """`trie/gap`: the largest difference between tries and separate sequences.

  Args:
    score: `(params, batch) -> log-probs [M, B, N, A]`.
    params: of the policy.
    rows: of a step, which are scored as it has them.
    shape: of the step's batches.
    count: the first so many rows are scored as sequences of their own too.
    dtype: of activations; a gap that its rounding does not explain is warned
      about.
  """
  shared = _log_probs(score, params, rows, shape)[:count]
  separate = _log_probs(score, params, *_separate(rows, count))
  found = max(
    float(np.abs(a - b[-len(a) :]).max())
    for a, b in zip(shared, separate, strict=True)
  )
  if not found <= TOLERANCES[dtype]:
    logging.warning(
        "train: log-probs of a group differ by %.3g between a trie and separate"
        " sequences (%s explains %.3g): what a token sees may be wrong;"
        " compare with model.attention=dense",
        found, dtype, TOLERANCES[dtype],
    )  # fmt: skip
  return {"trie/gap": found}


def _log_probs(score, params, rows, shape):
  """Log-probs of each row's action."""
  batch, places = batches.pack(rows, shape)
  found = jax.device_get(score(params, batch))
  found = found.reshape(-1, found.shape[-1])[places]
  return [x[: len(a)] for x, a in zip(found, rows.actions, strict=True)]


def _separate(rows, count):
  """Rows as branches behind their first token, each in a line of its own."""
  whole = [
    np.concatenate([p, a])
    for p, a in zip(rows.prompts[:count], rows.actions[:count], strict=True)
  ]
  size = trees.bucket(max(len(ids) for ids in whole))
  shape = batches.Shape(
      micro_batches=count, least=count, lines=1, trie=16, branch=size,
      branches=1, width=size,
  )  # fmt: skip
  ones = [np.ones(len(ids) - 1, np.float32) for ids in whole]
  rows = dataclasses.replace(
    rows,
    prompts=[ids[:1] for ids in whole],
    actions=[ids[1:] for ids in whole],
    weights=ones,
    advantages=np.zeros(count, np.float32),
    sampler_log_probs=ones,
  )
  return rows, shape
