"""`serve` over a real socket: OpenAI's calls, bad requests, many clients."""

import concurrent.futures
import contextlib
import dataclasses
import json
import socket
import time

import httpx2
import jax.numpy as jnp
import numpy as np
import pytest

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import importers
from pivotrl_jax.data import records
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import record
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import service as service_lib
from pivotrl_jax.engines.serving import text

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "What is 3 + 4?"}]
TOOLS = [
  {"type": "function", "function": {"name": "look", "parameters": {}}},
  {"type": "function", "function": {"name": "edit", "parameters": {}}},
]


@pytest.fixture
def client(served):
  with httpx2.Client(base_url=served.address, timeout=60) as client:
    yield client


def _ask(client, path=CHAT, **body):
  if path == CHAT:
    body = {"messages": HELLO, "max_tokens": 20} | body
  response = client.post(path, json=body)
  assert response.status_code == 200, response.text
  return response.json()


def _events(client, path, **body):
  with client.stream("POST", path, json=body | {"stream": True}) as response:
    lines = [line for line in response.iter_lines() if line]
  assert all(line.startswith("data: ") for line in lines)
  assert lines[-1] == "data: [DONE]"
  return [json.loads(line[len("data: ") :]) for line in lines[:-1]]


def test_a_chat_is_the_policys(served, client):
  got = _ask(
      client, temperature=0, logprobs=True, top_logprobs=3,
      return_token_ids=True, max_tokens=12,
  )  # fmt: skip
  prompt = render.prompt_ids(
    served.policy.tokenizer, [types.Message("user", HELLO[0]["content"])], ()
  )
  assert got["prompt_token_ids"] == prompt.tolist()
  (choice,) = got["choices"]
  ids = choice["token_ids"]
  assert got["usage"] == {
      "prompt_tokens": len(prompt), "completion_tokens": len(ids),
      "total_tokens": len(prompt) + len(ids),
  }  # fmt: skip
  text_of = served.policy.tokenizer.decode(ids)
  assert choice["message"]["content"] == text_of.strip("\n")
  # Greedily the token said is the likeliest, with the same log-prob.
  for told in choice["logprobs"]["content"]:
    assert len(told["top_logprobs"]) == 3
    assert told["token"] == told["top_logprobs"][0]["token"]
    assert told["logprob"] == pytest.approx(
      told["top_logprobs"][0]["logprob"], abs=1e-4
    )


def test_a_seed_decides_whoever_else_is_there(client):
  alone = _ask(client, seed=5, n=2, return_token_ids=True)
  first, second = (c["token_ids"] for c in alone["choices"])
  # Twenty tokens are three slices of eight.
  assert len(first) == 20 and first != second
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    others = list(
      pool.map(
        lambda i: _ask(
          client, seed=5 if i % 4 == 0 else i, return_token_ids=True,
          max_tokens=20 if i % 4 == 0 else 1 + i,
        ),
        range(32),
      )
    )  # fmt: skip
  for i, other in enumerate(others):
    if i % 4 == 0:
      assert other["choices"][0]["token_ids"] == first
  assert _ask(client, seed=6, return_token_ids=True)["choices"][0][
    "token_ids"
  ] not in (first, second)


def test_a_stream_says_the_same(client):
  body = {"messages": HELLO, "max_tokens": 30, "seed": 1, "n": 2}
  whole = _ask(client, **body, logprobs=True)
  events = _events(
    client, CHAT, **body, logprobs=True, stream_options={"include_usage": True}
  )
  assert events[-1]["usage"] == whole["usage"]
  for want in whole["choices"]:
    mine = [
      c for e in events for c in e["choices"] if c["index"] == want["index"]
    ]
    assert mine[0]["delta"]["role"] == "assistant"
    said = "".join(c["delta"].get("content") or "" for c in mine)
    assert said == want["message"]["content"]
    assert mine[-1]["finish_reason"] == want["finish_reason"]
    told = [t for c in mine if c["logprobs"] for t in c["logprobs"]["content"]]
    assert [t["token"] for t in told] == [
      t["token"] for t in want["logprobs"]["content"]
    ]
  # Several parts, not one at the end.
  assert len([e for e in events if e["choices"]]) > 6


def test_a_stop_ends_a_text_and_is_no_part_of_it(client):
  body = {"prompt": "once", "max_tokens": 30, "seed": 3}
  whole = _ask(client, "/v1/completions", **body)["choices"][0]["text"]
  stop = whole[9:11]
  want = whole[: whole.index(stop)]
  got = _ask(client, "/v1/completions", **body, stop=["nowhere", stop])
  assert got["choices"][0]["text"] == want
  assert got["choices"][0]["finish_reason"] == "stop"
  assert got["usage"]["completion_tokens"] < 30
  events = _events(client, "/v1/completions", **body, stop=stop)
  assert "".join(e["choices"][0]["text"] for e in events) == want


def test_echo_scores_the_prompt_as_the_trainer_does(served, client):
  ids = [5, 99, 1000, 7, 7, 321]
  got = _ask(
      client, "/v1/completions", prompt=ids, max_tokens=1, echo=True,
      logprobs=1, temperature=0, return_token_ids=True,
  )  # fmt: skip
  (choice,) = got["choices"]
  told = choice["logprobs"]
  assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
  assert len(told["tokens"]) == 7
  assert "".join(told["tokens"]) == choice["text"]
  assert told["text_offset"] == [
    len("".join(told["tokens"][:i])) for i in range(7)
  ]
  # The same by one token at a time, as the sampler sees it.
  for at in (1, 4):
    (alone,) = served.service.score(
      served.service.weights, [np.array(ids[: at + 1])], 1.0
    )
    assert told["token_logprobs"][at] == pytest.approx(
      float(alone.log_probs[at]), abs=1e-4
    )
  assert told["token_logprobs"][6] == pytest.approx(
    max(told["top_logprobs"][6].values()), abs=1e-4
  )
  nothing = _ask(
      client, "/v1/completions", prompt=ids, max_tokens=0, echo=True, logprobs=1
  )  # fmt: skip
  assert (
    nothing["choices"][0]["logprobs"]["token_logprobs"]
    == (told["token_logprobs"][:6])
  )


def test_prompts_of_a_list_are_answered_in_order(client):
  prompts = ["a", [7, 8, 9], "b"][::2] + ["c"]
  got = _ask(client, "/v1/completions", prompt=prompts, n=2, seed=1, echo=True)
  texts = [c["text"] for c in got["choices"]]
  assert [c["index"] for c in got["choices"]] == list(range(6))
  assert [t[0] for t in texts] == ["a", "a", "b", "b", "c", "c"]
  assert texts[0] != texts[1]


@pytest.mark.parametrize("choice", ["required", {"function": {"name": "edit"}}])
def test_a_required_tool_is_begun(client, choice):
  got = _ask(client, tools=TOOLS, tool_choice=choice, return_token_ids=True)
  free = _ask(client, tools=TOOLS, return_token_ids=True)
  more = len(got["prompt_token_ids"]) - len(free["prompt_token_ids"])
  assert more > 0
  # A random policy does not finish the call: what it said is shown.
  content = got["choices"][0]["message"]["content"]
  named = choice == "required" or content.startswith(
    '<tool_call>\n{"name": "edit", "arguments": '
  )
  assert content.startswith('<tool_call>\n{"name": "') and named


def test_calls_and_thoughts_are_told_apart():
  tokenizer = tokenizer_lib.load(policy_lib.MINI)
  call = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'
  whole = f"<think>\nhm\n</think>\n\nWell.\n{call}"

  def said(text_of, finish="stop", stopped=None):
    ids = tokenizer.hf.encode(text_of, add_special_tokens=False)
    return text.message(
      tokenizer, ids, stopped=stopped, finish=finish, opened=False
    )

  assert text.chat_json(said(whole), ["id0"]) == {
      "role": "assistant", "content": "Well.", "reasoning_content": "hm",
      "tool_calls": [{
          "id": "id0", "type": "function",
          "function": {"name": "look", "arguments": '{"a": 1}'},
      }],
  }  # fmt: skip
  # Malformed, or cut off: what was said, as it was said.
  assert said(call[:-3]).content == call[:-3]
  assert said(call, "length").content == call
  # What a stop string has cut is read as it is left.
  assert said(whole, stopped="Well").content == "Well"


@pytest.mark.parametrize(
  "so_far, want",
  [
    ("\nHello", "Hello"),
    ("Hello \n", "Hello"),
    ("Hello <too", "Hello"),
    ("Hello <b", "Hello <b"),
    ("a <tool_call>\n{", "a"),
    ("<think>\nhm", ""),
    ("caf\ufffd", "caf"),
  ],
)
def test_what_streams_is_final(so_far, want):
  assert text.visible(so_far) == want


BAD = [
  (CHAT, {"messages": []}, 400, "messages"),
  (CHAT, {"messages": "hi"}, 400, "messages"),
  (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, 400, "robot"),
  (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "content"),
  (
    CHAT,
    {
      "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}
      ]
    },
    400,
    "image_url",
  ),
  (CHAT, {"messages": HELLO, "n": 10**6}, 400, "n: 1000000"),
  (CHAT, {"messages": HELLO, "n": True}, 400, "n: True"),
  (CHAT, {"messages": HELLO, "max_tokens": 10**9}, 400, "context length"),
  (CHAT, {"messages": HELLO, "max_tokens": -1}, 400, "max_tokens"),
  (CHAT, {"messages": HELLO, "temperature": "hot"}, 400, "temperature"),
  (CHAT, {"messages": HELLO, "temperature": float("nan")}, 400, "temperature"),
  (CHAT, {"messages": HELLO, "seed": 10**30}, 400, "seed"),
  (CHAT, {"messages": HELLO, "stop": [""]}, 400, "stop"),
  (CHAT, {"messages": HELLO, "tools": [{"name": "x"}]}, 400, "tools"),
  (CHAT, {"messages": HELLO, "tool_choice": "required"}, 400, "tool_choice"),
  (CHAT, {"messages": HELLO, "top_logprobs": 3}, 400, "logprobs"),
  (CHAT, {"messages": HELLO, "logit_bias": {"5": 1}}, 400, "logit_bias"),
  (CHAT, {"messages": HELLO, "frobnicate": 1}, 400, "frobnicate"),
  (CHAT, {"messages": HELLO, "model": "gpt-9"}, 404, "gpt-9"),
  (
    CHAT,
    {"messages": HELLO, "stream": True, "logprobs": True, "top_logprobs": 2},
    400,
    "top_logprobs: not supported with stream",
  ),
  (
    "/v1/completions",
    {"prompt": "x", "stream": True, "echo": True},
    400,
    "echo",
  ),
  ("/v1/completions", {"prompt": [10**6]}, 400, "1000000"),
  ("/v1/completions", {"prompt": [-1]}, 400, "-1"),
  ("/v1/completions", {"prompt": []}, 400, "prompt"),
  ("/v1/completions", {"prompt": ""}, 400, "prompt"),
  ("/v1/completions", {"prompt": [[]]}, 400, "prompt"),
  ("/v1/completions", {"prompt": [5] * 2000}, 400, "context length"),
  (
    CHAT,
    {"messages": [{"role": "user", "content": "x" * 10**7}]},
    400,
    "10000000 characters",
  ),
  ("/v1/completions", {"prompt": "x", "logprobs": 10**6}, 400, "logprobs"),
  ("/generate", {"input_ids": [[5, 4096]]}, 400, "4096"),
  ("/generate", {"input_ids": []}, 400, "input_ids"),
  ("/generate", {"input_ids": [[]]}, 400, "input_ids"),
  ("/generate", {"text": "x", "sampling_params": {"heat": 1}}, 400, "heat"),
  (
    "/generate",
    {"text": "x", "sampling_params": {"stop_token_ids": [10**30]}},
    400,
    "stop_token_ids",
  ),
  (
    "/generate",
    {"text": "x", "sampling_params": {"top_k": 10**30}},
    400,
    "top_k",
  ),
  ("/generate", {"text": "x" * 10**7}, 400, "10000000 characters"),
  (
    "/generate",
    {"text": ["x"], "sampling_params": {"max_new_tokens": 8}},
    200,
    None,
  ),
  ("/update_weights_from_disk", {"model_path": "/nowhere"}, 400, "/nowhere"),
  ("/nowhere", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(
  "path, body, status, part", BAD, ids=[str(i) for i in range(len(BAD))]
)
def test_bad_requests(client, path, body, status, part):
  response = client.post(path, content=json.dumps(body))
  assert response.status_code == status, response.text
  if part:
    assert part in response.text
  if status != 200 and path != "/update_weights_from_disk":
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
  "body, part",
  [
    (b"\xff\xfe{}", "UTF-8"),
    (b'{"messages": "\\ud800"}', "UTF-8"),
    (b'{"messages": [', "JSON"),
    (b"[" * 100_000, "JSON"),
    (b"[]", "object"),
    (b"", "JSON"),
  ],
)
def test_bodies_that_are_no_json(client, body, part):
  response = client.post(CHAT, content=body)
  assert response.status_code == 400
  assert part in response.json()["error"]["message"]


def test_a_body_of_100_mb_is_not_read(client):
  def endless():
    for _ in range(100):
      yield b" " * (1 << 20)

  for body in (b" " * (100 << 20), endless()):
    with contextlib.suppress(httpx2.WriteError):  # It may hang up at once.
      assert client.post(CHAT, content=body).status_code == 413
  assert _ask(client)["choices"]


def test_a_client_that_hangs_up_frees_its_place(served, client):
  host, port = served.address.removeprefix("http://").split(":")
  body = json.dumps({"messages": HELLO, "max_tokens": 800, "n": 32}).encode()
  for stream in (b"", b"stream"):
    sent = body.replace(b'"n"', b'"stream": true, "n"') if stream else body
    with socket.create_connection((host, int(port))) as leaving:
      leaving.sendall(
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n"
        "\r\n".encode()
        + sent
      )
      end = time.monotonic() + 10
      while not served.service.scheduler.load and time.monotonic() < end:
        time.sleep(0.01)
      assert served.service.scheduler.load == 32
    while served.service.scheduler.load and time.monotonic() < end + 20:
      time.sleep(0.01)
    assert served.service.scheduler.load == 0
  assert _ask(client)["choices"]


def test_keys_open_their_own_routes(served):
  service = dataclasses.replace(served.service, key="open", admin_key="sesame")

  class Asked:
    def __init__(self, key):
      self.headers = {"authorization": f"Bearer {key}"} if key else {}

  service_lib.check_key(service, Asked("open"), admin=False)
  service_lib.check_key(service, Asked("sesame"), admin=True)
  for key, admin in (
    ("", False), ("sesame", False), ("open", True), ("opén", False),
  ):  # fmt: skip
    with pytest.raises(fields.ApiError, match="API key"):
      service_lib.check_key(service, Asked(key), admin=admin)
  closed = dataclasses.replace(served.service, changes=False)
  with pytest.raises(fields.ApiError, match="not changed from outside"):
    service_lib.check_key(closed, Asked(""), admin=True)


def test_an_exchange_imports_as_data(served, client, tmp_path):
  path = tmp_path / "record.jsonl"
  served.service.recorded = record.Record(path)
  try:
    asked = [
      *HELLO,
      {"role": "assistant", "content": "7"},
      {"role": "user", "content": "Sure?"},
    ]
    got = _ask(client, messages=asked, tools=TOOLS, return_token_ids=True)
    _events(client, CHAT, messages=HELLO, max_tokens=5)
    _ask(client, "/v1/completions", prompt="once")
  finally:
    served.service.recorded.close()
    served.service.recorded = None
  rows = [row for _, row in records.read_jsonl(path)]
  assert len(rows) == 3
  assert rows[0]["prompt_token_ids"] == got["prompt_token_ids"]
  assert rows[0]["token_ids"] == got["choices"][0]["token_ids"]
  assert len(rows[0]["log_probs"]) == len(rows[0]["token_ids"])
  found = list(importers.import_path(path, "auto"))
  assert all(isinstance(t, types.Trajectory) for t in found)
  first = found[0]
  assert first.tools == tuple(TOOLS)
  # Only the answer is a turn to train on, after the prompt it was given.
  assert [m.context for m in first.messages] == [False, True, False, False]
  assert first.messages[-1].content == got["choices"][0]["message"]["content"]
  ids = render.prompt_ids(
    served.policy.tokenizer, first.messages[:-1], first.tools
  )
  assert ids.tolist() == rows[0]["prompt_token_ids"]
  with pytest.raises(errors.InputError, match="--record"):
    record.Record(tmp_path)


def test_an_engine_that_fails_is_one_answer(served, client):
  weights, engine = served.service.weights, served.service.scheduler.engine
  engine.load({"nothing": jnp.zeros(1)}, engine.version)
  response = client.post(CHAT, json={"messages": HELLO, "max_tokens": 5})
  assert response.status_code == 500
  assert response.json()["error"]["type"] == "server_error"
  engine.load(weights, engine.version)
  assert _ask(client)["choices"]


def test_a_queue_takes_whole_calls_alone():
  full = scheduler.Scheduler(None, slice_tokens=4, batch_rows=2, queue_rows=1)
  row = scheduler.Row(np.array([1]), None, 0)
  with pytest.raises(scheduler.Full, match="expected 1 at most"):
    full.submit([row, row])
  full.submit([row], whole=True)
  assert row.call is not None and full.load == 1
