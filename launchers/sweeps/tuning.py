"""SFT's learning rate and steps, and PivotRL's, on validation tasks.

As many trials of SFT as of the method, and more; success on the split
"validation", which no table reads. `launchers/compare.py` ranks them.
"""

from launchers import sweep

DOMAINS = ("tau", "swe", "terminal", "search")


def get_sweep() -> sweep.Grid:
  sft = sweep.product(
    [{"method": "sft", "sft.turns": 64}],
    sweep.over("train.learning_rate", [1e-4, 3e-4, 1e-3]),
    sweep.over("train.steps", [20, 40, 80]),
  )
  pivotrl = sweep.product(
    [{"method": "pivotrl"}],
    sweep.over("train.learning_rate", [1e-4, 3e-4, 1e-3]),
  )
  return sweep.product(
    [{"config": f"configs/{name}.py"} for name in DOMAINS],
    [
      {
        "evaluation.split": "validation",
        "evaluation.tasks": 100,
        "evaluation.questions": 0,
        "seed": 0,
      }
    ],
    sweep.chain(sft, pivotrl),
  )
