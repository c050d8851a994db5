"""The report's figures. PNG bytes that depend on the data alone."""

import io

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from pivotrl_jax.evaluation import intervals  # noqa: E402
from pivotrl_jax.report import glossary  # noqa: E402
from pivotrl_jax.report import tables  # noqa: E402

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#8a8f98"
# Figure -> the metric it draws over steps.
_CURVES = {
  "reward": "rollout/reward_mean",
  "variance": "signal/reward_std",
  "zero_variance": "signal/zero_variance",
  "kl": "ordering/kl",
  "heldout_tau": "heldout/tau",
}
_TURNS = "rollout/turns_total"
# Figures that draw no single metric -> title and one line of meaning.
_OTHERS = {
  "profile": (
    "Mean reward of the candidates",
    "Under the frozen policy; blue is kept: neither too easy nor without"
    " variance.",
  ),
  "reward_turns": (
    "Mean reward over rollout turns",
    "What the reward of training cost in sampled actions, the profile"
    " included.",
  ),
  "natural_norm": (
    "Natural-gradient norm of a group",
    "Measured, and dotted what the advantages predict; pivots against random"
    " turns.",
  ),
  "natural_reward": (
    "Natural-gradient norm in reward",
    "Measured, and dotted the std of the rewards (Theorem 3.2).",
  ),
  "natural_captured": (
    "Captured share",
    "Measured over predicted norm, of groups with a signal.",
  ),
  "success": (
    "Success before and after",
    "By suite, with 95 % Wilson intervals.",
  ),
}
_SIDES = {"": _BLUE, "random_": _ORANGE}
# Figure -> its label, and what it draws of pivots and of random turns.
_NATURAL = {
  "natural_norm": (
    "natural-gradient norm of a group",
    {"norm": "-", "predicted": ":"},
  ),
  "natural_reward": (
    "natural-gradient norm in reward",
    {"reward_norm": "-", "reward_std": ":"},
  ),
  "natural_captured": ("captured share, kappa", {"captured": "-"}),
}


def describe(figure: str) -> tuple[str, str]:
  """(title, meaning) of a figure."""
  if figure in _CURVES:
    return glossary.describe(_CURVES[figure])
  return _OTHERS[figure]


def figures(run: tables.Run) -> dict[str, bytes]:
  """Name -> PNG, of all figures that the run has data for."""
  found = {}
  if run.profiles:
    found["profile"] = _histogram(run)
  for name, metric in _CURVES.items():
    if any(metric in row for row in run.metrics):
      found[name] = _curve(run, "step", metric)
  if any(_TURNS in row for row in run.metrics):
    found["reward_turns"] = _curve(run, _TURNS, "rollout/reward_mean")
  for name, (label, drawn) in _NATURAL.items():
    if any(f"natural/{key}" in row for row in run.metrics for key in drawn):
      found[name] = _natural(run, label, drawn)
  if run.evals:
    found["success"] = _success(run)
  return found


def _histogram(run):
  """Profile means, the kept region marked."""
  size = run.profiles[0].group_size
  edges = (np.arange(size + 2) - 0.5) / size
  figure, axes = _axes("mean reward of a candidate", "candidates")
  judged = [p for p in run.profiles if p.mean is not None]
  axes.hist([p.mean for p in judged], edges, color=_GREY, rwidth=0.9)
  kept = {p.candidate_id for p in run.pivots}
  axes.hist(
      [p.mean for p in judged if p.candidate_id in kept],
      edges, color=_BLUE, rwidth=0.9, label="kept",
  )  # fmt: skip
  threshold = run.config["pivots"]["threshold"]
  axes.axvspan(0.5 / size, threshold, color=_BLUE, alpha=0.08)
  axes.axvline(
    threshold, color=_ORANGE, linestyle="--", label=f"threshold {threshold}"
  )
  axes.legend(frameon=False)
  return _png(figure)


def _curve(run, over, metric):
  rows = [(m[over], m[metric]) for m in run.metrics if {over, metric} <= {*m}]
  steps, values = map(np.array, zip(*rows, strict=True))
  figure, axes = _axes(_title(over), _title(metric))
  axes.plot(steps, values, color=_BLUE, alpha=0.3, linewidth=1)
  width = max(1, len(values) // 10)
  smooth = np.convolve(values, np.ones(width) / width, "valid")
  axes.plot(steps[width - 1 :], smooth, color=_BLUE, linewidth=2)
  return _png(figure)


def _natural(run, label, drawn):
  """Pivots against random turns: measured lines, dotted what is predicted."""
  figure, axes = _axes("step", label)
  for side, turns in tables.NATURAL_SIDES.items():
    for key, style in drawn.items():
      name = f"natural/{side}{key}"
      points = [(m["step"], m[name]) for m in run.metrics if name in m]
      if points:
        axes.plot(
            *zip(*points, strict=True), style, marker="o", markersize=3,
            color=_SIDES[side],
            label=f"{turns}: {key.replace('_', ' ')}",
        )  # fmt: skip
  axes.set_ylim(bottom=0)
  axes.legend(frameon=False, fontsize=8)
  return _png(figure)


def _success(run):
  arms = sorted({(r["suite"], r["policy"]) for r in run.evals})
  figure, axes = _axes("", "success, %")
  for i, (suite, policy) in enumerate(arms):
    wins = [
      r["success"]
      for r in run.evals
      if (r["suite"], r["policy"]) == (suite, policy)
    ]
    low, high = intervals.wilson(sum(wins), len(wins))
    rate = 100 * sum(wins) / len(wins)
    color = _BLUE if policy == "trained" else _GREY
    axes.bar(
        i, rate, color=color, width=0.7,
        yerr=[[rate - 100 * low], [100 * high - rate]], capsize=4,
    )  # fmt: skip
  axes.set_xticks(
    range(len(arms)), [f"{suite}\n{policy}" for suite, policy in arms]
  )
  axes.set_ylim(0, 100)
  return _png(figure)


def _title(metric):
  return "step" if metric == "step" else glossary.describe(metric)[0]


def _axes(x, y):
  figure, axes = plt.subplots(figsize=(5.2, 3.2), dpi=120)
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(axis="y", alpha=0.25)
  if x == "step":
    axes.xaxis.get_major_locator().set_params(integer=True)
  return figure, axes


def _png(figure):
  out = io.BytesIO()
  figure.tight_layout()
  figure.savefig(out, format="png", metadata={"Software": None})
  plt.close(figure)
  return out.getvalue()
