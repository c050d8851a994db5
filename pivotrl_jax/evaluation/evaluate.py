"""Evaluation: the starting and the trained policy on the same held-out tasks.

In domain: success in the world. Out of domain: the suites' questions,
to see what training forgot. Both policies get the same tasks and seeds, so
that differences are paired. The starting policy is a stage of its own, which
runs with the same start share.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import time
from typing import Any

from absl import logging

from pivotrl_jax import compilations
from pivotrl_jax import hosts
from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.data import records
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.envs import episode
from pivotrl_jax.envs import worlds
from pivotrl_jax.evaluation import suites
from pivotrl_jax.pivots import rollouts

BASE = "base_evals.jsonl"


def run_base(config: Any, workdir: pathlib.Path) -> None:
  """starting policy -> base_evals.jsonl."""
  policy = policy_lib.starting(config, workdir)
  _write(workdir / BASE, _evaluate(config, "base", policy))


def run(config: Any, workdir: pathlib.Path) -> None:
  """base_evals.jsonl, export/ -> evals.jsonl."""
  rows = [row for _, row in records.read_jsonl(workdir / BASE)]
  if (workdir / "export").exists():
    policy = policy_lib.load(workdir / "export", config)
    rows += _evaluate(config, "trained", policy)
  _write(workdir / "evals.jsonl", rows)


def _write(path, rows):
  """All processes have all rows; the first writes them."""
  if hosts.is_first():
    records.write_jsonl(path, rows)


def _evaluate(config, name, policy):
  """Rows of evals.jsonl of one policy."""
  rows = []
  engine = policy_lib.engine(policy, config)
  prepare(config, policy, engine)
  compiled = compilations.Compilations()
  for seed in range(config.evaluation.seeds):
    started = time.monotonic()
    episodes = in_world(config, policy, engine, seed)
    asked = _questions(config, policy, engine, seed)
    compiled.log("evaluate", f"{name}, seed {seed}", warm=True)
    rows += [{"policy": name} | row for row in episodes + asked]
    logging.info(
        "evaluate: %s, seed %d: success %.3f of %d tasks, %.3f of %d"
        " questions, %.0f s",
        name, seed, _rate(episodes), len(episodes), _rate(asked),
        len(asked), time.monotonic() - started,
    )  # fmt: skip
  return rows


def prepare(
  config: Any, policy: policy_lib.Policy, engine: base.Engine
) -> None:
  """Readies the engine for episodes and questions of any length."""
  tasks = config.evaluation.tasks if worlds.of(config) else 0
  count = max(tasks, config.evaluation.questions)
  if not count:
    return
  engine.prepare(
    (),
    _sampling(config, policy, goes_on=True),
    prompts=count,
    rows=1,
    longest=_longest(config),
  )


def in_world(
  config: Any, policy: policy_lib.Policy, engine: base.Engine, seed: int
) -> list[dict[str, Any]]:
  """Rows of evals.jsonl from the run's world, but for the policy's name.

  Args:
    config: the run's.
    policy: how it reads and writes.
    engine: has its parameters.
    seed: which episode of each task.

  Returns:
    One a task; none where the run has data of its own.
  """
  name = worlds.of(config)
  if name is None or not config.evaluation.tasks:
    return []
  env = worlds.WORLDS[name]
  split, count = config.evaluation.split, config.evaluation.tasks
  tasks = [env.make_task(i, split) for i in range(count)]
  episodes = episode.run_episodes(
    engine,
    policy.tokenizer,
    env,
    tasks,
    [
      seeds.row_seed(config.seed, "evaluate", seed, i)
      for i in range(len(tasks))
    ],
    sampling=_sampling(config, policy, goes_on=True),
    max_turns=config.evaluation.max_turns,
    max_prompt_tokens=_longest(config),
  )
  return [
    _row(env.DOMAIN, split, task.id, seed, e.success, e.turns, e.tokens)
    for task, e in zip(tasks, episodes, strict=True)
  ]


def _longest(config):
  """Most tokens of a prompt in a world."""
  return min(config.data.max_prompt_tokens, worlds.MAX_PROMPT_TOKENS)


def _questions(config, policy, engine, seed):
  """Rows of evals.jsonl from the suites outside the domain."""
  split = config.evaluation.split
  asked = suites.spread(split, config.seed, config.evaluation.questions)
  said = answers(
    policy,
    engine,
    [q.messages for q in asked],
    [seeds.row_seed(config.seed, "questions", seed, q.id) for q in asked],
    _sampling(config, policy, goes_on=False),
  )
  return [
    _row(
      q.suite, split, q.id, seed, suites.grade(q, action.content), 1, tokens
    )
    for q, (action, tokens) in zip(asked, said, strict=True)
  ]


def answers(
  policy: policy_lib.Policy,
  engine: base.Engine,
  chats: Sequence[tuple[types.Message, ...]],
  row_seeds: Sequence[int],
  sampling: base.SamplingParams,
) -> list[tuple[types.Action, int]]:
  """What a policy says to questions, and in how many tokens.

  Args:
    policy: its tokenizer renders the chats.
    engine: samples.
    chats: one a question.
    row_seeds: one a question.
    sampling: how.

  Returns:
    One a question; what cannot be read is an empty message.
  """
  prompts = [render.prompt_ids(policy.tokenizer, c, ()) for c in chats]
  if not prompts:
    return []
  found = []
  completions = engine.sample(prompts, sampling, row_seeds)
  for prompt, completion in zip(prompts, completions, strict=True):
    _, said = parse.read(
      policy.tokenizer,
      completion,
      opened=render.opens_thinking(policy.tokenizer, prompt),
    )
    if isinstance(said, types.ParseFailure):
      said = types.Message("assistant")
    found.append((types.action_of(said), len(completion.ids)))
  return found


def _sampling(config, policy, *, goes_on):
  """As in rollouts, at the evaluation's own temperature; episodes go on."""
  return dataclasses.replace(
    rollouts.sampling_params(policy.tokenizer, config.rollout),
    temperature=config.evaluation.temperature,
    goes_on=goes_on,
  )


def _row(suite, split, task, seed, success, turns, tokens):
  return {
    "suite": suite,
    "split": split,
    "task": task,
    "seed": seed,
    "success": bool(success),
    "turns": turns,
    "tokens": tokens,
  }


def _rate(rows):
  return sum(r["success"] for r in rows) / max(1, len(rows))
