"""A workdir's artifacts -> what the report says, and its tables."""

from collections import Counter
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.evaluation import intervals
from pivotrl_jax.report import glossary


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a report reads; absent artifacts are empty."""

  config: dict[str, Any]
  trajectories: dict[str, types.Trajectory]
  candidates: dict[str, types.Candidate]
  profiles: list[types.Profile]
  pivots: list[types.Pivot]
  metrics: list[dict[str, float]]
  rollouts: list[dict[str, Any]]
  evals: list[dict[str, Any]]
  skipped: list[dict[str, Any]]


def read(workdir: pathlib.Path) -> Run:
  """Reads a workdir."""

  def rows(name):
    path = workdir / name
    return [r for _, r in records.read_jsonl(path)] if path.exists() else []

  def read_all(reader, name):
    path = workdir / name
    return list(reader(path)) if path.exists() else []

  return Run(
    config=json.loads((workdir / "config.json").read_text())["config"],
    trajectories={
      t.id: t for t in read_all(records.read_trajectories, "trajectories.jsonl")
    },
    candidates={
      c.id: c for c in read_all(records.read_candidates, "candidates.jsonl")
    },
    profiles=read_all(records.read_profiles, "profiles.jsonl"),
    pivots=read_all(records.read_pivots, "pivots.jsonl"),
    metrics=rows("metrics.jsonl"),
    rollouts=rows("rollouts.jsonl"),
    evals=rows("evals.jsonl"),
    skipped=rows("skipped.jsonl"),
  )


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
# Title of a table in the report -> one line of what it says.
MEANINGS = {
  "Success": "Held-out tasks of the world, and questions outside of it.",
  "Difference": "On the same tasks and seeds, so that it is paired.",
  "From trajectories to pivots": (
    "What the data hold, what the frozen policy makes of it, and what is kept."
  ),
  "Natural gradient": (
    "How much of the predicted signal a small step can take up; (n) are"
    " measurements."
  ),
  "Training": "Means of the first and of the last tenth of the steps.",
}


def success(run: Run) -> Table:
  """Success by suite and policy, with Wilson intervals."""
  head = ("suite", "policy", "tasks", "success", "95 % interval", "turns",
          "tokens")  # fmt: skip
  body = []
  for suite, policy in _arms(run):
    rows = _rows(run, suite, policy)
    wins = sum(r["success"] for r in rows)
    low, high = intervals.wilson(wins, len(rows))
    body.append(
      (
        suite,
        policy,
        str(len(rows)),
        f"{100 * wins / len(rows):.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        f"{np.mean([r['turns'] for r in rows]):.1f}",
        f"{np.mean([r['tokens'] for r in rows]):.0f}",
      )
    )
  return head, body


def differences(run: Run) -> Table:
  """Trained minus base on the same tasks, with the paired interval."""
  head = ("suite", "tasks", "trained - base", "paired 95 % interval")
  body = []
  for suite in sorted({s for s, _ in _arms(run)}):
    found = difference(run, suite)
    if found is not None:
      count, mean, low, high = found
      body.append(
        (
          suite,
          str(count),
          f"{100 * mean:+.1f} points",
          f"{100 * low:+.1f} to {100 * high:+.1f}",
        )
      )
  return head, body


def difference(run: Run, suite: str) -> tuple[int, float, float, float] | None:
  """(tasks, mean, low, high) of trained minus base; None without both."""
  base, trained = (
    {
      (r["task"], r["seed"]): float(r["success"])
      for r in _rows(run, suite, policy)
    }
    for policy in ("base", "trained")
  )
  keys = sorted(set(base) & set(trained))
  if len(keys) < 2:
    return None
  return len(keys), *intervals.paired_difference(
    np.array([base[k] for k in keys]), np.array([trained[k] for k in keys])
  )


def funnel(run: Run) -> Table:
  """From trajectories to pivots; no more than was profiled."""
  least = run.config["pivots"]["min_std"] ** 2
  judged = [p for p in run.profiles if p.mean is not None]
  flat = [p for p in judged if p.variance <= least]
  count = max(1, len(run.profiles))

  def share(rows):
    return f"{len(rows)} ({100 * len(rows) / count:.0f} %)"

  profiled = [
    ("profiled", str(len(run.profiles))),
    ("zero variance: all fail", share([p for p in flat if p.mean == 0])),
    ("zero variance: all alike above 0", share([p for p in flat if p.mean])),
    *_missing(run.profiles),
    ("pivots kept", share(run.pivots)),
  ]
  return ("step", "count"), [
    ("trajectories", str(len(run.trajectories))),
    ("candidates", str(len(run.candidates))),
    *(profiled if run.profiles else ()),
    *(
      (f"left out by {stage}: {reason}", str(n))
      for (stage, reason), n in sorted(
        Counter((r["stage"], r["reason"]) for r in run.skipped).items()
      )
    ),
  ]


def _missing(profiles):
  """A row for the samples that no verdict could be had on, if there are."""
  count = sum(p.rewards.count(None) for p in profiles)
  return [("samples without a verdict", str(count))] if count else []


def training(run: Run) -> Table:
  """First and last values of the curves: means of a tenth of the steps."""
  head = ("", "first", "last", "meaning", "metric")
  size = max(1, len(run.metrics) // 10)
  body = []
  for name in sorted({k for m in run.metrics for k in m} - {"step"}):
    values = [m[name] for m in run.metrics if name in m]
    first, last = np.mean(values[:size]), np.mean(values[-size:])
    title, meaning = glossary.describe(name)
    body.append((title, f"{first:.4g}", f"{last:.4g}", meaning, name))
  return head, body


# Prefix of a metric in `natural/` -> the turns it was measured at.
NATURAL_SIDES = {"": "pivots", "random_": "random turns"}


def natural(run: Run) -> Table:
  """Natural-gradient norms, predictions and captured shares: means of all
  measurements, at pivots and at random turns (Theorem 3.2).
  """
  body = []
  for key, what in (
    ("norm", "norm, of advantages"),
    ("predicted", "predicted: rms of advantages"),
    ("captured", "captured share"),
    ("reward_norm", "norm, of rewards"),
    ("reward_std", "predicted: std of rewards"),
  ):
    cells = []
    for side in NATURAL_SIDES:
      name = f"natural/{side}{key}"
      values = [m[name] for m in run.metrics if name in m]
      cells.append(f"{np.mean(values):.3f} ({len(values)})" if values else "-")
    if cells != ["-"] * len(cells):
      body.append((what, *cells))
  return ("a group's", *NATURAL_SIDES.values()), body


def all_tables(run: Run) -> list[tuple[str, Table]]:
  """Title and table of all that have rows."""
  found = {
    "Success": success(run),
    "Difference": differences(run),
    "From trajectories to pivots": funnel(run),
    "Natural gradient": natural(run),
    "Training": training(run),
  }
  return [(title, table) for title, table in found.items() if table[1]]


def markdown(table: Table) -> str:
  """A table as Markdown; pipes in cells are escaped."""
  head, body = table
  lines = [head, ("---",) * len(head), *body]
  return "".join(
    "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n"
    for line in lines
  )


def _arms(run):
  return sorted({(r["suite"], r["policy"]) for r in run.evals})


def _rows(run, suite, policy):
  return [r for r in run.evals if (r["suite"], r["policy"]) == (suite, policy)]
