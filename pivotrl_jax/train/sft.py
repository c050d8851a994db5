"""Supervised fine-tuning on demonstrations: a method, and the warm start.

Whole trajectories at a time: all turns of one share its prefixes.
"""

from collections.abc import Sequence
import functools
import pathlib
from typing import Any

from absl import logging
import jax.numpy as jnp
import numpy as np
import tqdm

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import batches
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import qwen3
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.train import parallel
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib


def run_warm_start(config: Any, workdir: pathlib.Path) -> None:
  """First trajectories of candidates.jsonl -> warm_start/ (Hugging Face)."""
  warm = config.warm_start
  policy = policy_lib.load(policy_lib.starting_path(config), config)
  demonstrations = load_demonstrations(
    config, workdir, policy.tokenizer, most=warm.trajectories
  )
  tx = state_lib.optimizer(
    learning_rate=warm.learning_rate,
    warmup_steps=min(10, warm.steps // 4),
    weight_decay=0.0,
    clip_norm=1.0,
  )
  state = state_lib.create(policy.params, tx)
  step = parallel.jitted(train_step(log_probs_fn(config, policy.config), tx))
  shape = plan(
    config, demonstrations, micro_batches=config.train.micro_batches,
    batch_tokens=config.train.batch_tokens,
  )  # fmt: skip
  bar = tqdm.tqdm(range(warm.steps), desc="warm start", disable=None)
  for index in bar:
    chosen = choose(demonstrations, config.seed, index, config.sft.turns)
    batch, _ = batches.pack(rows(chosen), shape)
    state, metrics, _ = step(state, batch)
    if (index + 1) % config.train.log_every == 0:
      logging.info(
        "warm start: step %d loss %.3f", index + 1, float(metrics["loss"])
      )
  logging.info(
      "warm start: %d steps on %d trajectories, loss %.3f",
      warm.steps, len(demonstrations), metrics["loss"],
  )  # fmt: skip
  policy_lib.save(workdir / policy_lib.WARM_START, policy, state.params)


# One turn: prompt ids, action ids.
Demonstration = tuple[np.ndarray, np.ndarray]


def load_demonstrations(
  config: Any,
  workdir: pathlib.Path,
  tokenizer: Any,
  *,
  most: int = 0,
) -> list[list[Demonstration]]:
  """The turns of each trajectory that fit `data.max_prompt_tokens`."""
  wanted: dict[str, list[types.Candidate]] = {}
  for candidate in records.read_candidates(workdir / "candidates.jsonl"):
    wanted.setdefault(candidate.trajectory_id, []).append(candidate)
  names = list(wanted)[: most or None]
  found = {}
  for trajectory in records.read_trajectories(workdir / "trajectories.jsonl"):
    if trajectory.id in names:
      turns = _demonstrations(
        config, tokenizer, trajectory, wanted[trajectory.id]
      )
      found[trajectory.id] = turns
  count = sum(len(wanted[name]) for name in names)
  fit = sum(map(len, found.values()))
  if fit < count:
    logging.warning(
        "%d of %d demonstrations are over data.max_prompt_tokens=%d",
        count - fit, count, config.data.max_prompt_tokens,
    )  # fmt: skip
  kept = [found[name] for name in names if found[name]]
  if not kept:
    raise errors.InputError(
      f"{workdir}/candidates.jsonl: no demonstration within"
      f" data.max_prompt_tokens={config.data.max_prompt_tokens}; expected one"
    )
  return kept


def _demonstrations(config, tokenizer, trajectory, candidates):
  turns = []
  for candidate in candidates:
    turn = rollouts.render_turn(tokenizer, trajectory, candidate)
    if len(turn.prompt) > config.data.max_prompt_tokens:
      continue
    action = rollouts.render_demonstration(tokenizer, trajectory, candidate)
    turns.append((turn.prompt, action))
  return turns


def choose(
  demonstrations: Sequence[Sequence[Demonstration]],
  seed: int,
  step: int,
  turns: int,
) -> Sequence[Demonstration]:
  """The turns of a step: whole trajectories until there are `turns`.

  Which ones is a function of (seed, step): every pass is a new permutation,
  cut into steps of about `turns` turns.
  """
  chosen: list[Demonstration] = []
  mean = np.mean([len(d) for d in demonstrations])
  count = max(1, round(turns / mean))
  for index in range(step * count, (step + 1) * count):
    chosen += demonstrations[permuted(len(demonstrations), seed, index)]
  return chosen


def plan(
  config: Any, demonstrations: Sequence[Sequence[Demonstration]], **layout: int
) -> batches.Shape:
  """The shape of all steps, from what the first take; see `batches.plan`."""
  turns = [turn for trajectory in demonstrations for turn in trajectory]
  steps = [
    choose(demonstrations, config.seed, index, config.sft.turns)
    for index in range(batches.PLANNED)
  ]
  return batches.plan(
    [([p for p, _ in step], [len(a) for _, a in step]) for step in steps],
    longest=max(len(prompt) for prompt, _ in turns),
    width=max(len(action) for _, action in turns),
    **layout,
  )


def permuted(size: int, seed: int, index: int) -> int:
  """The `index`-th of an endless row of permutations of `range(size)`."""
  epoch, place = divmod(index, size)
  return int(np.random.default_rng([seed, epoch]).permutation(size)[place])


def rows(chosen: Sequence[Demonstration]) -> batches.Rows:
  """Demonstrations as rows to train on: every action token weighs 1."""
  prompts, actions = zip(*chosen, strict=True)
  return batches.even_rows(prompts, actions)


def train_step(
  log_probs_fn: Any, tx: Any, *, keys_fn: Any = None, balance: float = 0.0
):
  """`train_step` with the SFT loss; what else as in `step.gradients`."""
  return functools.partial(
    step_lib.train_step,
    loss_fn=functools.partial(step_lib.sft_loss, log_probs_fn=log_probs_fn),
    tx=tx,
    keys_fn=keys_fn,
    balance=balance,
  )


def log_probs_fn(config: Any, shape: qwen3.Config, *, temperature: float = 1.0):
  """`step.policy_log_probs` of the policy of a run, of (params, micro)."""
  return functools.partial(
    step_lib.policy_log_probs,
    model(config, shape, config.model.attention),
    chunk=config.train.logits_chunk,
    temperature=temperature,
    count=config.train.router_count,
  )


def keys_fn(config: Any, shape: qwen3.Config):
  """`step.trie_keys` of the policy of a run, of (params, micro)."""
  return functools.partial(
    step_lib.trie_keys,
    model(config, shape, config.model.attention),
    count=config.train.router_count,
  )


def model(config: Any, shape: qwen3.Config, attention: str) -> qwen3.Qwen3:
  """The policy of a run; `attention` is one of `attention.BODIES`."""
  return qwen3.Qwen3(
    shape,
    dtype=jnp.dtype(config.model.dtype),
    remat=config.model.remat,
    attention=attention,
    freeze_router=config.train.freeze_router,
    scan_layers=config.model.scan_layers,
  )
