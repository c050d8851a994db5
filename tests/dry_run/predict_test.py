"""The stage on the mini policy, and its predictions beside XLA's own."""

import dataclasses
import importlib.util
import json
import re

import jax
import pytest

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax.dry_run import predict
from pivotrl_jax.dry_run import program
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import backend
from pivotrl_jax.train import parallel


def _config(**changes):
  config = swe.get_config("paper")
  config.model.path = str(policy_lib.MINI)
  config.rollout.pivots_per_step = 2
  config.rollout.group_size = 2
  config.rollout.max_tokens = 64
  config.train.logits_chunk = 64
  config.dry_run.prompts = "96"
  config.dry_run.layers = "2,3"
  config.dry_run.meshes = "2xh100"
  config.dry_run.compiler = "cpu"
  for name, value in changes.items():
    section, key = name.split(".")
    config[section][key] = value
  return config


def test_products_of_a_compiled_step_are_those_counted_by_hand():
  """Without remat, in float32, on one device; attention kept small."""
  config = _config(**{"model.dtype": "float32", "model.remat": False})
  shape = predict.model(config)
  mesh = parallel.mesh(jax.devices()[:1])
  state, batch = program.abstract(config, shape, mesh, 96)
  assert batch.tries.shape == (2, 1, 96)
  compiled = program.lowered(config, shape, mesh, state, batch).compile()
  found = program.measured(compiled, micro_batches=2)
  sizes = predict.counts.Sizes(2, 2, 96, 64)
  flops = predict.counts.step(shape, sizes, remat=False)
  by_hand = predict.products(flops, remat=False)
  # Scores of a block stand in the program whole, masked or not. For each
  # prompt: 4 layers of 4 blocks of 32 action tokens over 96 of their own and
  # over 96 of the prompt, 3 of 96 over 96. A pair is 4 heads x 32 x 2 FLOPs a
  # product, 2 forward and 5 backward.
  pairs = 4 * (128 * 96 + 128 * 96) + 3 * 96 * 96
  attention = 2 * pairs * 4 * 32 * 2 * (2 + 5)
  assert found["products"] == pytest.approx(by_hand + attention, rel=0.03)
  # The state is float32 masters and two moments, and a few counters.
  held = program.state_bytes(state, shape, mesh)
  count = predict.counts.parameters(shape)
  assert held["parameters"] == 4 * count
  assert held["optimizer"] == pytest.approx(8 * count, rel=1e-3)
  fed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
  assert found["arguments"] == pytest.approx(sum(held.values()) + fed, rel=0.01)


def test_temporaries_of_the_mini_policys_step():
  """The estimate by hand is about XLA's, and grows as it does."""
  found, by_hand = [], []
  for prompt in (1024, 4096):
    config = _config(**{"model.dtype": "float32", "model.remat": False})
    shape = predict.model(config)
    mesh = parallel.mesh(jax.devices()[:1])
    state, batch = program.abstract(config, shape, mesh, prompt)
    compiled = program.lowered(config, shape, mesh, state, batch).compile()
    found.append(compiled.memory_analysis().temp_size_in_bytes)
    sizes = predict.counts.Sizes(2, 2, prompt, 64)
    parts = predict.counts.activations(
      shape, sizes, remat=False, logits_chunk=64, width=4
    )
    gradients = 2 * 4 * predict.counts.parameters(shape)
    by_hand.append(sum(parts.values()) + gradients)
  for x, y in zip(found, by_hand, strict=True):
    assert 0.8 < x / y < 1.35


def test_two_devices_hold_halves_and_all_is_said(tmp_path, capsys):
  predict.run(_config(), tmp_path)
  (row,) = json.loads((tmp_path / "dry_run" / "predictions.json").read_text())
  said = (tmp_path / "dry_run" / "predictions.txt").read_text()
  assert said.strip() == capsys.readouterr().out.strip()
  count = predict.counts.parameters(predict.model(_config()))
  assert row["parameters"] == pytest.approx(4 * count / 2, rel=0.01)
  assert row["optimizer"] == pytest.approx(8 * count / 2, rel=0.01)
  assert row["reference"] == pytest.approx(2 * count / 2, rel=0.01)
  assert (row["layers"], row["micro_batches"]) == ([2, 3], 1)
  # Every parameter is gathered, and its gradient comes back, at least once.
  assert sum(row["collectives"].values()) > 2 * 2 * count
  for part in ("2 x h100", "XLA for CPU", "fits", "all-gather", "e2e, each"):
    assert part in said, part
  over = predict.text(row | {"peak_by_hand": 2 * row["memory"]})
  assert re.search(r"does not fit: 159\.29 GiB of 79\.65 GiB", over)


@pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="no libtpu here"
)
def test_a_slice_of_tpus_is_compiled_by_their_own_compiler(tmp_path):
  changes = {"meshes": "v5e-4", "compiler": "auto", "layers": ""}
  rows = []
  for compiler in ("auto", "cpu"):
    changes["compiler"] = compiler
    predict.run(
      _config(**{f"dry_run.{k}": v for k, v in changes.items()}), tmp_path
    )
    rows += json.loads((tmp_path / "dry_run" / "predictions.json").read_text())
  own, cpu = rows
  assert (own["compiler"], cpu["compiler"]) == ("tpu", "cpu")
  assert own["layers"] == [5]
  for same in ("parameters", "collectives", "products_compiled"):
    assert own[same] == cpu[same]
  assert 0 < own["temporaries"] != cpu["temporaries"]


def test_figures_of_all_layers_lie_on_a_line():
  def figures(n):
    return {
      "arguments": 10 + 3 * n, "temporaries": 100 + 7 * n, "new_outputs": 1,
      "products": 5 * n, "unknown": 0, "seconds": 1.0,
      "collectives": dict.fromkeys(predict.hlo.COLLECTIVES, 2.0 * n),
    }  # fmt: skip

  layers = {str(n): figures(n) for n in (2, 3, 4)}
  whole, error = predict.extrapolated(layers, 48)
  assert whole["arguments"] == 10 + 3 * 48
  assert whole["temporaries"] == 100 + 7 * 48
  assert whole["products"] == 5 * 48
  assert whole["collectives"]["all-gather"] == 96
  assert error == pytest.approx(0)
  layers["3"]["temporaries"] *= 2  # 242, where the line has 121.
  assert predict.extrapolated(layers, 48)[1] == pytest.approx(0.5)


@pytest.mark.parametrize(
  ("changes", "place", "expected"),
  [
    ({"dry_run.meshes": "64xh1"}, "dry_run.meshes", "64xh100 or v5p-64"),
    ({"dry_run.prompts": "8k"}, "dry_run.prompts", "at least 2"),
    ({"dry_run.layers": "1,2"}, "dry_run.layers", "at least 2"),
    ({"dry_run.layers": "2,9"}, "dry_run.layers", "the model's 5"),
    ({"dry_run.layers": "3"}, "dry_run.layers", "two or more"),
    ({"train.lora_rank": 4}, "train.lora_rank", "expected 0"),
  ],
)
def test_bad_values_are_one_line(changes, place, expected):
  with pytest.raises(errors.InputError) as raised:
    predict.check(_config(**changes))
  assert place in str(raised.value) and expected in str(raised.value)


def test_models_choose_by_the_target():
  assert backend.name() == "cpu"
  with backend.target("gpu"):
    assert backend.name() == "gpu"
  assert backend.name() == "cpu"


def test_shapes_by_name_are_whole():
  for config in predict.MODELS.values():
    assert dataclasses.replace(config) == config
    assert predict.counts.parameters(config) > 5e8
