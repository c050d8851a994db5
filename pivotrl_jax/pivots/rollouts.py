"""Local rollouts: turns -> sampled actions -> verdicts, in groups of G.

One model call on a recorded prefix, scored at once; no tool runs. Profiling
and training roll out through this one function, so that they render, sample
and score alike.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.pivots import candidates as candidates_lib
from pivotrl_jax.verifiers import judge as judge_lib
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
  def rewards(self) -> list[float | None]:
    """None where no verdict could be had."""
    return [v.reward for v in self.verdicts]


def render_turn(
  tokenizer: tokenizer_lib.Tokenizer,
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


def render_demonstration(
  tokenizer: tokenizer_lib.Tokenizer,
  trajectory: types.Trajectory,
  candidate: types.Candidate,
) -> np.ndarray:
  """Token ids `[A]` of the turn as the trajectory has it."""
  return render.action_ids(
    tokenizer,
    candidates_lib.prefix_messages(trajectory, candidate),
    trajectory.messages[candidate.prefix],
    trajectory.tools,
  )


# Turns and as many actions -> their verdicts, such as `Scorer.many`.
Score = Callable[[Sequence[Turn], Sequence[Any]], list[types.Verdict]]


class Scorer:
  """The reward of a run: `config.verifier`, or exact match."""

  def __init__(self, config: Any, workdir: pathlib.Path):
    """The verifier and its judge, if it has one.

    Args:
      config: the run's.
      workdir: a judge's answers are kept in `workdir/judge`.
    """
    given = config.verifier
    self._name = "strict" if config.reward == "strict" else given.name
    self._options = given[self._name].to_dict()
    self._setting = given.setting
    self._judge, self._threads = None, 1
    self._most_failed = given.judge.most_failed
    if given.judge.url:
      asked = given.judge.to_dict()
      del asked["most_failed"]
      self._threads = given.judge.concurrency
      labels = ("judge_equal_label", "judge_not_equal_label")
      self._judge = judge_lib.Endpoint(
        **asked,
        key=os.environ.get(judge_lib.KEY_VARIABLE, ""),
        cache=workdir / "judge",
        labels=[given.terminus_judge[label] for label in labels],
      )

  def __call__(
    self, turn: Turn, action: types.Action | types.ParseFailure
  ) -> types.Verdict:
    """The verdict on one action."""
    return verify.verify(
      self._name,
      turn.candidate.demonstration,
      action,
      tools=turn.tools,
      config=self._options,
      setting=self._setting,
      row=turn.row,
      judge=self._judge,
    )

  def together(
    self, turns: Sequence[Turn], actions: Sequence[Any]
  ) -> list[types.Verdict]:
    """`many`, divided among processes that all have the same to score."""
    own = hosts.share(len(turns))
    found = self.many(turns[own], actions[own])
    told = hosts.gathered([[v.reward, v.reason] for v in found])
    return [types.Verdict(*row) for of_process in told for row in of_process]

  def many(
    self, turns: Iterable[Turn], actions: Iterable[Any]
  ) -> list[types.Verdict]:
    """Verdicts in order; those that wait for a judge wait together."""
    if self._judge is None:
      return [self(*pair) for pair in zip(turns, actions, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      return list(pool.map(self, turns, actions))

  def check(self, verdicts: Iterable[tuple[float | None, str]]) -> None:
    """Stops a stage whose judge is no judge any more.

    Args:
      verdicts: reward and reason of each sample.

    Raises:
      InputError: more than `judge.most_failed` of the rewards are missing.
    """
    verdicts = list(verdicts)
    missing = collections.Counter(r for reward, r in verdicts if reward is None)
    if missing.total() > self._most_failed * len(verdicts):
      shown = ", ".join(f"{n} {name}" for name, n in missing.most_common())
      raise errors.InputError(
        f"config.verifier.judge: no verdict on {missing.total()} of"
        f" {len(verdicts)} samples ({shown}); expected at most a share of"
        f" config.verifier.judge.most_failed={self._most_failed}; what was"
        " sampled is kept, and the same command asks again"
      )


def action_of_text(
  text: str, *, opened: bool
) -> types.Action | types.ParseFailure:
  """What a completion's text does; it ended by itself, within its tokens.

  Args:
    text: of a completion.
    opened: whether its prompt opened the thinking; `render.opens_thinking`.
  """
  said = parse.parse(text, opened=opened)
  return types.action_of(said) if isinstance(said, types.Message) else said


def sampling_params(
  tokenizer: tokenizer_lib.Tokenizer, rollout: Any
) -> base.SamplingParams:
  """`config.rollout` as the engine takes it."""
  return base.SamplingParams(
    max_tokens=rollout.max_tokens,
    stop_ids=tokenizer.stop_ids,
    temperature=rollout.temperature,
    top_p=rollout.top_p,
    top_k=rollout.top_k,
  )


def roll_out(
  engine: base.Engine,
  tokenizer: tokenizer_lib.Tokenizer,
  turns: Sequence[Turn],
  *,
  group_size: int,
  sampling: base.SamplingParams,
  seeds: Iterable[int],
  score: Score,
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
  return read(tokenizer, turns, sampled, score=score)


def read(
  tokenizer: tokenizer_lib.Tokenizer,
  turns: Sequence[Turn],
  sampled: Sequence[base.Completion],
  *,
  score: Score,
) -> list[Group]:
  """Scores what was sampled, as many completions a turn, turn by turn."""
  group_size = len(sampled) // len(turns)
  opened = [render.opens_thinking(tokenizer, turn.prompt) for turn in turns]
  texts, said = zip(
    *(
      parse.read(tokenizer, c, opened=opened[i // group_size])
      for i, c in enumerate(sampled)
    ),
    strict=True,
  )
  verdicts = score(
    [turn for turn in turns for _ in range(group_size)],
    [types.action_of(x) if isinstance(x, types.Message) else x for x in said],
  )
  groups = []
  for i, turn in enumerate(turns):
    of_turn = slice(i * group_size, (i + 1) * group_size)
    groups.append(
      Group(
        turn,
        tuple(sampled[of_turn]),
        texts[of_turn],
        tuple(verdicts[of_turn]),
      )
    )
  return groups
