"""SFT's learning rate and steps, on validation tasks.

  python launchers/launch.py --sweep=launchers/sweeps/tuning.py --root=DIR
  python launchers/compare.py DIR

Success on the split "validation", which no table reads; what was best in a
domain is in `sweeps/paper.py`. PivotRL has no trial: it runs as the config
files have it.
"""

from launchers import sweep

DOMAINS = ("tau", "swe", "terminal", "search")


def get_sweep() -> sweep.Grid:
  common = {
    "method": "sft",
    "sft.turns": 64,
    "evaluation.split": "validation",
    "evaluation.tasks": 100,
    "evaluation.questions": 0,
    "seed": 0,
  }
  grid = sweep.product(
    [{"config": f"configs/{name}.py"} for name in DOMAINS],
    sweep.over("train.learning_rate", [3e-4, 1e-3]),
    sweep.over("train.steps", [20, 40, 80]),
  )
  # There more steps were better.
  further = [
    {"config": "configs/tau.py", "train.learning_rate": 3e-4,
     "train.steps": 160}
  ]  # fmt: skip
  return sweep.product([common], sweep.chain(grid, further))
