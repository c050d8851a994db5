"""How fast: steps, profiles and losses, beside what users would take instead.

  python launchers/benchmark.py                        # the table
  python launchers/benchmark.py --peers=trl,hf --peer_python=torchenv/bin/python
  python launchers/benchmark.py --work=grpo_step --shape=4,8,256,64 --json=F
  python launchers/benchmark.py --work=loss --shape=2,16,1024,64 --model=5m \
      --peers=separate,prefix_grouper --peer_python=prefix_grouper=PYTHON
  python launchers/benchmark.py --work=sharing --data=PATH --json=F
  python launchers/benchmark.py --table=gpu            # the table of a GPU

Every row runs in a process of its own, so that its peak memory is its own;
peers alternate with us and medians are compared. Weights are random, no
token ends an action, so that everybody computes the same shapes. The peer
`separate` is our own code on prompts that share nothing: what is gained by
sharing is its time over ours, at most rho, the separate over the least tokens.
"""

import dataclasses
import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from pivotrl_jax import large_pages

if __name__ == "__main__":
  large_pages.ask()  # As a run does; peers, which this starts, have them too.

from absl import app
from absl import flags
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import common
from launchers import sharing
from pivotrl_jax import compilations
from pivotrl_jax import errors
from pivotrl_jax.data import batches
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.losses import grpo
from pivotrl_jax.models import attention
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import natural
from pivotrl_jax.train import state as state_lib
from pivotrl_jax.train import step as step_lib

_WORK = flags.DEFINE_enum(
  "work",
  "",
  ["", "grpo_step", "profile", "loss", "decode", "natural", "sharing"],
  "One row; '' = the table.",
)
_TABLE = flags.DEFINE_enum("table", "cpu", ["cpu", "gpu"], "For which machine.")
_SHAPE = flags.DEFINE_list("shape", [], "B,G,P,A; of profile TURNS,K,P,A.")
_JSON = flags.DEFINE_string("json", "", "Where a row's figures go.")
_MODEL = flags.DEFINE_enum(
  "model", "5m", ["5m", "mini", "1024", "0.6b"], "Shape."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "")
_ATTENTION = flags.DEFINE_enum("attention", "auto", attention.BODIES, "")
_BRANCH = flags.DEFINE_integer(
  "branch_tokens", 0, "train.branch_tokens, of loss; 0 = all at once."
)
_STEPS = flags.DEFINE_integer("steps", 5, "Measured steps after the warm-up.")
_PEERS = flags.DEFINE_list(
  "peers", [], "Peers to run: trl, hf, tunix, prefix_grouper, separate."
)
_PEER_PYTHON = flags.DEFINE_list(
  "peer_python",
  [sys.executable],
  "Interpreter that has the peers; PEER=PYTHON where one has another.",
)
_SEPARATE = flags.DEFINE_bool("separate", False, "No two rows share a token.")
_DATA = flags.DEFINE_string("data", "", "File or folder to count, of sharing.")
_TRAJECTORIES = flags.DEFINE_integer(
  "trajectories", 60, "The first so many of it; 0 = all."
)
_MOST = flags.DEFINE_integer("max_prompt_tokens", 32768, "Of its prompts.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Processes a row and peer.")

_WARMUP = 2
_PEERS_AT = pathlib.Path(__file__).parent / "peers"
_MODELS = {
  "5m": {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
  },
  "mini": {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 2048,
  },
  "1024": {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 4096,
  },
  "0.6b": {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
  },
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a table: work, shape, model, and the peers that can do it."""

  work: str
  shape: tuple[int, int, int, int]
  model: str = "5m"
  dtype: str = "float32"
  peers: tuple[str, ...] = ()


_LARGE = {"model": "0.6b", "dtype": "bfloat16"}
TABLES = {
  "cpu": (
    Row("grpo_step", (4, 8, 256, 64), peers=("trl", "tunix")),
    Row("grpo_step", (2, 16, 1024, 64), peers=("trl", "tunix")),
    Row("grpo_step", (1, 16, 4096, 64), peers=("trl",)),
    Row("grpo_step", (1, 8, 4096, 64)),
    Row("profile", (16, 8, 4096, 64), peers=("hf",)),
    Row("loss", (2, 16, 1024, 64), peers=("prefix_grouper", "separate")),
    Row("loss", (1, 16, 4096, 64), peers=("prefix_grouper", "separate")),
    Row("loss", (1, 16, 512, 64), model="1024"),
    Row("decode", (1, 16, 512, 64), model="1024"),
    Row("natural", (16, 8, 384, 36), model="mini"),
  ),
  "gpu": (
    Row("grpo_step", (1, 16, 8192, 512), **_LARGE),
    Row("profile", (16, 16, 8192, 512), **_LARGE),
    Row("loss", (1, 16, 8192, 512), **_LARGE),
    Row("decode", (1, 16, 8192, 512), **_LARGE),
  ),
}


def model_config() -> qwen3.Config:
  """The policy's shape, by `--model`."""
  return qwen3.config_from_hf(
    {
      "architectures": ["Qwen3ForCausalLM"],
      "model_type": "qwen3",
      "max_position_embeddings": 32768,
      "rms_norm_eps": 1e-6,
      "rope_theta": 1e6,
      "tie_word_embeddings": True,
      **_MODELS[_MODEL.value],
    }
  )


def grpo_step(shape):
  """Whole steps: sample, score, pack, loss, gradient, Adam."""
  pivots, size, length, width = shape
  config = model_config()
  engine, params = _engine(config, width)
  tx = state_lib.optimizer(
    learning_rate=1e-6, warmup_steps=0, weight_decay=0.0, clip_norm=1.0
  )
  state = state_lib.create(params, tx)
  step = jax.jit(_train_step(config, tx), donate_argnums=0)
  rng = np.random.default_rng(0)
  computed = []

  def once(index):
    nonlocal state
    engine.load(state.params, str(index))
    rows = _prompts(config, rng, pivots, size, length)
    sampled = engine.sample(
      rows,
      base.SamplingParams(width, ()),
      range(index << 20, (index << 20) + len(rows)),
    )
    rewards = np.array([int(c.ids.sum()) % 2 for c in sampled], np.float32)
    batch = _pack(rows, sampled, rewards.reshape(pivots, size))
    state, metrics, _ = step(state, batch)
    jax.block_until_ready((state, metrics))
    computed.append(
      engine.stats.prefilled_tokens
      + engine.stats.decoded_slots
      + batches.computed_tokens(batch)
    )

  figures = _timed(once)
  return figures | {
    "seconds_per_step": figures["seconds"],
    "tokens_computed": computed[-1],
    "tokens_least": 2 * pivots * (length + size * width),
    "tokens_separate": 2 * pivots * size * (length + width),
  }


def profile(shape):
  """All turns of one trajectory, K samples each, in one engine call."""
  turns, size, length, width = shape
  config = model_config()
  engine, params = _engine(config, width)
  engine.load(params, "0")
  rng = np.random.default_rng(0)
  computed = []

  def once(index):
    ids = rng.integers(3, config.vocab_size, length).astype(np.int32)
    ends = [length * (t + 1) // turns for t in range(turns)]
    prompts = [ids[:end] for end in ends for _ in range(size)]
    prompts = _apart(prompts) if _SEPARATE.value else prompts
    engine.sample(
      prompts,
      base.SamplingParams(width, ()),
      range(index << 20, (index << 20) + len(prompts)),
    )
    computed.append(engine.stats.prefilled_tokens + engine.stats.decoded_slots)

  figures = _timed(once)
  return figures | {
    "candidates_per_second": turns / figures["seconds"],
    "tokens_computed": computed[-1],
    "tokens_least": length + turns * size * width,
    "tokens_separate": sum(
      size * (length * (t + 1) // turns + width) for t in range(turns)
    ),
  }


def _completions(config, rng, rows, width):
  """A made-up completion of each row."""
  return [
    base.Completion(
      rng.integers(3, config.vocab_size, width).astype(np.int32),
      np.full(width, -8.0, np.float32),
      "length",
    )
    for _ in rows
  ]


def loss(shape):
  """Loss and gradient alone, against the machine's matmul peak."""
  pivots, size, length, width = shape
  config = model_config()
  _, params = _engine(config, width)
  rng = np.random.default_rng(0)
  rows = _prompts(config, rng, pivots, size, length)
  sampled = _completions(config, rng, rows, width)
  rewards = rng.integers(0, 2, (pivots, size)).astype(np.float32)
  batch = _pack(rows, sampled, rewards)
  computed = batches.computed_tokens(batch)
  micros = [
    jax.device_put(jax.tree.map(lambda x, m=m: x[m], batch))
    for m in np.flatnonzero(batch.mask.any((1, 2, 3)))
  ]
  gradient = jax.jit(_gradient(config, batch.parts))
  add = jax.jit(functools.partial(jax.tree.map, jnp.add))

  def once(index):
    del index
    total, *others = (gradient(params, micro) for micro in micros)
    jax.block_until_ready(functools.reduce(add, others, total))

  figures = _timed(once)
  work = 3 * forward_flops(config, pivots, size, length, width)
  peak = matmul_peak()
  return figures | {
    "tokens_per_second": computed / figures["seconds"],
    "gflops": work / figures["seconds"] / 1e9,
    "matmul_gflops": peak / 1e9,
    "share_of_peak": work / figures["seconds"] / peak,
    "tokens_computed": computed,
    "tokens_least": pivots * (length + size * width),
    "tokens_separate": pivots * size * (length + width),
  }


def decode(shape):
  """A decode step of all branches, against the machine's memory bandwidth."""
  pivots, size, length, width = shape
  config = model_config()
  engine, params = _engine(config, width)
  engine.load(params, "0")
  rng = np.random.default_rng(0)
  rows = _prompts(config, rng, pivots, size, length)

  def once(index, tokens=width):
    seeds = range(index << 20, (index << 20) + len(rows))
    engine.sample(rows, base.SamplingParams(tokens, ()), seeds)

  figures = _timed(once)
  # The same programs, stopped after one step: what is not decoding.
  rest = _timed(functools.partial(once, tokens=1))["seconds"]
  step = (figures["seconds"] - rest) / (width - 1)
  itemsize = jnp.dtype(_DTYPE.value).itemsize
  c = config
  a_token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
  # Weights and trunks once; of its own keys a branch has half on average.
  least = sum(x.nbytes for x in jax.tree.leaves(params)) + itemsize * (
    a_token * pivots * (length + size * width / 2)
  )
  peak = memory_bandwidth()
  return figures | {
    "seconds": step,
    "tokens_per_second": pivots * size / step,
    "gbytes": least / step / 1e9,
    "memory_gbytes": peak / 1e9,
    "share_of_bandwidth": least / step / peak,
    "tokens_computed": pivots * size,
    "tokens_least": pivots * size,
    "tokens_separate": pivots * size,
  }


def natural_steps(shape):
  """Adam's step, a natural one and a logged norm in turns, without rollouts.

  The natural step by the config's defaults; the norm as it is logged: of
  `train.natural_groups` groups and as many at random turns, by
  `train.natural_directions` directions.
  """
  pivots, size, length, width = shape
  config, knobs = model_config(), common.base("swe", "")
  rng = np.random.default_rng(0)

  def packed(groups):
    rows = _prompts(config, rng, groups, size, length)
    sampled = _completions(config, rng, rows, width)
    rewards = np.arange(groups * size).reshape(groups, size) % 2
    return _pack(rows, sampled, rewards.astype(np.float32))

  batch, n = packed(pivots), knobs.natural
  model = qwen3.Qwen3(
    config, dtype=_DTYPE.value,
    attention=attention.in_both_modes(_ATTENTION.value, _DTYPE.value),
  )  # fmt: skip
  tx = state_lib.optimizer(
    learning_rate=1e-6, warmup_steps=0, weight_decay=0.0, clip_norm=1.0
  )
  own = functools.partial(
    natural.train_step, loss_fn=_loss_fn(config), model=model, chunk=512,
    temperature=1.0, learning_rate=n.learning_rate, damping=n.damping,
    iterations=n.iterations, max_kl=n.max_kl, tries=n.tries,
  )  # fmt: skip
  probe = functools.partial(
    natural.project,
    log_probs_fn=functools.partial(step_lib.policy_log_probs, model, chunk=512),
    seed=0, directions=knobs.train.natural_directions,
  )  # fmt: skip
  _, params = _engine(config, width)
  work = {
    "adam": (_train_step(config, tx), tx, batch),
    "natural": (
      own, optax.identity(),
      natural.NaturalBatch(batch, packed(min(n.groups, pivots))),
    ),
    "norm": (
      probe, optax.identity(),
      packed(2 * min(knobs.train.natural_groups, pivots)),
    ),
  }  # fmt: skip
  work = {
    name: (jax.jit(step), state_lib.create(params, tx), jax.device_put(rows))
    for name, (step, tx, rows) in work.items()
  }
  seconds = {name: [] for name in work}

  def once(_):
    for name, (step, state, rows) in work.items():
      start = time.perf_counter()
      jax.block_until_ready(step(state, rows))
      seconds[name].append(time.perf_counter() - start)

  figures = _timed(once)
  medians = {
    name: statistics.median(runs[_WARMUP:]) for name, runs in seconds.items()
  }
  return figures | {
    **{f"seconds_{name}": value for name, value in medians.items()},
    "natural_over_adam": medians["natural"] / medians["adam"],
    # Of an Adam step without its rollouts, which take as long again.
    "norm_share": medians["norm"]
    / (knobs.train.natural_every * medians["adam"]),
    "tokens_computed": batches.computed_tokens(batch),
    "tokens_least": pivots * (length + size * width),
    "tokens_separate": pivots * size * (length + width),
  }


WORKS = {
  "grpo_step": grpo_step,
  "profile": profile,
  "loss": loss,
  "decode": decode,
  "natural": natural_steps,
}


def forward_flops(
  config: qwen3.Config, trees: int, branches: int, trunk: int, width: int
) -> float:
  """Multiply-adds of a forward pass, times two, that cannot be left out."""
  c = config
  heads = c.num_attention_heads * c.head_dim
  kept = 2 * c.num_key_value_heads * c.head_dim
  linear = 2 * c.hidden_size * (2 * heads + kept + 3 * c.intermediate_size)
  layers = c.num_hidden_layers
  # The trunk's last layer is only its keys and values.
  total = trunk * ((layers - 1) * linear + 2 * c.hidden_size * kept)
  total += (layers - 1) * 4 * heads * trunk * (trunk + 1) / 2
  rows = branches * width
  total += rows * layers * (linear + 4 * heads * (trunk + (width + 1) / 2))
  total += rows * 2 * c.hidden_size * c.vocab_size
  return float(trees * total)


def matmul_peak() -> float:
  """FLOP/s of a square matrix product in `--dtype`, the best of ten."""
  size = 2048 if jax.default_backend() == "cpu" else 8192
  x = jnp.ones((size, size), _DTYPE.value)
  product = jax.jit(jnp.matmul)
  return 2.0 * size**3 / _shortest(lambda: product(x, x))


def memory_bandwidth() -> float:
  """Bytes/s of reading and writing a large array, the best of ten."""
  x = jnp.ones(1 << 27, jnp.float32)
  negate = jax.jit(jnp.negative, donate_argnums=0)

  def run():
    nonlocal x
    x = negate(x)
    return x

  return 2.0 * x.nbytes / _shortest(run)


def _shortest(run):
  """Seconds of the shortest of ten runs."""
  seconds = []
  for _ in range(11):  # The first compiles.
    start = time.perf_counter()
    run().block_until_ready()
    seconds.append(time.perf_counter() - start)
  return min(seconds[1:])


def _prompts(config, rng, pivots, size, length):
  """`size` rows of each of `pivots` prompts of random tokens."""
  prompts = rng.integers(3, config.vocab_size, (pivots, length))
  rows = [p for p in prompts.astype(np.int32) for _ in range(size)]
  return _apart(rows) if _SEPARATE.value else rows


def _apart(rows):
  """Rows that begin with another token each."""
  return [np.append(np.int32(i), row[1:]) for i, row in enumerate(rows)]


def _engine(config, width):
  engine = jax_sampler.JaxSampler(
    config, dtype=_DTYPE.value, attention=_ATTENTION.value, chunk=width
  )
  params = nn.unbox(qwen3.init_params(config, jax.random.key(0)))
  return engine, jax.tree.map(lambda x: x.astype(_DTYPE.value), params)


def _loss_fn(config):
  return functools.partial(
    step_lib.grpo_loss,
    log_probs_fn=functools.partial(
      step_lib.policy_log_probs, _model(config), chunk=512
    ),
    clip_low=0.2,
    clip_high=0.2,
    kl="k3",
    kl_coef=0.0,
    loss_norm="token",
    importance_cap=0.0,
    importance_floor=0.0,
  )


def _gradient(config, parts):
  """The gradient of a micro-batch, of (params, micro)."""
  loss_fn, model = _loss_fn(config), _model(config)
  if parts == 1:
    return lambda *given: jax.grad(loss_fn, has_aux=True)(*given)[0]
  keys_fn = functools.partial(step_lib.trie_keys, model)
  by_parts = functools.partial(
    step_lib.by_parts, loss_fn=loss_fn, keys_fn=keys_fn
  )
  return lambda *given: by_parts(*given)[0][0]


def _model(config):
  return qwen3.Qwen3(config, dtype=_DTYPE.value, attention=_ATTENTION.value)


def _train_step(config, tx):
  return functools.partial(step_lib.train_step, loss_fn=_loss_fn(config), tx=tx)


def _pack(rows, sampled, rewards):
  advantages = grpo.advantages(jnp.asarray(rewards), estimator="grpo")
  batch, _ = batches.pack(
    batches.Rows(
      prompts=rows,
      actions=[c.ids for c in sampled],
      weights=[np.ones(len(c.ids), np.float32) for c in sampled],
      advantages=np.asarray(advantages).reshape(-1),
      sampler_log_probs=[c.log_probs for c in sampled],
    ),
    branch_tokens=_BRANCH.value,
  )
  return batch


def _timed(once):
  """Median seconds of `once(index)`, with what warming up took."""
  start = time.perf_counter()
  for index in range(_WARMUP):
    once(index)
  warm = time.perf_counter() - start
  compiled, seconds = compilations.Compilations(), []
  for index in range(_STEPS.value):
    start = time.perf_counter()
    once(_WARMUP + index)
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds)
  return {
    "seconds": median,
    "compile_seconds": max(0.0, warm - _WARMUP * median),
    "recompilations": compiled.count,
    "peak_gib": _peak_bytes() / 2**30,
    "device": jax.devices()[0].device_kind,
  }


def _peak_bytes():
  """Peak of the device's memory, or of this process where it has none."""
  stats = jax.devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ours(row, *more):
  """A row's figures, from a process of its own."""
  with tempfile.NamedTemporaryFile(suffix=".json") as out:
    command = [
      sys.executable, __file__, f"--work={row.work}", f"--json={out.name}",
      f"--shape={','.join(map(str, row.shape))}", f"--model={row.model}",
      f"--steps={_STEPS.value}", f"--dtype={row.dtype}",
      f"--attention={_ATTENTION.value}", f"--branch_tokens={_BRANCH.value}",
      *more,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(pathlib.Path(out.name).read_text())


def _theirs(peer, row):
  """A peer's figures: the last line of its script, or why there are none."""
  if peer == "separate":
    return _ours(row, "--separate", f"--steps={min(2, _STEPS.value)}")
  pythons = dict(p.rpartition("=")[::2] for p in _PEER_PYTHON.value)
  python = pythons.get(peer) or pythons.get("") or sys.executable
  command = [
    os.path.expanduser(python), str(_PEERS_AT / f"{peer}_{row.work}.py"),
    *map(str, row.shape), str(min(3, _STEPS.value)),
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{peer}: {done.stderr.strip().splitlines()[-1]}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def _side_by_side(row):
  """Runs a row and its peers in turns.

  Returns:
    Our figures, each number the median of the processes, with "rho" and
    "peers": seconds, peak_gib, speed_up and speed_up_over_rho by name.
  """
  found = {who: [] for who in ("us", *row.peers)}
  for _ in range(_REPEATS.value if row.peers else 1):
    for who, runs in found.items():
      runs.append(_ours(row) if who == "us" else _theirs(who, row))

  def median(who, key):
    return statistics.median(run[key] for run in found[who])

  ours = found["us"][0]
  ours = {
    key: median("us", key) if isinstance(value, int | float) else value
    for key, value in ours.items()
  }
  peers = {}
  for who in row.peers:
    seconds = median(who, "seconds")
    peers[who] = {
      "seconds": seconds,
      "peak_gib": median(who, "peak_gib"),
      "speed_up": seconds / ours["seconds"],
      "speed_up_over_rho": seconds / ours["seconds"] / ours["rho"],
    }
  return ours | {"peers": peers}


def table() -> None:
  """Prints the table as it grows, in Markdown."""
  print(
    "| work | who | seconds | ratio | / rho | peak GiB | ratio | tokens"
    " | least | compile s |"
  )
  print("|---|---|---|---|---|---|---|---|---|---|")
  for row in TABLES[_TABLE.value]:
    peers = tuple(p for p in row.peers if p in _PEERS.value)
    found = _side_by_side(dataclasses.replace(row, peers=peers))
    name = f"{row.work} {' x '.join(map(str, row.shape))}"
    print(
      f"| {name} | us | {found['seconds']:.3f} | 1.0 | rho {found['rho']:.1f}"
      f" | {found['peak_gib']:.2f} | 1.0 | {found['tokens_computed']}"
      f" | {found['tokens_least']} | {found['compile_seconds']:.0f} |",
      flush=True,
    )
    for who, peer in found["peers"].items():
      print(
        f"| {name} | {who} | {peer['seconds']:.3f} | {peer['speed_up']:.1f}"
        f" | {peer['speed_up_over_rho']:.2f} | {peer['peak_gib']:.2f}"
        f" | {peer['peak_gib'] / found['peak_gib']:.1f} | | | |",
        flush=True,
      )
    for figure, unit, share in (
      ("gflops", "GFLOP/s, of matmul peak", "share_of_peak"),
      ("gbytes", "GB/s, of memory bandwidth", "share_of_bandwidth"),
      ("candidates_per_second", "candidates/s", None),
      ("tokens_per_second", "tokens/s", None),
      ("natural_over_adam", "natural steps, in Adam's", None),
      ("norm_share", "a logged norm, of the steps it stands for", None),
    ):
      if figure in found:
        print(
          f"| {name} | us | {found[figure]:.1f} {unit}"
          f" | {f'{found[share]:.2f}' if share else ''} | | | | | | |",
          flush=True,
        )


def _count_sharing():
  """`sharing` of `--data`, printed as a row of a table."""
  if not _DATA.value:
    raise app.UsageError("--data: empty; expected a file or folder to count")
  path = pathlib.Path(_DATA.value).expanduser()
  found = sharing.sharing(
    path, trajectories=_TRAJECTORIES.value, most=_MOST.value
  )
  print(
    "| source | prompts | separate | trunks | least | computed | rho"
    " | trunks / least | computed / least | the same of steps |"
  )
  print("|---|---|---|---|---|---|---|---|---|---|")
  counts = [
    found[key] for key in ("prompts", *(f"tokens_{k}" for k in _COUNTED))
  ]
  print(
    f"| {path.name} | {' | '.join(f'{n:,}' for n in counts)}"
    f" | {found['rho']:.1f}"
    f" | {found['tokens_trunks'] / found['tokens_least']:.2f}"
    f" | {found['computed_over_least']:.3f}"
    f" | {found['step_computed_over_least']:.3f} |"
  )
  return found


_COUNTED = ("separate", "trunks", "least", "computed")


def _row():
  """The row that the flags ask for.

  Raises:
    UsageError: a peer that cannot do it.
  """
  work = _WORK.value
  rows = [r for r in TABLES[_TABLE.value] if r.work == work]
  shape = tuple(int(x) for x in _SHAPE.value) or rows[0].shape
  able = {p.name.removesuffix(f"_{work}.py") for p in _PEERS_AT.glob("*.py")}
  able = {name for name in able if (_PEERS_AT / f"{name}_{work}.py").exists()}
  if work != "decode":
    able.add("separate")
  for peer in _PEERS.value:
    if peer not in able:
      raise app.UsageError(
        f"--peers={peer}: it does no {work}; expected some of"
        f" {', '.join(sorted(able)) or 'none'}"
      )
  if set(_PEERS.value) - {"separate"} and (_MODEL.value, _DTYPE.value) != (
    "5m", "float32",
  ):  # fmt: skip
    raise app.UsageError(
      f"--peers={','.join(_PEERS.value)}: --model={_MODEL.value}"
      f" --dtype={_DTYPE.value}; expected 5m and float32, which they run"
    )
  return Row(work, shape, _MODEL.value, _DTYPE.value, tuple(_PEERS.value))


def _one_row(row):
  """Figures of a row, alone in this process or beside its peers."""
  if row.peers:
    return _side_by_side(row)
  figures = WORKS[row.work](row.shape)
  rho = figures["tokens_separate"] / figures["tokens_least"]
  return figures | {"rho": rho, "work": row.work, "shape": list(row.shape)}


def main(_):
  cache = os.environ.get("PIVOTRL_CACHE")
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
  if not _WORK.value:
    table()
    return
  try:
    sharing_asked = _WORK.value == "sharing"
    figures = _count_sharing() if sharing_asked else _one_row(_row())
  except errors.InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
  text = json.dumps(figures)
  print(text)
  if _JSON.value:
    pathlib.Path(_JSON.value).expanduser().write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
