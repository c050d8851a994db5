"""When candidates are profiled again, and what becomes of the pivots."""

import json

import numpy as np
import pytest

from configs import swe
from pivotrl_jax import main
from pivotrl_jax import stages
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.train import reprofile
import reads

PARAMS = {"kernel": np.ones(3, np.float32)}


def _config(**profile):
  config = swe.get_config("tiny")
  config.profile.update(profile)
  return config


def _profile(name, rewards, policy="p"):
  return {
      "candidate_id": name, "policy": policy, "group_size": len(rewards),
      "rewards": rewards, "reasons": ["x"] * len(rewards),
      "mean": float(np.mean(rewards)), "variance": float(np.var(rewards)),
      "completions": ["y"] * len(rewards),
  }  # fmt: skip


def _write(path, rows):
  path.parent.mkdir(exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def made(tmp_path):
  """Of three candidates the first profile's rule keeps "a" alone."""
  rows = [_profile("a", [1, 0, 0, 0]), _profile("b", [0] * 4),
          _profile("c", [1, 1, 1, 0])]  # fmt: skip
  _write(tmp_path / "profiles.jsonl", rows)

  def make(**profile):
    return reprofile.Reprofile(_config(**profile), tmp_path, None)

  return tmp_path, make


def test_every_so_many_steps(made):
  _, make = made
  again = make(again_every=3)
  assert [s for s in range(8) if again.is_due(s)] == [3, 6]


def test_once_the_std_is_half_of_what_it_was(made):
  _, make = made
  again = make(again_below=0.5)
  # Of the first 20 steps the mean is (10 * .4 + 10 * .2) / 20 = .3: it is time
  # where ten steps have a mean under .15. With .05 from then on that is so
  # after four: (6 * .2 + 4 * .05) / 10 = .14, (7 * .2 + 3 * .05) / 10 = .155.
  due = []
  for step, std in enumerate([0.4] * 10 + [0.2] * 10 + [0.05] * 10):
    if again.is_due(step):
      due.append(step)
    again.note({"signal/reward_std": std})
  assert due == list(range(24, 30))
  again._last = 26  # Not again before twenty more.
  assert [s for s in range(27, 50) if again.is_due(s)] == [46, 47, 48, 49]


def test_what_was_found_is_merged_by_the_same_rule_and_gone_on_with(made):
  path, make = made
  version = policy_lib.digest(PARAMS)
  # "a" is learnt, "b" can now be: what was not profiled again stays.
  rows = [_profile("a", [1] * 4, version), _profile("b", [1, 0, 0, 0], version)]
  _write(path / "profiles" / "5.jsonl", rows)
  again = make(again_every=5)
  pivots, scalars = again(PARAMS, 5)
  assert [(p.candidate_id, p.mean) for p in pivots] == [("b", 0.25)]
  assert scalars == {
    "profile/turns": 8.0, "profile/pivots": 1.0, "profile/mean": 0.625
  }  # fmt: skip
  assert again.means == {"a": 0.25, "b": 0.0, "c": 0.75}  # The first profile's.
  # A run that goes on takes what its metrics say it had, and no more.
  _write(path / "profiles" / "10.jsonl", [_profile("b", [0] * 4, "later")])
  steps = [{"step": s, "signal/reward_std": 0.1} for s in range(1, 9)]
  steps[5]["profile/turns"] = 8.0
  _write(path / "metrics.jsonl", steps)
  assert make(again_every=5).go_on(5) is None
  (pivot,) = make(again_every=5).go_on(6)
  assert pivot == pivots[0]
  # None is left: the old ones stay.
  _write(path / "profiles" / "10.jsonl", [_profile("b", [0] * 4, version)])
  assert again(PARAMS, 10) == (
    None, {"profile/turns": 4.0, "profile/pivots": 0.0, "profile/mean": 0.0}
  )  # fmt: skip


def test_a_profile_of_another_past_gives_way_and_is_kept(tmp_path):
  whole, torn = tmp_path / "5.jsonl", tmp_path / "6.jsonl.partial"
  _write(whole, [_profile("a", [1, 0], "other")])
  text = whole.read_bytes()
  assert not reprofile._is_there(whole, "mine")
  assert (tmp_path / "5.jsonl.old").read_bytes() == text
  _write(whole, [_profile("a", [1, 0], "mine")])
  assert reprofile._is_there(whole, "mine")
  _write(whole, [_profile("a", [0, 0], "other")])
  assert not reprofile._is_there(whole, "mine")
  assert (tmp_path / "5.jsonl.old").read_bytes() == text
  assert (tmp_path / "5.jsonl.old.2").exists() and not whole.exists()
  torn.write_bytes(text[:40])  # Of whom is not known yet: it is gone on with.
  assert not reprofile._is_there(tmp_path / "6.jsonl", "mine")
  assert torn.exists()


def test_keys_of_a_run_that_does_not_are_as_they_were():
  off, on = _config(), _config(again_every=5)
  assert not any(
    key.startswith(("profile.", "pivots."))
    for key in stages.given(off, "train")
  )
  assert "profile.again_every" in stages.given(on, "train")
  for name in ("profile", "select"):
    assert stages.given(off, name) == stages.given(on, name)


def test_a_run_that_is_stopped_ends_in_the_same_bytes(
  small, programs, tmp_path
):
  def run(path, steps, names=("train",)):
    config = _config(again_every=1, group_size=2)
    config.model.path, config.select = small, "random"
    config.data.trajectories = config.profile.trajectories = 2
    config.rollout.max_tokens, config.rollout.pivots_per_step = 6, 2
    config.train.update(
      {"steps": steps, "watch_prompts": 0, "natural_every": 0}
    )
    with reads.noted() as seen:
      main.run(config, path, names)
    if steps == 2:  # From its start, and with a profile on its way.
      reads.assert_keys_hold(config, seen)

  before = ("import", "candidates", "profile", "select")
  for name, stops in (("once", [3]), ("stopped", [2, 3])):
    path = tmp_path / name
    run(path, 3, before)
    for steps in stops:
      run(path, steps)
  files = ("export/model.safetensors", "metrics.jsonl", "rollouts.jsonl",
           "profiles/1.jsonl", "profiles/2.jsonl")  # fmt: skip
  for file in files:
    one, other = (
      (tmp_path / n / file).read_bytes() for n in ("once", "stopped")
    )
    assert one == other, file
  rows = [
    json.loads(x) for x in (tmp_path / "once/metrics.jsonl").open().readlines()
  ]
  profiled = 2 * len((tmp_path / "once/profiles.jsonl").open().readlines())
  # 2 x 4 rollouts a step; a profile at first, before the second and the third.
  assert [row["rollout/turns_total"] for row in rows] == [
    profiled + 8, 2 * profiled + 16, 3 * profiled + 24
  ]  # fmt: skip
