"""Learning rate and steps of SFT and of PivotRL, on validation tasks.

  python launchers/launch.py --sweep=launchers/sweeps/tuning.py --root=DIR
  python launchers/curve.py DIR
  python launchers/compare.py DIR

Success on the split "validation", which no table reads; what was best in a
domain is in `sweeps/paper.py`. PivotRL's checkpoint at half of its steps
counts as a trial too (`curve.py`): four in a domain, of SFT six or more.
"""

from launchers import sweep

DOMAINS = ("tau", "swe", "terminal", "search")
RATES = [3e-4, 1e-3]


def get_sweep() -> sweep.Grid:
  domains = [{"config": f"configs/{name}.py"} for name in DOMAINS]
  method = {"method": "sft", "sft.turns": 64}
  sft = sweep.product(
    [method],
    domains,
    sweep.over("train.learning_rate", RATES),
    sweep.over("train.steps", [20, 40, 80]),
  )
  # There more steps were better.
  further = [
    method
    | {
      "config": "configs/tau.py",
      "train.learning_rate": 3e-4,
      "train.steps": 160,
    }
  ]
  pivotrl = sweep.product(
    [{"method": "pivotrl", "train.steps": 80, "train.save_every": 40}],
    domains,
    sweep.over("train.learning_rate", RATES),
  )
  common = {
    "evaluation.split": "validation",
    "evaluation.tasks": 100,
    "evaluation.questions": 0,
    "seed": 0,
  }
  return sweep.product([common], sweep.chain(sft, further, pivotrl))
