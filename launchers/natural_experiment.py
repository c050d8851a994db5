"""Theorem 3.2 on the mini world: three questions, five seeds, three tables.

  python launchers/natural_experiment.py --root=runs/natural

- gain: does one small natural step raise the expected reward of a turn by
  E[std] a unit, as 3.2 (v) has it for policies that can express any step?
- variance: does filtering turns for reward variance filter them for
  natural-gradient norm?
- arms: Adam against natural steps, at equal rollouts and at equal seconds.

Every piece (a seed and a part) writes `ROOT/seed_N/PART.json`; the same
command again does those that are missing and prints the tables of what is
there. Seconds are CPU seconds of the process, so that a busy machine counts
for nothing.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import swe
from pivotrl_jax import main as main_lib
from pivotrl_jax import seeds
from pivotrl_jax.data import batches
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.losses import grpo
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.report import tables
from pivotrl_jax.train import loop
from pivotrl_jax.train.methods import pivotrl
from pivotrl_jax.train import natural
from pivotrl_jax.train import natural_log
from pivotrl_jax.train import sft
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

_ROOT = flags.DEFINE_string("root", None, "Where records go.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds.")
_PARTS = flags.DEFINE_list("parts", [], "Parts to run; '' = all.")
_QUICK = flags.DEFINE_bool("quick", False, "Sizes of a test, not a result.")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much of everything; the defaults are the tables'."""

  trajectories: int = 48  # Of the world; the last third is held out.
  gain_turns: int = 4
  gain_rows: int = 192  # Actions that make the gradient of a turn.
  gain_fisher: int = 64  # Of those, whose prefixes make the Fisher matrix.
  gain_fresh: int = 256  # Further actions, which measure the gain.
  variance_turns: int = 48
  directions: int = 16
  pivots: int = 8  # A training step.
  steps: int = 12  # Natural ones; Adam takes three times as many.
  measure_every: int = 4
  held_out: int = 48  # Turns; four actions on each.


_QUICK_SIZES = Sizes(
  trajectories=9, gain_turns=1, gain_rows=16, gain_fisher=8, gain_fresh=16,
  variance_turns=6, directions=4, pivots=2, steps=1, measure_every=1,
  held_out=4,
)  # fmt: skip
_GROUP = 8  # G.


@dataclasses.dataclass(frozen=True)
class World:
  """A seed's profiled candidates and the policy that was profiled."""

  config: Any
  sizes: Sizes
  path: pathlib.Path
  policy: policy_lib.Policy
  engine: Any
  score: rollouts.Scorer

  def turns(self, ids: Sequence[str]) -> list[rollouts.Turn]:
    return [
      rollouts.render_turn(self.policy.tokenizer, *pair)
      for pair in pivotrl.load_turns(self.path, ids)
    ]

  def roll_out(
    self, turns: Sequence[rollouts.Turn], size: int, name: str
  ) -> list[rollouts.Group]:
    """`size` actions of every turn, by the weights the engine has."""
    return rollouts.roll_out(
      self.engine,
      self.policy.tokenizer,
      turns,
      group_size=size,
      sampling=rollouts.sampling_params(
        self.policy.tokenizer, self.config.rollout
      ),
      seeds=[
        seeds.row_seed(self.config.seed, "experiment", name, row)
        for row in range(size * len(turns))
      ],
      score=self.score.many,
    )

  def plan(self, turns: Sequence[rollouts.Turn], size: int) -> batches.Shape:
    """The shape of `size` actions, as long as may be, of each turn."""
    width = self.config.rollout.max_tokens
    return batches.plan(
      [([t.prompt for t in turns for _ in range(size)],
        [width // 2] * (size * len(turns)))],
      longest=max(len(t.prompt) for t in turns),
      width=width,
      batch_tokens=self.config.train.batch_tokens,
    )  # fmt: skip

  @property
  def model(self) -> Any:
    return sft.model(self.config, self.policy.config, "xla")

  @property
  def log_probs_fn(self) -> Any:
    return functools.partial(
      step_lib.policy_log_probs,
      self.model,
      chunk=self.config.train.logits_chunk,
      temperature=self.config.rollout.temperature,
    )


def world(config: Any, sizes: Sizes, path: pathlib.Path) -> World:
  """Imports and profiles once; the stages skip what is done."""
  main_lib.run(config, path, ["import", "candidates", "profile", "select"])
  policy = policy_lib.starting(config, path)
  engine = policy_lib.engine(policy, config)
  engine.load(jax.device_put(policy.params), "start")
  return World(
    config, sizes, path, policy, engine, rollouts.Scorer(config, path)
  )


def _config(seed, sizes, **train):
  config = swe.get_config(f"seed={seed}")
  config.data.trajectories = sizes.trajectories
  config.profile.trajectories = sizes.trajectories * 2 // 3
  config.rollout.pivots_per_step = sizes.pivots
  config.train.update(
    {"natural_every": 0, "watch_prompts": 0, "warmup_steps": 2} | train
  )
  return config


def _profiles(world):
  return list(records.read_profiles(world.path / "profiles.jsonl"))


def gain(world: World) -> list[dict[str, float]]:
  """A small natural step at one turn, and what it does to fresh actions.

  The step maximises mean_i A_i log pi(a_i) of many actions in groups of G;
  its gain is the mean over fresh actions of (pi' / pi - 1) (r - mean r), by a
  unit of the natural direction of *actions*.
  """
  sizes = world.sizes
  mixed = [p for p in _profiles(world) if 0.2 <= p.mean <= 0.8]
  chosen = [
    mixed[sft.permuted(len(mixed), world.config.seed, i)].candidate_id
    for i in range(min(sizes.gain_turns, len(mixed)))
  ]
  turns = world.turns(chosen)
  shapes = {
    size: world.plan([max(turns, key=lambda t: len(t.prompt))], size)
    for size in (sizes.gain_rows, sizes.gain_fisher, sizes.gain_fresh)
  }
  step = jax.jit(_gain_step(world))
  score = jax.jit(functools.partial(step_lib.score, world.log_probs_fn))
  state = state_lib.create(world.policy.params, optax.identity())
  return [
    _gain_of(world, turn, shapes, step, score, state)
    for turn in turns
  ]  # fmt: skip


def _gain_step(world):
  """A natural step inside a tiny trust region; `learning_rate` is an input."""

  def run(state, batch, learning_rate):
    return natural.train_step(
      state, batch,
      loss_fn=functools.partial(
        step_lib.grpo_loss, log_probs_fn=world.log_probs_fn, clip_low=0.2,
        clip_high=0.2, kl="k3", kl_coef=0.0, loss_norm="constant",
        importance_cap=0.0, importance_floor=0.0,
      ),
      model=world.model, chunk=world.config.train.logits_chunk,
      temperature=world.config.rollout.temperature,
      learning_rate=learning_rate, damping=0.01, iterations=12, max_kl=1e-3,
      tries=5,
    )  # fmt: skip

  return run


def _gain_of(world, turn, shapes, step, score, state):
  sizes, name = world.sizes, turn.candidate.id
  (group,) = world.roll_out([turn], sizes.gain_rows, f"gain/{name}")
  (fresh,) = world.roll_out([turn], sizes.gain_fresh, f"fresh/{name}")
  groups = np.array(group.rewards, np.float32).reshape(-1, _GROUP)
  advantages = np.asarray(
    grpo.advantages(jnp.asarray(groups), estimator="grpo")
  ).reshape(-1)

  def packed(group):
    return batches.pack(
      natural_log.score_rows([group]), shapes[len(group.completions)]
    )

  part = dataclasses.replace(
    group, completions=group.completions[: sizes.gain_fisher]
  )
  rows = dataclasses.replace(
    natural_log.score_rows([group]), advantages=advantages
  )
  batch = natural.NaturalBatch(
    batches.pack(rows, shapes[len(advantages)])[0], packed(part)[0]
  )
  # The Fisher matrix of a step is a token's: an action's is as many times it.
  length = float(np.mean([len(c.ids) for c in part.completions]))
  unit = 0.05
  after, metrics, _ = step(state, batch, unit / length)
  taken = float(metrics["natural_scale"] * metrics["natural_share"]) * length
  held, places = packed(fresh)
  before, then = (
    np.where(held.mask > 0, score(s.params, held), 0.0)
    .sum(-1)
    .reshape(-1)[places]
    for s in (state, after)
  )
  rewards = np.array(fresh.rewards)
  gains = np.expm1(then - before) * (rewards - rewards.mean())
  return {
    "turn": name,
    "reward": float(np.mean(group.rewards)),
    "expected_std": float(groups.std(1).mean()),
    "gain": float(gains.mean() / taken) if taken else 0.0,
    "unit": taken,
    "kl": float(metrics["natural_kl_measured"]) * length,
  }


def variance(world: World) -> list[dict[str, float]]:
  """Profile variance of candidates, and norms of fresh groups of G at them."""
  sizes = world.sizes
  profiles = {p.candidate_id: p for p in _profiles(world)}
  count = min(sizes.variance_turns, len(profiles))
  ids = [
    list(profiles)[sft.permuted(len(profiles), world.config.seed, i)]
    for i in range(count)
  ]
  turns = world.turns(ids)
  groups = world.roll_out(turns, _GROUP, "variance")
  batch, places = batches.pack(
    natural_log.score_rows(groups), world.plan(turns, _GROUP)
  )
  probe = functools.partial(
    natural.project, log_probs_fn=world.log_probs_fn, seed=world.config.seed,
    directions=sizes.directions,
  )  # fmt: skip
  state = state_lib.create(world.policy.params, optax.identity())
  _, _, rows = jax.jit(probe)(state, batch)
  found = np.asarray(rows["projections"]).reshape(-1, sizes.directions)[places]
  norms = natural_log.group_norms(
    found.reshape(count, _GROUP, -1),
    jnp.asarray([g.rewards for g in groups], jnp.float32),
    damping=world.config.train.natural_damping,
    estimator=world.config.train.advantage,
  )
  return [
    {"turn": i, "mean": profiles[i].mean, "variance": profiles[i].variance}
    | {name: float(x[row]) for name, x in norms.items()}
    for row, i in enumerate(ids)
  ]


def arm(world: World, optimizer: str) -> list[dict[str, float]]:
  """Trains; the held-out reward every few steps, with rollouts and seconds."""
  sizes = world.sizes
  steps = sizes.steps * (1 if optimizer == "natural" else 3)
  config = _config(world.config.seed, sizes, steps=steps)
  config.optimizer = optimizer
  # Trained on what the difficult rule keeps, measured where nothing was.
  trained = [p.candidate_id for p in _profiles(world)]
  known = {i.rsplit("/", 1)[0] for i in trained}
  rest = [
    c.id
    for c in records.read_candidates(world.path / "candidates.jsonl")
    if c.trajectory_id not in known
  ]
  turns = world.turns(rest[: sizes.held_out])
  tx = loop.optimizer(config)
  state = state_lib.create(world.policy.params, tx)
  advance, state = pivotrl.build(config, world.path, world.policy, tx, state)
  found, seconds = [], []

  def measure(index):
    world.engine.load(state.params, f"{optimizer} {index}")
    groups = world.roll_out(turns, 4, "held out")
    found.append({
      "step": index,
      "rollouts": index * sizes.pivots * config.rollout.group_size,
      "reward": float(np.mean([g.rewards for g in groups])),
      # The first step compiles.
      "seconds": index * float(np.median(seconds[1:] or [0.0])),
    })  # fmt: skip

  measure(0)
  for index in range(steps):
    started = time.process_time()
    state, *_ = advance(state, index)
    jax.block_until_ready(state)
    seconds.append(time.process_time() - started)
    if (index + 1) % sizes.measure_every == 0:
      measure(index + 1)
  return found


PARTS = {
  "gain": gain,
  "variance": variance,
  "adam": functools.partial(arm, optimizer="adam"),
  "natural": functools.partial(arm, optimizer="natural"),
}


def interval(values: Sequence[float]) -> str:
  """Mean and its 95 % interval by Student's t, over seeds."""
  x = np.asarray(values, np.float64)
  x = x[np.isfinite(x)]
  if len(x) < 2:
    return f"{x.mean():.3f}" if len(x) else "-"
  half = scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
  return f"{x.mean():.3f} ({x.mean() - half:.3f} to {x.mean() + half:.3f})"


def gain_table(pieces: Sequence[list[dict[str, Any]]]) -> tables.Table:
  """E[std] of 3.2 (v) and the gain that was measured."""

  def of(name):
    return [float(np.mean([r[name] for r in rows])) for rows in pieces]

  shares = [g / s for g, s in zip(of("gain"), of("expected_std"), strict=True)]
  turns = str(sum(len(rows) for rows in pieces))
  return ("one small natural step", "mean over seeds (95 %)"), [
    ("turns", turns),
    ("E[std], predicted gain a unit", interval(of("expected_std"))),
    ("gain of fresh actions a unit", interval(of("gain"))),
    ("gain / E[std]", interval(shares)),
    ("KL of the step, nats an action", interval(of("kl"))),
  ]


def variance_table(pieces: Sequence[list[dict[str, Any]]]) -> tables.Table:
  """Rank correlations with the profile's variance, and means by the filter."""

  def ranked(name, rows):
    rows = [r for r in rows if name != "captured" or r["predicted"] > 0]
    pair = [[r[key] for r in rows] for key in ("variance", name)]
    if len(rows) < 3 or min(len(set(x)) for x in pair) < 2:
      return np.nan
    return scipy.stats.spearmanr(*pair).statistic

  def kept(row):
    return row["variance"] > 0 and row["mean"] < 0.6

  def mean(name, rows, keep):
    values = [r[name] for r in rows if kept(r) == keep]
    return np.mean(values) if values else np.nan

  head = ("fresh group's", "rank correlation with profile variance",
          "mean where the filter keeps", "where it does not")  # fmt: skip
  return head, [
    (
      what,
      interval([ranked(name, rows) for rows in pieces]),
      interval([mean(name, rows, True) for rows in pieces]),
      interval([mean(name, rows, False) for rows in pieces]),
    )
    for name, what in (
      ("reward_norm", "natural norm, of rewards"),
      ("reward_std", "std of rewards"),
      ("norm", "natural norm, of advantages"),
      ("captured", "captured share (mixed groups)"),
    )
  ]


def arms_table(
  adam: Sequence[list[dict[str, Any]]], own: Sequence[list[dict[str, Any]]]
) -> tables.Table:
  """Held-out reward of both arms, paired by seed."""

  def at(rows, name, limit):
    return np.interp(
      limit, [r[name] for r in rows], [r["reward"] for r in rows]
    )

  lines = []
  for name in ("rollouts", "seconds"):
    ends = [rows[-1][name] for rows in own]
    pairs = [
      (at(a, name, end), n[-1]["reward"])
      for a, n, end in zip(adam, own, ends, strict=True)
    ]
    lines.append((
      f"equal {name} ({np.mean(ends):.0f})",
      interval([a for a, _ in pairs]),
      interval([n for _, n in pairs]),
      interval([n - a for a, n in pairs]),
    ))  # fmt: skip
  start = interval([rows[0]["reward"] for rows in own])
  cost = [
    n[-1]["seconds"] / n[-1]["step"] / (a[-1]["seconds"] / a[-1]["step"])
    for a, n in zip(adam, own, strict=True)
  ]
  return ("held-out reward", "Adam", "natural", "natural - Adam"), [
    ("before", start, start, ""),
    *lines,
    ("CPU seconds a step, natural / Adam", "", interval(cost), ""),
  ]


def main(_):
  root, sizes = pathlib.Path(_ROOT.value), Sizes()
  if _QUICK.value:
    sizes = _QUICK_SIZES
  main_lib.keep_programs()
  for seed in map(int, _SEEDS.value):
    missing = [
      part
      for part in _PARTS.value or PARTS
      if not (root / f"seed_{seed}" / f"{part}.json").exists()
    ]
    if not missing:
      continue
    config = _config(seed, sizes)
    of_seed = world(config, sizes, root / f"seed_{seed}" / "world")
    for part in missing:
      started = time.process_time()
      rows = PARTS[part](of_seed)
      text = json.dumps({"sizes": dataclasses.asdict(sizes), "rows": rows})
      records.write_text(root / f"seed_{seed}" / f"{part}.json", [text + "\n"])
      logging.info(
        "seed %d: %s, %.0f CPU s", seed, part, time.process_time() - started
      )
  for table in _tables(root):
    print(tables.markdown(table))


def _tables(root):
  """The tables of all whole records."""
  found = {
    part: {
      path.parent.name: json.loads(path.read_text())["rows"]
      for path in sorted(root.glob(f"seed_*/{part}.json"))
    }
    for part in PARTS
  }
  if found["gain"]:
    yield gain_table(list(found["gain"].values()))
  if found["variance"]:
    yield variance_table(list(found["variance"].values()))
  both = sorted(set(found["adam"]) & set(found["natural"]))
  if both:
    yield arms_table(
      *([found[p][s] for s in both] for p in ("adam", "natural"))
    )


if __name__ == "__main__":
  app.run(main)
