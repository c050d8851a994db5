"""A policy on disk: tokenizer, shape and weights; and an engine on it."""

import atexit
from collections.abc import Callable
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from pivotrl_jax import errors
from pivotrl_jax import hosts
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines import handover
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import sglang
from pivotrl_jax.engines import spread
from pivotrl_jax.models import hf
from pivotrl_jax.models import lora
from pivotrl_jax.models import qwen3

MINI = pathlib.Path(__file__).parent.parent / "models" / "mini"
WARM_START = "warm_start"  # Folder of a workdir; see train/sft.py.


@dataclasses.dataclass(frozen=True)
class Policy:
  """What a Hugging Face directory holds.

  Attributes:
    path: the directory.
    tokenizer: with its chat template.
    hf_config: the fields of config.json.
    config: the model's shape.
    params: nested float32 arrays, on the device or devices; as `frozen` and
      `without_params` leave them.
    version: hash of the weights.
  """

  path: pathlib.Path
  tokenizer: tokenizer_lib.Tokenizer
  hf_config: dict[str, Any]
  config: qwen3.Config
  params: Any
  version: str


def load(
  path: pathlib.Path,
  config: Any = None,
  *,
  layout: Callable[[qwen3.Config], Any] | None = None,
) -> Policy:
  """Reads a policy, its weights one after the other.

  Args:
    path: a Hugging Face directory.
    config: of a run: how chats are put to the template; None: as it is.
    layout: shape -> a sharding of each parameter, in a tree like them; None:
      all on the default device.

  Raises:
    InputError: the directory is not one, or what it holds does not fit.
  """
  hf_config = hf.read_config(path)
  tokenizer = load_tokenizer(path, config)
  shape = qwen3.config_from_hf(hf_config)
  layouts = layout and layout(shape)

  def put(keys, array):
    array = np.asarray(array, np.float32)
    if layouts is None:
      return jax.device_put(array)
    return hosts.placed(array, hf.at(layouts, keys))

  params = hf.load_params(path, hf_config, put=put)
  return Policy(
    path=path,
    tokenizer=tokenizer,
    hf_config=hf_config,
    config=shape,
    params=params,
    version=digest(params),
  )


def load_tokenizer(
  path: pathlib.Path, config: Any = None
) -> tokenizer_lib.Tokenizer:
  """The tokenizer of a policy; its arguments and errors as `load`'s."""
  tokenizer = tokenizer_lib.load(path, config and _settings(config))
  rows = hf.read_config(path)["vocab_size"]
  if tokenizer.size > rows:
    raise errors.InputError(
      f"{path}: the tokenizer has ids up to {tokenizer.size - 1}; expected"
      f" them below vocab_size {rows}, the rows of the embedding"
    )
  if tokenizer.stop_ids and max(tokenizer.stop_ids) >= rows:
    raise errors.InputError(
      f"{path}: eos_token_id {max(tokenizer.stop_ids)}; expected it below"
      f" vocab_size {rows}"
    )
  return tokenizer


def starting_path(config: Any) -> pathlib.Path:
  """Where the policy lies that a run is given."""
  return pathlib.Path(config.model.path or MINI)


def starting(
  config: Any,
  workdir: pathlib.Path,
  *,
  layout: Callable[[qwen3.Config], Any] | None = None,
) -> Policy:
  """The frozen starting policy of a run, which is also its reference.

  Args:
    config: the run's.
    workdir: where a warm start would be.
    layout: see `load`.
  """
  warm = workdir / WARM_START
  path = warm if config.warm_start.steps else starting_path(config)
  return load(path, config, layout=layout)


def check(config: Any) -> qwen3.Config:
  """InputError where the given policy could not be used; reads no weights.

  Returns:
    Its shape.
  """
  path = starting_path(config)
  hf_config = hf.read_config(path)
  shape = qwen3.config_from_hf(hf_config)
  _name_the_idle(config.train, path, shape)
  _check_targets(config.train, path, shape)
  hf.check_tensors(path, hf_config)
  render.check(load_tokenizer(path, config), config.model.chat_template or path)
  return shape


def _name_the_idle(train, path, shape):
  """One line with the keys of routers beside a policy that has none."""
  if not shape.sparse_layers:
    idle = [f"train.{name}" for name in OF_EXPERTS if train[name]]
    if idle:
      logging.warning(
        "config: without effect are %s (as %s has no experts)",
        ", ".join(idle),
        path,
      )


def _check_targets(train, path, shape):
  """InputError where adapters would stand beside experts."""
  named = set(lora.names(train.lora_targets)) & set(lora.OF_MLP)
  dense = len(shape.sparse_layers) < shape.num_hidden_layers
  if train.lora_rank and named and not dense:
    raise errors.InputError(
      f"--config.train.lora_targets: {', '.join(sorted(named))}; expected"
      f" attention's alone, as all layers of {path} have experts"
    )


# Of `train`: what it does about routers where one asks for it.
OF_EXPERTS = ("router_aux_loss_coef", "freeze_router", "replay_routes")


def template_kwargs(config: Any) -> dict[str, Any]:
  """`config.model.template_kwargs`, a JSON object; InputError otherwise."""
  try:
    found = json.loads(config.model.template_kwargs)
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise errors.InputError(
      f"--config.model.template_kwargs: {config.model.template_kwargs!r};"
      ' expected a JSON object, such as {"enable_thinking": false}'
    )
  return found


def frozen(policy: Policy, dtype: str) -> Policy:
  """One whose parameters are read alone: matrices in the type of activations,
  which is what every product takes them in.
  """

  def read(x):
    return x if x.ndim < 2 or x.dtype == dtype else x.astype(dtype)

  return dataclasses.replace(policy, params=jax.tree.map(read, policy.params))


def without_params(policy: Policy) -> Policy:
  """What is left of one whose parameters nobody is to hold any longer."""
  return dataclasses.replace(policy, params=None)


def save(path: pathlib.Path, policy: Policy, params: Any) -> None:
  """Writes `params` as a policy like `policy`; see `hf.save`.

  The first of several processes does, with what it fetches from all.
  A chat template that the run was given goes with it.
  """
  replaced = policy.tokenizer.settings.chat_template
  hf.save(
    path,
    params,
    policy.hf_config,
    policy.path,
    chat_template=policy.tokenizer.hf.chat_template if replaced else None,
    fetch=hosts.fetched,
    writes=hosts.is_first(),
  )


def _settings(config):
  return tokenizer_lib.Settings(
    chat_template=config.model.chat_template,
    template_kwargs=template_kwargs(config),
    reasoning=config.data.reasoning,
    empty_thinking=config.data.empty_thinking,
  )


def digest(params: Any) -> str:
  """16 hex digits that name these weights; all processes call it alike."""
  state = hashlib.blake2b(digest_size=8)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    state.update(jax.tree_util.keystr(path).encode())
    state.update(np.ascontiguousarray(hosts.fetched(leaf)).tobytes())
  return state.hexdigest()


def engine(policy: Policy, config: Any) -> base.Engine:
  """The engine that `config.engine.name` names, loaded with `policy`, or with
  nothing if it has no parameters any longer.
  """
  made = engines(policy, config)
  made = spread.Spread(made) if spread.is_on(config) else made[0]
  if policy.params is not None:
    made.load(on_device(policy.params), policy.version)
  return made


def on_device(params: Any) -> Any:
  """Parameters as arrays of JAX; those that are stay where they are."""
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), params
  )


def engines(policy: Policy, config: Any) -> list[base.Engine]:
  """This process's engines, not yet loaded; one a device where there is no
  other way to use all of them.
  """
  if config.engine.name == "sglang":
    return [_servers(policy, config)] if hosts.is_first() else []
  count = jax.local_device_count() if spread.is_on(config) else 1
  return [_embedded(policy, config) for _ in range(count)]


def _embedded(policy, config):
  return jax_sampler.JaxSampler(
    policy.config,
    dtype=jnp.dtype(config.model.dtype),
    attention=config.model.attention,
    batch_tokens=config.engine.batch_tokens,
    batch_rows=config.engine.batch_rows,
    routes=config.train.replay_routes,
  )


def _servers(policy, config):
  given = config.engine

  def server(address):
    return endpoint.Endpoint(
      address.strip(),
      timeout=given.timeout,
      key=os.environ.get(endpoint.KEY_VARIABLE, ""),
      admin_key=os.environ.get(endpoint.ADMIN_KEY_VARIABLE, ""),
    )

  folder = given.weights or tempfile.mkdtemp(prefix="pivotrl_weights_")
  if not given.weights:
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
  writer = handover.Writer(
    pathlib.Path(folder),
    config=policy.config,
    hf_config=policy.hf_config,
    tokenizer=policy.path,
    dtype=config.model.dtype,
    attention=config.model.attention,
  )
  return sglang.SGLang(
    [server(address) for address in given.urls.split(",")],
    writer,
    vocab_size=policy.config.vocab_size,
    router=server(given.router) if given.router else None,
    tolerance=given.tolerance or handover.TOLERANCES[config.model.dtype],
    deterministic=given.deterministic,
    rows_per_request=given.rows_per_request,
    concurrency=given.concurrency,
    retries=given.retries,
    patience=given.patience,
    stale=given.stale,
    experts=experts(policy, config),
  )


def experts(policy: Policy, config: Any) -> endpoint.Experts | None:
  """What its routes are told in, where the config wants them told."""
  if not config.train.replay_routes or not policy.config.sparse_layers:
    return None
  return endpoint.Experts(
    layers=policy.config.num_hidden_layers,
    sparse=policy.config.sparse_layers,
    each=policy.config.num_experts_per_tok,
    count=policy.config.num_experts,
  )
