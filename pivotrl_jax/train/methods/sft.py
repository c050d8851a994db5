"""SFT: cross-entropy on the demonstrations of all candidates (eq. 1)."""

import functools
import pathlib
from typing import Any

import jax

from pivotrl_jax.data import batches
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import lora
from pivotrl_jax.train import monitor
from pivotrl_jax.train import parallel
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import sft
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.train import trie_log

# No pivots, no rewards; all candidates.
READS = {
  "config": (
    "data.max_prompt_tokens", "data.reasoning", "data.empty_thinking", "model",
    "seed", "method", "optimizer", "sft",
    *state_lib.ADAM, "train.steps", "train.init", "warm_start.steps",
    "train.router_aux_loss_coef", "train.router_count", "train.freeze_router",
  ),
  # What is watched is sampled by one, and measured by the other.
  "but": ("rollout", "train.min_std"),
  "inputs": ("trajectories.jsonl", "candidates.jsonl", "warm_start"),
}  # fmt: skip
IDLE = (
  "e2e", "rollout.pivots_per_step", "rollout.group_size", "rollout.cut_off",
  "train.advantage", "train.min_std", "train.clip_low", "train.clip_high",
  "train.kl", "train.kl_coef", "train.loss_norm", "train.importance_cap",
  "train.importance_floor", "train.updates_per_batch", "train.natural_every",
  "train.natural_groups", "train.natural_directions", "train.natural_damping",
  "train.keep_groups", "train.replay_routes",
)  # fmt: skip
OPTIMIZERS = ("adam",)
SAMPLES = IN_WORLD = False


def idle(config: Any) -> tuple[str, ...]:
  """All of `READS` counts."""
  del config
  return ()


def turns_before(workdir: pathlib.Path) -> int:
  """Nothing is sampled."""
  del workdir
  return 0


def build(
  config: Any,
  workdir: pathlib.Path,
  policy: policy_lib.Policy,
  tx: Any,
  state: Any,
  base: lora.Base | None = None,
):
  """See `methods.Method`."""
  demonstrations = sft.load_demonstrations(config, workdir, policy.tokenizer)
  shape = sft.plan(config, demonstrations, **policy_gradient.layout(config))
  log_probs_fn = sft.log_probs_fn(config, policy.config)
  step, state = policy_gradient.spread(
    config,
    policy,
    state,
    sft.train_step(
      log_probs_fn,
      tx,
      keys_fn=sft.keys_fn(config, policy.config),
      balance=config.train.router_aux_loss_coef,
    ),  # fmt: skip
    base,
  )
  engine = policy_lib.engine(policy, config)
  watch = monitor.Monitor(config, policy, engine, log_probs_fn)
  score_batch = parallel.reading(
    functools.partial(step_lib.score, log_probs_fn), config.train
  )

  def advance(state, index):
    chosen = sft.choose(demonstrations, config.seed, index, config.sft.turns)
    rows = sft.rows(chosen)
    batch, _ = batches.pack(rows, shape)
    scalars = trie_log.tokens(rows.prompts, rows.actions, batch)
    if index == 0:
      scalars |= trie_log.gap(
        score_batch, lora.join(base, state.params), rows, shape, count=min(len(chosen), 4),
        dtype=config.model.dtype,
      )  # fmt: skip
    state, metrics, _ = step(state, batch)
    scalars |= policy_gradient.over_updates([jax.device_get(metrics)])
    found = watch.held_out(lora.join(base, state.params), index)
    return state, scalars | found, []

  return advance, state
