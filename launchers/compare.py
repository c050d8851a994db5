"""Success by arm of a sweep, with paired 95 % intervals.

  python launchers/compare.py ROOT [--against=ARM] [--format=csv]

An arm's runs are paired with the base policy's, and with another arm's, on
the same seeds and tasks. Intervals are over tasks and seeds; see
`evaluation.intervals.crossed_mean`.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
import numpy as np

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launchers.runs import root as root_lib
from launchers.runs import status
from pivotrl_jax import errors
from pivotrl_jax.evaluation import intervals

_AGAINST = flags.DEFINE_string(
  "against", "", "Arm that the others are compared with; the first by default."
)
_FORMAT = flags.DEFINE_enum("format", "markdown", ["markdown", "csv"], "")

BASE = "base"  # The arm that is the policy before training.

# Config file and seed of a run: what is paired between arms.
Block = tuple[str, int]
# Mean and 95 % interval.
Interval = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Line:
  """An arm in a suite.

  Attributes:
    suite: of evals.jsonl.
    arm: its name.
    runs: how many are done, of how many.
    missing: what is not done, and how it stands.
    tasks: of a run.
    success: share of successes; None where no run is done.
    over_base: the same less the base policy's; None for the base itself.
    over_other: less the other arm's; None for that itself, or without a seed
      in common.
  """

  suite: str
  arm: str
  runs: tuple[int, int]
  missing: tuple[str, ...]
  tasks: int
  success: Interval | None
  over_base: Interval | None
  over_other: Interval | None


def compare(path: pathlib.Path, against: str = "") -> list[Line]:
  """The lines of every suite: the base policy, then the arms as in the index.

  Args:
    path: a sweep's folder.
    against: the arm to compare with; "" for the first.

  Raises:
    InputError: no such arm, nothing is done, or runs that cannot be paired.
  """
  rows = root_lib.runs(path)
  arms = list(dict.fromkeys(row.job.arm for row in rows))
  if not rows or (against and against not in arms):
    raise errors.InputError(
      f"{path}: arms {', '.join(arms) or 'none'}; expected {against or 'some'}"
    )
  against = against or arms[0]
  stands = {row.job.name: root_lib.stands(path, row).state for row in rows}
  scores: dict[str, dict[str, dict[Block, dict[str, float]]]] = {}
  for row in (row for row in rows if stands[row.job.name] == "done"):
    block = row.job.config, row.job.seed
    found = arm_scores(path / row.job.name, row.job.arm, is_warm=row.job.is_warm)
    for (arm, suite), tasks in found.items():
      blocks = scores.setdefault(suite, {}).setdefault(arm, {})
      if arm != BASE and block in blocks:
        raise errors.InputError(
          f"{path}: two runs of arm {arm!r} with seed {row.job.seed}; expected"
          " arms named apart"
        )
      blocks.setdefault(block, tasks)
  if not scores:
    raise errors.InputError(f"{path}: no run is done; expected one or more")
  return [
    _line(suite, arm, by_arm, against, rows, stands)
    for suite, by_arm in scores.items()
    for arm in [BASE, *arms]
  ]


def arm_scores(
  workdir: pathlib.Path, arm: str, *, is_warm: bool
) -> dict[tuple[str, str], dict[str, float]]:
  """(arm, suite) -> task -> score, of a run and of its base policy.

  Args:
    workdir: of the run.
    arm: of the trained policy.
    is_warm: see `root.Job.is_warm`; then without the policy before training.
  """
  found = status.successes(workdir / "evals.jsonl")
  return {
    (BASE if policy == BASE else arm, suite): tasks
    for (policy, suite), tasks in found.items()
    if not (is_warm and policy == BASE)
  }


def _line(suite, arm, by_arm, against, rows, stands):
  own = [row.job for row in rows if row.job.arm == arm]
  other = [job.name for job in own if stands[job.name] != "done"]
  blocks = by_arm.get(arm, {})
  done = len(blocks)
  return Line(
    suite=suite,
    arm=arm,
    runs=(done, done + len(other)),
    missing=tuple(f"{name} {stands[name]}" for name in other),
    tasks=len(next(iter(by_arm[BASE].values()))),
    success=intervals.crossed_mean(values(blocks)) if blocks else None,
    over_base=None if arm == BASE else _difference(by_arm, arm, BASE),
    over_other=None if arm == against else _difference(by_arm, arm, against),
  )


def _difference(by_arm, arm, other):
  """`arm` less `other` on the seeds that both have."""
  values = paired(
    by_arm.get(arm, {}), by_arm.get(other, {}), f"arms {arm} and {other}"
  )
  return None if values is None else intervals.crossed_mean(values)


def paired(
  ours: Mapping[Any, Mapping[str, float]],
  theirs: Mapping[Any, Mapping[str, float]],
  names: str,
) -> np.ndarray | None:
  """`[S, T]` scores less others, of the blocks that both have, by task; None
  where there is no such block.

  Args:
    ours, theirs: block -> task -> score.
    names: of the two, for a message.

  Raises:
    InputError: other tasks in a block.
  """
  common = [block for block in ours if block in theirs]
  for block in common:
    if ours[block].keys() != theirs[block].keys():
      raise errors.InputError(
        f"{names}, seed {block[1]}: evaluated on other tasks; expected the same"
      )
  if not common:
    return None
  return values({b: ours[b] for b in common}) - values(
    {b: theirs[b] for b in common}
  )


def values(blocks: Mapping[Any, Mapping[str, float]]) -> np.ndarray:
  """`[S, T]` scores by block and task.

  Raises:
    InputError: blocks of different sizes.
  """
  sizes = {len(tasks) for tasks in blocks.values()}
  if len(sizes) > 1:
    raise errors.InputError(
      f"runs of {sorted(sizes)} tasks; expected the same number in each"
    )
  return np.array(
    [[tasks[name] for name in sorted(tasks)] for tasks in blocks.values()]
  )


def markdown(lines: Sequence[Line], against: str) -> str:
  """A table a suite, in percent and points."""
  parts = []
  for suite in dict.fromkeys(line.suite for line in lines):
    own = [line for line in lines if line.suite == suite]
    parts += [
      f"{suite}: {own[0].tasks} tasks a run; success in percent, differences in"
      " points, with 95 % intervals over tasks and seeds (two-way random"
      " effects, t)",
      "",
      f"| arm | runs | success | over {BASE} | over {against} |",
      "|---|---|---|---|---|",
    ]
    for line in own:
      runs = f"{line.runs[0]} of {line.runs[1]}"
      missing = f" ({'; '.join(line.missing)})" if line.missing else ""
      parts.append(
        f"| {line.arm} | {runs}{missing} | {shown(line.success, '')} |"
        f" {shown(line.over_base, '+')} | {shown(line.over_other, '+')} |"
      )
    parts.append("")
  return "\n".join(parts)


def shown(interval: Interval | None, sign: str) -> str:
  """In percent; `sign` is "+" for differences."""
  if interval is None:
    return ""
  mean, low, high = (f"{100 * value:{sign}.1f}" for value in interval)
  return f"{mean} ({low} to {high})"


def write_csv(lines: Sequence[Line], out) -> None:
  """One row an arm and suite, as shares."""
  writer = csv.writer(out)
  names = ("success", "over_base", "over_other")
  ends = ("", "_low", "_high")
  writer.writerow(
    ["suite", "arm", "runs_done", "runs", "tasks"]
    + [name + end for name in names for end in ends]
  )
  for line in lines:
    figures = [getattr(line, name) or ("", "", "") for name in names]
    writer.writerow(
      [line.suite, line.arm, *line.runs, line.tasks]
      + [value for interval in figures for value in interval]
    )


def main(argv: Sequence[str]) -> None:
  try:
    path = root_lib.given(argv)
    lines = compare(path, _AGAINST.value)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  if _FORMAT.value == "csv":
    write_csv(lines, sys.stdout)
    return
  rows = root_lib.runs(path)
  print(markdown(lines, _AGAINST.value or rows[0].job.arm))
  stands = [root_lib.stands(path, row) for row in rows]
  revisions = sorted({now.revision for now in stands if now.revision})
  print(f"`python launchers/compare.py {path}`, runs of {', '.join(revisions)}")


if __name__ == "__main__":
  app.run(main)
