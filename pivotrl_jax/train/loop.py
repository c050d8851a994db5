"""The training loop: step by step, what is logged, saved and handed on.

Step s is a function of the parameters before it and of (seed, s) alone. So a
checkpoint is a `TrainState` and a count of turns, and a run that was killed
ends in the bytes of one that was not. What a step does is the method's.
"""

import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np
import optax
import tqdm

from pivotrl_jax import compilations
from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax import interrupt
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import lora
from pivotrl_jax.models import moe
from pivotrl_jax.models import peft
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import methods
from pivotrl_jax.train import metrics as metrics_lib
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib


def run(config: Any, workdir: pathlib.Path) -> None:
  """What the method reads -> checkpoints/, export/ and what steps log."""
  method = methods.METHODS[config.method]
  t = config.train
  policy = policy_lib.starting(config, workdir, layout=parallel.layout(t))
  tx = optimizer(config)
  state, policy, base = start(config, policy, tx)
  state = parallel.laid_out(t, policy.config, state)
  with (
    checkpoints.Checkpoints(
      workdir,
      keep=t.keep_checkpoints,
      policy=policy.version,
      keep_best=t.keep_best,
    ) as saved,
    metrics_lib.writer(workdir) as writer,
  ):
    first, state, turns = _first(t, workdir, saved, state)
    if turns is None:
      turns = method.turns_before(workdir)
    writer.start(first)
    hosts.barrier()  # Who goes on reads what is there.
    advance, state = method.build(config, workdir, policy, tx, state, base)
    policy = policy_lib.without_params(policy)
    state = _steps(t, first, state, turns, advance, saved, writer)
  if base is not None:
    adapters = jax.tree.map(hosts.fetched, state.params)
    if hosts.is_first():
      peft.save(
        workdir / ADAPTER, adapters, policy.hf_config, rank=t.lora_rank,
        alpha=t.lora_alpha, base=str(policy.path.absolute()),
      )  # fmt: skip
  policy_lib.save(workdir / "export", policy, lora.merge(base, state.params))


ADAPTER = "adapter"  # Folder of a workdir, in the layout of PEFT.


def start(
  config: Any, policy: policy_lib.Policy, tx: optax.GradientTransformation
) -> tuple[state_lib.TrainState, policy_lib.Policy, lora.Base | None]:
  """A state that has taken no step, the policy to read from now on, and the
  base where the state's parameters are adapters.
  """
  t = config.train
  if not t.lora_rank:
    state = state_lib.create(policy.params, tx)
    return state, policy_lib.frozen(policy, config.model.dtype), None
  adapters = lora.init(
    policy.params, rank=t.lora_rank, targets=lora.names(t.lora_targets),
    seed=config.seed,
  )  # fmt: skip
  policy = policy_lib.frozen(policy, config.model.dtype)
  base = lora.Base(policy.params, t.lora_alpha / t.lora_rank)
  return state_lib.create(adapters, tx), policy, base


def _first(t, workdir, saved, state):
  """The step and state to go on from, and the turns so far: the newest's, or
  those of `init`; else `state`, and None.
  """
  found = saved.restore_latest(state)
  if found is not None:
    place = workdir / checkpoints.FOLDER / str(found[0])
    first, state, turns = *found, checkpoints.turns(place)
  elif t.init:
    place = checkpoints.find(t.init)
    first, state = checkpoints.restore(place, state)
    turns = checkpoints.turns(place)
    # A copy, so that what the other run does next is no matter of this one.
    saved.save(first, state, turns=turns)
  else:
    first, turns = 0, None
  if first > t.steps:
    raise errors.InputError(
      f"--config.train.steps={t.steps}: {first} steps were taken; expected"
      f" at least {first}, or --redo=train, or another --workdir"
    )
  return first, state, turns


def _steps(t, first, state, turns, advance, saved, writer):
  """Steps `first + 1` to `t.steps`; Stopped after the one a signal came in."""
  bar = tqdm.tqdm(
      range(first, t.steps), initial=first, total=t.steps,
      desc="train", disable=None,
  )  # fmt: skip
  compiled, score = compilations.Compilations(), _Score(t)
  with interrupt.held():
    for index in bar:
      started = time.monotonic()
      try:
        state, scalars, rollouts = advance(state, index)
      except (errors.InputError, errors.EngineError):
        # The judge or the engine is gone: what was learnt is not.
        if index > first and index % t.save_every:
          writer.sync()
          saved.save(index, state, turns=turns, score=score.taken())
          saved.finish()
        raise
      seconds = time.monotonic() - started
      if "rollout/turns" in scalars:
        turns += int(scalars["rollout/turns"])
        scalars["rollout/turns_total"] = float(turns)
      score.note(scalars)
      compiled.log("train", f"step {index + 1}", warm=index > first)
      writer.write(index + 1, scalars, rollouts, seconds=seconds)
      if (index + 1) % t.log_every == 0:
        _log(index + 1, scalars, seconds)
      # All stop after the same step, whichever heard the signal.
      asked = next(filter(None, hosts.gathered(interrupt.asked())), None)
      ends = index + 1 == t.steps or asked
      if (index + 1) % t.save_every == 0 or ends:
        writer.sync()
        saved.save(index + 1, state, turns=turns, score=score.taken())
      if asked:
        saved.finish()
        raise interrupt.Stopped(asked)
  return state


class _Score:
  """How good a checkpoint is: the mean of `train.best_by` since the last."""

  def __init__(self, t):
    self._on, self._given = bool(t.keep_best), t.best_by
    self._name = t.best_by.removeprefix("-")
    self._values: list[float] = []

  def note(self, scalars):
    """Takes up the scalars of a step."""
    if self._name in scalars:
      self._values.append(scalars[self._name])

  def taken(self):
    """The score; None where none is asked for, or there is nothing to tell."""
    values, self._values = self._values, []
    if not self._on:
      return None
    if not values:
      logging.warning(
        "train: no %s since the last checkpoint; this one counts for none of"
        " the best (train.best_by)",
        self._name,
      )
      return None
    mean = float(np.mean(values, dtype=np.float64))
    return -mean if self._given.startswith("-") else mean


def optimizer(config: Any) -> optax.GradientTransformation:
  """Adam; a natural step keeps nothing of the steps before it."""
  if config.optimizer == "natural":
    return optax.identity()
  t = config.train
  tx = state_lib.optimizer(
    learning_rate=t.learning_rate,
    warmup_steps=t.warmup_steps,
    weight_decay=t.weight_decay,
    clip_norm=t.clip_norm,
  )
  return state_lib.frozen(tx, moe.is_router) if t.freeze_router else tx


def _log(step, scalars, seconds):
  shown = " ".join(
      f"{name} {scalars[name]:.4g}"
      for name in (
          "train/loss", "rollout/reward_mean", "signal/reward_std",
          "signal/zero_variance", "train/grad_norm",
      )
      if name in scalars
  )  # fmt: skip
  logging.info("train: step %d %s (%.2f s)", step, shown, seconds)
