"""GRPO on what was sampled, whatever sampled it: one turn, or an episode's.

A method samples, scores, and says which action has which advantage; from
there to the next state every one of them goes this way.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax import types
from pivotrl_jax.data import batches
from pivotrl_jax.diagnostics import mismatch
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.losses import grpo
from pivotrl_jax.models import attention
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import monitor
from pivotrl_jax.train import natural
from pivotrl_jax.train import parallel
from pivotrl_jax.train import sft
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.train import trie_log

Scalars = dict[str, float]
# What an update logs that did not take place.
_STILL = ("train/loss", "train/grad_norm", "train/update_norm")


@dataclasses.dataclass(frozen=True)
class Samples:
  """The actions of a step, R of them.

  Attributes:
    prompts: `[P_i]` token ids, what each was sampled on.
    completions: what was sampled.
    advantages: `[R]`.
    kept: `[R]` bool, which of them the loss is on.
  """

  prompts: Sequence[np.ndarray]
  completions: Sequence[base.Completion]
  advantages: np.ndarray
  kept: np.ndarray


@dataclasses.dataclass(frozen=True)
class Found:
  """What the first update of a step saw, of each action.

  Attributes:
    trained: `[R]` bool, whether the loss is on it.
    log_probs, start: `[R]` of whole actions, under the policy before the
      update and under the reference; anything where the loss is not on it.
  """

  trained: np.ndarray
  log_probs: np.ndarray
  start: np.ndarray


class PolicyGradient:
  """Updates from samples, on as many devices as the config says.

  Attributes:
    shape: of a step's batches; set it before the first.
    score: `(params, batch) -> log-probs [M, B, N, A]`.
  """

  def __init__(
    self, config: Any, policy: policy_lib.Policy, tx: Any,
    base: lora.Base | None,
  ):  # fmt: skip
    self._config, self._base = config, base
    self.log_probs_fn = sft.log_probs_fn(
      config, policy.config, temperature=config.rollout.temperature
    )
    self.score = parallel.reading(
      functools.partial(step_lib.score, self.log_probs_fn), config.train
    )
    self.shape: batches.Shape | None = None
    self._policy, self._tx = policy_lib.without_params(policy), tx
    # Held where something reads it, and no second copy beside a base.
    self._reference = None
    if config.train.kl_coef or config.train.watch_every:
      self._reference = policy_lib.on_device(policy.params)
    self._step = None

  def lay_out(self, state: Any) -> Any:
    """The state as the step wants it; the first thing to be done with one."""
    step = train_step(
      self._config, self._policy.config, self.log_probs_fn, self._tx
    )
    self._step, state = spread(
      self._config, self._policy, state, step, self._base
    )
    return state

  def params(self, state: Any) -> Any:
    """What the policy is applied with, whose gradient the steps take."""
    return lora.join(self._base, state.params)

  def pack(self, samples: Samples) -> tuple[batches.TrainBatch, np.ndarray]:
    """`pack` into the shape of all steps."""
    return pack(self._config, samples, self.shape)

  def of_trie(
    self, samples: Samples, batch: batches.TrainBatch, places: np.ndarray,
    stats: base.Stats,
  ) -> Scalars:  # fmt: skip
    """`trie/` scalars of a step: its rollouts, and the rows trained on."""
    rows = np.flatnonzero(places >= 0)
    return trie_log.tokens(
      [samples.prompts[i] for i in rows],
      [samples.completions[i].ids for i in rows],
      batch,
      stats,
    )

  def gap(self, params: Any, samples: Samples, count: int) -> Scalars:
    """`trie/gap` of the first `count` actions, in the trie of all."""
    return trie_log.gap(
      self.score,
      params,
      score_rows(samples.prompts, samples.completions),
      self.shape,
      count=count,
      dtype=self._config.model.dtype,
    )

  def update(
    self,
    state: Any,
    index: int,
    samples: Samples,
    packed: tuple[batches.TrainBatch, np.ndarray],
    watch: monitor.Monitor,
    fisher: batches.TrainBatch | None = None,
  ) -> tuple[Any, Scalars, Found]:
    """The updates of a step.

    Args:
      state: before them.
      index: of the step.
      samples: some of them `kept`.
      packed: what `pack` makes of them.
      watch: says whether the reference is compared with.
      fisher: of a natural step, the batch its Fisher matrix is of.

    Returns:
      The state; `train/` and `mismatch/` scalars; what was found.
    """
    config = self._config
    batch, places = packed
    reference_log_probs = np.zeros_like(batch.mask)
    if config.train.kl_coef or watch.measures(index):
      # It chooses its own experts.
      reference_log_probs = self.score(
        self._reference, batch.replace(routes=None)
      )
    batch = batch.replace(ref_log_probs=reference_log_probs)
    if config.train.updates_per_batch > 1:
      # From the host: a sharded step lays out its inputs itself.
      old_log_probs = jax.device_get(self.score(self.params(state), batch))
      batch = batch.replace(old_log_probs=old_log_probs)
    inputs = batch if fisher is None else natural.NaturalBatch(batch, fisher)
    updates = []
    for update in range(config.train.updates_per_batch):
      state, metrics, branch = self._step(state, inputs)
      updates.append(metrics)
      if update == 0:
        of_rows = branch
    host, of_rows, start = jax.device_get(
      (updates, of_rows, reference_log_probs)
    )
    scalars = over_updates(host)
    if (places >= 0).any():
      scalars |= _mismatch(config, index, samples, of_rows["gap"], places)
    if not config.train.kl_coef and not watch.due(index):
      del scalars["train/kl"]
    found = Found(
      log_probs=of_rows["log_prob"].reshape(-1)[places],
      start=np.where(batch.mask > 0, start, 0.0).sum(-1).reshape(-1)[places],
      trained=places >= 0,
    )
    return state, scalars, found


def nothing_learnt(
  state: Any, index: int, verdicts: Sequence[types.Verdict]
) -> tuple[Any, Scalars]:
  """The state after a step without any sample that counts, and its scalars.

  Says so in a line; parameters and moments stay as they are.
  """
  missing = sum(v.reward is None for v in verdicts)
  cut_off = sum(v.reason == "cut_off" for v in verdicts)
  logging.warning(
    "train: step %d learns nothing: of %d samples %d were cut off and %d have"
    " no verdict; %s",
    index + 1, len(verdicts), cut_off, missing,
    "see to config.verifier.judge.url" if 2 * missing > len(verdicts)
    else "raise config.rollout.max_tokens",
  )  # fmt: skip
  return state.replace(step=state.step + 1), dict.fromkeys(_STILL, 0.0)


def over_updates(updates: Sequence[dict[str, Any]]) -> Scalars:
  """`train/` scalars of a step: the mean over its updates, and the last's."""

  def name(key):  # Routers' have their own place.
    return key if "/" in key else f"train/{key}"

  scalars = {
    name(k): float(np.mean([u[k] for u in updates], dtype=np.float64))
    for k in updates[0]
  }
  if len(updates) > 1:
    scalars |= {f"{name(k)}_last": float(v) for k, v in updates[-1].items()}
  return scalars


def advantages(config: Any, rewards: np.ndarray) -> np.ndarray:
  """Advantages `[B, G]` within groups, of rewards with NaN for none."""
  return np.asarray(
    grpo.advantages(
      jnp.asarray(rewards),
      estimator=config.train.advantage,
      valid=jnp.asarray(~np.isnan(rewards)),
      min_std=config.train.min_std,
    )
  )


def pack(
  config: Any, samples: Samples, shape: batches.Shape | None
) -> tuple[batches.TrainBatch, np.ndarray]:
  """Samples -> the TrainBatch of the rows that move something.

  Those without weight do not, nor those without advantage where nothing but
  the surrogate is in the loss; a natural step takes the latter as part of the
  policy that its trust region is about.

  Args:
    config: the run's.
    samples: of a step.
    shape: of the batch; None: what these rows want.

  Returns:
    The batch, and `[R]` where each row stands in it; -1: nowhere.
  """
  completions, kept = samples.completions, samples.kept
  lengths = [len(c.ids) for c in completions]
  weights = _weights(config, lengths, kept)
  live = kept
  if not config.train.kl_coef and config.optimizer != "natural":
    live = live & (samples.advantages != 0)
  rows = np.flatnonzero(live)
  batch, at = batches.pack(
    batches.Rows(
      prompts=[samples.prompts[i] for i in rows],
      actions=[completions[i].ids for i in rows],
      weights=[weights[i, : lengths[i]] for i in rows],
      advantages=samples.advantages[rows],
      sampler_log_probs=[completions[i].log_probs for i in rows],
      routes=_routes(config, [completions[i] for i in rows]),
    ),
    shape,
  )
  batch.left_out[0, 0] = grpo.divisor(
    weights[~live], norm=config.train.loss_norm
  )
  places = np.full(len(live), -1)
  places[rows] = at
  return batch, places


def _routes(config, completions):
  """The experts of the sampled tokens, where they are replayed."""
  given = config.train.replay_routes and [c.routes for c in completions]
  return given if given and given[0] is not None else None


def score_rows(
  prompts: Sequence[np.ndarray], completions: Sequence[base.Completion]
) -> batches.Rows:
  """What was sampled, for its log-probs alone."""
  return batches.even_rows(
    prompts, [c.ids for c in completions], [c.log_probs for c in completions]
  )


def layout(config: Any) -> dict[str, int]:
  """What `batches.plan` takes of a config."""
  return {
    "micro_batches": config.train.micro_batches,
    "multiple_of": parallel.lines(config.train),
    "batch_tokens": config.train.batch_tokens,
    "branch_tokens": config.train.branch_tokens,
  }


def spread(
  config: Any, policy: policy_lib.Policy, state: Any, step: Any,
  base: lora.Base | None,
):  # fmt: skip
  """The wrapper that `config.train.parallel` names, and the state for it."""
  mesh = parallel.of_config(config.train)
  if mesh:
    return parallel.sharded(step, state, policy.config, mesh, base)
  wrap = {"jit": parallel.jitted, "pmap": parallel.pmapped}
  return wrap[config.train.parallel](step, base), state


def in_both_modes(config: Any, shape: qwen3.Config) -> qwen3.Qwen3:
  """The policy, differentiable in forward mode too."""
  body = attention.in_both_modes(config.model.attention, config.model.dtype)
  return sft.model(config, shape, body)


def _mismatch(config, index, samples, gap, places):
  """`mismatch/` of the rows trained on; a warning above the threshold."""
  lengths = np.array([len(c.ids) for c in samples.completions])
  lengths = lengths[places >= 0]
  rows = gap.reshape(-1, gap.shape[-1])[places[places >= 0]]
  found = mismatch.mismatch(
    np.concatenate([r[:n] for r, n in zip(rows, lengths, strict=True)]),
    lengths,
  )
  if 0 < config.train.mismatch_warning < found["p99"]:
    logging.warning(
        "train: step %d: the 99th percentile of the gap between the engine's"
        " log-probs and the trainer's is %.3g (train.mismatch_warning=%g)",
        index + 1, found["p99"], config.train.mismatch_warning,
    )  # fmt: skip
  return {f"mismatch/{name}": value for name, value in found.items()}


def _weights(config, lengths, kept):
  """Loss weights `[R, A]` of actions' tokens; see grpo.token_weights."""
  mask = np.arange(config.rollout.max_tokens) < np.array(lengths)[:, None]
  mask &= kept[:, None]
  weights = grpo.token_weights(
    jnp.asarray(mask, jnp.float32),
    norm=config.train.loss_norm,
    width=config.rollout.max_tokens,
  )
  return np.asarray(weights)


def train_step(
  config: Any, shape: qwen3.Config, log_probs_fn: Any, tx: Any
) -> Any:
  """The step of a run, of (state, batch): Adam's or the natural one.

  Args:
    config: the run's.
    shape: of the policy.
    log_probs_fn: see `sft.log_probs_fn`.
    tx: Adam; a natural step has no use for it.
  """
  t, n = config.train, config.natural
  loss_fn = functools.partial(
    step_lib.grpo_loss,
    log_probs_fn=log_probs_fn,
    clip_low=t.clip_low,
    clip_high=t.clip_high,
    kl=t.kl,
    kl_coef=t.kl_coef,
    loss_norm=t.loss_norm,
    importance_cap=t.importance_cap,
    importance_floor=t.importance_floor,
    reject_gap=t.reject_gap,
  )
  if config.optimizer == "adam":
    return functools.partial(
      step_lib.train_step,
      loss_fn=loss_fn,
      tx=tx,
      keys_fn=sft.keys_fn(config, shape),
      balance=t.router_aux_loss_coef,
    )
  return functools.partial(
    natural.train_step,
    loss_fn=loss_fn,
    keys_fn=sft.keys_fn(config, shape),
    model=in_both_modes(config, shape),
    chunk=t.logits_chunk,
    temperature=config.rollout.temperature,
    learning_rate=n.learning_rate,
    damping=n.damping,
    iterations=n.iterations,
    max_kl=n.max_kl,
    tries=n.tries,
    balance=t.router_aux_loss_coef,
  )
