"""The paper's tables and figures from the runs of a sweep.

  python launchers/tables.py ROOT --out=launchers/tables

Of a root of `sweeps/paper.py`, finished or not: what is there is shown, with
how many runs it is of. Success in percent, differences in points, paired on
seeds and tasks, with bootstrap 95 % intervals over both. Writes tables.md, a
CSV a table, a PNG a figure, and tables.html with all of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
import jinja2
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launchers import compare
from launchers.runs import root as root_lib
from launchers.runs import status
from pivotrl_jax import errors
from pivotrl_jax.data import records
from pivotrl_jax.evaluation import intervals
from pivotrl_jax.evaluation import suites
from pivotrl_jax.report import tables as report_tables

_OUT = flags.DEFINE_string("out", "launchers/tables", "Folder to write.")

BASE, SFT, PIVOTRL = compare.BASE, "sft", "pivotrl"
_TEMPLATE = pathlib.Path(__file__).with_name("tables.html.jinja")
CURVE = "curve"  # Folder of a workdir, see launchers/curve.py.
_SHOWN = 8  # Most runs that are not done by name.
# Score of each task, by seed.
Scores = Mapping[int, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that is done.

  Attributes:
    domain: of its config.
    arm: what it is compared as.
    seed: of its config.
    path: its workdir.
    revision: of the code.
    is_warm: see `root.Job.is_warm`.
  """

  domain: str
  arm: str
  seed: int
  path: pathlib.Path
  revision: str
  is_warm: bool


@dataclasses.dataclass(frozen=True)
class Table:
  """What is printed.

  Attributes:
    name: of its file.
    title: in a line.
    head, rows: its cells; a cell is text, or (mean, low, high) as shares.
    signed: columns, from 0, that are differences.
    note: how many runs and tasks it is of.
  """

  name: str
  title: str
  head: tuple[str, ...]
  rows: list[tuple[Any, ...]]
  signed: tuple[int, ...]
  note: str


@dataclasses.dataclass(frozen=True)
class Curve:
  """An arm's success over rollout turns, at checkpoints all its seeds have.

  Attributes:
    turns: `[C]` sampled up to a checkpoint, mean over seeds, from 0 and what
      the profile took on.
    scores: `[C, S, T]` by seed and task; the first are the base policy's.
  """

  turns: np.ndarray
  scores: np.ndarray


class Matrix:
  """Scores of the runs of a root, by domain, arm, suite, seed and task."""

  def __init__(self, runs: Sequence[Run]):
    """Reads the evaluations of `runs`.

    Raises:
      InputError: two runs of a domain and arm have the same seed.
    """
    self.runs = list(runs)
    self._scores: dict[tuple[str, str, str], dict[int, Any]] = {}
    for run in self.runs:
      found = compare.arm_scores(run.path, run.arm, is_warm=run.is_warm)
      for (arm, suite), tasks in found.items():
        seeds = self._scores.setdefault((run.domain, arm, suite), {})
        if arm != BASE and run.seed in seeds:
          raise errors.InputError(
            f"{run.path}: a second run of {run.domain}, arm {arm}, seed"
            f" {run.seed}; expected one"
          )
        seeds.setdefault(run.seed, tasks)

  @property
  def domains(self) -> list[str]:
    """In the order of the runs."""
    return list(dict.fromkeys(run.domain for run in self.runs))

  def suites(self) -> list[str]:
    """Out of domain, those that there are scores of."""
    names = {suite for _, _, suite in self._scores}
    return [name for name in suites.SUITES if name in names]

  def scores(self, domain: str, arm: str, suite: str) -> Scores:
    """By seed and task; empty where there are none."""
    return self._scores.get((domain, arm, suite), {})

  def values(
    self,
    domain: str,
    arm: str,
    suite: str,
    *,
    less: str = "",
    of: Callable[[str], bool] = lambda task: True,
  ) -> np.ndarray | None:
    """`[S, T]` scores of an arm by seed and task; None where there are none.

    Args:
      domain, arm, suite: of which.
      less: an arm whose scores of the same seeds and tasks are subtracted.
      of: which tasks.

    Raises:
      InputError: other tasks than those of `less`.
    """
    ours = self._blocks(domain, arm, suite, of)
    if less:
      theirs = self._blocks(domain, less, suite, of)
      names = f"{domain}, {suite}, arms {arm} and {less}"
      return compare.paired(ours, theirs, names)
    return compare.values(ours) if ours else None

  def curves(self, domain: str) -> dict[str, Curve]:
    """By arm that samples, of what launchers/curve.py played, on the seeds that
    all have.

    Raises:
      InputError: a checkpoint or the base policy on other tasks.
    """
    by_arm: dict[str, dict[int, tuple[Run, list[Any]]]] = {}
    for run in self.runs:
      if run.domain != domain or not (run.path / CURVE).is_dir():
        continue
      logged = _metrics(run.path)
      if any(_TURNS in row for row in logged):
        by_arm.setdefault(run.arm, {})[run.seed] = run, logged
    seeds = set(self.scores(domain, BASE, domain)).intersection(
      *by_arm.values()
    )
    return {
      arm: self._curve(domain, [own[seed] for seed in sorted(seeds)])
      for arm, own in by_arm.items()
      if seeds
    }

  def _curve(self, domain, found):
    """One arm's, of one run and its metrics a seed; at the steps that all of
    them have.
    """
    runs, logged = zip(*found, strict=True)
    played = [
      {int(file.stem): file for file in (run.path / CURVE).glob("*.jsonl")}
      for run in runs
    ]
    turns = [{row["step"]: row.get(_TURNS) for row in rows} for rows in logged]
    base = self._blocks(domain, BASE, domain, lambda task: True)
    base = {(domain, run.seed): base[domain, run.seed] for run in runs}
    at, scores = [0.0], [compare.values(base)]
    before = float(np.mean([_before(rows) for rows in logged]))
    if before:  # Nothing is learnt from a profile alone.
      at, scores = [0.0, before], 2 * scores
    for step in sorted(set.intersection(*map(set, played))):
      block = {
        (domain, run.seed): status.successes(files[step])[
          f"step {step}", domain
        ]
        for run, files in zip(runs, played, strict=True)
      }
      names = f"{domain}, step {step} of arm {runs[0].arm} and base"
      change = compare.paired(block, base, names)
      at.append(float(np.mean([own[step] for own in turns])))
      scores.append(scores[0] + change)
    return Curve(np.array(at), np.stack(scores))

  def _blocks(self, domain, arm, suite, of):
    return {
      (domain, seed): {task: tasks[task] for task in filter(of, tasks)}
      for seed, tasks in sorted(self.scores(domain, arm, suite).items())
    }


def load(root: pathlib.Path) -> tuple[list[Run], list[str]]:
  """The runs of a root that are done, and how the others stand.

  Raises:
    InputError: it is no root, or no run is done.
  """
  done, others = [], []
  for row in root_lib.runs(root):
    stands, path = root_lib.stands(root, row), root / row.job.name
    if stands.state != "done":
      others.append(f"{row.job.name} {stands.state}")
      continue
    config = json.loads((path / "config.json").read_text())["config"]
    done.append(
      Run(
        config["domain"], row.job.arm, row.job.seed, path,
        stands.revision or "", row.job.is_warm,
      )
    )  # fmt: skip
  if not done:
    raise errors.InputError(f"{root}: no run is done; expected one or more")
  return done, others


def tables(matrix: Matrix) -> list[Table]:
  """Those of the paper's tables that there are runs for."""
  found = [in_domain(matrix), out_of_domain(matrix)]
  found.append(by_domain(matrix))
  found += [ablations(matrix, domain) for domain in matrix.domains]
  found += [turns_at(matrix, domain) for domain in matrix.domains]
  found.append(cost(matrix))
  return [table for table in found if table.rows]


def in_domain(matrix: Matrix) -> Table:
  """Table 1: success in each domain, each trained alone."""
  compared = [(SFT, BASE), (PIVOTRL, BASE), (PIVOTRL, SFT)]
  rows = []
  for domain in matrix.domains:
    plain = [
      _mean([matrix.values(domain, arm, domain)])
      for arm in (BASE, SFT, PIVOTRL)
    ]
    rows.append((domain, *plain, *(
      _mean([matrix.values(domain, arm, domain, less=less)])
      for arm, less in compared
    )))  # fmt: skip
  whole = [
    _mean([matrix.values(d, arm, d, less=less) for d in matrix.domains])
    for arm, less in compared
  ]
  rows.append(("mean", "", "", "", *whole))
  return Table(
    "table1", "Table 1. In domain",
    ("domain", "base", "SFT", "PivotRL", "SFT over base", "PivotRL over base",
     "PivotRL over SFT"),
    rows, (4, 5, 6), _note(matrix, (SFT, PIVOTRL)),
  )  # fmt: skip


def out_of_domain(matrix: Matrix) -> Table:
  """Table 2: change out of domain, a mean over the trained domains."""
  rows = []
  names = matrix.suites()
  for suite in [*names, "mean"]:
    every = [suite] if suite != "mean" else names

    def change(arm, less, every=every):
      return _mean([
        matrix.values(domain, arm, name, less=less)
        for domain in matrix.domains
        for name in every
      ])  # fmt: skip

    rows.append((
      suite, change(BASE, ""), change(SFT, BASE), change(PIVOTRL, BASE),
      change(PIVOTRL, SFT),
    ))  # fmt: skip
  return Table(
    "table2", "Table 2. Out of domain, mean over training domains",
    ("suite", "base", "SFT", "PivotRL", "PivotRL over SFT"),
    rows if names else [], (2, 3, 4), _note(matrix, (SFT, PIVOTRL)),
  )  # fmt: skip


def by_domain(matrix: Matrix) -> Table:
  """Table 3: change out of domain, by the domain that was trained on."""
  head, columns = ["suite"], []
  for domain in matrix.domains:
    for arm in (SFT, PIVOTRL):
      head.append(f"{arm} on {domain}")
      columns.append((domain, arm))
  names = matrix.suites()
  rows = [
    (suite, *(
      _mean([matrix.values(domain, arm, suite, less=BASE)])
      for domain, arm in columns
    ))
    for suite in names
  ]  # fmt: skip
  rows.append(("mean", *(
    _mean([matrix.values(domain, arm, name, less=BASE) for name in names])
    for domain, arm in columns
  )))  # fmt: skip
  return Table(
    "table3", "Table 3. Out of domain, by training domain", tuple(head),
    rows if names else [], tuple(range(1, len(head))),
    _note(matrix, (SFT, PIVOTRL)),
  )  # fmt: skip


def ablations(matrix: Matrix, domain: str) -> Table:
  """Tables 4 and 6: the arms of a domain, by the kind of its tasks."""
  arms = [a for a in dict.fromkeys(run.arm for run in matrix.runs)
          if matrix.scores(domain, a, domain)]  # fmt: skip
  seeds = matrix.scores(domain, BASE, domain).values()
  kinds = sorted({_kind(task) for tasks in seeds for task in tasks})
  kinds = kinds if len(kinds) > 1 else []
  rows = []
  for arm in [BASE, *arms]:
    parts = [
      _mean([matrix.values(domain, arm, domain, of=lambda t, k=k: _kind(t) == k)])
      for k in kinds
    ]  # fmt: skip
    over = [
      "" if arm == less
      else _mean([matrix.values(domain, arm, domain, less=less)])
      for less in (BASE, PIVOTRL)
    ]  # fmt: skip
    whole = _mean([matrix.values(domain, arm, domain)])
    rows.append((arm, *parts, whole, *over))
  size = 1 + len(kinds)
  return Table(
    f"arms_{domain}", f"Tables 4 and 6. Arms on {domain}",
    ("arm", *kinds, "success", "over base", "over PivotRL"),
    rows if len(arms) > 1 else [], (size + 1, size + 2),
    _note(matrix, arms, domain),
  )  # fmt: skip


def turns_at(matrix: Matrix, domain: str) -> Table:
  """Figure 1 in numbers: the rollout turns that an equal success took.

  Equal is the lower of the arms' best successes; curves are straight between
  checkpoints. A draw of the bootstrap in which an arm never rose above the
  base policy has no ratio, and counts as one at either end of the interval.
  """
  curves = matrix.curves(domain)
  rows = []
  if PIVOTRL in curves:
    turns = [curve.turns for curve in curves.values()]
    scores = np.concatenate([curve.scores for curve in curves.values()])
    parts = np.cumsum([len(own) for own in turns])[:-1]
    drawn = intervals.redrawn_means(scores, np.random.default_rng(0), _DRAWS)
    taken = np.array([
      turns_to_equal(turns, np.split(means, parts))
      for means in [scores.mean((1, 2)), *drawn.T]
    ])  # fmt: skip
    ours = taken[:, list(curves).index(PIVOTRL)]
    for i, (arm, curve) in enumerate(curves.items()):
      ratio = np.divide(
        taken[:, i], ours, where=ours > 0, out=np.full(len(ours), np.nan)
      )
      low = np.quantile(np.nan_to_num(ratio, nan=0.0), 0.025)
      high = np.quantile(np.nan_to_num(ratio, nan=np.inf), 0.975)
      best = curve.scores.mean((1, 2)).max()
      rows.append((
        arm, f"{100 * best:.1f}", f"{taken[0, i]:,.0f}",
        "" if arm == PIVOTRL else f"{ratio[0]:.2f} ({low:.2f} to {high:.2f})",
      ))  # fmt: skip
  return Table(
    f"turns_{domain}", f"Figure 1. Rollout turns on {domain}",
    ("arm", "best success", "turns to equal success", "over PivotRL's"),
    rows if len(rows) > 1 else [], (), _note(matrix, list(curves), domain),
  )  # fmt: skip


_DRAWS = 2_000  # Of the bootstrap of curves.


def turns_to_equal(
  turns: Sequence[np.ndarray], means: Sequence[np.ndarray]
) -> list[float]:
  """Where each curve first reaches the lower of their highest points.

  Args:
    turns: `[C]` an arm, rising.
    means: `[C]` an arm, success there.

  Returns:
    Turns of each arm.
  """
  level = min(own.max() for own in means)
  found = []
  for at, own in zip(turns, means, strict=True):
    i = int(np.argmax(own >= level))
    if i == 0:
      found.append(float(at[0]))
      continue
    part = (level - own[i - 1]) / (own[i] - own[i - 1])
    found.append(float(at[i - 1] + part * (at[i] - at[i - 1])))
  return found


def _kind(task):
  """`tau-retail-eval-7` is of kind retail; others have none."""
  parts = task.split("-")
  return parts[1] if len(parts) == 4 else ""


# Column of the table of signals -> metric, and whether of the last tenth.
_STD = "signal/reward_std"
_TURNS = "rollout/turns_total"
_SIGNALS = {
  "reward std, first tenth": (_STD, False),
  "reward std, last tenth": (_STD, True),
  "zero-variance groups, last": ("signal/zero_variance", True),
  "held-out Kendall tau, last": ("heldout/tau", True),
  "KL inside pairs, last": ("ordering/kl_inside", True),
  "KL outside, last": ("ordering/kl_outside", True),
  "rollout turns": (_TURNS, True),
}


def cost(matrix: Matrix) -> Table:
  """What training saw: reward std (Figure 3), order and KL (3.3), turns."""
  rows = []
  for domain in matrix.domains:
    runs = [run for run in matrix.runs if run.domain == domain]
    for arm in dict.fromkeys(run.arm for run in runs):
      cells = []
      logged = [_metrics(run.path) for run in runs if run.arm == arm]
      for name, last in _SIGNALS.values():
        own = [_tenth(rows_, name, last=last) for rows_ in logged]
        own = [x for x in own if x is not None]
        # Means over seeds, no intervals.
        cells.append(f"{np.mean(own):.4g}" if own else "")
      rows.append((domain, arm, *cells))
  return Table(
    "signals", "Figure 3 and section 3 in numbers: means over seeds",
    ("domain", "arm", *_SIGNALS), rows, (), _note(matrix, ()),
  )  # fmt: skip


def _metrics(path):
  file = path / "metrics.jsonl"
  return [row for _, row in records.read_jsonl(file)] if file.exists() else []


def _before(rows):
  """Rollout turns before the first step: of the profile."""
  first = rows[0]
  return first[_TURNS] - first.get("rollout/turns", first[_TURNS])


def _tenth(rows, name, *, last):
  values = [row[name] for row in rows if name in row]
  count = max(1, len(values) // 10)
  if not values:
    return None
  if name == _TURNS:
    return values[-1]
  return float(np.mean(values[-count:] if last else values[:count]))


def _mean(groups):
  """Mean and interval of the groups; "" unless all are there."""
  if not groups or any(values is None for values in groups):
    return ""
  return intervals.bootstrap_mean(groups)


def _note(matrix, arms, domain=""):
  """How many runs the table is of, and how many tasks in each."""
  runs = [
    run for run in matrix.runs
    if (not arms or run.arm in arms) and domain in ("", run.domain)
  ]  # fmt: skip
  tasks = sorted({
    len(tasks)
    for run in runs
    for tasks in matrix.scores(run.domain, run.arm, run.domain).values()
  })  # fmt: skip
  revisions = ", ".join(sorted({run.revision for run in runs}))
  seeds = len({run.seed for run in runs})
  of = ", ".join(map(str, tasks)) or "no"
  return f"{len(runs)} runs, {seeds} seeds, {of} tasks a run; {revisions}"


def shown(table: Table) -> list[tuple[str, ...]]:
  """Rows of a table as text, in percent and points."""
  return [
    tuple(
      cell
      if isinstance(cell, str)
      else compare.shown(cell, "+" * (place in table.signed))
      for place, cell in enumerate(row)
    )
    for row in table.rows
  ]


def markdown(table: Table) -> str:
  """A table with its title and note."""
  drawn = report_tables.markdown((table.head, shown(table)))
  return f"### {table.title}\n\n{drawn}\n{table.note}\n"


def write_csv(table: Table, path: pathlib.Path) -> None:
  """Of a table, as shares: a column for each mean, low and high."""
  wide = [
    any(isinstance(row[place], tuple) for row in table.rows)
    for place in range(len(table.head))
  ]
  ends = ("", "_low", "_high")
  with open(path, "w", encoding="utf-8", newline="") as out:
    writer = csv.writer(out)
    writer.writerow([
      name + end
      for name, is_wide in zip(table.head, wide, strict=True)
      for end in (ends if is_wide else ("",))
    ])  # fmt: skip
    for row in table.rows:
      writer.writerow(_flat(row, wide))


def _flat(row, wide: Iterable[bool]):
  for cell, is_wide in zip(row, wide, strict=True):
    if is_wide:
      yield from cell if isinstance(cell, tuple) else ("", "", "")
    else:
      yield cell


def figure1(matrix: Matrix, out: pathlib.Path) -> list[str]:
  """Success over rollout turns, a panel a domain, a line an arm; its file's
  name, none where no checkpoint was played.
  """
  curves = {domain: matrix.curves(domain) for domain in matrix.domains}
  curves = {domain: found for domain, found in curves.items() if found}
  if not curves:
    return []
  figure, axes = plt.subplots(
    1, len(curves), figsize=(4.6 * len(curves), 3.2), squeeze=False
  )
  for ax, (domain, arms) in zip(axes[0], curves.items(), strict=True):
    for arm, curve in arms.items():
      ax.plot(
        curve.turns, 100 * curve.scores.mean((1, 2)), marker=".", label=arm
      )
    ax.set(title=domain, xlabel="rollout turns", ylabel="success, %")
    ax.legend(frameon=False, fontsize=8)
  return _save(figure, out / "figure1.png")


def _save(figure, path):
  figure.tight_layout()
  figure.savefig(path, dpi=120, metadata={"Software": None})
  plt.close(figure)
  return [path.name]


def figure3(matrix: Matrix, out: pathlib.Path) -> list[str]:
  """Std of groups' rewards over training, a panel a domain, a line an arm; its
  file's name.
  """
  panels = matrix.domains
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4.6 * len(panels), 3.2), squeeze=False
  )
  for ax, domain in zip(axes[0], panels, strict=True):
    by_arm: dict[str, list[Any]] = {}
    for run in (run for run in matrix.runs if run.domain == domain):
      rows = _metrics(run.path)
      if any(_STD in row for row in rows):
        by_arm.setdefault(run.arm, []).append(rows)
    for arm, seeds in by_arm.items():
      ax.plot(*_averaged(seeds), label=arm)
    ax.set(title=domain, xlabel="step", ylabel="std of a group's rewards")
    if by_arm:
      ax.legend(frameon=False, fontsize=8)
  return _save(figure, out / "figure3.png")


def _averaged(seeds):
  """Steps, and the mean over seeds, over a tenth of the steps at a time."""
  values = [[row[_STD] for row in rows if _STD in row] for rows in seeds]
  count = min(map(len, values))
  mean = np.mean([x[:count] for x in values], axis=0)
  width = max(1, count // 10)
  smooth = np.convolve(mean, np.ones(width) / width, "valid")
  return np.arange(width, count + 1), smooth


def write(root: pathlib.Path, out: pathlib.Path) -> str:
  """Writes all tables of `root` to `out`; returns the Markdown."""
  runs, others = load(root)
  matrix = Matrix(runs)
  found = tables(matrix)
  lines = [
    "Success in percent, differences in points, with bootstrap 95 % intervals"
    f" over seeds and tasks; `python launchers/tables.py {root.name}`."
  ]
  if others:
    more = f" and {len(others) - _SHOWN} more" * (len(others) > _SHOWN)
    lines.append(
      f"Not done: {len(others)} of {len(others) + len(runs)} runs:"
      f" {'; '.join(others[:_SHOWN])}{more}"
    )
  out.mkdir(parents=True, exist_ok=True)
  figures = figure1(matrix, out) + figure3(matrix, out)
  for table in found:
    write_csv(table, out / f"{table.name}.csv")
  text = "\n".join([*map(markdown, found), "\n\n".join(lines), ""])
  records.write_text(out / "tables.md", [text])
  template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
    _TEMPLATE.read_text(encoding="utf-8")
  )
  page = template.render(
    lines=lines,
    tables=[(table, shown(table)) for table in found],
    figures=figures,
  )
  records.write_text(out / "tables.html", [page])
  return text


def main(argv: Sequence[str]) -> None:
  try:
    print(write(root_lib.given(argv), pathlib.Path(_OUT.value)))
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
