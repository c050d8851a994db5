"""The mini policy's training: killed and started again, and its decay."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from launchers import train_mini_policy
from pivotrl_jax import errors
from pivotrl_jax.engines import policy
from pivotrl_jax.models import qwen3
from pivotrl_jax.train import state as state_lib
from tests.launchers import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
# A step of 128 tokens, of a policy of 70,000 parameters.
TINY = (
    "--steps=6", "--decay=2", "--hidden=32", "--layers=1", "--tokens=128",
    "--prompts=160", "--width=64", "--drills=0", "--save_every=2",
    "--log_every=1",
)  # fmt: skip


def _start(workdir, *more):
  (workdir / "tokenizer").mkdir(parents=True, exist_ok=True)
  for name in ("tokenizer.json", "tokenizer_config.json",
               "chat_template.jinja", "generation_config.json"):  # fmt: skip
    shutil.copyfile(policy.MINI / name, workdir / "tokenizer" / name)
  return subprocess.Popen(
      [
          sys.executable, "launchers/train_mini_policy.py",
          f"--workdir={workdir}", *TINY, *more,
      ],
      cwd=ROOT, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def _end(process):
  _, stderr = process.communicate(timeout=200)
  return process.returncode, stderr


def _steps(file):
  return [json.loads(line)["step"] for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  status, stderr = _end(_start(workdir))
  assert status == 0, stderr
  return workdir


def test_killed_and_started_again_is_at_once(whole, tmp_path):
  first = _start(tmp_path)
  losses = tmp_path / train_mini_policy.LOSSES
  limit = time.monotonic() + 120
  # A checkpoint of step 2 is there, and rows that it does not have.
  while not (
    (tmp_path / "checkpoints" / "2").exists()
    and losses.exists()
    and losses.read_text().count("\n") >= 3
  ):
    assert first.poll() is None and time.monotonic() < limit
    time.sleep(0.01)
  workers = processes.children(first.pid)
  assert workers
  first.kill()
  first.wait()
  first.stderr.close()
  while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
    assert time.monotonic() < limit
    time.sleep(0.01)
  status, stderr = _end(_start(tmp_path))
  assert status == 0, stderr
  for name in (train_mini_policy.LOSSES, "decay-6/export/model.safetensors",
               f"decay-6/{train_mini_policy.LOSSES}"):  # fmt: skip
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
  assert _steps(losses) == [1, 2, 3, 4, 5, 6]
  assert _steps(tmp_path / "decay-6" / train_mini_policy.LOSSES) == [7, 8]


def test_the_export_is_a_policy_in_16_bits(whole):
  found = policy.load(whole / "decay-6" / "export")
  assert found.hf_config["torch_dtype"] == "bfloat16"
  assert found.params["embed_tokens"]["embedding"].shape == (2048, 32)
  assert found.params["embed_tokens"]["embedding"].dtype == jnp.float32


def test_more_steps_go_on_before_the_decay(whole, tmp_path):
  longer = tmp_path / "longer"
  shutil.copytree(whole, longer)
  status, stderr = _end(_start(longer, "--steps=7", "--decay=0"))
  assert status == 0, stderr
  losses = longer / train_mini_policy.LOSSES
  assert _steps(losses) == [1, 2, 3, 4, 5, 6, 7]
  assert losses.read_text().startswith(
    (whole / train_mini_policy.LOSSES).read_text()
  )


def _options(whole, *more):
  return train_mini_policy.parser().parse_args(
    [f"--workdir={whole}", *TINY, *more]
  )


def test_a_training_is_named_by_what_it_must_keep(whole):
  def name(*more):
    return train_mini_policy.name(_options(whole, *more), whole / "tokenizer")

  assert name("--steps=9", "--decay=0", "--save_every=9") == name()
  assert name("--learning_rate=0.1") != name()
  assert name("--answer_weight=1.0") != name()


@pytest.mark.parametrize("hidden, heads", [(32, 1), (96, 2), (160, 4)])
def test_heads_are_a_power_of_two(hidden, heads):
  found = train_mini_policy.config_json(2048, hidden, 1)
  assert found["num_attention_heads"] == found["num_key_value_heads"] == heads


def test_it_goes_on_with_nothing_else(whole):
  options = _options(whole)
  config = qwen3.config_from_hf(train_mini_policy.config_json(2048, 32, 1))
  tx = train_mini_policy.optimizer(0.01, decay_from=6, decay=0)
  state = state_lib.create(train_mini_policy.starting(config, 0), tx)

  def train(last, run):
    return train_mini_policy.train(
      whole, state, last, tx, run=run, stream=None, config=config,
      every=train_mini_policy.Every(1, 1),
    )  # fmt: skip

  right = train_mini_policy.name(options, whole / "tokenizer")
  assert int(train(6, right).step) == 6
  with pytest.raises(errors.InputError, match="6 steps were taken; expected"):
    train(5, right)
  with pytest.raises(errors.InputError, match=f"expected {'f' * 16}"):
    train(6, "f" * 16)


def test_the_rate_warms_up_stays_and_falls_to_0():
  rate = train_mini_policy.schedule(2.0, decay_from=1000, decay=100)
  # 200 steps of warm-up: the first has 2 / 200, the 200th 2. From 1,000 on it
  # falls by 2 / 100 a step.
  wanted = {0: 0.01, 99: 1.0, 199: 2.0, 1000: 2.0, 1050: 1.0, 1100: 0.0}
  got = [float(rate(jnp.asarray(step))) for step in wanted]
  np.testing.assert_allclose(got, list(wanted.values()), atol=1e-6)
  stable = train_mini_policy.schedule(2.0, decay_from=1000, decay=0)
  assert float(stable(jnp.asarray(5000))) == 2.0
