"""Compiles the step of a run for devices that are not there.

  python -m pivotrl_jax.dry_run.program JOB.json

A process of its own: how many CPU devices there are, and which compilers JAX
loads, is settled before its first use. The job is what `predict.py` writes;
the answer is the last line printed, JSON.
"""

import dataclasses
import importlib.util
import json
import math
import pathlib
import sys
import time
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import topologies
from ml_collections import config_dict
import numpy as np

from pivotrl_jax.data import batches
from pivotrl_jax.dry_run import cards
from pivotrl_jax.dry_run import hlo
from pivotrl_jax.models import axes
from pivotrl_jax.models import backend
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import loop
from pivotrl_jax.train import parallel
from pivotrl_jax.train import policy_gradient
from pivotrl_jax.train import sft
from pivotrl_jax.train import state as state_lib

# XLA takes a GPU's properties from such a text where there is none: an H100
# (of its own hopper specs). Memory and speed of the card do not enter here.
_HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 85017493504 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_HOPPERS = ("h100", "h200")
_CPU, _GPU, _TPU = "cpu", "gpu", "tpu"


def compiler(mesh: cards.Named, wanted: str) -> str:
  """What compiles for a mesh: "gpu", "tpu" or "cpu".

  Args:
    mesh: the devices.
    wanted: auto (an NVIDIA card's own, where its plugin is installed and the
      card is a Hopper; a TPU's own, where libtpu is) | cpu.
  """
  found = importlib.util.find_spec
  if wanted == "auto" and mesh.topology and found("libtpu"):
    return _TPU
  own = mesh.kind in _HOPPERS and any(
    found(f"jax_plugins.xla_cuda{v}") for v in (12, 13) if found("jax_plugins")
  )
  return _GPU if own and wanted == "auto" else _CPU


def devices(mesh: cards.Named, chosen: str) -> list[Any]:
  """As many devices as a mesh has, to compile for and nothing else."""
  if chosen == _CPU:
    jax.config.update("jax_num_cpu_devices", mesh.count)
    return jax.devices("cpu")
  if chosen == _TPU:
    return list(
      topologies.get_topology_desc(
        f"{mesh.kind}:{mesh.topology}", platform="tpu"
      ).devices
    )
  near = min(mesh.count, mesh.card.host)
  found = topologies.get_topology_desc(
    mesh.kind, platform="cuda", target_config=_HOPPER,
    topology=f"1x{mesh.count // near}x{near}",
  )  # fmt: skip
  return list(found.devices)


def abstract(
  config: Any, shape: qwen3.Config, mesh: jax.sharding.Mesh, prompt: int
) -> tuple[Any, Any]:
  """The state, and a batch of the config's pivots, one a line; shapes alone.

  Args:
    config: the run's.
    shape: of the policy.
    mesh: whose lines share the pivots.
    prompt: tokens of each prompt but for its last.
  """
  tx = loop.optimizer(config)
  state = jax.eval_shape(
    lambda: state_lib.create(
      nn.unbox(qwen3.init_params(shape, jax.random.key(0))), tx
    )
  )
  r, lines = config.rollout, axes.lines(mesh)
  size = batches.Shape(
    micro_batches=max(1, -(-r.pivots_per_step // lines)),
    least=1,
    lines=lines,
    trie=prompt,
    branch=r.group_size * r.max_tokens,
    branches=r.group_size,
    width=r.max_tokens,
  )
  if config.train.branch_tokens:
    parts = max(1, size.branch // config.train.branch_tokens)
    parts = max(p for p in range(1, parts + 1) if not r.group_size % p)
    size = dataclasses.replace(size, parts=parts)
  batch = batches.empty(size)
  batch = batch.replace(ref_log_probs=np.zeros_like(batch.mask))
  return state, jax.eval_shape(lambda: batch)


def lowered(
  config: Any, shape: qwen3.Config, mesh: Any, state: Any, batch: Any
):
  """The step on a mesh, traced for the backend of `backend.target`."""
  log_probs = sft.log_probs_fn(
    config, shape, temperature=config.rollout.temperature
  )
  step = policy_gradient.train_step(
    config, shape, log_probs, loop.optimizer(config)
  )
  layout = parallel.state_sharding(state, shape, mesh)
  run, _ = parallel.jitted_over(step, layout, mesh)
  with jax.set_mesh(mesh):
    return run.lower(state, batch)


def measured(compiled: Any, *, micro_batches: int) -> dict[str, Any]:
  """What a compiler says of a program, of each device; bytes and FLOPs."""
  found = hlo.read(compiled.as_text(), micro_batches=micro_batches)
  return memory(compiled) | dataclasses.asdict(found)


def memory(compiled: Any) -> dict[str, int]:
  """Bytes of each device that a program takes, and what it makes anew."""
  found = compiled.memory_analysis()
  return {
    "arguments": found.argument_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
    "new_outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
  }


def state_bytes(state: Any, shape: qwen3.Config, mesh: Any) -> dict[str, int]:
  """Bytes of a device's shards of parameters and of optimizer state."""
  layout = parallel.state_sharding(state, shape, mesh)

  def held(tree, where):
    return sum(
      math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
      for x, place in zip(
        jax.tree.leaves(tree), jax.tree.leaves(where), strict=True
      )
    )

  return {
    "parameters": held(state.params, layout.params),
    "optimizer": held(state.opt_state, layout.opt_state),
  }


def main(job: dict[str, Any]) -> dict[str, Any]:
  """Compiles for each of `job["layers"]`; see `predict.py`."""
  config = config_dict.ConfigDict(job["config"])
  named = cards.named(job["mesh"])
  full = qwen3.Config(**job["shape"])
  chosen = compiler(named, config.dry_run.compiler)
  # `hlo.py` cannot read what libtpu writes: it is asked for bytes alone.
  read = _CPU if chosen == _TPU else chosen

  def laid(compiler):
    return parallel.mesh(devices(named, compiler), **config.train.mesh)

  def compiled(compiler, layers):
    shape = dataclasses.replace(full, num_hidden_layers=layers)
    with backend.target(compiler):
      given = abstract(config, shape, meshes[compiler], job["prompt"])
      return lowered(config, shape, meshes[compiler], *given).compile()

  meshes = {name: laid(name) for name in dict.fromkeys((read, chosen))}
  state, batch = abstract(config, full, meshes[read], job["prompt"])
  count = len(batch.mask)
  answer = {
    "compiler": chosen,
    "mesh": dict(meshes[read].shape),
    "micro_batches": count,
    "state": state_bytes(state, full, meshes[read]),
    "layers": {},
  }
  for layers in job["layers"]:
    started = time.monotonic()
    found = measured(compiled(read, layers), micro_batches=count)
    if chosen != read:
      found |= memory(compiled(chosen, layers))
    found["seconds"] = round(time.monotonic() - started, 1)
    answer["layers"][layers] = found
  return answer


if __name__ == "__main__":
  print(json.dumps(main(json.loads(pathlib.Path(sys.argv[1]).read_text()))))
