"""One self-contained HTML page: headline, tables, curves, pivots."""

import base64
import json
import pathlib

import jinja2

from pivotrl_jax import types
from pivotrl_jax.pivots import candidates as candidates_lib
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
      ("Success", tables.success(run)),
      ("Difference", tables.differences(run)),
      ("From trajectories to pivots", tables.funnel(run)),
      ("Natural gradient", tables.natural(run)),
      ("Training", tables.training(run)),
    ],
    figures=[
      (name, base64.b64encode(data).decode()) for name, data in figures.items()
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
  return [
    _pivot(run, profiles[p.candidate_id])
    for p in run.pivots[:most]
    if p.candidate_id in profiles
  ]


def _pivot(run, profile):
  candidate = run.candidates[profile.candidate_id]
  trajectory = run.trajectories[candidate.trajectory_id]
  prefix = candidates_lib.prefix_messages(trajectory, candidate)
  demonstration = _action(candidate.demonstration)
  return {
      "id": candidate.id,
      "mean": profile.mean,
      "variance": profile.variance,
      "short": demonstration[:60],
      "prefix": [{"role": m.role, "text": _message(m)} for m in prefix],
      "demonstration": demonstration,
      "samples": [
          {"reward": reward, "reason": reason, "text": text[:_LONGEST]}
          for reward, reason, text in zip(
              profile.rewards, profile.reasons, profile.completions,
              strict=True,
          )
      ],
  }  # fmt: skip


def _message(message: types.Message) -> str:
  parts = [message.content, *(_call(c) for c in message.tool_calls)]
  return "\n".join(p for p in parts if p)[:_LONGEST]


def _action(action: types.Action) -> str:
  text = action.content or "\n".join(_call(c) for c in action.calls)
  return text[:_LONGEST]


def _call(call: types.ToolCall) -> str:
  return f"{call.name}({json.dumps(call.arguments)[1:-1]})"
