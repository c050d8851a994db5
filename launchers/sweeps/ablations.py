"""What each part of PivotRL is worth: select x reward x method, five seeds.

On the mini SWE world. `full` is the method; `mixed` keeps every turn whose
rewards vary, `random` keeps turns unseen, `strict` rewards exact matches
only, `random_strict` is both; `sft` trains on the same demonstrations, as
the config has it (3e-4, 40 steps of 64 turns: the better of the two settings
that were measured; the other, 1e-3 and 80 steps, gained half as much).
"""

from launchers import sweep

ARMS = [
  {"arm": "full", "select": "difficult", "reward": "functional"},
  {"arm": "mixed", "select": "mixed", "reward": "functional"},
  {"arm": "random", "select": "random", "reward": "functional"},
  {"arm": "strict", "select": "difficult", "reward": "strict"},
  {"arm": "random_strict", "select": "random", "reward": "strict"},
  {
    "arm": "sft", "method": "sft", "train.learning_rate": 3e-4,
    "train.steps": 40, "sft.turns": 64,
  },
]  # fmt: skip


def get_sweep() -> sweep.Grid:
  # Seed by seed, so that a sweep that is stopped has compared all arms.
  return sweep.product(
    [{"config": "configs/swe.py"}], sweep.over("seed", range(5)), ARMS
  )
