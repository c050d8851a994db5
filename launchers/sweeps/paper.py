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
# What succeeded most on validation tasks (`tuning.py`): of SFT by domain
# learning rate and steps, and the steps of the other arms, at 3e-4.
SFT = {
  "tau": (3e-4, 80),
  "swe": (3e-4, 20),
  "terminal": (3e-4, 20),
  "search": (3e-4, 20),
}
STEPS = 80
E2E_STEPS = 50  # What takes as long.
# At the paper's scale it was not published (paper, section 7): a guess.
PAPER_SFT = (1e-5, 360)
_TURNS = 64  # Of a step of SFT.
ABLATIONS = [
  {"arm": "mixed", "select": "mixed"},
  {"arm": "random", "select": "random"},
  {"arm": "strict", "reward": "strict"},
  {"arm": "random_strict", "select": "random", "reward": "strict"},
]
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
  common = {
    "config": f"configs/{name}.py",
    "evaluation.tasks": 200,
    "evaluation.questions": 400,
  }
  if scale == "paper":
    common = {
      "config": f"configs/{name}.py:paper",
      "data.path": f"data/{name}",
      "model.path": MODEL,
    }
  arms = _arms(name, is_mini=scale == "mini")
  return sweep.product([common | {"seed": seed}], arms)


def _arms(name, *, is_mini):
  rate, steps = SFT[name] if is_mini else PAPER_SFT
  pivotrl = {"arm": "pivotrl"} | ({"train.steps": STEPS} if is_mini else {})
  sft = {
    "arm": "sft", "method": "sft", "train.learning_rate": rate,
    "train.steps": steps, "sft.turns": _TURNS,
  }  # fmt: skip
  # End-to-end RL needs a world, which at the paper's scale is not ours.
  if name == "swe" and is_mini:
    e2e = {"arm": "e2e", "method": "e2e", "train.steps": E2E_STEPS}
    return [pivotrl | CURVE, sft, e2e | CURVE]
  if name != "tau":
    return [pivotrl, sft]
  # PivotRL from SFT's checkpoint, on the same trajectories: all.
  after = {
    "arm": "sft_pivotrl", "warm_start.reuse": True,
    "warm_start.trajectories": 1_000_000, "warm_start.learning_rate": rate,
    "warm_start.steps": steps, "sft.turns": _TURNS,
  }  # fmt: skip
  return [pivotrl, sft, pivotrl | after, *(pivotrl | a for a in ABLATIONS)]
