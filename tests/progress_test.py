"""What was made is never lost: going on, doing again, refusing."""

import json
import os
import shutil

import pytest

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import main
from pivotrl_jax import progress
from pivotrl_jax import stages

_DEFAULT = tuple(s for s in stages.DEFAULT if s != "warm_start")


def _config(**values):
  config = swe.get_config("tiny")
  config.select = "random"
  config.data.trajectories = 3
  config.update_from_flattened_dict(values)
  return config


def _make(path, config, names, aside="previous/1"):
  """Runs stages whose functions write a file that says so."""
  for name in names:
    if progress.is_done(config, path, name):
      continue
    progress.begin(config, path, name, path / aside)
    for output in stages.stage(config, name).outputs:
      (path / output).write_text(f"{name} {stages.given(config, name)}\n")
    progress.finish(config, path, name)


@pytest.fixture
def made(tmp_path):
  """A workdir in which all stages are done."""
  (tmp_path / ".stages").mkdir()
  _make(tmp_path, _config(), _DEFAULT)
  return tmp_path


def _tree(path):
  return {
    str(p.relative_to(path)): p.read_bytes()
    for p in path.rglob("*")
    if p.is_file() and p.name not in ("hashes.json", ".lock")
  }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.log_every", 1), ("train.save_every", 1),
        ("train.keep_checkpoints", 1), ("train.watch_prompts", 0),
        ("train.parallel", "sharded"), ("train.micro_batches", 2),
        ("engine.batch_rows", 8), ("profile.trajectories_per_batch", 1),
        ("model.attention", "xla"), ("verifier.judge.timeout", 1.0),
        ("verifier.single_step.allow_subset", True), ("sft.turns", 2),
    ],
)  # fmt: skip
def test_what_changes_no_output_changes_no_stage(made, key, value):
  config = _config(**{key: value})
  progress.check(config, made, _DEFAULT)
  assert all(progress.is_done(config, made, name) for name in _DEFAULT)


@pytest.mark.parametrize(
    ("key", "value", "stage", "line"),
    [
        ("train.learning_rate", 1e-3, "train",
         "train.learning_rate 0.0003 -> 0.001"),
        ("profile.group_size", 3, "profile", "profile.group_size 4 -> 3"),
        ("rollout.temperature", 0.5, "profile",
         "rollout.temperature 1.0 -> 0.5"),
        ("seed", 1, "profile", "seed 0 -> 1"),
        # Of a cheap stage before it: said before anything is made again.
        ("data.trajectories", 2, "profile", "data.trajectories 3 -> 2"),
        ("pivots.count", 2, "train", "pivots.count 0 -> 2"),
        ("method", "sft", "train", "method pivotrl -> sft"),
    ],
)  # fmt: skip
def test_a_costly_stage_is_refused_in_a_line_and_nothing_is_touched(
  made, key, value, stage, line
):
  before = _tree(made)
  with pytest.raises(errors.InputError) as error:
    main.run(_config(**{key: value}), made, _DEFAULT)
  said = str(error.value)
  assert f"{stage} was made otherwise" in said and line in said
  assert f"--redo={stage}" in said and "\n" not in said
  assert _tree(made) == before


def test_a_changed_model_is_refused(made, small):
  config = _config(**{"model.path": small})
  with pytest.raises(errors.InputError, match="contents of model.path .* -> "):
    progress.check(config, made, _DEFAULT)


def test_cheap_stages_are_made_again_and_what_they_made_moves(made):
  config = _config(**{"evaluation.tasks": 3, "report.pivots": 1})
  progress.check(config, made, _DEFAULT)
  before = (made / "evals.jsonl").read_text()
  _make(made, config, _DEFAULT)
  assert (made / "previous/1/evals.jsonl").read_text() == before
  assert (made / "evals.jsonl").read_text() != before
  # A report is made of what stands, and replaced.
  assert not (made / "previous/1/report").exists()


def test_data_is_known_by_its_contents(tmp_path):
  data = tmp_path / "data.jsonl"
  data.write_text("{}\n")
  path = tmp_path / "w"
  (path / ".stages").mkdir(parents=True)
  values = {"data.format": "auto", "data.path": str(data)}
  _make(path, _config(**values), _DEFAULT)
  os.utime(data, (1, 1))
  moved = shutil.copytree(tmp_path, tmp_path.with_name("copied"))
  values["data.path"] = str(moved / "data.jsonl")
  config = _config(**values)
  assert all(progress.is_done(config, path, name) for name in _DEFAULT)
  (moved / "data.jsonl").write_text("[]\n")
  with pytest.raises(errors.InputError, match="contents of data.path"):
    progress.check(config, path, _DEFAULT)


def test_redo_moves_a_stage_and_what_was_made_of_it(made):
  config = _config(**{"train.learning_rate": 1e-3})
  (made / "checkpoints/3").mkdir(parents=True)
  (made / "metrics.jsonl").write_text("{}\n")
  before = _tree(made)
  progress.check(config, made, _DEFAULT, ["train"])
  progress.redo(config, made, ["train"], progress.next_aside(made))
  after = _tree(made)
  for name in ("export", "metrics.jsonl", "evals.jsonl", "report"):
    assert after[f"previous/1/{name}"] == before[name]
    assert name not in after
  assert (made / "previous/1/checkpoints/3").is_dir()
  assert after["profiles.jsonl"] == before["profiles.jsonl"]
  assert not progress.is_done(config, made, "train")
  # Killed and started again, the same order goes on.
  _make(made, config, ["train"])
  progress.redo(config, made, ["train"], progress.next_aside(made))
  assert progress.is_done(config, made, "train")
  # Another order, or one after the run ended, is a new one.
  progress.ended(made)
  progress.redo(config, made, ["train"], progress.next_aside(made))
  assert not (made / "export").exists()
  assert (made / "previous/2/export").exists()
  assert (made / "previous/1/export").exists()


def test_redo_of_one_does_not_hide_another(made):
  config = _config(**{"train.learning_rate": 1e-3, "profile.group_size": 3})
  before = _tree(made)
  with pytest.raises(errors.InputError, match="profile.group_size"):
    main.run(config, made, _DEFAULT, ["train"])
  assert _tree(made) == before


def test_a_partial_profile_is_kept(made):
  for name in ("profiles.jsonl", ".stages/profile.json"):
    (made / name).unlink()
  progress.begin(_config(), made, "profile", made / "previous/1")
  partial = made / "profiles.jsonl.partial"
  partial.write_text("")
  other = _config(**{"profile.group_size": 3})
  progress.check(other, made, ["profile"])  # Nothing is in it yet.
  partial.write_text("{}\n")
  progress.check(_config(), made, ["profile"])
  with pytest.raises(errors.InputError, match="group_size 4 -> 3"):
    progress.check(other, made, ["profile"])


def test_what_was_edited_moves_or_is_refused(made):
  config = _config()
  (made / "candidates.jsonl").write_text("mine\n")
  progress.check(config, made, _DEFAULT)
  _make(made, config, _DEFAULT)
  assert (made / "previous/1/candidates.jsonl").read_text() == "mine\n"
  (made / "profiles.jsonl").write_text("mine\n")
  with pytest.raises(errors.InputError, match="profiles.jsonl was edited"):
    progress.check(config, made, _DEFAULT)


def test_what_is_gone_is_made_again(made):
  (made / "trajectories.jsonl").unlink()
  (made / "evals.jsonl").unlink()
  before = (made / "profiles.jsonl").stat().st_mtime_ns
  progress.check(_config(), made, _DEFAULT)
  _make(made, _config(), _DEFAULT)
  assert (made / "profiles.jsonl").stat().st_mtime_ns == before
  assert not (made / "previous").exists()


@pytest.mark.parametrize(
  ("file", "text"),
  [
    (
      "train.json",
      {"key": {"config": "0", "inputs": {}, "outside": []}, "outputs": {}},
    ),
    ("train.begun.json", {"config": "0", "inputs": {}, "outside": []}),
  ],
)
def test_a_workdir_of_an_earlier_version_loses_nothing(made, file, text):
  (made / ".stages/train.json").unlink()
  (made / ".stages" / file).write_text(json.dumps(text))
  before = _tree(made)
  with pytest.raises(errors.InputError, match="another version.*--redo=train"):
    main.run(_config(), made, _DEFAULT)
  assert _tree(made) == before
  progress.check(_config(), made, _DEFAULT, ["train"])
  progress.redo(_config(), made, ["train"], progress.next_aside(made))
  assert (made / "previous/1/.stages" / file).exists()


def test_outputs_without_a_record_are_not_overwritten(tmp_path):
  (tmp_path / "warm_start").mkdir()
  (tmp_path / "warm_start" / "model.safetensors").write_text("weights")
  config = _config(**{"warm_start.steps": 2})
  with pytest.raises(errors.InputError, match="warm_start was made otherwise"):
    progress.check(config, tmp_path, ["warm_start"])


def test_config_json_keeps_what_was_run(tmp_path):
  for text in ("a", "a", "b", "c"):
    aside = progress.next_aside(tmp_path)
    progress.write_config(tmp_path, {"config": text}, aside)
  kept = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("config.json"))
  assert [str(p) for p in kept] == [
    "config.json", "previous/1/config.json", "previous/2/config.json",
  ]  # fmt: skip
  assert "c" in (tmp_path / "config.json").read_text()
