"""The paper's matrix (section 5), at the scale of the mini worlds or its own.

  python launchers/launch.py --sweep=launchers/sweeps/paper.py --root=DIR
  python launchers/launch.py --sweep=launchers/sweeps/paper.py --root=DIR \
    --scale=paper --executor=slurm ...
  python launchers/tables.py DIR

Four domains by base, SFT and PivotRL (Tables 1 to 3), the ablations on tau
(Tables 4 and 6), and end-to-end RL on swe (Figure 1). The base policy is
evaluated beside every run. Seed by seed, all domains of each, so that a matrix
that is stopped has compared what it has.
"""

from launchers import sweep

DOMAINS = ("tau", "swe", "terminal", "search")
SEEDS = 5
# Of SFT by domain learning rate and steps, and the steps of all other arms, at
# 3e-4: what succeeded most on validation tasks (`tuning.py`).
STEPS = 80
SFT = {
  "tau": (3e-4, 80),
  "swe": (3e-4, 20),
  "terminal": (3e-4, 20),
  "search": (3e-4, 20),
}
_TURNS = 64  # Of a step of SFT.
PIVOTRL = {"arm": "pivotrl", "train.steps": STEPS}
ABLATIONS = [
  PIVOTRL | {"arm": "mixed", "select": "mixed"},
  PIVOTRL | {"arm": "random", "select": "random"},
  PIVOTRL | {"arm": "strict", "reward": "strict"},
  PIVOTRL | {"arm": "random_strict", "select": "random", "reward": "strict"},
]
E2E = {"arm": "e2e", "method": "e2e", "train.steps": STEPS}
# All checkpoints stay: Figure 1 is of success over rollout turns.
CURVE = {"train.save_every": 10, "train.keep_checkpoints": 1000}
# At the paper's scale: data are in data/DOMAIN; benchmarks run elsewhere.
MODEL = "models/Qwen3-30B-A3B-Thinking-2507"


def get_sweep(scale: str = "mini") -> sweep.Grid:
  """The matrix; `scale` is mini or paper."""
  if scale not in ("mini", "paper"):
    raise ValueError(f"--scale={scale}; expected mini or paper")
  # At the paper's scale a seed is thousands of GPU hours.
  seeds = range(SEEDS) if scale == "mini" else range(1)
  return sweep.chain(
    *(_domain(name, scale, seed) for seed in seeds for name in DOMAINS)
  )


def _domain(name, scale, seed):
  arms = [PIVOTRL, _sft(name)]
  if name == "tau":
    arms += [_from_sft(name), *ABLATIONS]
  if name == "swe":
    arms = [PIVOTRL | CURVE, _sft(name), E2E | CURVE]
  if scale == "mini":
    common = {
      "config": f"configs/{name}.py",
      "evaluation.tasks": 200,
      "evaluation.questions": 400,
    }
    return sweep.product([common], [{"seed": seed}], arms)
  common = {
    "config": f"configs/{name}.py:paper",
    "data.path": f"data/{name}",
    "model.path": MODEL,
  }
  # End-to-end RL needs a world, which at that scale is not ours; SFT's
  # settings were not published (paper, section 7), so that they are ours.
  arms = [arm for arm in arms if arm["arm"] != "e2e"]
  return sweep.product([common], [{"seed": seed}], arms)


def _sft(name):
  rate, steps = SFT[name]
  return {
    "arm": "sft", "method": "sft", "train.learning_rate": rate,
    "train.steps": steps, "sft.turns": _TURNS,
  }  # fmt: skip


def _from_sft(name):
  """PivotRL from SFT's checkpoint, on the same trajectories: all."""
  rate, steps = SFT[name]
  return PIVOTRL | {
    "arm": "sft_pivotrl", "warm_start.reuse": True,
    "warm_start.trajectories": 1_000_000, "warm_start.learning_rate": rate,
    "warm_start.steps": steps, "sft.turns": _TURNS,
  }  # fmt: skip
