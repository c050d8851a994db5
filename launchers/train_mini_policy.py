"""Trains the mini policy that ships with the package, in any number of sittings.

  python launchers/build_mini_tokenizer.py --output=DIR/tokenizer
  python launchers/train_mini_policy.py --workdir=DIR --steps=20000 --decay=4000

A small Qwen3 learns to continue episodes of all worlds, played by an agent
that is right most of the time and wrong often, and to answer the questions of
all suites (`evaluation/mixture.py`). Nothing is crippled: it imitates a
mediocre agent well, hence fails about as often.

`--steps` are taken at a constant rate; `--decay` more, in which the rate falls
to 0, make the policy: DIR/decay-STEPS/export. The same command goes on,
whatever was killed, to the bytes of a training at once. More `--steps` go on
from the last checkpoint before a decay, which is a branch off.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any

from absl import logging
import flax.linen as nn
import jax
import optax

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from launchers import mini_stream
from pivotrl_jax import errors
from pivotrl_jax import main as main_lib
from pivotrl_jax import workdir as workdir_lib
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import batches
from pivotrl_jax.data import records
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train import metrics as metrics_lib
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

LOSSES, SETTINGS = "losses.jsonl", "settings.json"
_WARMUP = 200  # Steps.
_KEPT = 3  # Checkpoints.
_ATTENTION = "fine"  # Most chats of a line are short.


@dataclasses.dataclass(frozen=True)
class Every:
  """Steps between checkpoints, and between rows of losses."""

  save: int
  log: int


def config_json(vocabulary: int, hidden: int, layers: int) -> dict[str, Any]:
  """The mini policy's config.json."""
  # A power of 2, so that the axes of most meshes divide them.
  heads = 1 << ((hidden // 32).bit_length() - 1)
  return {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": vocabulary,
    "hidden_size": hidden,
    "intermediate_size": 3 * hidden,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": heads,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "initializer_range": 0.02,
  }


def schedule(peak: float, *, decay_from: int, decay: int) -> optax.Schedule:
  """Warm-up to a constant rate, which falls to 0 in the end.

  Args:
    peak: the constant rate.
    decay_from: the steps before it falls.
    decay: the steps in which it does; 0: it never does.
  """
  up = state_lib.warm_up(peak, _WARMUP)
  if not decay:
    return up
  down = optax.linear_schedule(1.0, 0.0, decay)
  return lambda count: up(count) * down(count - decay_from)


def optimizer(
  rate: float, *, decay_from: int, decay: int
) -> optax.GradientTransformation:
  """Muon on the matrices, Adam on embeddings and scales.

  Args:
    rate: of Muon after its warm-up; Adam has a fifth.
    decay_from, decay: see `schedule`; the state is the same with any.
  """
  rates = functools.partial(schedule, decay_from=decay_from, decay=decay)

  def labels(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "muon" if path[-1].key == "kernel" else "adam", params
    )

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.multi_transform(
      {
        "muon": optax.contrib.muon(rates(rate)),
        "adam": optax.adam(rates(rate / 5), b2=0.98),
      },
      labels,
    ),
  )


def starting(config: qwen3.Config, seed: int) -> Any:
  """Parameters before the first step."""
  params = nn.unbox(qwen3.init_params(config, jax.random.key(seed)))
  # Tied: a token copied to the output scores sqrt(width) * |embedding|, which
  # at the usual 0.02 is too little to be noticed, hence learned, for long.
  params["embed_tokens"]["embedding"] *= 5.0
  return params


def train(
  workdir: pathlib.Path,
  state: state_lib.TrainState,
  last: int,
  tx: optax.GradientTransformation,
  *,
  run: str,
  stream: Callable[[int], Any],
  config: qwen3.Config,
  every: Every,
) -> state_lib.TrainState:
  """Steps up to `last`, or on from what a workdir has.

  Args:
    workdir: of checkpoints and losses.
    state: to begin with.
    last: how many steps there are in the end.
    tx: the optimizer.
    run: names all that must be as it was.
    stream: first step -> a context manager of batches from there on.
    config: the model's shape.
    every: how often what is written.

  Returns:
    The state after `last` steps.
  """
  step = step_of(config, tx)
  rows = metrics_lib.StepRows(workdir / LOSSES)
  with checkpoints.Checkpoints(workdir, keep=_KEPT, policy=run) as kept:
    found = kept.restore_latest(state)
    begun, state = found or (int(state.step), state)
    if begun > last:
      raise errors.InputError(
        f"{workdir}: {begun} steps were taken; expected --steps={begun} or more"
      )
    rows.start(begun)
    if begun == last:
      return state
    started, losses = time.monotonic(), []
    with stream(begun) as batches_of:
      for index in range(begun + 1, last + 1):
        state, metrics, _ = step(state, next(batches_of))
        losses.append(metrics["loss"])
        if index % every.log == 0 or index == last:
          loss = sum(map(float, losses)) / len(losses)
          rows.append([{"step": index, "loss": loss}])
          logging.info(
            "step %d loss %.4f (%.2f s a step)", index, loss,
            (time.monotonic() - started) / (index - begun),
          )  # fmt: skip
          losses = []
        if index % every.save == 0 or index == last:
          rows.sync()
          kept.save(index, state)
  return state


def step_of(config: qwen3.Config, tx: optax.GradientTransformation):
  """`train_step` with the SFT loss, jitted; the state given is used up."""
  log_probs = functools.partial(
    step_lib.policy_log_probs,
    qwen3.Qwen3(config, attention=_ATTENTION),
    chunk=512,
  )
  return jax.jit(
    functools.partial(
      step_lib.train_step,
      loss_fn=functools.partial(step_lib.sft_loss, log_probs_fn=log_probs),
      tx=tx,
    ),
    donate_argnums=0,
  )


def _run(options: argparse.Namespace, workdir: pathlib.Path) -> None:
  """The steps at a constant rate, the decay, and the export."""
  tokenizer = workdir / "tokenizer"
  vocabulary = tokenizer_lib.load(tokenizer).size
  hf_config = config_json(vocabulary, options.hidden, options.layers)
  config = qwen3.config_from_hf(hf_config)
  shape = batches.Shape(
    micro_batches=1,
    least=1,
    lines=1,
    trie=options.prompts,
    branch=options.tokens,
    branches=max(1, options.tokens // 32),
    width=options.width,
  )
  weights = mini_stream.Weights(options.answer_weight, options.context_weight)
  common = {
    "run": name(options, tokenizer),
    "stream": lambda first: mini_stream.opened(
      tokenizer,
      options.seed,
      first,
      shape=shape,
      weights=weights,
      drills=options.drills,
    ),  # fmt: skip
    "config": config,
    "every": Every(options.save_every, options.log_every),
  }
  steps, decay = options.steps, options.decay
  tx = optimizer(options.learning_rate, decay_from=steps, decay=0)
  state = state_lib.create(starting(config, options.seed), tx)
  branch = workdir / f"decay-{steps}"
  if not checkpoints.steps_of(branch / checkpoints.FOLDER):
    state = train(workdir, state, steps, tx, **common)
  if not decay:
    return
  tx = optimizer(options.learning_rate, decay_from=steps, decay=decay)
  branch.mkdir(exist_ok=True)
  common["run"] = workdir_lib.digest([common["run"], decay])
  state = train(branch, state, steps + decay, tx, **common)
  row = vars(options) | {"parameters": _size(state.params)}
  records.write_text(branch / SETTINGS, [json.dumps(row, indent=2) + "\n"])
  params = jax.device_get(state.params)
  hf.save(branch / "export", params, hf_config, tokenizer, dtype="bfloat16")
  logging.info("%s", branch / "export")


def _size(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


# What makes the policy, and, but for the first two, must stay as it is.
CHOSEN = (
    "steps", "decay", "learning_rate", "hidden", "layers", "tokens", "prompts",
    "width", "answer_weight", "context_weight", "drills", "seed",
)  # fmt: skip


def name(options: argparse.Namespace, tokenizer: pathlib.Path) -> str:
  """Names all that must not change while a training goes on."""
  values = {k: getattr(options, k) for k in CHOSEN[2:]}
  files = [p.read_text() for p in sorted(tokenizer.iterdir())]
  return workdir_lib.digest([values, files])


def parser() -> argparse.ArgumentParser:
  """The command line."""
  found = argparse.ArgumentParser(description=__doc__)
  add = found.add_argument
  add("--workdir", required=True, help="with the tokenizer in tokenizer/")
  add("--steps", type=int, default=20_000, help="at a constant rate")
  add("--decay", type=int, default=0, help="steps after them, to a rate of 0")
  add("--learning_rate", type=float, default=1e-2, help="Muon's; Adam: a fifth")
  add("--hidden", type=int, default=160, help="width of the model")
  add("--layers", type=int, default=5)
  add("--tokens", type=int, default=3072, help="with loss, of a step")
  add("--prompts", type=int, default=384, help="tokens of system prompts")
  add("--width", type=int, default=640, help="most tokens of a chat's rest")
  add("--answer_weight", type=float, default=2.0, help="mini_stream.Weights")
  add("--context_weight", type=float, default=0.5, help="the same")
  add(
    "--drills", type=int, default=16,
    help=f"times {mini_stream.SHARD} steps of copying before the first chat",
  )  # fmt: skip
  add("--save_every", type=int, default=100, help="steps")
  add("--log_every", type=int, default=25, help="steps")
  add("--seed", type=int, default=0, help="of everything")
  return found


def main(arguments: Sequence[str]) -> int:
  options = parser().parse_args(arguments)
  logging.set_verbosity(logging.INFO)
  main_lib.keep_programs()
  workdir = pathlib.Path(options.workdir).expanduser()
  try:
    with workdir_lib.opened(workdir):
      _run(options, workdir)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
