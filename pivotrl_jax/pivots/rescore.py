"""The `rescore` stage: what a changed verifier makes of what was sampled.

No model is asked: texts of profiles.jsonl and rollouts.jsonl are scored again
by the config's verifier. Their files stay; what is found goes beside them.
"""

from collections.abc import Iterable, Sequence
import itertools
import json
import pathlib
import shutil
from typing import Any

from absl import logging
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.pivots import profile as profile_lib
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.pivots import select

FOLDER = "rescored"  # Of a workdir.
_SHOWN = 5  # Most candidates that a line names.
_BATCH = 1024  # Samples that wait for a judge together.


def run(config: Any, workdir: pathlib.Path) -> None:
  """profiles.jsonl, rollouts.jsonl -> rescored/.

  Its files of the same names have the rows with `old_reward` or `old_rewards`,
  and reasons, beside the new; `summary.json` has what changed.

  Raises:
    InputError: there is neither, or too many verdicts are missing.
  """
  again = _Again(config, workdir)
  profiles = _rows(workdir / "profiles.jsonl")
  sampled = _rows(workdir / "rollouts.jsonl")
  if not profiles and not sampled:
    raise errors.InputError(
      f"{workdir}: neither profiles.jsonl nor rollouts.jsonl has a row;"
      " expected a run that has sampled"
    )
  known = [row for row in sampled if row["candidate_id"] in again.candidates]
  if len(known) < len(sampled):
    logging.warning(
      "rescore: %d of %d rollouts are of whole episodes, which the world"
      " scores and no verifier",
      len(sampled) - len(known), len(sampled),
    )  # fmt: skip
  new_profiles = _profiles(again, profiles)
  new_rollouts = _rollouts(again, known)
  summary = {
    "profiles": _change(
      [(a, b) for row in new_profiles
       for a, b in zip(row["old_rewards"], row["rewards"], strict=True)]
    ),
    "rollouts": _change(
      [(row["old_reward"], row["reward"]) for row in new_rollouts]
    ),
    **_sides(config, profiles, new_profiles),
  }  # fmt: skip
  temporary = workdir / f".{FOLDER}.partial"
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  for name, rows in (("profiles", new_profiles), ("rollouts", new_rollouts)):
    if rows:
      records.write_jsonl(temporary / f"{name}.jsonl", rows)
  records.write_text(
    temporary / "summary.json", [json.dumps(summary, indent=1) + "\n"]
  )
  shutil.rmtree(workdir / FOLDER, ignore_errors=True)
  temporary.rename(workdir / FOLDER)
  _log(summary)


class _Again:
  """Verdicts on texts that were sampled before."""

  def __init__(self, config, workdir):
    self._score = rollouts.Scorer(config, workdir)
    self._tokenizer = policy_lib.load_tokenizer(
      policy_lib.starting_path(config), config
    )
    self._trajectories = {
      t.id: t for t in records.read_trajectories(workdir / "trajectories.jsonl")
    }
    self.candidates = {
      c.id: c for c in records.read_candidates(workdir / "candidates.jsonl")
    }
    self._turns: dict[str, tuple[rollouts.Turn, bool]] = {}

  def __call__(
    self, samples: Sequence[tuple[str, str, str]]
  ) -> list[types.Verdict]:
    """Verdicts on (candidate id, text, reason it had).

    What was cut off stays so: its text does not tell.

    Raises:
      InputError: too many verdicts of a batch are missing.
    """
    found = []
    for start in range(0, len(samples), _BATCH):
      turns, actions = [], []
      for candidate_id, text, reason in samples[start : start + _BATCH]:
        turn, opened = self._turn(candidate_id)
        turns.append(turn)
        actions.append(
          types.ParseFailure(reason, text)
          if reason == "cut_off"
          else rollouts.action_of_text(text, opened=opened)
        )
      verdicts = self._score.many(turns, actions)
      self._score.check((v.reward, v.reason) for v in verdicts)
      found += verdicts
    return found

  def _turn(self, candidate_id):
    """A turn, and whether its prompt opens the thinking."""
    if candidate_id not in self._turns:
      candidate = self.candidates[candidate_id]
      trajectory = self._trajectories[candidate.trajectory_id]
      turn = rollouts.render_turn(self._tokenizer, trajectory, candidate)
      opened = render.opens_thinking(self._tokenizer, turn.prompt)
      self._turns[candidate_id] = turn, opened
    return self._turns[candidate_id]


def _profiles(again, rows):
  """Rows of profiles.jsonl, scored again."""
  olds = [records.profile_from_json(row) for row in rows]
  verdicts = iter(
    again(
      [
        (old.candidate_id, text, reason)
        for old in olds
        for text, reason in zip(old.completions, old.reasons, strict=True)
      ]
    )
  )
  return [
    row
    | profile_lib.statistics(list(itertools.islice(verdicts, old.group_size)))
    | {"old_rewards": row["rewards"], "old_reasons": row["reasons"]}
    for row, old in zip(rows, olds, strict=True)
  ]


def _rollouts(again, rows):
  """Rows of rollouts.jsonl, scored again; advantages were of old rewards."""
  verdicts = again([(r["candidate_id"], r["text"], r["reason"]) for r in rows])
  return [
    {key: value for key, value in row.items() if key != "advantage"}
    | {"reward": verdict.reward, "reason": verdict.reason}
    | {"old_reward": row["reward"], "old_reason": row["reason"]}
    for row, verdict in zip(rows, verdicts, strict=True)
  ]


def _change(pairs: Iterable[tuple[float | None, float | None]]):
  """How many rewards there are, how many changed, and their means."""
  pairs = list(pairs)
  means = [
    float(np.mean(had)) if (had := [r for r in side if r is not None]) else None
    for side in zip(*pairs, strict=True)
  ] or [None, None]
  return {
    "samples": len(pairs),
    "changed": sum(old != new for old, new in pairs),
    "old_mean": means[0],
    "mean": means[1],
  }


def _sides(config, old, new):
  """Candidates on another side of the filter (eq. 5) than they were."""
  before, after = (
    select.keep(
      np.array([row["mean"] for row in rows], np.float64),
      np.array([row["variance"] for row in rows], np.float64),
      rule=config.select,
      threshold=config.pivots.threshold,
      keep_all_fail=config.pivots.keep_all_fail,
      min_std=config.pivots.min_std,
    )
    for rows in (old, new)
  )
  ids = [row["candidate_id"] for row in new]
  return {
    "become_pivots": [ids[i] for i in np.flatnonzero(after & ~before)],
    "are_pivots_no_more": [ids[i] for i in np.flatnonzero(before & ~after)],
  }


def _log(summary):
  for name in ("profiles", "rollouts"):
    found = summary[name]
    if found["samples"]:
      logging.info(
        "rescore: %s: %d of %d rewards changed, mean %s -> %s",
        name, found["changed"], found["samples"],
        _shown(found["old_mean"]), _shown(found["mean"]),
      )  # fmt: skip
  for key in ("become_pivots", "are_pivots_no_more"):
    ids = summary[key]
    more = ", ..." if len(ids) > _SHOWN else ""
    logging.info(
      "rescore: %d candidates %s%s",
      len(ids),
      key.replace("_", " "),
      f": {', '.join(ids[:_SHOWN])}{more}" if ids else "",
    )


def _shown(mean):
  return "none" if mean is None else f"{mean:.3f}"


def _rows(path):
  if not path.exists():
    return []
  return [row for _, row in records.read_jsonl(path)]
