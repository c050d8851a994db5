"""What a changed verifier makes of what was sampled, beside what it was."""

import json

import pytest

from configs import swe
from pivotrl_jax import errors
from pivotrl_jax import main
import reads

CALL = '<tool_call>{"name": "grep", "arguments": {"pattern": "a"}}</tool_call>'
OTHER = CALL.replace('"a"', '"b"')
TRAJECTORY = {
    "id": "t", "domain": "swe", "source": "s", "task_id": "k", "reward": 1.0,
    "success": True, "tools": [], "messages": [
        {"role": "user", "content": "fix"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c", "name": "grep", "arguments": "{\"pattern\": \"a\"}"}
        ]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
        {"role": "assistant", "content": "done"},
    ],
}  # fmt: skip


def _candidate(turn, demonstration):
  return {
      "id": f"t/{turn}", "trajectory_id": "t", "turn": turn, "num_turns": 2,
      "prefix": 1 + 2 * turn, "demonstration": demonstration,
  }  # fmt: skip


def _profile(turn, rewards, reasons, completions):
  mean = sum(rewards) / 4
  return {
      "candidate_id": f"t/{turn}", "policy": "p", "group_size": 4,
      "rewards": rewards, "reasons": reasons, "mean": mean,
      "variance": sum((r - mean) ** 2 for r in rewards) / 4,
      "completions": completions,
  }  # fmt: skip


def _rollout(candidate_id, text, reward, reason):
  return {"step": 3, "candidate_id": candidate_id, "sample": 0, "text": text,
          "reward": reward, "reason": reason, "advantage": 0.5}  # fmt: skip


PROFILES = [
  # All failed; by exact match the first is right. What was cut off stays so.
  _profile(0, [0.0] * 4, ["x", "x", "cut_off", "x"],
           [CALL, OTHER, CALL, "no"]),
  # One was right; now none is.
  _profile(1, [1.0, 0.0, 0.0, 0.0], ["x"] * 4, ["Done!", CALL, "a", "b"]),
]  # fmt: skip
ROLLOUTS = [
  _rollout("t/0", CALL, 1.0, "none"),
  _rollout("t/0", OTHER, 1.0, "none"),
  _rollout("swe-train-7/0", CALL, 1.0, "success"),  # Of an episode.
]


@pytest.fixture
def workdir(tmp_path):
  call = {"type": "function_call", "name": "grep",
          "arguments": "{\"pattern\": \"a\"}"}  # fmt: skip
  for name, rows in {
    "trajectories": [TRAJECTORY],
    "candidates": [
      _candidate(0, call),
      _candidate(1, {"type": "message", "content": "done"}),
    ],
    "profiles": PROFILES,
    "rollouts": ROLLOUTS,
  }.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(lines)
  return tmp_path


def _strict(**values):
  config = swe.get_config("tiny")
  config.reward = "strict"
  config.update_from_flattened_dict(values)
  return config


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_rewards_change_beside_the_old(workdir, caplog):
  before = {p: p.read_bytes() for p in workdir.glob("*.jsonl")}
  with caplog.at_level("INFO"), reads.noted() as seen:
    main.run(_strict(), workdir, ["rescore"])
    reads.assert_keys_hold(_strict(), seen)
  for path, data in before.items():
    assert path.read_bytes() == data, path.name
  first, second = _rows(workdir / "rescored" / "profiles.jsonl")
  # Of 1, 0, 0, 0 the mean is 1/4, the variance 3/16.
  assert first["rewards"] == [1.0, 0.0, 0.0, 0.0]
  assert (first["mean"], first["variance"]) == (0.25, 0.1875)
  assert first["old_rewards"] == [0.0] * 4
  assert first["reasons"][2] == "cut_off" == first["old_reasons"][2]
  assert second["rewards"] == [0.0] * 4 and second["mean"] == 0.0
  same, changed = _rows(workdir / "rescored" / "rollouts.jsonl")
  assert (same["old_reward"], same["reward"]) == (1.0, 1.0)
  assert (changed["old_reward"], changed["reward"]) == (1.0, 0.0)
  assert changed["text"] == OTHER and "advantage" not in changed
  summary = json.loads((workdir / "rescored" / "summary.json").read_text())
  # Two of eight; 1/8 before and after. One of two; 1 before, 1/2 after.
  assert summary == {
    "profiles": {"samples": 8, "changed": 2, "old_mean": 0.125, "mean": 0.125},
    "rollouts": {"samples": 2, "changed": 1, "old_mean": 1.0, "mean": 0.5},
    "become_pivots": ["t/0"],
    "are_pivots_no_more": ["t/1"],
  }
  for line in (
    "rescore: 1 of 3 rollouts are of whole episodes",
    "rescore: profiles: 2 of 8 rewards changed, mean 0.125 -> 0.125",
    "rescore: 1 candidates become pivots: t/0",
  ):
    assert line in caplog.text


def test_another_verifier_moves_what_the_last_one_found(workdir):
  main.run(_strict(), workdir, ["rescore"])
  before = (workdir / "rescored" / "summary.json").read_bytes()
  main.run(_strict(), workdir, ["rescore"])  # Done before.
  assert not (workdir / "previous").exists()
  main.run(_strict(reward="functional"), workdir, ["rescore"])
  moved = workdir / "previous" / "1" / "rescored" / "summary.json"
  assert moved.read_bytes() == before
  assert (workdir / "rescored" / "summary.json").read_bytes() != before


def test_nothing_sampled_is_one_line(workdir):
  for name in ("profiles", "rollouts"):
    (workdir / f"{name}.jsonl").unlink()
  with pytest.raises(errors.InputError, match="neither profiles.jsonl nor"):
    main.run(_strict(), workdir, ["rescore"])
