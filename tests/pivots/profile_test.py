"""Profiling with a judge that dies, behind a real socket."""

import http.server
import json
import threading

import numpy as np
import pytest

from configs import terminal
from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import records
from pivotrl_jax.engines import base
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.pivots import profile
from pivotrl_jax.pivots import select

TOKENIZER = tokenizer_lib.load(policy_lib.MINI)


def reply(keystrokes):
  return json.dumps(
    {"analysis": "a", "plan": "p", "commands": [{"keystrokes": keystrokes}]}
  )


class _Judge(http.server.ThreadingHTTPServer):
  """Says that "ls 0" and "ls 1" are right; `answers` bounds how often."""

  def __init__(self, answers, silence):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.answers, self.silence, self.asked = answers, silence, 0
    self.url = f"http://127.0.0.1:{self.server_port}/v1"
    threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    question = json.loads(body)["messages"][0]["content"]
    server = self.server
    server.asked += 1
    status, text = 200, "hm"
    if server.asked <= server.answers:
      right = "ls 0" in question or "ls 1" in question
      text = "[[A=B]]" if right else "[[A!=B]]"
    elif server.silence == "dead":
      status = 500
    answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  def log_message(self, *args):
    pass


@pytest.fixture
def judge():
  servers = []

  def start(answers, silence="dead"):
    servers.append(_Judge(answers, silence))
    return servers[-1]

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


class _Engine:
  """Answers `ls 0`, `ls 1`, ... row by row, and counts its calls."""

  def __init__(self):
    self.calls, self.stats = 0, jax_sampler.Stats()

  def prepare(self, *args, **kwargs):
    pass

  def sample(self, prompts, sampling, seeds):
    del sampling
    self.calls += 1
    out = []
    for row, _ in enumerate(list(seeds)):
      text = reply(f"ls {row % 4}\n") + "<|im_end|>"
      ids = np.array(
        TOKENIZER.hf.encode(text, add_special_tokens=False), np.int32
      )
      out.append(base.Completion(ids, np.zeros(len(ids), np.float32), "stop"))
    assert len(prompts) == len(out)
    return out


def _workdir(path, count=3):
  """`count` trajectories of one turn each."""
  messages = (
    types.Message("user", "Look around."),
    types.Message("assistant", reply("cat a.txt\n")),
  )
  trajectories = [
    types.Trajectory(
      f"t{i}", "terminal", "s", "k", 1.0, True, (), messages,
      {"metadata": {"harness": "terminus_2"}},
    )
    for i in range(count)
  ]  # fmt: skip
  action = types.action_of(messages[1])
  candidates = [
    types.Candidate(f"t{i}/0", f"t{i}", 0, 1, 1, action) for i in range(count)
  ]
  path.mkdir()
  records.write_jsonl(
    path / "trajectories.jsonl", map(records.trajectory_to_json, trajectories)
  )
  records.write_jsonl(
    path / "candidates.jsonl", map(records.candidate_to_json, candidates)
  )
  return path


def _config(judge, **changes):
  config = terminal.get_config("tiny")
  config.verifier.terminus_judge.enable_llm_judge = True
  config.verifier.terminus_judge.enable_string_similarity = False
  config.verifier.terminus_judge.check_twice_swap = False
  config.verifier.judge.update(
    {"url": judge.url, "model": "m", "concurrency": 1, "retries": 0}
  )
  config.profile.trajectories_per_batch = 1
  config.update_from_flattened_dict(changes)
  return config


def _run(config, workdir, engine):
  return profile.profile_all(config, workdir, TOKENIZER, "v", lambda: [engine])


def _rows(path):
  return [row for _, row in records.read_jsonl(path)]


@pytest.mark.parametrize("silence", ["dead", "babble"])
def test_a_judge_that_dies_half_way(judge, tmp_path, silence):
  """It stops, keeps what it has, and ends as if nothing had been."""
  whole = _workdir(tmp_path / "whole")
  assert _run(_config(judge(99)), whole, _Engine())
  want = (whole / "profiles.jsonl").read_bytes()
  workdir = _workdir(tmp_path / "w")
  server, engine = judge(2, silence), _Engine()
  with pytest.raises(errors.InputError) as stopped:
    _run(_config(server), workdir, engine)
  line = str(stopped.value)
  assert "no verdict on 2 of 4 samples" in line and "\n" not in line
  assert "config.verifier.judge.most_failed=0.1" in line
  assert not (workdir / "profiles.jsonl").exists()
  [row] = _rows(workdir / "profiles.jsonl.partial")
  # ls 0 and ls 1 are right; of the two others nothing is known.
  assert row["rewards"] == [1.0, 1.0, None, None]
  assert (row["mean"], row["variance"]) == (1.0, 0.0)
  # Still down: nothing is sampled, nothing lost.
  with pytest.raises(errors.InputError, match="no verdict on 2 of 4"):
    _run(_config(server), workdir, engine)
  assert engine.calls == 1
  server.answers = 99
  assert _run(_config(server), workdir, engine)
  assert engine.calls == 3  # The two other candidates.
  assert (workdir / "profiles.jsonl").read_bytes() == want
  assert not (workdir / "profiles.jsonl.partial").exists()


def test_a_few_missing_are_left_out_and_had_on_the_next_start(
  judge, tmp_path, caplog
):
  workdir = _workdir(tmp_path / "w", count=1)
  server, engine = judge(1), _Engine()
  config = _config(server, **{"verifier.judge.most_failed": 0.75})
  with caplog.at_level("INFO"):
    assert _run(config, workdir, engine) is False
  assert "3 samples without a verdict are left out" in caplog.text
  [row] = _rows(workdir / "profiles.jsonl")
  assert row["rewards"] == [1.0, None, None, None]
  server.answers = 99
  assert _run(config, workdir, engine)
  assert engine.calls == 1
  [row] = _rows(workdir / "profiles.jsonl")
  # Two of four: mean 1/2, variance 1/4.
  assert row["rewards"] == [1.0, 1.0, 0.0, 0.0]
  assert (row["mean"], row["variance"]) == (0.5, 0.25)
  assert row["reasons"][2:] == ["judge_not_equivalent"] * 2


def test_after_training_began_a_profile_stays(judge, tmp_path):
  """Its pivots must not change under a run that goes on."""
  workdir = _workdir(tmp_path / "w", count=1)
  server, engine = judge(1), _Engine()
  config = _config(server, **{"verifier.judge.most_failed": 1.0})
  assert _run(config, workdir, engine) is False
  (workdir / "checkpoints").mkdir()
  before = (workdir / "profiles.jsonl").read_bytes()
  server.answers = 99
  assert profile.run(config, workdir)
  assert (workdir / "profiles.jsonl").read_bytes() == before
  assert server.asked == 4


def test_a_candidate_without_any_verdict_is_no_pivot(judge, tmp_path):
  workdir = _workdir(tmp_path / "w", count=1)
  changes = {"verifier.judge.most_failed": 1.0, "select": "random"}
  config = _config(judge(0), **changes)
  assert _run(config, workdir, _Engine()) is False
  [row] = _rows(workdir / "profiles.jsonl")
  assert (row["mean"], row["variance"]) == (None, None)
  with pytest.raises(
    errors.InputError, match=r"\(1 no_verdict\).*config.verifier.judge.url"
  ):
    select.run(config, workdir)


def test_prompts_that_all_are_too_long_are_known_before(judge, tmp_path):
  workdir, engine = _workdir(tmp_path / "w"), _Engine()
  config = _config(judge(99), **{"data.max_prompt_tokens": 3})
  with pytest.raises(errors.InputError) as stopped:
    _run(config, workdir, engine)
  assert "config.data.max_prompt_tokens: 3; expected at least" in str(
    stopped.value
  )
  assert "of 3 candidates" in str(stopped.value)
  assert engine.calls == 0


def test_demonstrations_that_all_are_too_long_are_said_before(
  judge, tmp_path, caplog
):
  workdir = _workdir(tmp_path / "w")
  config = _config(judge(99), **{"rollout.max_tokens": 2})
  with caplog.at_level("WARNING"):
    _run(config, workdir, _Engine())
  assert "config.rollout.max_tokens=2 is less than" in caplog.text
  assert "of 3 demonstrations" in caplog.text


def test_the_warm_starts_trajectories_are_profiled_where_they_are_reused(
  tmp_path,
):
  config, workdir = terminal.get_config("tiny"), _workdir(tmp_path / "w")

  def names():
    return [g[0].trajectory_id for g in profile._work(config, workdir)]

  config.profile.trajectories = 0
  config.warm_start.trajectories = 2
  assert names() == ["t0", "t1", "t2"]
  config.warm_start.steps = 1
  assert names() == ["t2"]
  config.warm_start.reuse = True
  assert names() == ["t0", "t1", "t2"]
