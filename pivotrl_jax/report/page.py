"""One self-contained HTML page: headline, tables, curves, pivots."""

import base64
from collections import Counter
import pathlib

import jinja2

from pivotrl_jax.pivots import candidates as candidates_lib
from pivotrl_jax.report import code
from pivotrl_jax.report import plots
from pivotrl_jax.report import tables

_TEMPLATE = pathlib.Path(__file__).parent / "page.html.jinja"
_LONGEST = 6000  # Characters of one text in the page.


def page(
  run: tables.Run, figures: dict[str, bytes], *, most_pivots: int
) -> str:
  """The page; all that a model or a log wrote is escaped.

  Args:
    run: what to show.
    figures: name -> PNG.
    most_pivots: how many pivots to embed.
  """
  environment = jinja2.Environment(autoescape=True, trim_blocks=True)
  template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
  text = template.render(
    title=run.config["domain"],
    headline=headline(run),
    tables=[
      (title, tables.MEANINGS[title], table)
      for title, table in tables.all_tables(run)
    ],
    figures=[
      (*plots.describe(name), base64.b64encode(data).decode())
      for name, data in figures.items()
    ],
    pivots=_pivots(run, most_pivots),
    total=len(run.pivots),
  )
  # Lone surrogates of a log have no UTF-8.
  return text.encode("utf-8", "replace").decode("utf-8")


def headline(run: tables.Run) -> dict[str, str] | None:
  """Success in the domain before and after, in words; None without both."""
  suite = run.config["domain"]
  found = tables.difference(run, suite)
  if found is None:
    return None
  rows = {(r[0], r[1]): r[3] for r in tables.success(run)[1]}
  count, mean, low, high = found
  return {
    "before": rows[(suite, "base")],
    "after": rows[(suite, "trained")],
    "tasks": str(count),
    "difference": f"{100 * mean:+.1f} points",
    "interval": f"{100 * low:+.1f} to {100 * high:+.1f}",
  }


def _pivots(run, most):
  profiles = {p.candidate_id: p for p in run.profiles}
  trained = _last_rollouts(run)
  return [
    _pivot(run, profiles[p.candidate_id], trained.get(p.candidate_id, []))
    for p in run.pivots[:most]
    if p.candidate_id in profiles
  ]


def _last_rollouts(run):
  """Candidate -> the rows of the last group that was sampled at it."""
  found = {}
  for row in run.rollouts:
    rows = found.setdefault(row["candidate_id"], [])
    if rows and rows[0]["step"] != row["step"]:
      rows.clear()
    rows.append(row)
  return found


def _pivot(run, profile, trained):
  candidate = run.candidates[profile.candidate_id]
  trajectory = run.trajectories[candidate.trajectory_id]
  prefix = candidates_lib.prefix_messages(trajectory, candidate)
  demonstration = code.action(candidate.demonstration)
  step = f", step {trained[0]['step']}" if trained else ""
  return {
      "id": candidate.id,
      "mean": profile.mean,
      "variance": profile.variance,
      "short": demonstration[:60],
      "prefix": [
          {"role": m.role, "text": code.message(m)[:_LONGEST]} for m in prefix
      ],
      "columns": [
          ("Demonstration", "what the trajectory did",
           [{"text": demonstration[:_LONGEST]}]),
          ("Base policy", "what the frozen policy sampled", _samples(
              zip(profile.rewards, profile.reasons, profile.completions,
                  strict=True)
          )),
          (f"Policy in training{step}", "the last that was sampled here",
           _samples((r["reward"], r["reason"], r["text"]) for r in trained)),
      ],
  }  # fmt: skip


def _samples(samples):
  """Samples that are alike as one with their count, the best first."""
  counts = Counter(samples)
  return [
    {
      "reward": reward,
      "reason": reason,
      "text": code.sampled(text)[:_LONGEST],
      "count": count,
    }
    for (reward, reason, text), count in sorted(
      counts.items(), key=lambda pair: (-(pair[0][0] or 0.0), -pair[1])
    )
  ]
