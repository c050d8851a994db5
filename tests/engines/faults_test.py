"""Faults over real sockets and processes: a sidecar that fails in every way.

Slow (tens of seconds) because servers are processes that start, die and start
again.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest

from configs import swe
from launchers import sglang_sidecar
from pivotrl_jax import errors
from pivotrl_jax import main
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import hf
from pivotrl_jax.train import checkpoints
from tests.engines import conftest

SERVER = pathlib.Path(__file__).parent / "faulty_server.py"
SAMPLING = base.SamplingParams(max_tokens=6, stop_ids=(0, 2))
PROMPTS = [np.arange(5, 30), np.arange(5, 20), np.arange(40, 50)]


class Watched:
  """A faulty server under a sidecar, with a thread that watches it."""

  def __init__(self, model, folder, **knobs):
    self.faults = folder / "faults.json"
    self.faults.write_text("[]")
    port = conftest.free_port()
    self.sidecar = sglang_sidecar.Sidecar(
      command=[
        sys.executable, str(SERVER), str(model), str(port), str(self.faults),
      ],
      address=f"http://127.0.0.1:{port}",
      log=folder / "server.log",
      **{"restarts": 50, "hang_timeout": 60.0} | knobs,
    )  # fmt: skip
    self._stopping = threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()

  def _watch(self):
    with contextlib.suppress(sglang_sidecar.Gone):
      sglang_sidecar.serve([self.sidecar], (), self._stopping)

  @property
  def address(self):
    return self.sidecar.address

  def meets(self, *faults):
    self.faults.write_text(json.dumps(faults))

  def left(self):
    return json.loads(self.faults.read_text())

  def stop(self):
    self._stopping.set()
    self._thread.join()


@pytest.fixture(scope="module")
def watched(small, tmp_path_factory):
  found = Watched(small, tmp_path_factory.mktemp("watched"))
  yield found
  found.stop()


@pytest.fixture(scope="module")
def policy(small):
  return policy_lib.load(small)


@pytest.fixture(scope="module")
def engine(watched, policy, tmp_path_factory):
  return _engine(
    policy, watched.address, tmp_path_factory.mktemp("weights"), timeout=20.0
  )


def _engine(policy, addresses, folder, **knobs):
  config = conftest.config_of(policy.path)
  config.engine.name = "sglang"
  config.engine.urls = addresses
  config.engine.weights = str(folder)
  config.engine.patience = 120.0
  config.engine.update(knobs)
  return policy_lib.engine(policy, config)


def _sample(engine):
  return engine.sample(PROMPTS, SAMPLING, [7, 8, 9])


def _same(found, want):
  for one, other in zip(found, want, strict=True):
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.log_probs, other.log_probs)


@pytest.mark.parametrize(
  "faults",
  [["500"], ["half"], ["fewer"], ["old"], ["other"], ["die"],
   ["500", "half", "fewer", "500"]],
  ids=" ".join,
)  # fmt: skip
def test_a_step_is_finished_by_retry(engine, watched, faults):
  want = _sample(engine)
  watched.meets(*faults)
  _same(_sample(engine), want)
  # Faults of the look at a server, before it is asked again, are no retries.
  assert 1 <= engine.stats.retries <= len(faults)
  assert watched.left() == []


def test_a_hand_over_is_finished_by_retry(engine, watched, policy):
  want = _sample(engine)
  # Met by the verification after the hand-over.
  watched.meets("500", "half")
  engine.load(policy.params, "again")
  found = _sample(engine)
  _same(found, want)
  assert {c.version for c in found} == {"again"}


def test_who_does_not_answer_in_time_is_asked_again(watched, policy, tmp_path):
  engine = _engine(policy, watched.address, tmp_path, timeout=3.0)
  want = _sample(engine)
  watched.meets("hang")
  started = time.monotonic()
  _same(_sample(engine), want)
  assert 3.0 <= time.monotonic() - started


def test_what_never_ends_is_one_line(watched, policy, tmp_path):
  engine = _engine(policy, watched.address, tmp_path, retries=2)
  watched.meets(*["500"] * 12)
  with pytest.raises(errors.EngineError, match="engine: .*500 broken"):
    _sample(engine)
  watched.meets()
  assert _sample(engine)


def test_another_server_finishes_the_step(small, watched, policy, tmp_path):
  """One dies for good; later it is back with another model."""
  other = Watched(small, tmp_path, restarts=0)
  try:
    urls = f"{watched.address},{other.address}"
    engine = _engine(policy, urls, tmp_path / "w", rows_per_request=1)
    want = _sample(engine)
    os.killpg(other.sidecar.process.pid, signal.SIGKILL)
    _same(_sample(engine), want)
    assert engine.stats.retries > 0
  finally:
    other.stop()
  engine.load(policy.params, "without it")
  _same(_sample(engine), want)
  # The other, restarted while its memory is released, is awake.
  engine.release()
  os.killpg(watched.sidecar.process.pid, signal.SIGKILL)
  engine.load(policy.params, "awake")
  _same(_sample(engine), want)


def test_another_model_is_one_line(watched, policy, tmp_path):
  """A server that cannot take up the weights."""
  shape = policy.hf_config | {"num_hidden_layers": 2}
  layers = policy.params | {"layers_1": policy.params["layers_0"]}
  hf.save(tmp_path / "deeper", layers, shape, policy.path)
  deeper = policy_lib.load(tmp_path / "deeper")
  with pytest.raises(errors.EngineError, match="another shape of model"):
    _engine(deeper, watched.address, tmp_path / "w", retries=1)


def test_a_hanging_server_is_restarted(watched, monkeypatch):
  """SIGSTOP: it is there, and answers nothing."""
  calls = endpoint.Endpoint(watched.address, timeout=5)
  _until(calls.ready)
  first = watched.sidecar.process.pid
  with monkeypatch.context() as patch:
    patch.setattr(watched.sidecar, "hang_timeout", 4.0)
    os.kill(first, signal.SIGSTOP)
    _until(lambda: watched.sidecar.process.pid != first)
  _until(calls.ready)


def test_a_server_that_never_comes_up_is_one_line(tmp_path):
  sidecar = sglang_sidecar.Sidecar(
      command=[sys.executable, "-c", "raise SystemExit('no card')"],
      address=f"http://127.0.0.1:{conftest.free_port()}",
      log=tmp_path / "log",
  )  # fmt: skip
  with pytest.raises(sglang_sidecar.Gone, match="ended with 1; .*no card"):
    sglang_sidecar.serve([sidecar], [], threading.Event())


_READY = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(200)
    self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


def test_the_last_server_ends_the_sidecar(tmp_path):
  first, second = (
    sglang_sidecar.Sidecar(
      command=[sys.executable, "-c", _READY, str(port)],
      address=f"http://127.0.0.1:{port}",
      log=tmp_path / f"{port}.log",
      restarts=0,
    )
    for port in (conftest.free_port(), conftest.free_port())
  )
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    ended = pool.submit(
      sglang_sidecar.serve, [first, second], [], threading.Event()
    )
    _until(lambda: first.looked and second.looked)
    first.process.kill()
    first.process.wait()
    time.sleep(1.5)  # Three looks.
    assert not ended.done() and second.process.poll() is None
    second.process.kill()
    with pytest.raises(sglang_sidecar.Gone, match="no restart left"):
      ended.result(timeout=60)


def _until(ready):
  end = time.monotonic() + 300
  while not ready():
    assert time.monotonic() < end
    time.sleep(0.1)


def _config(model, **engine):
  """A short run whose weights depend on what is sampled, whatever it earns.

  They decay, and so move away from the reference; then the KL to it has a
  gradient.
  """
  config = swe.get_config("tiny")
  config.model.path = str(model)
  config.select = "random"
  config.data.trajectories = 1
  config.data.max_prompt_tokens = 256  # One length: little to compile.
  config.profile.group_size = 2
  config.rollout.pivots_per_step = 2
  config.train.steps = 3
  config.train.learning_rate = 0.1
  config.train.warmup_steps = 0
  config.train.weight_decay = 1.0
  config.train.kl_coef = 1.0
  config.train.watch_prompts = 0
  config.train.natural_every = 0
  config.engine.update(engine)
  return config


STAGES = ["import", "candidates", "profile", "select", "train"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """What one run compiles, the next one reads."""
  folder = tmp_path_factory.mktemp("programs")
  known = {
    "jax_compilation_cache_dir": str(folder),
    "jax_persistent_cache_min_compile_time_secs": 0,
  }
  before = {name: getattr(jax.config, name) for name in known}
  for name, value in known.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def _assert_ends_alike(found, want):
  for name in ("profiles.jsonl", "export/model.safetensors"):
    assert (found / name).read_bytes() == (want / name).read_bytes(), name
  assert _steps(found) == _steps(want)


def _steps(workdir):
  """Rows of metrics.jsonl but for what the engine had to compute."""
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [
    {k: v for k, v in row.items() if k != "trie/tokens_computed"}
    for row in rows
  ]


def _skip_unless_asked():
  if not os.environ.get("PIVOTRL_FAULTS"):
    pytest.skip("minutes: set PIVOTRL_FAULTS=1")


def test_a_run_through_faults_ends_in_the_same_weights(
  small, programs, tmp_path
):
  """Over HTTP, lost once for good: the same to the bit as in this process."""
  _skip_unless_asked()
  inside, outside = tmp_path / "inside", tmp_path / "outside"
  main.run(_config(small), inside, STAGES)
  watched = Watched(small, tmp_path)
  try:
    config = _config(small, name="sglang", urls=watched.address)
    # The profile and two steps are finished; then nothing is, for good: one
    # line, and a checkpoint.
    watched.meets("ok", "500", *["ok"] * 8, *["500"] * 20)
    with pytest.raises(errors.EngineError, match="500 broken"):
      main.run(config, outside, STAGES)
    assert checkpoints.steps_of(outside / checkpoints.FOLDER) == [2]
    # The same command goes on.
    watched.meets("ok", "other", "die", "fewer", "old", "ok", "half")
    main.run(config, outside, STAGES)
    assert watched.left() == []
  finally:
    watched.stop()
  _assert_ends_alike(outside, inside)


def test_fifty_faults_over_a_run(programs, tmp_path):
  """Of every kind, at random, some met while another is mended."""
  _skip_unless_asked()
  faults = ["500", "half", "fewer", "old", "other"] * 9 + ["hang"] * 3
  faults += ["die"] * 2 + ["ok"] * 70
  random.Random(0).shuffle(faults)
  inside = _config(policy_lib.MINI)
  inside.train.steps = 24
  main.run(inside, tmp_path / "undisturbed", STAGES)
  watched = Watched(policy_lib.MINI, tmp_path)
  watched.meets(*faults)
  try:
    config = _config(
      policy_lib.MINI, name="sglang", urls=watched.address, retries=20,
      timeout=10.0,
    )  # fmt: skip
    config.train.steps = 24
    main.run(config, tmp_path / "run", STAGES)
    assert watched.left() == []
  finally:
    watched.stop()
  _assert_ends_alike(tmp_path / "run", tmp_path / "undisturbed")
