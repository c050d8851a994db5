"""How much of a folder's prompts is shared, and what a profile computes.

Counts only: nothing is sampled. `benchmark.py --work=sharing` prints it.
"""

from collections.abc import Iterable, Iterator, Sequence
import itertools
import pathlib

import numpy as np

from configs import common
from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import batches
from pivotrl_jax.data import importers
from pivotrl_jax.data import trees
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import policy
from pivotrl_jax.engines import prefix_cache
from pivotrl_jax.pivots import candidates
from pivotrl_jax.pivots import rollouts

_ACTION = 60  # Tokens of an action, where only prompts are given.


def sharing(
  path: pathlib.Path, *, trajectories: int, most: int
) -> dict[str, int | float]:
  """Tokens of the prompts of a profile, by the mini policy's template.

  Args:
    path: a file or folder, as `data.path`.
    trajectories: the first so many, failed ones included, whose prompts are
      not; 0 = all.
    most: tokens of a prompt, longer ones are left out.

  Returns:
    Counts of trajectories, prompts and tokens: as separate sequences; in
    trunks, which share with the prompts that they are whole prefixes of; least,
    each node of the trie once; and those that a profile of a run's defaults
    computes, padding, cuts and what was forgotten included. The last also of
    training steps on random turns, actions included, over the least.

  Raises:
    InputError: no prompt is in it.
  """
  tokenizer = policy.load_tokenizer(policy.MINI)
  read = (
    item
    for item in importers.import_path(path)
    if not isinstance(item, importers.Skip)
  )
  taken = itertools.islice(read, trajectories or None)
  found = list(_prompts(taken, tokenizer, most))
  prompts = [prompt for turns in found for prompt in turns]
  if not prompts:
    raise errors.InputError(
      f"{path}: no prompt of at most {most} tokens; expected trajectories"
    )
  # Last tokens too, which branches begin with: a token more is no part of it.
  order = trees.order([np.append(prompt, 0) for prompt in prompts])
  nested = np.append(order.shared[1:] == order.lengths[:-1], False)
  least, computed = order.tokens(), profiled(found)
  return {
    "trajectories": len(found),
    "prompts": len(prompts),
    "tokens_separate": int(order.lengths.sum()),
    "tokens_trunks": int(order.lengths[~nested].sum()),
    "tokens_least": least,
    "tokens_computed": computed,
    "rho": float(order.lengths.sum() / least),
    "computed_over_least": computed / least,
    "step_computed_over_least": stepped(prompts),
  }


def _prompts(
  trajectories: Iterable[types.Trajectory],
  tokenizer: tokenizer_lib.Tokenizer,
  most: int,
) -> Iterator[list[np.ndarray]]:
  """The prompts of each trajectory that did not fail."""
  for trajectory in trajectories:
    if trajectory.success is False:
      continue
    turns = []
    for candidate in candidates.candidates(trajectory):
      try:
        turn = rollouts.render_turn(tokenizer, trajectory, candidate)
      except errors.InputError:
        continue  # The candidates stage says which turns, and why.
      if len(turn.prompt) <= most:
        turns.append(turn.prompt)
    if turns:
      yield turns


def profiled(found: Sequence[Sequence[np.ndarray]]) -> int:
  """What a profile computes of the prompts of trajectories, once each."""
  config = common.base("swe", "")
  size = config.profile.trajectories_per_batch
  cache = prefix_cache.PrefixCache(
    jax_sampler.pool_size(
      [len(turns[-1]) for turns in found],
      size * max(map(len, found)),
      config.engine.batch_tokens,
    )
  )
  computed = 0
  for start in range(0, len(found), size):
    cache.clear()
    prompts = [p for turns in found[start : start + size] for p in turns]
    for part in cache.parts(trees.order(prompts)):
      missing = len(cache.hold(prompts, part).new)
      computed += sum(jax_sampler.chunks(int(missing)))
    computed += len(prompts)  # Their last tokens begin the samples.
  return computed


def stepped(prompts: Sequence[np.ndarray]) -> float:
  """What steps on random turns compute over the least, rollouts included.

  Steps of a run's defaults, B turns of G actions of `_ACTION` tokens each:
  their prompts are prefilled, and stand in the batch of the loss.
  """
  config = common.base("swe", "")
  count, size = config.rollout.pivots_per_step, config.rollout.group_size
  rng = np.random.default_rng(config.seed)
  steps = [
    [
      prompts[i]
      for i in rng.integers(0, len(prompts), count)
      for _ in range(size)
    ]
    for _ in range(batches.PLANNED)
  ]
  lengths = [_ACTION] * count * size
  shape = batches.plan(
    [(rows, lengths) for rows in steps],
    longest=max(map(len, prompts)),
    width=config.rollout.max_tokens,
    batch_tokens=config.train.batch_tokens,
  )
  actions = [np.zeros(n, np.int32) for n in lengths]
  computed = least = 0
  for rows in steps:
    batch, _ = batches.pack(batches.even_rows(rows, actions, actions), shape)
    tokens = trees.order(rows).tokens()
    prefilled = sum(jax_sampler.chunks(tokens))
    computed += prefilled + sum(lengths) + batches.computed_tokens(batch)
    least += 2 * (tokens + sum(lengths))
  return computed / least
