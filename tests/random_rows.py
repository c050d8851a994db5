"""Rows that tests of training draw at random."""

import numpy as np

from pivotrl_jax.data import batches


def drawn(rng, vocabulary, prompts, advantages=None):
  """Four actions of one to five tokens on each prompt of such a length.

  Without `advantages` they are drawn last.
  """
  prompts = [rng.integers(0, vocabulary, n).astype(np.int32) for n in prompts]
  count = 4 * len(prompts)
  lengths = rng.integers(1, 6, count)
  actions = [rng.integers(0, vocabulary, n).astype(np.int32) for n in lengths]
  if advantages is None:
    advantages = rng.normal(size=count).astype(np.float32)
  return batches.Rows(
    prompts=[p for p in prompts for _ in range(4)],
    actions=actions,
    weights=[np.ones(n, np.float32) for n in lengths],
    advantages=advantages,
    sampler_log_probs=[np.full(n, -4.0, np.float32) for n in lengths],
  )
