"""The training loop: sample, score, pack, step, log, save, hand over.

Step s is a function of the parameters before it and of (seed, s) alone. So a
checkpoint is a `TrainState`, and a run that was killed ends in the bytes of
one that was not.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from pivotrl_jax import compilations
from pivotrl_jax import errors
from pivotrl_jax import interrupt
from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.data import batches
from pivotrl_jax.data import records
from pivotrl_jax.diagnostics import mismatch
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.losses import grpo
from pivotrl_jax.models import attention
from pivotrl_jax.models import moe
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import metrics as metrics_lib
from pivotrl_jax.train import monitor
from pivotrl_jax.train import natural
from pivotrl_jax.train import natural_log
from pivotrl_jax.train import parallel
from pivotrl_jax.train import sft
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib
from pivotrl_jax.train import trie_log

# (state, step index) -> (state, metrics of the step).
Advance = Callable[[state_lib.TrainState, int], tuple[Any, dict[str, float]]]


def run(config: Any, workdir: pathlib.Path) -> None:
  """pivots.jsonl -> checkpoints/, metrics.jsonl, tb/, export/."""
  t = config.train
  policy = policy_lib.starting(config, workdir, layout=parallel.layout(t))
  tx = optimizer(config)
  state = state_lib.create(policy.params, tx)
  with (
    checkpoints.Checkpoints(
      workdir, keep=t.keep_checkpoints, policy=policy.version
    ) as saved,
    metrics_lib.MetricWriter(workdir) as writer,
  ):
    first, state = _first(t, saved, state)
    writer.start(first)
    advance, state = METHODS[config.method](config, workdir, policy, tx, state)
    state = _steps(t, first, state, advance, saved, writer)
  policy_lib.save(workdir / "export", policy, state.params)


def _first(t, saved, state):
  """The step and state to go on from: the newest, `init`, or `state`."""
  found = saved.restore_latest(state)
  if found is None and t.init:
    found = checkpoints.restore(checkpoints.find(t.init), state)
    # A copy, so that what the other run does next is no matter of this one.
    saved.save(*found)
  first, state = found or (0, state)
  if first > t.steps:
    raise errors.InputError(
      f"--config.train.steps={t.steps}: {first} steps were taken; expected"
      f" at least {first}, or --redo=train, or another --workdir"
    )
  return first, state


def _steps(t, first, state, advance, saved, writer):
  """Steps `first + 1` to `t.steps`; Stopped after the one a signal came in."""
  bar = tqdm.tqdm(
      range(first, t.steps), initial=first, total=t.steps,
      desc="train", disable=None,
  )  # fmt: skip
  compiled = compilations.Compilations()
  with interrupt.held():
    for index in bar:
      started = time.monotonic()
      try:
        state, scalars = advance(state, index)
      except (errors.InputError, errors.EngineError):
        # The judge or the engine is gone: what was learnt is not.
        if index > first and index % t.save_every:
          writer.sync()
          saved.save(index, state)
        raise
      seconds = time.monotonic() - started
      compiled.log("train", f"step {index + 1}", warm=index > first)
      writer.write(index + 1, scalars, seconds=seconds)
      if (index + 1) % t.log_every == 0:
        _log(index + 1, scalars, seconds)
      asked = interrupt.asked()
      ends = index + 1 == t.steps or asked
      if (index + 1) % t.save_every == 0 or ends:
        writer.sync()
        saved.save(index + 1, state)
      if asked:
        interrupt.check()
  return state


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


def _pivotrl(config, workdir, policy, tx, state) -> tuple[Advance, Any]:
  """GRPO on single-turn rollouts at pivots."""
  pivots = load_pivots(workdir)
  turns = [rollouts.render_turn(policy.tokenizer, *pair) for pair in pivots]
  others = load_turns(workdir, natural_log.random_turns(config, workdir))
  other_turns = [rollouts.render_turn(policy.tokenizer, *o) for o in others]
  means = {
    p.candidate_id: p.mean
    for p in records.read_pivots(workdir / "pivots.jsonl")
  }
  engine = policy_lib.engine(policy, config)
  sampling = rollouts.sampling_params(policy.tokenizer, config.rollout)
  score = rollouts.Scorer(config, workdir)
  log_probs_fn = sft.log_probs_fn(
    config, policy.config, temperature=config.rollout.temperature
  )
  step, state = _parallel(
    config, policy, state, _grpo_step(config, policy, log_probs_fn, tx)
  )
  probe, state = _parallel(config, policy, state, _probe(config, policy))
  score_batch = jax.jit(functools.partial(step_lib.score, log_probs_fn))
  engine.prepare(
    [len(turn.prompt) for turn in turns + other_turns],
    sampling,
    prompts=config.rollout.pivots_per_step,
    rows=config.rollout.group_size,
  )
  watch = monitor.Monitor(config, policy, engine, log_probs_fn)
  reference = jax.device_put(policy.params)
  per_step, size = config.rollout.pivots_per_step, config.rollout.group_size

  def choose(index):
    return [
      sft.permuted(len(turns), config.seed, index * per_step + i)
      for i in range(per_step)
    ]

  def plan(steps, turns):
    """The shape of the groups of a few steps; `turns` are all there may be."""
    return batches.plan(
      [tuple(zip(*_expected(config, policy, s), strict=True)) for s in steps],
      longest=max(len(turn.prompt) for turn in turns),
      width=config.rollout.max_tokens,
      **_layout(config),
    )

  planned = [[pivots[i] for i in choose(s)] for s in range(batches.PLANNED)]
  shape = plan(planned, turns)

  def roll_out(chosen, index, *, stage):
    return rollouts.roll_out(
      engine,
      policy.tokenizer,
      chosen,
      group_size=size,
      sampling=sampling,
      seeds=(
        seeds.row_seed(config.seed, stage, index, row)
        for row in range(len(chosen) * size)
      ),
      score=score,
    )

  count = config.train.natural_groups
  log_natural = natural_log.NaturalLog(
    config,
    other_turns,
    probe=probe,
    shape=plan(
      [
        step[:count] + others[i * count :][:count]
        for i, step in enumerate(planned)
      ],
      turns + other_turns,
    ),
    roll_out=functools.partial(roll_out, stage="natural"),
  )
  fisher_shape = plan([s[: config.natural.groups] for s in planned], turns)

  def advance(state, index):
    engine.load(state.params, f"step {index}")
    chosen = [turns[i] for i in choose(index)]
    groups = roll_out(chosen, index, stage="train")
    stats = engine.stats
    score.check((v.reward, v.reason) for g in groups for v in g.verdicts)
    state, of_natural = log_natural(state, index, groups)
    if config.engine.release:
      engine.release()
    # NaN where no verdict could be had.
    rewards = np.array([g.rewards for g in groups], np.float32)
    kept = _kept(config, groups)
    batch, places = _pack(config, groups, rewards, kept, shape)
    trained = (places >= 0).reshape(rewards.shape)
    scalars = (
      watch.rollouts(groups, rewards, batch, stats.sampled_tokens) | of_natural
    )
    scalars |= _of_trie(groups, trained, batch, stats)
    if index == 0:
      scalars |= _gap(config, groups, score_batch, state.params, shape)
    if not kept.any():
      _log_nothing(index + 1, groups)
      scalars |= dict.fromkeys(_STILL, 0.0)
      state = state.replace(step=state.step + 1)
      return state, scalars | watch.held_out(state.params, index)
    reference_log_probs = np.zeros_like(batch.mask)
    if config.train.kl_coef or watch.measures(index):
      # It chooses its own experts.
      reference_log_probs = score_batch(reference, batch.replace(routes=None))
    batch = batch.replace(ref_log_probs=reference_log_probs)
    if config.train.updates_per_batch > 1:
      # From the host: a sharded step lays out its inputs itself.
      old_log_probs = jax.device_get(score_batch(state.params, batch))
      batch = batch.replace(old_log_probs=old_log_probs)
    inputs = batch
    if config.optimizer == "natural":
      own = np.flatnonzero(kept.any(1))[: config.natural.groups]
      of_fisher, _ = _pack(
        config, [groups[i] for i in own], rewards[own], kept[own], fisher_shape
      )
      inputs = natural.NaturalBatch(batch, of_fisher)
    updates = []
    for update in range(config.train.updates_per_batch):
      state, metrics, branch = step(state, inputs)
      updates.append(metrics)
      if update == 0:
        of_rows = branch
    host = jax.device_get((updates, of_rows, reference_log_probs))
    scalars |= _over_updates(host[0])
    if trained.any():
      scalars |= _mismatch(config, index, groups, host[1]["gap"], places)
    if not watch.due(index):
      if not config.train.kl_coef:
        del scalars["train/kl"]
      return state, scalars | watch.held_out(state.params, index)
    rows = host[1]["log_prob"].reshape(-1)[places].reshape(rewards.shape)
    rows_ref = np.where(batch.mask > 0, host[2], 0.0).sum(-1)
    rows_ref = rows_ref.reshape(-1)[places].reshape(rewards.shape)
    rho = np.array([means[t.candidate.id] for t in chosen])
    scalars |= watch.ordering(rewards, rows, rows_ref, rho, trained)
    return state, scalars | watch.held_out(state.params, index)

  return advance, state


def _of_trie(groups, trained, batch, stats):
  """`trie/` scalars of a step: its rollouts, and the rows trained on."""
  rows = [
    (group.turn.prompt, completion.ids)
    for group, mask in zip(groups, trained, strict=True)
    for completion, is_trained in zip(group.completions, mask, strict=True)
    if is_trained
  ]
  prompts, actions = zip(*rows, strict=True) if rows else ((), ())
  return trie_log.tokens(prompts, actions, batch, stats)


def _gap(config, groups, score_batch, params, shape):
  """`trie/gap` of a group, in the trie of all."""
  return trie_log.gap(
    score_batch, params, natural_log.score_rows(groups), shape,
    count=len(groups[0].completions), dtype=config.model.dtype,
  )  # fmt: skip


def _expected(config, policy, step):
  """Rows of a step's groups: a prompt, and how long an action may be.

  Actions are taken to be as long as the demonstrations.
  """
  for pair in step:
    turn = rollouts.render_turn(policy.tokenizer, *pair)
    action = rollouts.render_demonstration(policy.tokenizer, *pair)
    length = min(len(action), config.rollout.max_tokens)
    yield from [(turn.prompt, length)] * config.rollout.group_size


def _sft(config, workdir, policy, tx, state) -> tuple[Advance, Any]:
  """Cross-entropy on the demonstrations of all candidates."""
  demonstrations = sft.load_demonstrations(config, workdir, policy.tokenizer)
  shape = sft.plan(config, demonstrations, **_layout(config))
  log_probs_fn = sft.log_probs_fn(config, policy.config)
  step, state = _parallel(
    config,
    policy,
    state,
    sft.train_step(
      log_probs_fn, tx, balance=config.train.router_aux_loss_coef
    ),
  )
  engine = policy_lib.engine(policy, config)
  watch = monitor.Monitor(config, policy, engine, log_probs_fn)
  score_batch = jax.jit(functools.partial(step_lib.score, log_probs_fn))

  def advance(state, index):
    chosen = sft.choose(demonstrations, config.seed, index, config.sft.turns)
    rows = sft.rows(chosen)
    batch, _ = batches.pack(rows, shape)
    scalars = trie_log.tokens(rows.prompts, rows.actions, batch)
    if index == 0:
      scalars |= trie_log.gap(
        score_batch, state.params, rows, shape, count=min(len(chosen), 4),
        dtype=config.model.dtype,
      )  # fmt: skip
    state, metrics, _ = step(state, batch)
    metrics = jax.device_get(metrics)
    scalars |= _over_updates([metrics])
    return state, scalars | watch.held_out(state.params, index)

  return advance, state


METHODS = {"pivotrl": _pivotrl, "sft": _sft}


def load_pivots(
  workdir: pathlib.Path,
) -> list[tuple[types.Trajectory, types.Candidate]]:
  """The pivots of pivots.jsonl, each with its trajectory."""
  pivots = records.read_pivots(workdir / "pivots.jsonl")
  return load_turns(workdir, [p.candidate_id for p in pivots])


def load_turns(
  workdir: pathlib.Path, ids: Sequence[str]
) -> list[tuple[types.Trajectory, types.Candidate]]:
  """Candidates by their ids, each with its trajectory."""
  trajectories = {
    t.id: t for t in records.read_trajectories(workdir / "trajectories.jsonl")
  }
  candidates = {
    c.id: c for c in records.read_candidates(workdir / "candidates.jsonl")
  }
  chosen = [candidates[i] for i in ids]
  return [(trajectories[c.trajectory_id], c) for c in chosen]


# What an update logs that did not take place.
_STILL = ("train/loss", "train/grad_norm", "train/update_norm")


def _over_updates(updates):
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


def _kept(config, groups):
  """`[B, G]` bool: the samples that the loss is on.

  Those without a verdict are out, and with `cut_off=mask` those that were cut
  off, which count in their group's mean and std all the same (overlong
  filtering: DAPO, arXiv:2503.14476, section 3.4; so do NeMo RL and TRL).
  """
  mask = config.rollout.cut_off == "mask"
  return np.array(
    [
      [
        v.reward is not None and not (mask and c.finish == "length")
        for c, v in zip(g.completions, g.verdicts, strict=True)
      ]
      for g in groups
    ]
  )


def _log_nothing(step, groups):
  reasons = [v.reason for g in groups for v in g.verdicts]
  missing = sum(r is None for g in groups for r in g.rewards)
  logging.warning(
    "train: step %d learns nothing: of %d samples %d were cut off and %d have"
    " no verdict; %s",
    step, len(reasons), reasons.count("cut_off"), missing,
    "see to config.verifier.judge.url" if 2 * missing > len(reasons)
    else "raise config.rollout.max_tokens",
  )  # fmt: skip


def _pack(config, groups, rewards, kept, shape):
  """Groups -> the TrainBatch of the rows that move something.

  Those without weight do not, nor those without advantage where nothing but
  the surrogate is in the loss; a natural step takes the latter as part of the
  policy that its trust region is about.

  Returns:
    The batch, and `[B * G]` where each row stands in it; -1: nowhere.
  """
  advantages = grpo.advantages(
    jnp.asarray(rewards),
    estimator=config.train.advantage,
    valid=jnp.asarray(~np.isnan(rewards)),
    min_std=config.train.min_std,
  )
  advantages = np.asarray(advantages).reshape(-1)
  completions = [c for g in groups for c in g.completions]
  prompts = [g.turn.prompt for g in groups for _ in g.completions]
  lengths = [len(c.ids) for c in completions]
  weights = _weights(config, lengths, kept.reshape(-1))
  live = kept.reshape(-1)
  if not config.train.kl_coef and config.optimizer != "natural":
    live = live & (advantages != 0)
  rows = np.flatnonzero(live)
  batch, at = batches.pack(
    batches.Rows(
      prompts=[prompts[i] for i in rows],
      actions=[completions[i].ids for i in rows],
      weights=[weights[i, : lengths[i]] for i in rows],
      advantages=advantages[rows],
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


def _mismatch(config, index, groups, gap, places):
  """`mismatch/` of the rows trained on; a warning above the threshold."""
  lengths = np.array([len(c.ids) for g in groups for c in g.completions])
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


def _layout(config):
  """What `batches.plan` takes of a config."""
  count = jax.device_count() if config.train.parallel != "jit" else 1
  return {
    "micro_batches": config.train.micro_batches,
    "multiple_of": count,
    "batch_tokens": config.train.batch_tokens,
  }


def _grpo_step(config, policy, log_probs_fn, tx):
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
  balance = t.router_aux_loss_coef
  if config.optimizer == "adam":
    return functools.partial(
      step_lib.train_step, loss_fn=loss_fn, tx=tx, balance=balance
    )
  return functools.partial(
    natural.train_step,
    loss_fn=loss_fn,
    model=_in_both_modes(config, policy),
    chunk=t.logits_chunk,
    temperature=config.rollout.temperature,
    learning_rate=n.learning_rate,
    damping=n.damping,
    iterations=n.iterations,
    max_kl=n.max_kl,
    tries=n.tries,
    balance=balance,
  )


def _probe(config, policy):
  """What measures scores along random directions."""
  return functools.partial(
    natural.project,
    log_probs_fn=functools.partial(
      step_lib.policy_log_probs,
      _in_both_modes(config, policy),
      chunk=config.train.logits_chunk,
      temperature=config.rollout.temperature,
    ),
    seed=config.seed,
    directions=config.train.natural_directions,
  )


def _in_both_modes(config, policy):
  """The policy, differentiable in forward mode too."""
  body = attention.in_both_modes(config.model.attention, config.model.dtype)
  return sft.model(config, policy.config, body)


def _parallel(config, policy, state, step):
  """The wrapper that `config.train.parallel` names, and the state for it."""
  if config.train.parallel == "sharded":
    mesh = parallel.mesh(expert_parallel=config.train.expert_parallel)
    return parallel.sharded(step, state, policy.config, mesh)
  wrap = {"jit": parallel.jitted, "pmap": parallel.pmapped}
  return wrap[config.train.parallel](step), state


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
