"""PivotRL: GRPO on single-turn rollouts at pivots (eq. 7)."""

from collections.abc import Iterable, Sequence
import functools
import pathlib
from typing import Any

import numpy as np

from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.data import batches
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import lora
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import monitor
from pivotrl_jax.train import natural
from pivotrl_jax.train import natural_log
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import reprofile
from pivotrl_jax.train import sft
from pivotrl_jax.train import step as step_lib

# What profiling again reads.
_AGAIN = (
  "data.max_prompt_tokens", "profile", "pivots", "select",
  "warm_start.trajectories", "warm_start.reuse",
)  # fmt: skip
READS = {
  "config": (
    "data.reasoning", "data.empty_thinking", "model", "rollout", "verifier",
    "reward", "seed", "method", "optimizer", "natural", "train",
    "warm_start.steps", *_AGAIN,
  ),
  "but": (),
  "inputs": (
    "trajectories.jsonl", "candidates.jsonl", "pivots.jsonl", "warm_start",
  ),
}  # fmt: skip
IDLE = ("e2e",)
OPTIMIZERS = ("adam", "natural")
SAMPLES, IN_WORLD = True, False


def idle(config: Any) -> tuple[str, ...]:
  """Keys of `READS` without effect."""
  return () if reprofile.is_on(config) else _AGAIN


def turns_before(workdir: pathlib.Path) -> int:
  """The turns of the profile."""
  path = workdir / "profiles.jsonl"
  if not path.exists():
    return 0
  return sum(p.group_size for p in records.read_profiles(path))


def build(
  config: Any,
  workdir: pathlib.Path,
  policy: policy_lib.Policy,
  tx: Any,
  state: Any,
  base: lora.Base | None = None,
):
  """See `methods.Method`."""
  method = _PivotRL(config, workdir, policy, tx, base)
  return method.advance, method.lay_out(state)


def load_turns(
  workdir: pathlib.Path, ids: Iterable[str]
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


class _PivotRL:
  """What a run of steps has in common."""

  def __init__(self, config, workdir, policy, tx, base):
    self._config, self._workdir, self._policy = config, workdir, policy
    self._base = base
    pivots = list(records.read_pivots(workdir / "pivots.jsonl"))
    # Under the starting policy, whatever a later one makes of them.
    self._means = {p.candidate_id: p.mean for p in pivots}
    self._again = None
    if reprofile.is_on(config):
      self._again = reprofile.Reprofile(
        config, workdir, policy_lib.without_params(policy)
      )
      self._means = self._again.means
    self._take(pivots)
    self._started = False
    self._others = load_turns(
      workdir, natural_log.random_turns(config, workdir)
    )
    self._engine = policy_lib.engine(policy, config)
    self._sampling = rollouts.sampling_params(policy.tokenizer, config.rollout)
    self._score = rollouts.Scorer(config, workdir)
    self._gradient = policy_gradient.PolicyGradient(config, policy, tx, base)

  def lay_out(self, state):
    """The state as steps want it; readies all that they need."""
    config, policy = self._config, self._policy
    state = self._gradient.lay_out(state)
    probe, state = policy_gradient.spread(
      config, policy, state, _probe(config, policy), self._base
    )
    other_turns = self._rendered(self._others)
    turns = self._turns
    if self._again:  # Any of them may become a pivot.
      turns = self._rendered(load_turns(self._workdir, self._means))
    self._engine.prepare(
      [len(turn.prompt) for turn in turns + other_turns],
      self._sampling,
      prompts=config.rollout.pivots_per_step,
      rows=config.rollout.group_size,
    )
    self._watch = monitor.Monitor(
      config, policy, self._engine, self._gradient.log_probs_fn
    )
    planned = [
      [self._pivots[i] for i in self._choose(step)]
      for step in range(batches.PLANNED)
    ]
    self._gradient.shape = self._plan(planned, turns)
    self._fisher_shape = self._plan(
      [step[: config.natural.groups] for step in planned], turns
    )
    count = config.train.natural_groups
    both = [
      step[:count] + self._others[i * count :][:count]
      for i, step in enumerate(planned)
    ]
    self._log_natural = natural_log.NaturalLog(
      config,
      other_turns,
      probe=probe,
      shape=self._plan(both, turns + other_turns),
      roll_out=functools.partial(self._roll_out, stage="natural"),
    )
    self._policy = policy_lib.without_params(policy)
    return state

  def advance(self, state, index):
    """One step; see `methods.Advance`."""
    config, gradient, watch = self._config, self._gradient, self._watch
    profiled = self._profile_again(state, index) if self._again else {}
    self._engine.load(lora.merge(self._base, state.params), f"step {index}")
    chosen = [self._turns[i] for i in self._choose(index)]
    groups = self._roll_out(chosen, index, stage="train")
    stats = self._engine.stats
    self._score.check((v.reward, v.reason) for g in groups for v in g.verdicts)
    state, of_natural = self._log_natural(state, index, groups)
    if config.engine.release:
      self._engine.release()
    # NaN where no verdict could be had.
    rewards = np.array([g.rewards for g in groups], np.float32)
    samples = samples_of(config, groups, rewards)
    batch, places = gradient.pack(samples)
    scalars = profiled | {
      "rollout/turns": rewards.size + profiled.get("profile/turns", 0.0)
    }
    scalars |= watch.rollouts(groups, rewards, batch, stats.sampled_tokens)
    scalars |= of_natural | gradient.of_trie(samples, batch, places, stats)
    if index == 0:
      scalars |= gradient.gap(gradient.params(state), samples, rewards.shape[1])
    if samples.kept.any():
      state, updated = self._update(
        state, index, groups, rewards, samples, (batch, places)
      )
    else:
      verdicts = [v for g in groups for v in g.verdicts]
      state, updated = policy_gradient.nothing_learnt(state, index, verdicts)
    scalars |= updated | watch.held_out(gradient.params(state), index)
    if self._again:
      self._again.note(scalars)
    return state, scalars, _rows(config, index, groups, samples.advantages)

  def _profile_again(self, state, index):
    """The pivots of a step, where they may change; `profile/` scalars."""
    if not self._started:
      self._started = True
      if index and (pivots := self._again.go_on(index)):
        self._take(pivots)
    if not self._again.is_due(index):
      return {}
    params = lora.merge(self._base, state.params)
    pivots, scalars = self._again(params, index)
    if pivots:
      self._take(pivots)
    return scalars

  def _take(self, pivots):
    """Trains on these from now on."""
    self._pivots = load_turns(self._workdir, [p.candidate_id for p in pivots])
    self._turns = self._rendered(self._pivots)

  def _update(self, state, index, groups, rewards, samples, packed):
    """The state after a step's updates, and what they log."""
    config, fisher = self._config, None
    if config.optimizer == "natural":
      kept = samples.kept.reshape(rewards.shape)
      own = np.flatnonzero(kept.any(1))[: config.natural.groups]
      fisher, _ = policy_gradient.pack(
        config,
        samples_of(config, [groups[i] for i in own], rewards[own]),
        self._fisher_shape,
      )
    state, scalars, found = self._gradient.update(
      state, index, samples, packed, self._watch, fisher
    )
    if self._watch.due(index):
      rho = np.array([self._means[g.turn.candidate.id] for g in groups])
      log_probs, start, trained = (
        x.reshape(rewards.shape)
        for x in (found.log_probs, found.start, found.trained)
      )
      scalars |= self._watch.ordering(rewards, log_probs, start, rho, trained)
    return state, scalars

  def _rendered(self, pairs):
    return [
      rollouts.render_turn(self._policy.tokenizer, *pair) for pair in pairs
    ]

  def _choose(self, index):
    """The pivots of a step: every pass over all is a new permutation."""
    count = self._config.rollout.pivots_per_step
    return [
      sft.permuted(len(self._turns), self._config.seed, index * count + i)
      for i in range(count)
    ]

  def _roll_out(self, turns, index, *, stage):
    size = self._config.rollout.group_size
    return rollouts.roll_out(
      self._engine,
      self._policy.tokenizer,
      turns,
      group_size=size,
      sampling=self._sampling,
      seeds=(
        seeds.row_seed(self._config.seed, stage, index, row)
        for row in range(len(turns) * size)
      ),
      score=self._score.together,
    )

  def _plan(self, steps, turns):
    """The shape of the groups of a few steps; `turns` are all there may be."""
    return batches.plan(
      [tuple(zip(*self._expected(step), strict=True)) for step in steps],
      longest=max(len(turn.prompt) for turn in turns),
      width=self._config.rollout.max_tokens,
      **policy_gradient.layout(self._config),
    )

  def _expected(self, step):
    """Rows of a step's groups: a prompt, and how long an action may be.

    Actions are taken to be as long as the demonstrations.
    """
    tokenizer, rollout = self._policy.tokenizer, self._config.rollout
    for pair in step:
      turn = rollouts.render_turn(tokenizer, *pair)
      action = rollouts.render_demonstration(tokenizer, *pair)
      length = min(len(action), rollout.max_tokens)
      yield from [(turn.prompt, length)] * rollout.group_size


def samples_of(
  config: Any, groups: Sequence[rollouts.Group], rewards: np.ndarray
) -> policy_gradient.Samples:
  """The actions of groups, with their advantages.

  The loss is on none without a verdict, nor with `cut_off=mask` on those that
  were cut off, which count in their group's mean and std all the same (overlong
  filtering: DAPO, arXiv:2503.14476, section 3.4; so do NeMo RL and TRL).

  Args:
    config: the run's.
    groups: what was sampled.
    rewards: `[B, G]`, NaN where no verdict could be had.
  """
  mask = config.rollout.cut_off == "mask"
  kept = [
    v.reward is not None and not (mask and c.finish == "length")
    for g in groups
    for c, v in zip(g.completions, g.verdicts, strict=True)
  ]
  return policy_gradient.Samples(
    prompts=[g.turn.prompt for g in groups for _ in g.completions],
    completions=[c for g in groups for c in g.completions],
    advantages=policy_gradient.advantages(config, rewards).reshape(-1),
    kept=np.array(kept),
  )


def _rows(config, index, groups, advantages):
  """Rows of rollouts.jsonl: the first groups of a step, whole."""
  size = config.rollout.group_size
  return [
    {
      "step": index + 1,
      "candidate_id": group.turn.candidate.id,
      "sample": k,
      "text": text,
      "reward": verdict.reward,
      "reason": verdict.reason,
      "advantage": float(advantages[i * size + k]),
    }
    for i, group in enumerate(groups[: config.train.keep_groups])
    for k, (text, verdict) in enumerate(
      zip(group.texts, group.verdicts, strict=True)
    )
  ]


def _probe(config, policy):
  """What measures scores along random directions."""
  return functools.partial(
    natural.project,
    log_probs_fn=functools.partial(
      step_lib.policy_log_probs,
      policy_gradient.in_both_modes(config, policy.config),
      chunk=config.train.logits_chunk,
      temperature=config.rollout.temperature,
    ),
    seed=config.seed,
    directions=config.train.natural_directions,
  )
