"""The report of a small made-up workdir."""

import json
import re

import pytest

from configs import swe
from pivotrl_jax.report import write

TRAJECTORY = {
    "id": "t", "domain": "swe", "source": "s", "task_id": "k", "reward": 1.0,
    "success": True, "tools": [], "messages": [
        {"role": "user", "content": "fix <script>alert(1)</script>"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c", "name": "grep", "arguments": "{\"pattern\": \"a|b\"}"}
        ]},
    ],
}  # fmt: skip
CANDIDATE = {
    "id": "t/0", "trajectory_id": "t", "turn": 0, "num_turns": 1, "prefix": 1,
    "demonstration": {
        "type": "function_call", "name": "grep",
        "arguments": "{\"pattern\": \"a|b\"}",
    },
}  # fmt: skip
PROFILE = {
    "candidate_id": "t/0", "policy": "p", "group_size": 4,
    "rewards": [1.0, 0.0, 0.0, 0.0], "reasons": ["none", "a", "a", "a"],
    "mean": 0.25, "variance": 0.1875,
    "completions": ["</pre><script>alert(2)</script>", "x", "y", "\ud800"],
}  # fmt: skip


def _rows(policy, wins):
  return [
      {"policy": policy, "suite": "swe", "split": "eval", "task": f"t{i}",
       "seed": 0, "success": i < wins, "turns": 4, "tokens": 50}
      for i in range(20)
  ]  # fmt: skip


def _rollout(step, text):
  return {"step": step, "candidate_id": "t/0", "sample": 0, "text": text,
          "reward": 1.0, "reason": "none", "advantage": 1.0}  # fmt: skip


def _natural(index):
  """Measured every five steps; random turns twice, once without signal."""
  if index % 5:
    return {}
  found = {"natural/norm": 0.5, "natural/predicted": 0.8,
           "natural/captured": 0.625, "natural/random_norm": index / 20}  # fmt: skip
  return found | ({"natural/random_captured": 0.75} if index else {})


@pytest.fixture
def workdir(tmp_path):
  config = swe.get_config("tiny").to_dict()
  (tmp_path / "config.json").write_text(json.dumps({"config": config}))
  pivot = {"candidate_id": "t/0", "mean": 0.25, "variance": 0.1875,
           "rule": "difficult"}  # fmt: skip
  for name, rows in {
    "trajectories": [TRAJECTORY],
    "candidates": [CANDIDATE],
    "profiles": [PROFILE],
    "pivots": [pivot],
    "rollouts": [
      _rollout(
        2, '<tool_call>{"name": "late", "arguments": {"a": "b"}}</tool_call>'
      ),
      _rollout(3, "</pre><script>alert(3)</script>"),
      _rollout(3, "</pre><script>alert(3)</script>"),
    ],
    "metrics": [
      {
        "step": i + 1,
        "rollout/reward_mean": i / 10,
        "rollout/turns_total": 100 + 16 * i,
      }
      | _natural(i)
      for i in range(10)
    ],
    "evals": _rows("base", 5) + _rows("trained", 15),
    "skipped": [{"stage": "profile", "id": "u/0", "reason": "too long"}],
  }.items():
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(lines)
  return tmp_path


def _bytes(workdir):
  return {
    str(p.relative_to(workdir)): p.read_bytes()
    for p in sorted((workdir / "report").rglob("*"))
    if p.is_file()
  }


def test_report(workdir):
  config = swe.get_config("tiny")
  write.run(config, workdir)
  first = _bytes(workdir)
  text = first["report/report.md"].decode()
  # 5 of 20 before, 15 after: ten tasks gained of twenty.
  assert "25.0 % -> 75.0 %" in text and "+50.0 points" in text
  assert "| left out by profile: too long | 1 |" in text
  assert "| pivots kept | 1 (100 %) |" in text
  # Random turns: 0 at step 1, 5 / 20 at step 6; captured at one of them.
  assert "| norm, of advantages | 0.500 (2) | 0.125 (2) |" in text
  assert "| captured share | 0.625 (2) | 0.750 (1) |" in text
  assert "| Mean reward | 0 | 0.9 | Of the step's rollouts;" in text
  html = first["report/report.html"].decode()
  assert all(f"alert({i})" in html for i in (1, 2, 3))
  # Side by side: the demonstration, the profile's and the last rollouts.
  assert "Policy in training, step 3" in html and "late(" not in html
  assert "× 2" in html and "grep(pattern=&#34;a|b&#34;)" in html
  for title in ("Mean reward of the candidates", "Mean reward over rollout"):
    assert title in html and title in text
  assert not re.search(r"<script>alert", html)
  assert not re.search(r'(src|href)="(?!data:)', html)
  assert {"report/figures/profile.png", "report/figures/reward.png",
          "report/figures/natural_norm.png",
          "report/figures/natural_captured.png",
          "report/figures/success.png"} <= set(first)  # fmt: skip
  write.run(config, workdir)
  assert _bytes(workdir) == first


def test_samples_without_a_verdict_are_counted(workdir):
  silent = {**PROFILE, "candidate_id": "t/1", "rewards": [None] * 4,
            "mean": None, "variance": None}  # fmt: skip
  some = {**PROFILE, "rewards": [1.0, 0.0, 0.0, None]}
  lines = "".join(json.dumps(row) + "\n" for row in (some, silent))
  (workdir / "profiles.jsonl").write_text(lines)
  write.run(swe.get_config("tiny"), workdir)
  text = (workdir / "report" / "report.md").read_text()
  assert "| samples without a verdict | 5 |" in text
  assert "| zero variance: all fail | 0 (0 %) |" in text
  html = (workdir / "report" / "report.html").read_text()
  assert html.count("no verdict") == 1


def test_what_is_absent_is_said(workdir):
  for name in ("metrics", "evals", "pivots", "profiles"):
    (workdir / f"{name}.jsonl").unlink()
  write.run(swe.get_config("tiny"), workdir)
  text = (workdir / "report" / "report.md").read_text()
  assert "No evaluation of a base and a trained policy here." in text
