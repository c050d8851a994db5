"""Grids, the names of runs, what is refused up front, what runs share."""

import pathlib
import subprocess
import sys

import pytest

from launchers import sweep
from launchers.runs import plan
from pivotrl_jax import errors

ROOT = pathlib.Path(__file__).parent.parent.parent
SWEEPS = sorted((ROOT / "launchers" / "sweeps").glob("*.py"))
SWE = [{"config": "configs/swe.py:tiny"}]


@pytest.fixture(autouse=True)
def _checkout(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_grids():
  a, b = sweep.over("a", [1, 2]), sweep.over("b", "xy")
  assert sweep.product(a, b) == [
    {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"},
    {"a": 2, "b": "y"},
  ]  # fmt: skip
  assert sweep.zipped(a, b) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
  assert sweep.chain(a, b) == [{"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"}]
  with pytest.raises(ValueError, match="lengths|rows"):
    sweep.zipped(a, b[:1])
  with pytest.raises(ValueError, match="'a' is set by two"):
    sweep.product(a, a)


def _named(grid):
  return [(run.name, run.arm) for run in sweep.runs(grid)]


def test_names_say_what_varies():
  seeds = sweep.over("seed", [0, 1])
  rates = sweep.over("train.learning_rate", [1e-4])
  assert _named(sweep.product(SWE, seeds, rates)) == [
    ("seed=0", "default"), ("seed=1", "default")
  ]  # fmt: skip
  # By the last part of a key, in full where two end alike; seeds come last.
  more = sweep.product(
    SWE,
    seeds[:1],
    sweep.over("sft.turns", [8]),
    sweep.chain(
      sweep.over("train.learning_rate", [1e-4, 1e-3]),
      sweep.over("warm_start.learning_rate", [1e-2]),
    ),
  )
  assert [name for name, _ in _named(more)] == [
    "train.learning_rate=0.0001", "train.learning_rate=0.001",
    "warm_start.learning_rate=0.01",
  ]  # fmt: skip
  arms = [{"arm": "x", "select": "mixed"}, {"arm": "y", "reward": "strict"}]
  assert _named(sweep.product(SWE, seeds, arms))[:2] == [
    ("x,seed=0", "x"), ("y,seed=0", "y")
  ]  # fmt: skip
  paths = sweep.over("data.path", ["/a b/c", "/d"])
  assert [n for n, _ in _named(sweep.product(SWE, paths))] == [
    "path=_a_b_c", "path=_d"
  ]  # fmt: skip
  [long] = sweep.runs(SWE * 1 + [])
  assert long.name == "default"
  texts = sweep.over("data.path", ["x" * 300 + "1", "x" * 300 + "2"])
  names = [name for name, _ in _named(sweep.product(SWE, texts))]
  assert len(set(names)) == 2 and max(map(len, names)) <= 120


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"trian.steps": 3}, ["trian"]),
        ({"train.steps": "many"}, ["train.steps=many"]),
        ({"train.steps": 3.5}, ["train.steps=3.5"]),
        ({"select": "hard"}, ["select", "'hard'", "expected one of"]),
        ({"rollout.group_size": 1}, ["group_size", "at least 2"]),
        ({"model.path": "/nowhere"}, ["model.path", "/nowhere"]),
        ({"config": "configs/none.py"}, ["configs/none.py", "no file"]),
        ({"config": "configs/swe.py:huge"}, ["'huge'"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)  # fmt: skip
def test_what_cannot_run_is_refused(row, parts):
  run = sweep.Run(
    "name", "arm", row.pop("config", "configs/swe.py:tiny"), dict(row)
  )
  with pytest.raises(errors.InputError) as error:
    sweep.resolve(run)
  for part in ["name: ", *parts]:
    assert part in str(error.value)


def test_equal_rows_and_rows_without_a_config_are_refused():
  with pytest.raises(errors.InputError, match="2 rows give the run 'seed=1'"):
    sweep.runs(sweep.product(SWE, sweep.over("seed", [0, 1, 1])))
  with pytest.raises(errors.InputError, match="row 1 has no config"):
    sweep.runs(sweep.over("seed", [0]))
  with pytest.raises(errors.InputError, match="no rows"):
    sweep.runs([])


def test_overrides_are_typed_as_by_main():
  run = sweep.Run(
    "n", "a", "configs/swe.py:tiny",
    {"train.steps": 7, "train.learning_rate": 1e-3, "model.remat": True},
  )  # fmt: skip
  config = sweep.resolve(run)
  assert config.train.steps == 7 and config.model.remat is True
  assert config.train.learning_rate == 1e-3 and config.data.trajectories == 8


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_resolves(path):
  for run in sweep.load(str(path)):
    sweep.resolve(run)


def test_ablations_share_what_they_can():
  runs = sweep.load("launchers/sweeps/ablations.py")
  configs = [sweep.resolve(run) for run in runs]
  jobs = plan.jobs(runs, configs, pathlib.Path("/r"), "pivotrl_jax.main")
  assert len([job for job in jobs if job.arm]) == 6 * 5
  shared = {job.name: job for job in jobs if not job.arm}
  # A seed: one import and evaluation of the base policy for all, a profile
  # for each of the two rewards.
  assert len(shared) == 5 * 3
  assert {job.seed for job in shared.values()} == set(range(5))
  seen = set()
  for job in jobs:
    assert set(job.needs) <= seen  # Each after what it needs.
    seen.add(job.name)
    assert all(shared[name].seed == job.seed for name in job.needs)
  by_name = {job.name: job for job in jobs}
  full, mixed, strict = (
    by_name[f"{arm},seed=2"].needs for arm in ("full", "mixed", "strict")
  )
  assert full == mixed != strict and full[0] == strict[0]
  assert [shared[name].stages[-1] for name in full][-1] == "profile"
  # What is sampled, not how it is selected or trained on, makes a profile.
  assert "--stages=profile" in shared[full[-1]].command


def test_a_misspelt_key_starts_nothing(tmp_path):
  file = tmp_path / "bad.py"
  file.write_text(
    "def get_sweep():\n"
    '  return [{"config": "configs/swe.py:tiny", "seed": s, "trian.steps": 3}\n'
    "          for s in range(2)]\n"
  )
  done = subprocess.run(
      [
          sys.executable, "launchers/launch.py", f"--sweep={file}",
          f"--root={tmp_path / 'root'}",
      ],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.startswith("error: seed=0: 'trian'"), done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "root").exists()
