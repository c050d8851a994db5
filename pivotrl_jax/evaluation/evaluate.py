"""Evaluation: the starting and the trained policy on the same held-out tasks.

In domain: success in the world. Out of domain: questions without tools,
to see what training forgot. Both policies get the same tasks and seeds, so
that differences are paired. The starting policy is a stage of its own, which
runs with the same start share.
"""

import dataclasses
import pathlib
import time
from typing import Any

from absl import logging

from pivotrl_jax import compilations
from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.envs import episode
from pivotrl_jax.envs import swe
from pivotrl_jax.evaluation import benchmarks
from pivotrl_jax.pivots import rollouts

WORLDS = {"swe": swe}


BASE = "base_evals.jsonl"


def run_base(config: Any, workdir: pathlib.Path) -> None:
  """starting policy -> base_evals.jsonl."""
  policy = policy_lib.starting(config, workdir)
  records.write_jsonl(workdir / BASE, _evaluate(config, "base", policy))


def run(config: Any, workdir: pathlib.Path) -> None:
  """base_evals.jsonl, export/ -> evals.jsonl."""
  rows = [row for _, row in records.read_jsonl(workdir / BASE)]
  if (workdir / "export").exists():
    policy = policy_lib.load(workdir / "export", config)
    rows += _evaluate(config, "trained", policy)
  records.write_jsonl(workdir / "evals.jsonl", rows)


def _evaluate(config, name, policy):
  """Rows of evals.jsonl of one policy."""
  rows = []
  engine = policy_lib.engine(policy, config)
  _prepare(config, policy, engine)
  compiled = compilations.Compilations()
  for seed in range(config.evaluation.seeds):
    started = time.monotonic()
    episodes = _world(config, policy, engine, seed)
    answers = _questions(config, policy, engine, seed)
    compiled.log("evaluate", f"{name}, seed {seed}", warm=True)
    rows += [{"policy": name} | row for row in episodes + answers]
    logging.info(
        "evaluate: %s, seed %d: success %.3f of %d tasks, %.3f of %d"
        " questions, %.0f s",
        name, seed, _rate(episodes), len(episodes), _rate(answers),
        len(answers), time.monotonic() - started,
    )  # fmt: skip
  return rows


def _prepare(config, policy, engine):
  """Readies the engine for episodes of any length, or else for questions."""
  tasks = config.evaluation.tasks if config.domain in WORLDS else 0
  count = max(tasks, config.evaluation.questions)
  if not count:
    return
  longest = config.data.max_prompt_tokens if tasks else 1
  engine.prepare(
    range(1, longest + 1), _sampling(config, policy), prompts=count, rows=1
  )


def _world(config, policy, engine, seed):
  """Rows of evals.jsonl from the domain's world; none where it has none."""
  env = WORLDS.get(config.domain)
  if env is None or not config.evaluation.tasks:
    return []
  tasks = [env.make_task(i, "eval") for i in range(config.evaluation.tasks)]
  episodes = episode.run_episodes(
    engine,
    policy.tokenizer,
    env,
    tasks,
    [
      seeds.row_seed(config.seed, "evaluate", seed, i)
      for i in range(len(tasks))
    ],
    sampling=_sampling(config, policy),
    max_turns=config.evaluation.max_turns,
    max_prompt_tokens=config.data.max_prompt_tokens,
  )
  return [
    _row(config.domain, task.id, seed, e.success, e.turns, e.tokens)
    for task, e in zip(tasks, episodes, strict=True)
  ]


def _questions(config, policy, engine, seed):
  """Rows of evals.jsonl from questions outside the domain."""
  questions = benchmarks.questions(
    "eval", config.seed, config.evaluation.questions
  )
  if not questions:
    return []
  prompts = [
    render.prompt_ids(policy.tokenizer, q.messages, ()) for q in questions
  ]
  completions = engine.sample(
    prompts,
    _sampling(config, policy),
    [seeds.row_seed(config.seed, "questions", seed, q.id) for q in questions],
  )
  rows = []
  for question, prompt, completion in zip(
    questions, prompts, completions, strict=True
  ):
    _, said = parse.read(
      policy.tokenizer,
      completion,
      opened=render.opens_thinking(policy.tokenizer, prompt),
    )
    right = isinstance(said, types.Message) and benchmarks.grade(
      question, types.action_of(said)
    )
    rows.append(
      _row("questions", question.id, seed, right, 1, len(completion.ids))
    )
  return rows


def _sampling(config, policy):
  """As in rollouts, at the evaluation's own temperature."""
  return dataclasses.replace(
    rollouts.sampling_params(policy.tokenizer, config.rollout),
    temperature=config.evaluation.temperature,
  )


def _row(suite, task, seed, success, turns, tokens):
  return {
    "suite": suite,
    "split": "eval",
    "task": task,
    "seed": seed,
    "success": bool(success),
    "turns": turns,
    "tokens": tokens,
  }


def _rate(rows):
  return sum(r["success"] for r in rows) / max(1, len(rows))
