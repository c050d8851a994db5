"""End-to-end GRPO: whole episodes in the world, its verdict as the reward.

What PivotRL is measured against (paper, section 5): a group is G episodes of
one task, and every turn of an episode has the episode's advantage. The loss is
on the policy's own turns, as they were sampled.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.data import batches
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import lora
from pivotrl_jax.envs import episode
from pivotrl_jax.envs import worlds
from pivotrl_jax.pivots import candidates
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import monitor
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import sft

# No data but the world's tasks, no verifier but its final check.
READS = {
  "config": (
    "data.max_prompt_tokens", "data.reasoning", "data.trajectories", "domain",
    "world", "model", "rollout", "seed", "method", "optimizer", "e2e", "train",
    "warm_start.steps",
  ),
  "but": (
    "rollout.pivots_per_step", "data.empty_thinking", "data.format",
    "data.path",
  ),
  "inputs": ("warm_start",),
}  # fmt: skip
IDLE = (
  "rollout.pivots_per_step", "profile", "pivots", "select", "reward",
  "verifier", "train.natural_every", "train.natural_groups",
  "train.natural_directions", "train.natural_damping",
)  # fmt: skip
OPTIMIZERS = ("adam",)
SAMPLES = IN_WORLD = True
_POOR = 0.5  # Of the turns of the episodes that batches are planned for.


def idle(config: Any) -> tuple[str, ...]:
  """Keys of `READS` without effect."""
  return ("data.trajectories",) if config.e2e.tasks else ()


def turns_before(workdir: pathlib.Path) -> int:
  """There is no profile."""
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
  del workdir
  method = _EndToEnd(config, policy, tx, base)
  return method.advance, method.lay_out(state)


@dataclasses.dataclass(frozen=True)
class Group:
  """G episodes of one task: what `rollouts.Group` is of turns."""

  task: Any
  episodes: tuple[episode.Episode, ...]

  @property
  def turns(self) -> list[episode.Turn]:
    """Those of all episodes, one after the other."""
    return [turn for e in self.episodes for turn in e.sampled]

  @property
  def completions(self) -> list[base.Completion]:
    """Of all turns."""
    return [turn.completion for turn in self.turns]

  @property
  def verdicts(self) -> list[types.Verdict]:
    """One an episode: 1 for success, and how it ended."""
    return [types.Verdict(float(e.success), _reason(e)) for e in self.episodes]

  @property
  def rewards(self) -> list[float]:
    """`[G]`."""
    return [float(e.success) for e in self.episodes]


class _EndToEnd:
  """What a run of steps has in common."""

  def __init__(self, config, policy, tx, base):
    self._config, self._policy, self._base = config, policy, base
    self._world = worlds.of(config)
    self._env = worlds.WORLDS[self._world]
    self._count = (
      config.e2e.tasks or config.data.trajectories or worlds.DEMONSTRATIONS
    )
    self._longest = min(config.data.max_prompt_tokens, worlds.MAX_PROMPT_TOKENS)
    self._engine = policy_lib.engine(policy, config)
    self._sampling = dataclasses.replace(
      rollouts.sampling_params(policy.tokenizer, config.rollout), goes_on=True
    )
    self._gradient = policy_gradient.PolicyGradient(config, policy, tx, base)

  def lay_out(self, state):
    """The state as steps want it; readies all that they need."""
    config = self._config
    state = self._gradient.lay_out(state)
    self._engine.prepare(
      (),
      self._sampling,
      prompts=config.e2e.tasks_per_step * config.rollout.group_size,
      rows=config.rollout.group_size,
      longest=self._longest,
    )
    self._watch = monitor.Monitor(
      config, self._policy, self._engine, self._gradient.log_probs_fn
    )
    self._policy = policy_lib.without_params(self._policy)
    self._gradient.shape = self._plan()
    return state

  def advance(self, state, index):
    """One step; see `methods.Advance`."""
    config, gradient, watch = self._config, self._gradient, self._watch
    self._engine.load(lora.merge(self._base, state.params), f"step {index}")
    tally = _Tally(self._engine)
    groups = self._play(tally, index)
    if config.engine.release:
      self._engine.release()
    rewards = np.array([g.rewards for g in groups], np.float32)
    advantages = policy_gradient.advantages(config, rewards)
    samples = samples_of(config, groups, advantages)
    # Of all prompts of the step together, not call by call.
    tally.stats.trie_tokens = trees.order(samples.prompts).tokens()
    batch, places = gradient.pack(samples)
    scalars = watch.rollouts(groups, rewards, batch, tally.stats.sampled_tokens)
    scalars |= _of_episodes(groups)
    scalars |= gradient.of_trie(samples, batch, places, tally.stats)
    if index == 0:
      scalars |= gradient.gap(
        gradient.params(state), samples, len(groups[0].turns)
      )
    if samples.kept.any():
      state, updated, _ = gradient.update(
        state, index, samples, (batch, places), watch
      )
    else:
      verdicts = [v for g in groups for v in g.verdicts]
      state, updated = policy_gradient.nothing_learnt(state, index, verdicts)
    scalars |= updated | watch.held_out(gradient.params(state), index)
    return state, scalars, _rows(config, index, groups, advantages)

  def _play(self, engine, index):
    """The groups of a step."""
    config, size = self._config, self._config.rollout.group_size
    tasks = [self._env.make_task(i, "train") for i in self._choose(index)]
    each = [task for task in tasks for _ in range(size)]
    played = episode.run_episodes(
      engine,
      self._policy.tokenizer,
      self._env,
      each,
      [
        seeds.row_seed(config.seed, "e2e", index, row)
        for row in range(len(each))
      ],
      sampling=self._sampling,
      max_turns=config.e2e.max_turns,
      max_prompt_tokens=self._longest,
    )
    if not any(e.turns for e in played):
      raise self._no_room()
    return [
      Group(task, tuple(played[i * size : (i + 1) * size]))
      for i, task in enumerate(tasks)
    ]

  def _choose(self, index):
    """The tasks of a step: every pass over all is a new permutation."""
    count = self._config.e2e.tasks_per_step
    return [
      sft.permuted(self._count, self._config.seed, index * count + i)
      for i in range(count)
    ]

  def _plan(self):
    """The shape of batches, from what a mediocre agent does in some steps.

    Twice the micro-batches that this takes: a policy may need all its turns,
    and what holds no action costs nothing.

    Raises:
      InputError: no prompt has room.
    """
    steps = [list(self._expected(step)) for step in range(batches.PLANNED)]
    if not any(steps):
      raise self._no_room()
    shape = batches.plan(
      [tuple(zip(*rows, strict=True)) for rows in steps if rows],
      longest=self._longest,
      width=self._config.rollout.max_tokens,
      **policy_gradient.layout(self._config),
    )
    return dataclasses.replace(shape, micro_batches=2 * shape.micro_batches)

  def _no_room(self):
    return errors.InputError(
      f"config.data.max_prompt_tokens: {self._longest}; expected room for the"
      f" first prompt of a task of the world {self._world}"
    )

  def _expected(self, step):
    """Rows of a step: a prompt, and how long an action may be."""
    config, tokenizer = self._config, self._policy.tokenizer
    for task in self._choose(step):
      for k in range(config.rollout.group_size):
        played = worlds.demonstrate(self._world, task, "train", k, poor=_POOR)
        for turn in candidates.candidates(played)[: config.e2e.max_turns]:
          prompt = rollouts.render_turn(tokenizer, played, turn).prompt
          action = rollouts.render_demonstration(tokenizer, played, turn)
          if len(prompt) <= self._longest:
            yield prompt, min(len(action), config.rollout.max_tokens)


@dataclasses.dataclass
class _Tally:
  """An engine, with the stats of all its calls together."""

  engine: base.Engine
  stats: base.Counts = dataclasses.field(default_factory=base.Counts)

  def sample(
    self,
    prompts: Sequence[np.ndarray],
    sampling: base.SamplingParams,
    row_seeds: Sequence[int],
  ) -> list[base.Completion]:
    """The engine's own."""
    found = self.engine.sample(prompts, sampling, row_seeds)
    self.stats += base.counted(self.engine.stats)
    return found


def samples_of(
  config: Any, groups: Sequence[Group], advantages: np.ndarray
) -> policy_gradient.Samples:
  """The turns of groups, each with the advantage of its episode.

  With `cut_off=mask` the loss is not on turns that were cut off.

  Args:
    config: the run's.
    groups: of a step.
    advantages: `[B, G]`, one an episode.
  """
  turns = [turn for g in groups for turn in g.turns]
  counts = [e.turns for g in groups for e in g.episodes]
  mask = config.rollout.cut_off == "mask"
  return policy_gradient.Samples(
    prompts=[turn.prompt for turn in turns],
    completions=[turn.completion for turn in turns],
    advantages=np.repeat(advantages.reshape(-1), counts),
    kept=np.array(
      [not (mask and t.completion.finish == "length") for t in turns], bool
    ),
  )


def _reason(played):
  """How an episode ended, as a verdict has it."""
  finishes = [turn.completion.finish for turn in played.sampled]
  cut_off = finishes and not set(finishes) - {"length"}
  return "cut_off" if cut_off and not played.success else played.end


def _of_episodes(groups):
  """`rollout/` scalars of a step's episodes."""
  episodes = [e for g in groups for e in g.episodes]
  finishes = [c.finish for g in groups for c in g.completions]
  return {
    "rollout/turns": float(len(finishes)),
    "rollout/episode_turns": len(finishes) / len(episodes),
    "rollout/prefix_breaks": float(sum(e.prefix_breaks for e in episodes)),
    "rollout/cut_off": finishes.count("length") / len(finishes),
  }


def _rows(config, index, groups, advantages):
  """Rows of rollouts.jsonl: the first groups of a step, whole."""
  return [
    {
      "step": index + 1,
      "candidate_id": f"{group.task.id}/{turn}",
      "sample": k,
      "text": sampled.text,
      "reward": verdict.reward,
      "reason": verdict.reason,
      "advantage": float(advantages[i, k]),
    }
    for i, group in enumerate(groups[: config.train.keep_groups])
    for k, verdict in enumerate(group.verdicts)
    for turn, sampled in enumerate(group.episodes[k].sampled)
  ]
