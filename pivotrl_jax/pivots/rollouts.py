"""Local rollouts: turns -> sampled actions -> verdicts, in groups of G.

One model call on a recorded prefix, scored at once; no tool runs. Profiling
and training roll out through this one function, so that they render, sample
and score alike.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.pivots import candidates as candidates_lib
from pivotrl_jax.verifiers import verify


@dataclasses.dataclass(frozen=True)
class Turn:
  """A candidate with all that a rollout of it needs.

  Attributes:
    candidate: which turn.
    prompt: `[P]` token ids of its prefix, generation prompt included.
    tools: schemas in force.
    row: the verifier fields that came with an imported pivot row.
  """

  candidate: types.Candidate
  prompt: np.ndarray
  tools: tuple[dict[str, Any], ...]
  row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
  """G actions of one turn, each with its text and verdict."""

  turn: Turn
  completions: tuple[base.Completion, ...]
  texts: tuple[str, ...]
  verdicts: tuple[types.Verdict, ...]

  @property
  def rewards(self) -> list[float]:
    return [v.reward for v in self.verdicts]


Verify = Callable[[Turn, types.Action | types.ParseFailure], types.Verdict]


def render_turn(
  tokenizer: PreTrainedTokenizerBase,
  trajectory: types.Trajectory,
  candidate: types.Candidate,
) -> Turn:
  """The turn's prompt, by the tokenizer's own chat template."""
  prefix = candidates_lib.prefix_messages(trajectory, candidate)
  return Turn(
    candidate,
    render.prompt_ids(tokenizer, prefix, trajectory.tools),
    trajectory.tools,
    trajectory.extra,
  )


def verifier(config: Any) -> Verify:
  """The reward of a run: `config.verifier`, or exact match."""
  name = "strict" if config.reward == "strict" else config.verifier.name
  options = (
    {} if config.reward == "strict" else config.verifier.options.to_dict()
  )
  setting = config.verifier.setting

  def score(turn, action):
    return verify.verify(
      name,
      turn.candidate.demonstration,
      action,
      tools=turn.tools,
      config=options,
      setting=setting,
      row=turn.row,
    )

  return score


def sampling_params(
  tokenizer: PreTrainedTokenizerBase, rollout: Any
) -> base.SamplingParams:
  """`config.rollout` as the engine takes it."""
  return base.SamplingParams(
    max_tokens=rollout.max_tokens,
    stop_ids=tokenizer_lib.stop_ids(tokenizer),
    temperature=rollout.temperature,
    top_p=rollout.top_p,
  )


def roll_out(
  engine: base.Engine,
  tokenizer: PreTrainedTokenizerBase,
  turns: Sequence[Turn],
  *,
  group_size: int,
  sampling: base.SamplingParams,
  seeds: Iterable[int],
  score: Verify,
) -> list[Group]:
  """Samples `group_size` actions of every turn and scores them.

  Args:
    engine: the policy.
    tokenizer: its tokenizer.
    turns: where to sample.
    group_size: G.
    sampling: how.
    seeds: G a turn, turn by turn.
    score: the reward.

  Returns:
    One group a turn, in order.
  """
  prompts = [turn.prompt for turn in turns for _ in range(group_size)]
  sampled = engine.sample(prompts, sampling, list(seeds))
  groups = []
  for i, turn in enumerate(turns):
    completions = sampled[i * group_size : (i + 1) * group_size]
    read = [parse.read(tokenizer, c) for c in completions]
    verdicts = [
      score(
        turn,
        said if isinstance(said, types.ParseFailure) else types.action_of(said),
      )
      for _, said in read
    ]
    groups.append(
      Group(
        turn,
        tuple(completions),
        tuple(text for text, _ in read),
        tuple(verdicts),
      )
    )
  return groups
