"""The stage: what the step of a run, and its rollouts, would take of meshes.

The step is compiled (`program.py`) with all layers, or with a few: layers are
alike, so a line through the fewest and the most gives all of them, and the
counts between say how straight it is. What a compiler cannot know is counted
by hand (`counts.py`) and stands beside it.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from typing import Any

from absl import logging

from pivotrl_jax import errors
from pivotrl_jax.dry_run import cards
from pivotrl_jax.dry_run import counts
from pivotrl_jax.dry_run import hlo
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3

OUTPUT = "dry_run"  # Folder of a workdir.
# Shapes by name, from the config.json of each on the Hugging Face hub.
MODELS = {
  "qwen3-30b-a3b": qwen3.Config(
    vocab_size=151936, hidden_size=2048, intermediate_size=6144,
    num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
    head_dim=128, num_experts=128, num_experts_per_tok=8,
    moe_intermediate_size=768, norm_topk_prob=True,
  ),
  "qwen3-0.6b": qwen3.Config(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072,
    num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, tie_word_embeddings=True,
  ),
  "qwen3-1.7b": qwen3.Config(
    vocab_size=151936, hidden_size=2048, intermediate_size=6144,
    num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, tie_word_embeddings=True,
  ),
}  # fmt: skip
# End-to-end RL as the paper compares with it (figure 1 and A.2): tasks a step,
# episodes of each, turns of one in the mean; and the steps of both to equal
# accuracy.
E2E_TASKS, E2E_GROUP, E2E_TURNS = 16, 32, 14.7
E2E_STEPS, PIVOTRL_STEPS = 72, 130
_GIB, _TERA = 2**30, 1e12
_AT_ONCE = 4  # Most programs compiled at a time.


def check(config: Any) -> None:
  """InputError where nothing could be compiled."""
  cards.meshes(config.dry_run.meshes)
  _whole(config, "prompts", 2)
  shape = model(config)
  layers, every = _layers(config, shape), shape.num_hidden_layers
  if max(layers) > every or len(layers) == 1 and layers != [every]:
    raise errors.InputError(
      f"--config.dry_run.layers: {config.dry_run.layers}; expected two or more,"
      f" at most the model's {every}, or nothing, for all"
    )
  for name, value, wanted in (
    ("train.lora_rank", config.train.lora_rank, 0),
    ("optimizer", config.optimizer, "adam"),
  ):
    if value != wanted:
      raise errors.InputError(
        f"--config.{name}: {value}; expected {wanted}: dry_run compiles Adam's"
        " step on all parameters"
      )


def model(config: Any) -> qwen3.Config:
  """The shape of the config.json at `model.path`, or of `dry_run.model`."""
  if config.model.path:
    return qwen3.config_from_hf(hf.read_config(config.model.path))
  return MODELS[config.dry_run.model]


def _layers(config, shape):
  """How many are compiled."""
  if not config.dry_run.layers:
    return [shape.num_hidden_layers]
  return _whole(config, "layers", 2)


def _whole(config, name, least):
  """Numbers of a list with commas, in order."""
  text = config.dry_run[name]
  parts = [part.strip() for part in text.split(",")]
  if not all(part.isdigit() and int(part) >= least for part in parts):
    raise errors.InputError(
      f"--config.dry_run.{name}: {text!r}; expected whole numbers of at least"
      f" {least}, with commas between"
    )
  return sorted({int(part) for part in parts})


def run(config: Any, workdir: pathlib.Path) -> bool:
  """Compiles for each mesh and prompt length -> dry_run/.

  Returns:
    False: it is made anew whenever it is asked for.
  """
  check(config)
  shape = model(config)
  rows = []
  wanted = [
    (mesh, prompt)
    for mesh in cards.meshes(config.dry_run.meshes)
    for prompt in _whole(config, "prompts", 2)
  ]
  for job, answer in zip(wanted, _answers(config, shape, wanted), strict=True):
    rows.append(predict(config, shape, *job, answer))
    print(text(rows[-1]), flush=True)
  folder = workdir / OUTPUT
  folder.mkdir(exist_ok=True)
  (folder / "predictions.json").write_text(json.dumps(rows, indent=1) + "\n")
  (folder / "predictions.txt").write_text("\n".join(map(text, rows)))
  return False


def _answers(config, shape, wanted):
  """What `program.py` says of each mesh and prompt length, in their order."""
  started: list[subprocess.Popen] = []
  # A compiler keeps about one core busy, and takes some 3 GiB; libtpu 10.
  most = min(_AT_ONCE, os.cpu_count() or 1)
  alone = threading.Lock()

  def one(job):
    tpu = job[0].card.backend == "tpu"
    with alone if tpu else contextlib.nullcontext():
      return _compiled(config, shape, *job, started)

  with concurrent.futures.ThreadPoolExecutor(most) as pool:
    try:
      yield from pool.map(one, wanted)
    except BaseException:  # Whoever stops does not wait for the others.
      pool.shutdown(wait=False, cancel_futures=True)
      for process in started:
        process.kill()
      raise


def _compiled(config, shape, mesh, prompt, started):
  """What a process of its own says, which is added to `started`."""
  logging.info("dry_run: %s, prompts of %d tokens", mesh.name, prompt)
  job = {
    "config": config.to_dict(),
    "shape": dataclasses.asdict(shape),
    "mesh": mesh.name,
    "prompt": prompt,
    "layers": _layers(config, shape),
  }
  with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(job, file)
    file.flush()
    with subprocess.Popen(
      [sys.executable, "-m", "pivotrl_jax.dry_run.program", file.name],
      # Else plugins look for a device when they load.
      env=os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
      started.append(process)
      said, complaints = process.communicate()
  if process.returncode:
    last = (complaints.strip().splitlines() or ["killed"])[-1]
    raise errors.InputError(
      f"dry_run: {mesh.name}, prompts of {prompt} tokens: not compiled: {last}"
      f" (status {process.returncode})"
    )
  return json.loads(said.strip().splitlines()[-1])


def predict(
  config: Any, shape: qwen3.Config, mesh: cards.Named, prompt: int,
  answer: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
  """All that is said of one mesh and prompt length, per device.

  Args:
    config: the run's.
    shape: of the policy.
    mesh: the devices.
    prompt: tokens of a prompt.
    answer: of `program.main`.

  Returns:
    Bytes, FLOPs and seconds by name; JSON.
  """
  r = config.rollout
  sizes = counts.Sizes(r.pivots_per_step, r.group_size, prompt, r.max_tokens)
  remat = config.model.remat not in (False, "none")
  flops = counts.step(shape, sizes, remat=remat)
  whole, error = extrapolated(answer["layers"], shape.num_hidden_layers)
  watched = config.train.kl_coef or config.train.watch_every
  width = 2 if config.model.dtype == "bfloat16" else 4
  reference = watched and answer["state"]["parameters"] * width // 4
  peak = whole["arguments"] + whole["temporaries"] + whole["new_outputs"]
  by_hand = counts.activations(
    shape, sizes, remat=remat, logits_chunk=config.train.logits_chunk,
    width=width,
  )  # fmt: skip
  # Beside activations: gradients, twice while they are added up, with layers
  # in a loop all of them stacked too; and the weights of a layer, gathered.
  state = answer["state"]
  layer = counts.parameters(shape) / shape.num_hidden_layers
  hand = sum(state.values()) + reference + sum(by_hand.values())
  hand += (4 if config.model.scan_layers else 2) * state["parameters"]
  hand += 3 * width * layer
  return {
    "mesh": mesh.name, "devices": mesh.count, "card": mesh.kind,
    "axes": answer["mesh"], "compiler": answer["compiler"],
    "layers": list(map(int, answer["layers"])), "off_the_line": error,
    "seconds_compiling": sum(x["seconds"] for x in answer["layers"].values()),
    "prompt": prompt, "pivots": sizes.pivots, "group": sizes.group,
    "action": sizes.action, "micro_batches": answer["micro_batches"],
    "parameters_total": counts.parameters(shape),
    "parameters_active": counts.parameters(shape, active=True),
    "parameters": state["parameters"], "optimizer": state["optimizer"],
    "reference": reference, "temporaries": whole["temporaries"],
    "peak": peak + reference, "activations_by_hand": by_hand,
    "peak_by_hand": hand, "memory": mesh.card.memory,
    "flops_by_hand": {k: v / mesh.count for k, v in flops.items()},
    "products_compiled": whole["products"],
    "products_by_hand": products(flops, remat=remat) / mesh.count,
    "collectives": whole["collectives"],
    **_seconds(shape, sizes, mesh, answer, whole, flops, remat),
    "rollouts": rollouts(shape, sizes, mesh),
  }  # fmt: skip


def extrapolated(
  layers: dict[str, dict[str, Any]], count: int
) -> tuple[dict[str, Any], float]:
  """Figures of `count` layers, by the line through the fewest and the most.

  Args:
    layers: number of layers -> figures, as `program.measured` has them.
    count: wanted.

  Returns:
    The figures; and how far those between are off the line, at most, as a
    share of the temporaries.
  """
  by_count = {int(n): found for n, found in layers.items()}
  low, high = min(by_count), max(by_count)

  def line(get, at):
    first, last = get(by_count[low]), get(by_count[high])
    slope = (last - first) / max(1, high - low)
    return first + slope * (at - low)

  names = ("arguments", "temporaries", "new_outputs", "products")
  whole = {n: line(lambda found, n=n: found[n], count) for n in names}
  whole["collectives"] = {
    kind: line(lambda found, kind=kind: found["collectives"][kind], count)
    for kind in hlo.COLLECTIVES
  }
  error = max(
    (
      abs(line(lambda x: x["temporaries"], n) / found["temporaries"] - 1)
      for n, found in by_count.items()
    ),
    default=0.0,
  )
  return whole, error


def products(flops: dict[str, float], *, remat: bool) -> float:
  """What of a step's work stands in the program outside loops over data:
  projections and logits; experts and attention are such loops, or kernels.
  """
  return (3 + remat) * flops["projections"] + 4 * flops["logits"]


def _seconds(shape, sizes, mesh, answer, whole, flops, remat):
  """A roofline: each part at the card's peak, nothing else in the way."""
  shards = mesh.count // answer["mesh"]["data"]
  moved = counts.traffic(
    shape, sizes, micro_batches=answer["micro_batches"], devices=mesh.count,
    shards=shards, remat=remat,
  )  # fmt: skip
  sent = sum(
    (2 if kind == "all-reduce" else 1) * size
    for kind, size in whole["collectives"].items()
  )
  parts = {
    "seconds_products": flops["executed"] / mesh.count / mesh.card.flops,
    "seconds_memory": moved / mesh.card.bandwidth,
    "seconds_network": sent / mesh.link,
  }
  least = max(parts.values())
  return parts | {
    "seconds_at_least": least,
    "utilisation_at_most": flops["model"]
    / mesh.count
    / mesh.card.flops
    / least,
  }


def rollouts(
  shape: qwen3.Config, sizes: counts.Sizes, mesh: cards.Named
) -> list[dict[str, Any]]:
  """Cost of a step's rollouts: PivotRL's and end-to-end RL's, where prompts
  are prefilled once for all that share them, and where they are not.

  A turn of an episode has half of the longest prompt before it, in the mean;
  shared, an episode's text is prefilled once.
  """
  turns = float(sizes.pivots * sizes.group)
  episodes = float(E2E_TASKS * E2E_GROUP)
  cases = (
    ("pivotrl", True, turns, sizes.pivots, sizes.prompt, sizes.group),
    ("pivotrl", False, turns, turns, sizes.prompt, 1),
    ("e2e", True, episodes * E2E_TURNS, episodes, sizes.prompt, 1),
    ("e2e", False, episodes * E2E_TURNS, episodes * E2E_TURNS,
     sizes.prompt / 2, 1),
  )  # fmt: skip
  found = []
  for method, shared, count, contexts, prompt, branches in cases:
    cost = counts.rollouts(
      shape, turns=count, contexts=contexts, prompt=prompt,
      seen=sizes.prompt / (2 if method == "e2e" else 1), action=sizes.action,
      branches=branches,
    )  # fmt: skip
    prefill = cost["prefill_flops"] / mesh.count / mesh.card.flops
    # Weights are read once a token by each device's rows, from its memory.
    weights = 2.0 * counts.parameters(shape) * sizes.action
    weights *= E2E_TURNS if method == "e2e" else 1
    decode = max(
      (cost["flops"] - cost["prefill_flops"]) / mesh.count / mesh.card.flops,
      (cost["read"] / mesh.count + weights) / mesh.card.bandwidth,
    )
    steps = PIVOTRL_STEPS if method == "pivotrl" else E2E_STEPS
    found.append(
      {"method": method, "shared": shared} | cost
      | {"seconds": prefill + decode, "steps": steps,
         "turns_to_equal": steps * count,
         "hours_to_equal": steps * (prefill + decode) / 3600}
    )  # fmt: skip
  return found


_COMPILERS = {
  "gpu": "XLA for this card's kind (an H100's), without one",
  "tpu": "libtpu, without a TPU; products and collectives by XLA for CPU",
  "cpu": "XLA for CPU, one virtual device for each: the partitioning and the"
  " state are the card's, temporaries are not (16 bits become 32 there)",
}


def text(row: dict[str, Any]) -> str:
  """The row of a mesh and prompt length, to be read."""

  def gib(x):
    return f"{x / _GIB:,.2f} GiB"

  hand = row["activations_by_hand"]
  most = row["peak_by_hand"] if row["compiler"] == "cpu" else row["peak"]
  fits = "fits" if most <= row["memory"] else "does not fit"
  line = ""
  if len(row["layers"]) > 1:
    line = f", a line through them (off by {100 * row['off_the_line']:.1f} %)"
  lines = [
    f"{row['mesh']}: {row['devices']} x {row['card']} as "
    + " x ".join(f"{k} {v}" for k, v in row["axes"].items())
    + f"; {row['pivots']} prompts of {row['prompt']:,} tokens x {row['group']}"
    f" actions of {row['action']:,}; {row['micro_batches']} micro-batches",
    f"  compiled by      {_COMPILERS[row['compiler']]};"
    f" {', '.join(map(str, row['layers']))} layers{line};"
    f" {row['seconds_compiling']:.0f} s",
    f"  model            {row['parameters_total'] / 1e9:.2f} B parameters,"
    f" {row['parameters_active'] / 1e9:.2f} B for a token",
    "  of each device:",
    f"  parameters       {gib(row['parameters'])}, float32",
    f"  optimizer state  {gib(row['optimizer'])}",
    f"  reference        {gib(row['reference'])}",
    f"  temporaries      {gib(row['temporaries'])} as compiled",
    f"  activations      {gib(sum(hand.values()))} by hand (kept"
    f" {gib(hand['kept'])}, a layer {gib(hand['working'])}, logits"
    f" {gib(hand['logits'])})",
    f"  peak             {gib(row['peak'])} as compiled,"
    f" {gib(row['peak_by_hand'])} by hand: {fits}: {gib(most)} of"
    f" {gib(row['memory'])}",
    f"  FLOPs            {row['flops_by_hand']['model'] / _TERA:,.0f} T of the"
    f" model, {row['flops_by_hand']['executed'] / _TERA:,.0f} T executed, by"
    " hand",
    f"  of them outside loops over data"
    f" {row['products_compiled'] / _TERA:,.0f} T as compiled,"
    f" {row['products_by_hand'] / _TERA:,.0f} T by hand",
    "  collectives      "
    + (", ".join(f"{kind} {gib(size)}"
                 for kind, size in row["collectives"].items() if size)
       or "none"),
    f"  step, at least   {row['seconds_at_least']:,.1f} s (products"
    f" {row['seconds_products']:,.1f}, memory {row['seconds_memory']:,.1f},"
    f" network {row['seconds_network']:,.1f}; utilisation at most"
    f" {100 * row['utilisation_at_most']:.0f} %)",
    "  rollouts of a step          turns      prefilled        sampled"
    "      PFLOP  at least",
  ]  # fmt: skip
  for cost in row["rollouts"]:
    name = f"{cost['method']}, {'shared' if cost['shared'] else 'each'}"
    lines.append(
      f"    {name:<20} {cost['turns']:>10,.0f} {cost['prefilled']:>14,.0f}"
      f" {cost['sampled']:>14,.0f} {cost['flops'] / 1e15:>10,.0f}"
      f" {cost['seconds']:>7,.0f} s; to equal accuracy {cost['steps']} steps,"
      f" {cost['turns_to_equal']:,.0f} turns, {cost['hours_to_equal']:,.1f} h"
    )
  return "\n".join(lines) + "\n"
