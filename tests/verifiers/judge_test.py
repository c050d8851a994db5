"""A judge behind HTTP: cached, retried, dead, babbling, swapped."""

import http.server
import json
import threading

import jax
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import jax_sampler
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.models import hf
from pivotrl_jax.models import qwen3
from pivotrl_jax.verifiers import judge as judge_lib
from pivotrl_jax.verifiers import verify

LABELS = "[[A=B]]", "[[A!=B]]"


class _Server(http.server.ThreadingHTTPServer):
  """Answers each request with the next of `replies`: a status or a text."""

  def __init__(self, replies):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.replies, self.asked = list(replies), []
    self.most, self.now, self.lock = 0, 0, threading.Lock()
    self.hold = threading.Event()
    self.hold.set()


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    server = self.server
    body = self.rfile.read(int(self.headers["Content-Length"]))
    with server.lock:
      server.asked.append(json.loads(body)["messages"][0]["content"])
      server.now += 1
      server.most = max(server.most, server.now)
      reply = server.replies.pop(0) if server.replies else "[[A=B]]"
    server.hold.wait(10)
    with server.lock:
      server.now -= 1
    status = reply if isinstance(reply, int) else 200
    answer = {"choices": [{"message": {"content": reply}}]}
    text = json.dumps(answer if status == 200 else {}).encode()
    if reply == "torn":
      text = text[:9]
    self.send_response(status)
    self.send_header("Content-Length", str(len(text)))
    self.end_headers()
    self.wfile.write(text)

  def log_message(self, *args):
    pass


@pytest.fixture
def serve():
  servers = []

  def start(*replies):
    server = _Server(replies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    servers.append(server)
    return server, f"http://127.0.0.1:{server.server_port}/v1"

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def answer(*keystrokes):
  return json.dumps(
    {
      "analysis": "a",
      "plan": "p",
      "commands": [{"keystrokes": k} for k in keystrokes],
    }
  )


def ask(judge, got="ls -la\n", setting="default", **config):
  return verify.verify(
    "terminus_judge",
    types.Action("message", answer("cat a.txt\n")),
    types.Action("message", answer(got)),
    config=config,
    setting=setting,
    row={"metadata": {"harness": "terminus_2"}},
    judge=judge,
  )


@pytest.mark.parametrize(
  ("text", "want"),
  [
    ("so [[A=B]]", True),
    ("so [[A!=B]]", False),
    ("[[A!=B]] no: [[A=B]]", True),
    ("neither", None),
    ("", None),
    (None, None),
    # Nothing in the last 200 characters: the first in the text wins.
    ("[[A!=B]] [[A=B]]" + "x" * 200, False),
    ("[[A=B]] [[A!=B]]" + "x" * 300, True),
    # In the tail the last wins, whatever stands before it.
    ("[[A=B]]" + "x" * 300 + "[[A!=B]]", False),
  ],
)
def test_verdicts(text, want):
  assert judge_lib.verdict(text, *LABELS) is want


def test_answers_are_cached_by_content(serve, tmp_path):
  server, url = serve("[[A=B]]", "[[A!=B]]")
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path)
  assert ask(judge).reward == 1.0
  assert ask(judge).reward == 1.0
  assert len(server.asked) == 1
  assert "cat a.txt" in server.asked[0] and "ls -la" in server.asked[0]
  # Another candidate is another question, also for a judge made anew.
  assert ask(judge_lib.Endpoint(url, "m", cache=tmp_path), "pwd\n").reward == 0
  assert len(server.asked) == 2
  assert ask(judge_lib.Endpoint(url, "m", cache=tmp_path)).reward == 1.0
  assert len(server.asked) == 2


def test_both_orders(serve, tmp_path):
  server, url = serve("[[A=B]]", "[[A!=B]]")
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path)
  verdict = ask(judge, check_twice_swap=True, reward_if_swap_fails=0.25)
  assert verdict.reward == 0.25
  assert verdict.details["judge_calls"] == 2
  first, second = server.asked
  assert first.index("cat a.txt") < first.index("ls -la")
  assert second.index("ls -la") < second.index("cat a.txt")


def test_passing_failures_are_retried(serve, tmp_path):
  server, url = serve(503, 429, "[[A=B]]")
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path, retries=2)
  assert ask(judge).reward == 1.0
  assert len(server.asked) == 3


@pytest.mark.parametrize("reply", [404, "torn", 7])
def test_a_judge_that_fails_gives_no_reward(serve, tmp_path, reply):
  server, url = serve(reply)
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path, retries=0)
  verdict = ask(judge)
  assert (verdict.reward, verdict.reason) == (None, "judge_unavailable")
  assert len(server.asked) == 1
  assert not list(tmp_path.iterdir())  # No answer to keep.


@pytest.mark.parametrize("setting", verify.SETTINGS)
def test_a_dead_judge_gives_no_reward(tmp_path, setting):
  judge = judge_lib.Endpoint(
    "http://127.0.0.1:9/v1", "m", cache=tmp_path, retries=1, timeout=1
  )
  verdict = ask(judge, setting=setting)
  assert (verdict.reward, verdict.reason) == (None, "judge_unavailable")
  assert "ConnectError" in verdict.details["judge_error"]
  verdict = ask(judge, setting=setting, judge_fallback_reward=0.5)
  assert (verdict.reward, verdict.reason) == (0.5, "judge_unavailable")


def test_a_slow_judge_is_given_up(serve, tmp_path):
  server, url = serve("[[A=B]]")
  server.hold.clear()
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path, retries=0, timeout=0.2)
  assert ask(judge).reason == "judge_unavailable"
  server.hold.set()


@pytest.mark.parametrize(
  ("setting", "fallback", "want"),
  # The original scores an answer without a label 0.
  [("default", None, None), ("compat", None, 0.0),
   ("default", 0.5, 0.5), ("compat", 0.5, 0.5)],
)  # fmt: skip
def test_a_babbling_judge_gives_no_reward(
  serve, tmp_path, setting, fallback, want
):
  server, url = serve("well, well")
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path)
  verdict = ask(judge, setting=setting, judge_fallback_reward=fallback)
  assert (verdict.reward, verdict.reason) == (want, "judge_parsing_failed")
  # It is asked again: that was no answer to keep.
  assert ask(judge, setting=setting).reward == 1.0
  assert len(server.asked) == 2


def test_a_judge_that_babbles_in_the_other_order_gives_no_reward(
  serve, tmp_path
):
  server, url = serve("[[A=B]]", "hm", "[[A=B]]")
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path)
  verdict = ask(judge, check_twice_swap=True)
  assert (verdict.reward, verdict.reason) == (None, "judge_swap_parsing_failed")
  assert ask(judge, check_twice_swap=True).reward == 1.0
  assert len(server.asked) == 3  # The first order's answer was kept.


def test_requests_at_once_are_bounded(serve, tmp_path):
  server, url = serve()
  server.hold.clear()
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path, concurrency=2)
  threads = [
    threading.Thread(target=judge, args=(f"question {i}",)) for i in range(6)
  ]
  for thread in threads:
    thread.start()
  server.hold.set()
  for thread in threads:
    thread.join()
  assert len(server.asked) == 6
  assert server.most <= 2


def test_lone_surrogates_can_be_asked_about(serve, tmp_path):
  server, url = serve()
  judge = judge_lib.Endpoint(url, "m", cache=tmp_path)
  assert ask(judge, "echo \ud800\n").reward == 1.0
  assert len(server.asked) == 1


def test_similar_answers_need_no_judge():
  verdict = ask(None, "cat a.txt\n", enable_string_similarity=True)
  assert verdict.reward == 1.0
  with pytest.raises(errors.InputError, match="without a judge"):
    ask(None, enable_string_similarity=True)


def test_our_own_engine_can_judge():
  """The mini policy knows no labels: it babbles, and that is no verdict."""
  path = policy_lib.MINI
  config_json = hf.read_config(path)
  engine = jax_sampler.JaxSampler(qwen3.config_from_hf(config_json))
  engine.load(jax.device_put(hf.load_params(path, config_json)), "mini")
  judge = judge_lib.FromEngine(engine, tokenizer_lib.load(path), max_tokens=8)
  verdict = ask(judge)
  assert (verdict.reward, verdict.reason) in (
    (None, "judge_parsing_failed"), (0.0, "judge_not_equivalent")
  )  # fmt: skip
