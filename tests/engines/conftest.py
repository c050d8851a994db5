"""A small policy on disk, and a server of it in a thread, on a real socket."""

import dataclasses
import socket
import threading
import time

import flax.linen as nn
import jax
import pytest
import uvicorn

from configs import swe
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines import server
from pivotrl_jax.engines.serving import service as service_lib
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3


@pytest.fixture(scope="session")
def small(tmp_path_factory):
  """The mini policy's tokenizer with one random layer: it compiles fast."""
  path = tmp_path_factory.mktemp("policies") / "small"
  shape = hf.read_config(policy_lib.MINI) | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
  }
  params = qwen3.init_params(qwen3.config_from_hf(shape), jax.random.key(0))
  # Wider than at the start of training, so that choices differ.
  params = jax.tree.map(lambda x: 4 * x, jax.device_get(nn.unbox(params)))
  hf.save(path, params, shape, policy_lib.MINI)
  return path


def config_of(path):
  config = swe.get_config("tiny")
  config.model.path = str(path)
  config.data.max_prompt_tokens = 256
  config.serve.context = 1024
  config.serve.slice_tokens = 8
  config.serve.batch_rows = 8  # One shape: little to compile.
  config.serve.queue_rows = 256
  config.serve.max_n = 64
  return config


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as bound:
    return bound.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Served:
  service: service_lib.Service
  policy: policy_lib.Policy
  address: str


@pytest.fixture(scope="session")
def served(small):
  policy = policy_lib.load(small)
  service = server.make(config_of(small), policy)
  port = free_port()
  running = uvicorn.Server(
    uvicorn.Config(server.app(service), port=port, log_level="warning")
  )
  thread = threading.Thread(target=running.run, daemon=True)
  thread.start()
  while not running.started:
    time.sleep(0.01)
  yield Served(service, policy, f"http://127.0.0.1:{port}")
  running.should_exit = True
  thread.join()
