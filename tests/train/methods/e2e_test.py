"""Whole episodes: how they are counted, spread and gone on with."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import main
from pivotrl_jax import stages
from pivotrl_jax import types
from pivotrl_jax.engines import base
from pivotrl_jax.envs import episode
from pivotrl_jax.envs import worlds
from pivotrl_jax.report import glossary
from pivotrl_jax.train import checkpoints
from pivotrl_jax.train.methods import e2e
import reads


@dataclasses.dataclass(frozen=True)
class _State:
  said: tuple[str, ...] = ()

  @property
  def done(self):
    return len(self.said) == 3


@dataclasses.dataclass(frozen=True)
class _Task:
  id: str


class _Coin:
  """A world of three turns in which all that is said decides like a coin.

  So that even a random policy has successes and failures.
  """

  DOMAIN, TOOLS, ROW = "swe", (), {}

  def make_task(self, index, split):
    return _Task(f"coin-{split}-{index}")

  def reset(self, task):
    return _State(), (types.Message("user", f"Say something, {task.id}."),)

  def step(self, task, state, action):
    said = action.text if hasattr(action, "text") else action.content
    return _State((*state.said, said)), (types.Message("user", "And?"),)

  def success(self, task, state):
    text = json.dumps([task.id, *state.said]).encode()
    return hashlib.blake2b(text).digest()[0] % 2 == 0

  def act(self, task, state, rng):
    return types.Action("message", content=f"word {rng.integers(9)}")

  act_poorly = act


@pytest.fixture(scope="module", autouse=True)
def coin(programs):
  """That world in the place of swe's."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(worlds.WORLDS, "swe", _Coin())
    yield


def _config(model, **train):
  config = swe.get_config("tiny")
  config.method, config.model.path = "e2e", model
  config.data.max_prompt_tokens = 128
  config.rollout.max_tokens, config.rollout.group_size = 6, 3
  config.train.update({"steps": 2, "watch_prompts": 0} | train)
  return config


def _trained(path, config):
  (path / ".stages").mkdir(parents=True, exist_ok=True)
  main.run(config, path, ["train"])
  return _lines(path / "metrics.jsonl")


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _bytes(path):
  names = ("export/model.safetensors", "metrics.jsonl", "rollouts.jsonl")
  return {name: (path / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def at_once(small, tmp_path_factory):
  """A run of two steps that nothing interrupted."""
  path = tmp_path_factory.mktemp("at_once")
  with reads.noted() as seen:
    _trained(path, _config(small))
    reads.assert_keys_hold(_config(small), seen)
  return path


def test_however_it_is_spread_and_gone_on_with(small, at_once, tmp_path):
  one = _lines(at_once / "metrics.jsonl")
  # Two tasks of three episodes of three turns each.
  assert [row["rollout/turns"] for row in one] == [18, 18]
  assert [row["rollout/turns_total"] for row in one] == [18, 36]
  assert all(row["rollout/episode_turns"] == 3 for row in one)
  assert all(row["train/grad_norm"] > 0 for row in one)
  assert all(glossary.describe(name)[1] for name in one[0].keys() - {"step"})
  # After one step, and with another layout, which is rounding alone.
  path = tmp_path / "stopped"
  _trained(path, _config(small, steps=1))
  _trained(path, _config(small))
  assert _bytes(path) == _bytes(at_once)
  layouts = {"parallel": "pmap"}, {"parallel": "sharded", "micro_batches": 2}
  for i, layout in enumerate(layouts):
    rows = _trained(tmp_path / str(i), _config(small, **layout))
    for row, other in zip(one, rows, strict=True):
      assert row.keys() == other.keys()
      for name in row.keys() - {
        "rollout/padding", "trie/tokens_computed", "trie/gap"
      }:  # fmt: skip
        np.testing.assert_allclose(
          other[name], row[name], rtol=2e-3, atol=2e-5, err_msg=name
        )
  # A fork counts on from the other's turns.
  config = _config(small, init=f"{path}/1")
  rows = _trained(tmp_path / "fork", config)
  assert [row["rollout/turns_total"] for row in rows] == [36]
  assert checkpoints.turns(tmp_path / "fork" / "checkpoints" / "2") == 36


def test_rollouts_are_kept_whole_groups_first(at_once):
  rows = _lines(at_once / "rollouts.jsonl")
  assert len(rows) == 36 and {row["step"] for row in rows} == {1, 2}
  for step in (1, 2):
    of_step = [row for row in rows if row["step"] == step]
    episodes = {}
    for row in of_step:
      task = row["candidate_id"].rpartition("/")[0]
      episodes.setdefault((task, row["sample"]), []).append(row)
    assert len(episodes) == 6
    for turns in episodes.values():
      assert [r["candidate_id"][-1] for r in turns] == ["0", "1", "2"]
      # One reward and one advantage over all turns of an episode.
      assert len({(r["reward"], r["advantage"]) for r in turns}) == 1
    for task in {task for task, _ in episodes}:
      of_task = [episodes[task, k][0] for k in range(3)]
      rewards = np.array([r["reward"] for r in of_task])
      assert set(rewards) <= {0.0, 1.0}
      want = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
      np.testing.assert_allclose(
        [r["advantage"] for r in of_task], want, atol=1e-5
      )


def _turn(prompt, ids, finish="stop"):
  return episode.Turn(
    np.array(prompt, np.int32),
    base.Completion(
      np.array(ids, np.int32), np.zeros(len(ids), np.float32), finish
    ),
    "",
  )


def _episode(*turns, success=False, end="failed"):
  return episode.Episode(success, end, (), turns)


def test_breaks_of_the_prefix_are_counted():
  whole = _turn([1, 2], [3]), _turn([1, 2, 3, 4], [5]), _turn([1, 2, 3, 4, 5, 6], [7])  # fmt: skip
  assert _episode(*whole).prefix_breaks == 0
  assert _episode().prefix_breaks == _episode(whole[0]).prefix_breaks == 0
  # Another token for what was sampled; a chat that was shortened.
  assert _episode(whole[0], _turn([1, 2, 9, 4], [5])).prefix_breaks == 1
  assert _episode(*whole, _turn([1, 2], [3])).prefix_breaks == 1


@pytest.mark.parametrize(("cut_off", "kept"), [("fail", 4), ("mask", 3)])
def test_turns_have_the_advantage_of_their_episode(cut_off, kept):
  config = swe.get_config("tiny")
  config.rollout.cut_off = cut_off
  won = _episode(_turn([1], [2, 3]), _turn([1, 2, 3], [4]), success=True)
  lost = _episode(_turn([1], [5], "length"), _turn([1, 5], [6]))
  group = e2e.Group(_Task("t"), (won, lost, _episode()))
  found = e2e.samples_of(config, [group], np.array([[1.5, -1.0, -0.5]]))
  assert found.advantages.tolist() == [1.5, 1.5, -1.0, -1.0]
  assert found.kept.sum() == kept and [len(p) for p in found.prompts] == [
    1, 3, 1, 2
  ]  # fmt: skip
  assert [v.reason for v in group.verdicts] == ["failed"] * 3
  cut = _episode(_turn([1], [5], "length"))
  assert e2e.Group(_Task("t"), (cut,)).verdicts == [
    types.Verdict(0.0, "cut_off")
  ]


def test_stages_are_those_it_needs():
  config = swe.get_config("tiny")
  config.method = "e2e"
  assert stages.needs(config, "train") == ()
  assert stages.default(config) == (
    "import", "candidates", "train", "baseline", "evaluate", "report"
  )  # fmt: skip
  config.warm_start.steps = 1
  assert stages.needs(config, "train") == ("import", "candidates", "warm_start")
  before = stages.lineage(config, "train")
  config.verifier.name = "strict"
  config.profile.group_size = 3
  assert stages.lineage(config, "train") == before
  config.e2e.max_turns = 3
  assert stages.lineage(config, "train") != before


def test_a_prompt_without_room_is_one_line(small, tmp_path):
  config = _config(small)
  config.data.max_prompt_tokens = 10
  with pytest.raises(errors.InputError, match="max_prompt_tokens: 10; expect"):
    _trained(tmp_path / "w", config)
