"""Profiling: the frozen policy's rewards at every candidate (eq. 4).

Candidates go to the engine a few whole trajectories at a time, so that all
turns of one share its prefill. Finished trajectories are appended at once: a
profile that was interrupted goes on where it stopped, to the same bytes.
Samples without a verdict keep their text, and are scored again later.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from typing import Any

from absl import logging
import numpy as np
import tqdm

from pivotrl_jax import compilations
from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax import seeds
from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import records
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines import spread
from pivotrl_jax.pivots import parts
from pivotrl_jax.pivots import rollouts


def run(config: Any, workdir: pathlib.Path) -> bool:
  """candidates.jsonl -> profiles.jsonl; prompts too long -> skipped.jsonl.

  Returns:
    Whether it is complete. It is not while a judge's verdicts are missing:
    the next start asks for them again, until training begins.
  """
  if hosts.first(lambda: _stays(workdir)):
    return True
  if config.profile.parts:
    hosts.first(lambda: parts.merge(config, workdir))
    return True
  policy = policy_lib.starting(config, workdir)

  @functools.cache
  def made():
    copies = hosts.copies(policy.params, spread.devices())
    return policy_lib.engines(policy, config), copies

  def engines():
    spread.load(*made(), policy.version)
    return made()[0]

  return profile_all(config, workdir, policy.tokenizer, policy.version, engines)


def _stays(workdir):
  """Whether a profile with missing verdicts is final: training has begun."""
  if not (workdir / "checkpoints").exists():
    return False
  with records.Appender(workdir / "profiles.jsonl") as out:
    if not out.published:
      return False
    logging.warning(
      "profile: missing verdicts stay so, training has begun without them"
    )
    out.finish()
    return True


def profile_all(
  config: Any,
  workdir: pathlib.Path,
  tokenizer: tokenizer_lib.Tokenizer,
  version: str,
  engines: Callable[[], Sequence[base.Engine]],
  *,
  step: int | None = None,
) -> bool:
  """`run` by any engines; all processes call it alike.

  Args:
    config: the run's.
    workdir: see `run`.
    tokenizer: the policy's.
    version: the policy's.
    engines: gives this process's engines with the policy freshly loaded: each
      samples a batch at a time. They are asked for before each: what an engine
      keeps from one to the next would be another's after an interruption, to
      the last bit.
    step: of training, after which the policy profiles again; into `again`,
      and missing verdicts stay so.

  Raises:
    InputError: no prompt has room, or too many verdicts are missing; what was
      sampled is kept.
  """
  score = rollouts.Scorer(config, workdir)
  trajectories = {
    t.id: t for t in records.read_trajectories(workdir / "trajectories.jsonl")
  }
  work = list(_work(config, workdir))
  _check_room(config, tokenizer, trajectories, work)
  skipped: list[dict[str, Any]] = []
  path = workdir / "profiles.jsonl" if step is None else again(workdir, step)
  with _rows(path) as out:
    done = _done(tokenizer, score, trajectories, work, out)
    batches = list(_batched(work, config.profile.trajectories_per_batch))
    if step is None:
      batches = parts.own(config.profile.part, batches)
    bar = tqdm.tqdm(batches, desc="profile", disable=None)
    turns = (
      _fitting(config, tokenizer, trajectories, batch, skipped) for batch in bar
    )
    started, stats, prompts = time.monotonic(), [], []
    if any(c.id not in done for batch in batches for of in batch for c in of):
      _prepare(config, tokenizer, engines(), trajectories, work)
      for batch, rows, counts in _sampled(
        config, tokenizer, version, engines, score.many, turns, done, step
      ):
        stats.append(counts)
        prompts += [turn.prompt for turn in batch]
        if out:
          out.append(row for row in rows if row["candidate_id"] not in done)
        score.check(
          pair for r in rows for pair in zip(r["rewards"], r["reasons"])
        )
    return hosts.first(
      lambda: _end(workdir, out, skipped, started, stats, prompts, step)
    )


def _rows(path):
  """The file that grows, in the process that writes it; else None."""
  return (
    records.Appender(path) if hosts.is_first() else contextlib.nullcontext()
  )


def _done(tokenizer, score, trajectories, work, out):
  """Ids of the candidates that need not be sampled any more."""

  def taken_up():
    _score_again(tokenizer, score, trajectories, work, out)
    return [row["candidate_id"] for row in out.rows]

  return set(hosts.first(taken_up))


def _end(workdir, out, skipped, started, stats, prompts, step):
  """Writes what is left to write; whether the profile is complete."""
  if step is None:
    records.replace_skipped(workdir, "profile", skipped)
  rows = list(out.rows)
  _log(rows, time.monotonic() - started, stats)
  _log_trie(prompts, stats)
  if step is None and any(None in row["rewards"] for row in rows):
    out.publish()
    return False
  out.finish()
  return True


def again(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """Where the profile is by the policy of `step` steps of training."""
  return workdir / "profiles" / f"{step}.jsonl"


def _sampled(config, tokenizer, version, engines, score, batches, done, step):
  """Yields (turns, rows, counts) of each batch of turns that is not done.

  As many batches are sampled at once as there are engines in all processes.
  """
  stage = "profile" if step is None else f"profile {step}"
  sampling = rollouts.sampling_params(tokenizer, config.rollout)
  size = config.profile.group_size

  def sample(engine, turns):
    found = engine.sample(
      [turn.prompt for turn in turns for _ in range(size)],
      sampling,
      [
        seeds.row_seed(config.seed, stage, turn.candidate.id, k)
        for turn in turns
        for k in range(size)
      ],
    )
    return found, base.counted(engine.stats)

  own, count = spread.shares(len(engines()))
  compiled = compilations.Compilations()
  left = (b for b in batches if any(t.candidate.id not in done for t in b))
  index = 0
  while at_once := list(itertools.islice(left, count)):
    found = []
    mine = at_once[own]
    sampled = hosts.agreed(lambda on=mine: spread.each(sample, engines(), on))
    for turns, (completions, counts) in zip(mine, sampled, strict=True):
      groups = rollouts.read(tokenizer, turns, completions, score=score)
      rows = [records.profile_to_json(profile(g, version)) for g in groups]
      found.append([records.encode(rows), counts.row()])
    told = itertools.chain.from_iterable(hosts.gathered(found))
    for turns, (rows, counts) in zip(at_once, told, strict=True):
      yield turns, json.loads(rows), base.Counts(*counts)
    compiled.log("profile", f"batch {index + 1}", warm=index > 0)
    index += len(at_once)
    logging.log_every_n_seconds(
      logging.INFO, "profile: batch %d, up to %s", 30, index,
      at_once[-1][-1].candidate.id,
    )  # fmt: skip


def _fitting(config, tokenizer, trajectories, batch, skipped):
  """The turns of a batch that have room; the others go to `skipped`."""
  turns = []
  for candidate in itertools.chain.from_iterable(batch):
    turn = _turn(tokenizer, trajectories, candidate)
    if len(turn.prompt) > config.data.max_prompt_tokens:
      skipped.append(_too_long(config, turn))
    else:
      turns.append(turn)
  return turns


def _score_again(tokenizer, score, trajectories, work, out):
  """Asks for the verdicts that are missing, on the texts that were sampled."""
  rows = [records.profile_from_json(row) for row in out.rows]
  holes = [
    (i, k)
    for i, row in enumerate(rows)
    for k, reward in enumerate(row.rewards)
    if reward is None
  ]
  if not holes:
    return
  candidates = {c.id: c for c in itertools.chain.from_iterable(work)}
  turns = [
    _turn(tokenizer, trajectories, candidates[rows[i].candidate_id])
    for i, _ in holes
  ]
  found = score.many(
    turns,
    [
      rollouts.action_of_text(
        rows[i].completions[k],
        opened=render.opens_thinking(tokenizer, turn.prompt),
      )
      for turn, (i, k) in zip(turns, holes, strict=True)
    ],
  )
  verdicts = [
    [types.Verdict(*pair) for pair in zip(row.rewards, row.reasons)]
    for row in rows
  ]
  for (i, k), verdict in zip(holes, found, strict=True):
    verdicts[i][k] = verdict
  out.replace(
    records.profile_to_json(dataclasses.replace(row, **statistics(group)))
    for row, group in zip(rows, verdicts, strict=True)
  )
  logging.info(
    "profile: %d of %d missing verdicts could be had now",
    sum(v.reward is not None for v in found), len(holes),
  )  # fmt: skip
  score.check((v.reward, v.reason) for group in verdicts for v in group)


def profile(group: rollouts.Group, version: str) -> types.Profile:
  """A group's mean and population variance, with what was sampled.

  What has no verdict is in neither: a group without any has neither.
  """
  return types.Profile(
    candidate_id=group.turn.candidate.id,
    policy=version,
    group_size=len(group.verdicts),
    completions=group.texts,
    **statistics(group.verdicts),
  )


def statistics(verdicts: Sequence[types.Verdict]) -> dict[str, Any]:
  """What a profile holds of a group's verdicts: rewards, reasons, mean,
  variance.
  """
  had = np.array([v.reward for v in verdicts if v.reward is not None])
  return {
    "rewards": tuple(
      None if v.reward is None else float(v.reward) for v in verdicts
    ),
    "reasons": tuple(v.reason for v in verdicts),
    "mean": float(had.mean()) if had.size else None,
    "variance": float(had.var()) if had.size else None,
  }


def _work(config, workdir):
  """Candidates to profile, a list a trajectory, without the warm start's but
  where they are reused.
  """
  rows = records.read_candidates(workdir / "candidates.jsonl")
  by_trajectory = [
    list(group)
    for _, group in itertools.groupby(rows, lambda c: c.trajectory_id)
  ]
  warm = config.warm_start
  if warm.steps and not warm.reuse:
    by_trajectory = by_trajectory[warm.trajectories :]
  if config.profile.trajectories:
    by_trajectory = by_trajectory[: config.profile.trajectories]
  if not by_trajectory:
    raise errors.InputError(
      f"{workdir}/candidates.jsonl: no trajectory left to profile; expected"
      f" more than warm_start.trajectories={warm.trajectories}"
    )
  return by_trajectory


def _check_room(config, tokenizer, trajectories, work):
  """Says before anything is sampled what no sample could make good.

  Raises:
    InputError: every prompt is too long.
  """
  most, shortest = config.data.max_prompt_tokens, None
  for candidate in itertools.chain.from_iterable(work):
    length = len(_turn(tokenizer, trajectories, candidate).prompt)
    shortest = min(length, shortest or length)
    if length <= most:
      break
  else:
    raise errors.InputError(
      f"config.data.max_prompt_tokens: {most}; expected at least {shortest},"
      f" the tokens of the shortest prompt of {sum(map(len, work))} candidates"
    )
  most, shortest = config.rollout.max_tokens, None
  for candidate in itertools.chain.from_iterable(work):
    length = len(
      rollouts.render_demonstration(
        tokenizer, trajectories[candidate.trajectory_id], candidate
      )
    )
    shortest = min(length, shortest or length)
    if length <= most:
      return
  logging.warning(
    "profile: config.rollout.max_tokens=%d is less than the %d tokens of the"
    " shortest of %d demonstrations: most samples will be cut off",
    most, shortest, sum(map(len, work)),
  )  # fmt: skip


def _prepare(config, tokenizer, engines, trajectories, work):
  """Readies the engines for the tries of the trajectories."""
  most = config.data.max_prompt_tokens
  last = [_turn(tokenizer, trajectories, c) for *_, c in work]

  def ready(engine):
    engine.prepare(
      [min(len(turn.prompt), most) for turn in last],
      rollouts.sampling_params(tokenizer, config.rollout),
      prompts=config.profile.trajectories_per_batch
      * max(len(turns) for turns in work),
      rows=config.profile.group_size,
    )

  spread.each(ready, engines)


def _turn(tokenizer, trajectories, candidate):
  return rollouts.render_turn(
    tokenizer, trajectories[candidate.trajectory_id], candidate
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


def _log_trie(prompts, stats):
  """Tokens of prompts and samples: see `base.trie_tokens`."""
  if not stats:
    return
  separate, _, computed = sum(map(base.trie_tokens, stats))
  least = trees.order(prompts).tokens()
  least += sum(s.sampled_tokens for s in stats)
  logging.info(
      "profile: %s",
      ", ".join(
          f"{name} {value}"
          for name, value in zip(
              base.TRIE_TOKENS, (separate, least, computed), strict=True
          )
      ),
  )  # fmt: skip


def _log(rows, seconds, stats):
  means = [row["mean"] for row in rows if row["mean"] is not None]
  if not means:
    return
  flat = np.array(
    [
      row["variance"] < 1e-12  # That of equal rewards may round to 1e-34.
      for row in rows
      if row["variance"] is not None
    ]
  )
  missing = sum(row["rewards"].count(None) for row in rows)
  logging.info(
    "profile: %d candidates, mean reward %.3f, zero-variance share %.3f,"
    " %.0f s, %.0f sampled tokens/s (%d tokens of prompts shared)%s",
    len(rows),
    np.mean(means),
    flat.mean(),
    seconds,
    sum(s.sampled_tokens for s in stats) / max(seconds, 1e-9),
    sum(s.prompt_tokens for s in stats),
    f"; {missing} samples without a verdict are left out, and scored again"
    " on the next start"
    if missing
    else "",
  )
