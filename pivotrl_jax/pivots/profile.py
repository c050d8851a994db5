"""Profiling: the frozen policy's rewards at every candidate (eq. 4).

Candidates go to the engine a few whole trajectories at a time, so that all
turns of one share its prefill. Finished trajectories are appended at once: a
profile that was interrupted goes on where it stopped, to the same bytes.
"""

import itertools
import pathlib
import time
from typing import Any

from absl import logging
import numpy as np
import tqdm

from pivotrl_jax import compilations
from pivotrl_jax import errors
from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.pivots import rollouts


def run(config: Any, workdir: pathlib.Path) -> None:
  """candidates.jsonl -> profiles.jsonl; prompts too long -> skipped.jsonl."""
  policy = policy_lib.starting(config, workdir)
  engine = policy_lib.engine(policy, config)
  sampling = rollouts.sampling_params(policy.tokenizer, config.rollout)
  score = rollouts.Scorer(config, workdir)
  trajectories = {
    t.id: t for t in records.read_trajectories(workdir / "trajectories.jsonl")
  }
  work = list(_work(config, workdir))
  _prepare(config, policy.tokenizer, engine, sampling, trajectories, work)
  skipped: list[dict[str, Any]] = []
  started, tokens, prompt_tokens = time.monotonic(), 0, 0
  compiled = compilations.Compilations()
  with records.Appender(workdir / "profiles.jsonl") as out:
    done = {row["candidate_id"] for row in out.rows}
    for index, batch in enumerate(
      tqdm.tqdm(
        list(_batched(work, config.profile.trajectories_per_batch)),
        desc="profile",
        disable=None,
      )
    ):
      turns = []
      for candidate in itertools.chain.from_iterable(batch):
        turn = rollouts.render_turn(
          policy.tokenizer, trajectories[candidate.trajectory_id], candidate
        )
        if len(turn.prompt) > config.data.max_prompt_tokens:
          skipped.append(_too_long(config, turn))
        else:
          turns.append(turn)
      if all(t.candidate.id in done for t in turns):
        continue
      groups = rollouts.roll_out(
        engine,
        policy.tokenizer,
        turns,
        group_size=config.profile.group_size,
        sampling=sampling,
        seeds=(
          seeds.row_seed(config.seed, "profile", t.candidate.id, k)
          for t in turns
          for k in range(config.profile.group_size)
        ),
        score=score,
      )
      tokens += engine.stats.sampled_tokens
      prompt_tokens += engine.stats.prompt_tokens
      out.append(
        records.profile_to_json(profile(group, policy.version))
        for group in groups
        if group.turn.candidate.id not in done
      )
      compiled.log("profile", f"batch {index + 1}", warm=index > 0)
      logging.log_every_n_seconds(
        logging.INFO, "profile: %d tokens sampled, up to %s", 30, tokens,
        turns[-1].candidate.id,
      )  # fmt: skip
    records.replace_skipped(workdir, "profile", skipped)
    _log(list(out.rows), time.monotonic() - started, tokens, prompt_tokens)
    out.finish()


def profile(group: rollouts.Group, version: str) -> types.Profile:
  """A group's mean and population variance, with what was sampled."""
  rewards = np.array(group.rewards, np.float64)
  return types.Profile(
    candidate_id=group.turn.candidate.id,
    policy=version,
    group_size=len(rewards),
    rewards=tuple(float(r) for r in rewards),
    reasons=tuple(v.reason for v in group.verdicts),
    mean=float(rewards.mean()),
    variance=float(rewards.var()),
    completions=group.texts,
  )


def _work(config, workdir):
  """Candidates to profile, a list a trajectory, without the warm start's."""
  rows = records.read_candidates(workdir / "candidates.jsonl")
  by_trajectory = [
    list(group)
    for _, group in itertools.groupby(rows, lambda c: c.trajectory_id)
  ]
  if config.warm_start.steps:
    by_trajectory = by_trajectory[config.warm_start.trajectories :]
  if config.profile.trajectories:
    by_trajectory = by_trajectory[: config.profile.trajectories]
  if not by_trajectory:
    raise errors.InputError(
      f"{workdir}/candidates.jsonl: no trajectory left to profile; expected"
      f" more than warm_start.trajectories={config.warm_start.trajectories}"
    )
  return by_trajectory


def _prepare(config, tokenizer, engine, sampling, trajectories, work):
  """Readies the engine for the trunks of the trajectories."""
  most = config.data.max_prompt_tokens
  last = [
    rollouts.render_turn(tokenizer, trajectories[c.trajectory_id], c)
    for *_, c in work
  ]
  engine.prepare(
    [min(len(turn.prompt), most) for turn in last],
    sampling,
    prompts=config.profile.trajectories_per_batch,
    rows=config.profile.group_size * max(len(turns) for turns in work),
  )


def _batched(work, size):
  for start in range(0, len(work), size):
    yield work[start : start + size]


def _too_long(config, turn):
  return {
    "id": turn.candidate.id,
    "reason": (
      f"prompt over data.max_prompt_tokens={config.data.max_prompt_tokens}"
    ),
    "tokens": len(turn.prompt),
  }


def _log(rows, seconds, tokens, prompt_tokens):
  if not rows:
    return
  flat = np.array([row["variance"] == 0 for row in rows])
  logging.info(
    "profile: %d candidates, mean reward %.3f, zero-variance share %.3f,"
    " %.0f s, %.0f sampled tokens/s (%d tokens of prompts shared)",
    len(rows),
    np.mean([row["mean"] for row in rows]),
    flat.mean(),
    seconds,
    tokens / max(seconds, 1e-9),
    prompt_tokens,
  )
