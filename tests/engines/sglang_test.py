"""The client of SGLang: against our server, faults, and a recorded exchange."""

import dataclasses
import json
import pathlib

import httpx2
import jax
import numpy as np
import pytest

from pivotrl_jax import config_check
from pivotrl_jax import errors
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines import handover
from pivotrl_jax.engines import policy as policy_lib
from pivotrl_jax.engines import sglang
from tests.engines import conftest

ROOT = pathlib.Path(__file__).parent.parent.parent
RECORDED = ROOT / "tests" / "testdata" / "sglang_exchange.json"
SAMPLING = base.SamplingParams(max_tokens=9, stop_ids=(0, 2))


def _reply(ids, log_probs, *, finish="length", version="v"):
  return {
    "text": "",
    "output_ids": ids,
    "meta_info": {
      "finish_reason": {"type": finish},
      "weight_version": version,
      "weight_versions": [{"version": version, "start": 0, "end": len(ids)}],
      "output_token_logprobs": [
        [x, i, None] for x, i in zip(log_probs, ids, strict=True)
      ],
    },
  }


def _answering(answer):
  """An endpoint whose server is a function of the request."""
  return endpoint.Endpoint(
    "http://test", timeout=5, transport=httpx2.MockTransport(answer)
  )


def _generate(calls):
  prompts = [np.array([5, 6]), np.array([7])]
  return calls.generate(
    prompts, dataclasses.replace(SAMPLING, max_tokens=2), [1, 2], vocab_size=10
  )


def test_a_row_has_its_own_seed_and_comes_back_to_the_bit():
  seen = []
  value = float(np.float32(-0.1))

  def answer(request):
    seen.append(json.loads(request.content))
    return httpx2.Response(
      200,
      json=[_reply([3, 4], [value, -2.5]), _reply([9], [-1.0], finish="stop")],
    )

  first, second = _generate(_answering(answer))
  assert first.ids.tolist() == [3, 4] and first.finish == "length"
  assert first.log_probs.dtype == np.float32
  assert first.log_probs[0] == np.float32(-0.1)
  assert second.finish == "stop" and second.version == "v"
  (body,) = seen
  assert body["input_ids"] == [[5, 6], [7]]
  assert [s["sampling_seed"] for s in body["sampling_params"]] == [1, 2]
  assert len(set(body["rid"])) == 2
  assert body["sampling_params"][0] == {
      "max_new_tokens": 2, "stop_token_ids": [0, 2], "ignore_eos": False,
      "temperature": 1.0, "top_p": 1.0, "top_k": -1, "sampling_seed": 1,
      "skip_special_tokens": False,
  }  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_seeds_travel_as_signed_numbers(seed):
  assert -(1 << 63) <= endpoint.signed(seed) < 1 << 63
  assert endpoint.unsigned(endpoint.signed(seed)) == seed


def _changed(**changes):
  reply = _reply([3, 4], [-1.0, -2.0])
  meta = {k: v for k, v in changes.items() if k in reply["meta_info"]}
  return reply | {
    **{k: v for k, v in changes.items() if k in reply},
    "meta_info": reply["meta_info"] | meta,
  }


GOOD = _reply([3, 4], [-1.0, -2.0])


@pytest.mark.parametrize(
  "response, passing, part",
  [
    (httpx2.Response(500, text="oops"), True, "500 oops"),
    (httpx2.Response(429, text="full"), True, "429"),
    (httpx2.Response(503), True, "503"),
    (httpx2.Response(400, text="too long"), False, "400 too long"),
    (httpx2.Response(401), False, "401"),
    (httpx2.Response(200, text='[{"text": "ha'), True, "no JSON"),
    (httpx2.Response(200, json=[GOOD]), True, "1 completions; expected 2"),
    (httpx2.Response(200, json={"text": ""}), True, "expected 2"),
    (httpx2.Response(200, json=[GOOD, {}]), True, "meta_info"),
    (
      httpx2.Response(200, json=[GOOD, _changed(output_ids=[3])]),
      True,
      "not of",
    ),
    (
      httpx2.Response(200, json=[GOOD, _reply([3, 10], [-1, -1])]),
      True,
      "vocabulary of 10",
    ),
    (
      httpx2.Response(200, json=[GOOD, _reply([3], [-1.0])]),
      True,
      "cut off after 1 tokens of 2",
    ),
    (httpx2.Response(200, json=[GOOD, _reply([], [])]), True, "0 tokens"),
    (
      httpx2.Response(200, json=[GOOD, _reply([1] * 3, [-1.0] * 3)]),
      True,
      "3 tokens",
    ),
    (
      httpx2.Response(
        200,
        text=json.dumps([GOOD, _reply([1, 1], [-1.0, float("nan")])]),
      ),
      True,
      "not finite",
    ),
    (
      httpx2.Response(200, json=[GOOD, _reply([1], [-1.0], finish="abort")]),
      True,
      "abort",
    ),
  ],
)
def test_what_is_wrong_with_an_answer(response, passing, part):
  with pytest.raises(endpoint.Failure, match=part) as caught:
    _generate(_answering(lambda _: response))
  assert caught.value.passing == passing
  assert "http://test" in str(caught.value)


def test_who_is_not_there_may_come():
  calls = endpoint.Endpoint(
    f"http://127.0.0.1:{conftest.free_port()}", timeout=5
  )
  assert not calls.ready()
  with pytest.raises(endpoint.Failure, match="ConnectError") as caught:
    _generate(calls)
  assert caught.value.passing


def test_an_answer_across_an_update_names_both_versions():
  reply = _reply([3, 4], [-1.0, -2.0])
  reply["meta_info"]["weight_versions"] = [
    {"version": "a", "start": 0, "end": 1},
    {"version": "b", "start": 1, "end": 2},
  ]
  calls = _answering(lambda _: httpx2.Response(200, json=[GOOD, reply]))
  assert [c.version for c in _generate(calls)] == ["v", "a, b"]


@pytest.mark.parametrize(
  "info, part",
  [
    ({"version": "0.5.23", "enable_deterministic_inference": True}, None),
    ({"version": "0.6.0", "enable_deterministic_inference": True}, None),
    ({"pivotrl_jax": True}, None),
    ({"version": "0.5.20", "enable_deterministic_inference": True}, "0.5.22"),
    ({"version": "0.5.23"}, "--enable-deterministic-inference"),
    ({}, "SGLang None"),
  ],
)
def test_the_server_is_looked_at_first(info, part):
  found = endpoint.check_info(info, "http://test")
  assert (found is None) == (part is None)
  assert part is None or part in found


def _completion(ids, log_probs):
  return base.Completion(
    np.array(ids, np.int32), np.array(log_probs, np.float32), "length"
  )


def test_a_tie_decided_otherwise_is_no_gap():
  want = _completion([1, 2, 3], [-1.0, -0.5, -2.0])
  assert handover.gap(want, want) == 0
  # The second tokens are as likely; what follows another past is no matter.
  tie = _completion([1, 7, 9], [-1.0, -0.5, -9.0])
  assert handover.gap(tie, want) == 0
  far = _completion([1, 2, 3], [-1.0, -0.5, -2.25])
  assert handover.gap(far, want) == 0.25
  assert handover.same(want, want) and not handover.same(tie, want)


def test_a_trajectory_goes_to_one_server():
  a, b, c = np.arange(1, 9), np.arange(20, 26), np.array([1, 9])
  prompts = [a[:2], b, a, c, a[:5], b, a]
  # Families: a's prefixes (rows 0 2 4 6), c (3), b (1 5); 7 rows, two servers:
  # the first takes the families that begin before row 3.5.
  assert sglang.parts(prompts, 2, 100) == [(0, [0, 2, 4, 6]), (1, [1, 3, 5])]
  assert sglang.parts(prompts, 1, 100) == [(0, list(range(7)))]
  cut = sglang.parts(prompts, 1, 3)
  assert sorted(i for _, rows in cut for i in rows) == list(range(7))
  assert max(len(rows) for _, rows in cut) == 3


def _engine(policy, address, folder, **knobs):
  config = conftest.config_of(policy.path)
  config.engine.name = "sglang"
  config.engine.urls = address
  config.engine.weights = str(folder)
  config.engine.update(knobs)
  config_check.check(config)
  return policy_lib.engine(policy, config)


def test_over_http_as_in_this_process(served, tmp_path, caplog):
  """The same rows and log-probs, to the bit; hand-overs are verified."""
  policy, calls = served.policy, served.service.scheduler
  inside = policy_lib.engine(policy, conftest.config_of(policy.path))
  outside = _engine(policy, served.address, tmp_path / "w")
  rng = np.random.default_rng(0)
  trunk = rng.integers(1, 2000, 60)
  prompts = [trunk[:n] for n in (60, 60, 60, 40, 40, 5)] + [trunk[5:30]] * 6
  seeds = [int(x) for x in rng.integers(0, 1 << 64, 12, dtype=np.uint64)]
  before = calls.engine
  for step in range(2):
    params = jax.tree.map(lambda x, s=step: x * (1 + 0.1 * s), policy.params)
    for engine in (inside, outside):
      engine.load(params, f"step {step}")
      engine.prepare([60], SAMPLING, prompts=8, rows=6)
    pairs = zip(
      inside.sample(prompts, SAMPLING, seeds),
      outside.sample(prompts, SAMPLING, seeds),
      strict=True,
    )
    for one, other in pairs:
      assert one.version == other.version == f"step {step}"
      np.testing.assert_array_equal(one.ids, other.ids)
      np.testing.assert_array_equal(one.log_probs, other.log_probs)
      assert one.finish == other.finish
    assert outside.stats.sampled_tokens == inside.stats.sampled_tokens
    assert outside.stats.prompt_tokens == inside.stats.prompt_tokens
  assert calls.engine is before and calls.engine.version == "step 1"
  # One folder of weights is left.
  assert [p.name for p in (tmp_path / "w").iterdir()] == ["step-1"]
  with pytest.raises(ValueError, match="expected ids from 0 to 2047"):
    outside.sample([np.array([2048])], SAMPLING, [0])
  outside.load(policy.params, policy.version)


def test_weights_that_do_not_arrive_are_one_line(served, tmp_path, monkeypatch):
  policy = served.policy
  engine = _engine(policy, served.address, tmp_path, retries=1)
  service, load = served.service, served.service.load
  moved = jax.tree.map(lambda x: 1.1 * x, policy.params)
  # A server that says so, but keeps what it had.
  service.load = lambda path: service.weights
  with pytest.raises(errors.EngineError, match="from the trainer's"):
    engine.load(moved, "moved")
  # Broken on the way: one tensor of the old weights among the new.
  service.load = lambda path: load(path) | {"norm": policy.params["norm"]}
  with pytest.raises(errors.EngineError, match="broken weights"):
    engine.load(moved, "moved again")
  # Weights that moved by less than the tolerance, on a server that did not.
  service.load = load
  engine = _engine(policy, served.address, tmp_path, retries=0, tolerance=10.0)
  service.load = lambda path: jax.device_put(policy.params)
  wide = jax.tree.map(lambda x: 3.0 * x, policy.params)
  with pytest.raises(errors.EngineError, match="answers as before"):
    engine.load(wide, "wide")
  service.load = load
  engine.load(policy.params, policy.version)
  assert engine.sample([np.array([5])], SAMPLING, [0])


def test_memory_is_released_and_taken_again(served, tmp_path):
  engine = _engine(served.policy, served.address, tmp_path)
  (want,) = engine.sample([np.array([5, 6])], SAMPLING, [3])
  engine.release()
  assert served.service.weights is None
  response = httpx2.post(
    served.address + "/v1/completions", json={"prompt": "x"}
  )
  assert response.status_code == 503
  with pytest.raises(ValueError, match="call load"):
    engine.sample([np.array([5])], SAMPLING, [0])
  engine.load(served.policy.params, served.policy.version)
  (got,) = engine.sample([np.array([5, 6])], SAMPLING, [3])
  np.testing.assert_array_equal(got.log_probs, want.log_probs)


def _recorded():
  """Replays what SGLang 0.5.23 answered to these requests, in their order."""
  rows = iter(json.loads(RECORDED.read_text()))

  def answer(request):
    row = next(rows)
    body = json.loads(request.content) if request.content else None
    if body and "rid" in body:
      assert all(isinstance(rid, str) for rid in body["rid"])
      body["rid"] = "any"
    assert (request.method, request.url.path) == (row["method"], row["path"])
    assert body == row["body"]
    if isinstance(row["answer"], str):
      return httpx2.Response(row["status"], text=row["answer"])
    return httpx2.Response(row["status"], json=row["answer"])

  return _answering(answer)


def test_a_real_exchange(tmp_path):
  """Recorded on SGLang's own CPU server with the mini policy."""
  calls, mini = _recorded(), policy_lib.load(policy_lib.MINI)
  size = mini.config.vocab_size
  assert calls.ready()
  assert endpoint.check_info(calls.info(), "http://test") is None
  assert calls.weight_version() == "start"
  with pytest.raises(endpoint.Failure, match="400.*/nowhere") as caught:
    calls.update_weights("/nowhere", "step 0", abort=False)
  assert not caught.value.passing
  calls.update_weights("MODEL", "step 1", abort=True)
  assert calls.weight_version() == "step 1"
  (greedy,) = calls.generate(
    [handover.prompt(size)], handover.GREEDY, [0], vocab_size=size
  )
  writer = handover.Writer(
      tmp_path, config=mini.config, hf_config=mini.hf_config,
      tokenizer=mini.path, dtype="float32", attention="auto",
  )  # fmt: skip
  assert handover.gap(greedy, writer.answer(mini.params, "")) < 1e-4
  # Which country has the capital Lima? And five to choose from.
  prompt = [
    1, 275, 201, 998, 1336, 561, 293, 565, 1531, 33, 201, 35, 28, 584, 302, 91,
    67, 201, 36, 28, 491, 503, 67, 201, 37, 28, 1905, 1133, 201, 38, 28, 441,
    262, 87, 201, 39, 28, 408, 260, 357, 67, 2, 201, 1, 282, 201,
  ]  # fmt: skip
  sampling = base.SamplingParams(max_tokens=6, stop_ids=(0, 2), temperature=0.6)
  first, second, third = calls.generate(
    [np.array(prompt), np.array(prompt), np.array(prompt[:9])],
    sampling,
    [1, 2, (1 << 64) - 1],
    vocab_size=size,
  )
  # A letter each, with the stop token at its end; the third was cut off.
  assert mini.tokenizer.decode(first.ids) == "E<|im_end|>"
  assert mini.tokenizer.decode(second.ids) == "C<|im_end|>"
  assert first.finish == second.finish == "stop" and third.finish == "length"
  assert first.log_probs[0] == np.float32(-1.6545674800872803)
  with pytest.raises(endpoint.Failure, match="400.*temperature"):
    calls.generate(
      [np.array(prompt)],
      dataclasses.replace(sampling, max_tokens=4, temperature=-1.0),
      [0],
      vocab_size=size,
    )
