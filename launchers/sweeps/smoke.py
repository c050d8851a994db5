"""Two tiny runs, to see that launching works: a minute or two."""

from launchers import sweep


def get_sweep() -> sweep.Grid:
  return sweep.product(
    [{"config": "configs/swe.py:tiny"}], sweep.over("seed", range(2))
  )
