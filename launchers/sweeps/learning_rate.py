"""The learning rate of PivotRL on the mini SWE world, three seeds."""

from launchers import sweep


def get_sweep() -> sweep.Grid:
  return sweep.product(
    [{"config": "configs/swe.py"}],
    sweep.over("seed", range(3)),
    sweep.over("train.learning_rate", [1e-4, 3e-4, 1e-3]),
  )
