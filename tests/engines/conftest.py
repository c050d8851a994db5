"""A small policy on disk, and a server of it in a thread, on a real socket."""

import contextlib
import dataclasses
import pathlib
import socket
import threading
import time

import jax
import pytest
import uvicorn

from configs import swe
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines import server
from pivotrl_jax.engines.serving import service as service_lib
from pivotrl_jax.models import hf


@pytest.fixture(scope="session")
def small(small, tmp_path_factory):
  """Wider than at the start of training, so that choices differ."""
  found = policy_lib.load(pathlib.Path(small))
  path = tmp_path_factory.mktemp("policies") / "small"
  wider = jax.tree.map(lambda x: 4 * x, found.params)
  hf.save(path, wider, found.hf_config, found.path)
  return path


def config_of(path):
  config = swe.get_config("tiny")
  config.model.path = str(path)
  config.data.max_prompt_tokens = 256
  config.serve.context = 1024
  config.serve.slice_tokens = 8
  config.serve.batch_rows = 32  # Two shapes: little to compile.
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
  with serving(config_of(small)) as found:
    yield found


@contextlib.contextmanager
def serving(config):
  """A server as `config` has it."""
  policy = policy_lib.load(pathlib.Path(config.model.path))
  service = server.make(config, policy)
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
