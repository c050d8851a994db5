"""An LLM as judge: are two terminal answers functionally equivalent?

A judge is a callable from the question to the text of its answer, None where
it said nothing. `Unavailable` means that it could not be asked. Answers are
cached by content, one small file each.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import itertools
import json
import os
import pathlib
import tempfile
import threading
from typing import Any

import httpx2
import tenacity

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.chat import parse
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base

Judge = Callable[[str], str | None]

KEY_VARIABLE = "PIVOTRL_JUDGE_KEY"  # Environment variable of the token.
_TAIL = 200  # Characters in which a verdict counts first.
_RUBRIC = """You compare two answers of a terminal agent at the same point of \
the same task. GOLD is known to be good. Decide whether CANDIDATE would do \
for the task what GOLD does.

They are equivalent if all of these hold:
1. Both take the same kind of step: explore, write, execute or verify.
2. Both do the same type of action on the same things.
3. Neither does much more or less: at most half as much again.
4. What changes on the machine, or is learnt from it, is the same.
Other flags, tools, wording, waiting times or cosmetics make no difference.

Think briefly, then end with exactly one of {equal} or {different}.

GOLD:
{gold}

CANDIDATE:
{candidate}
"""


class Unavailable(Exception):
  """The judge could not be asked: transport, status or a torn answer."""


def question(gold: str, candidate: str, equal: str, different: str) -> str:
  """What a judge is asked; lone surrogates cannot be sent and are replaced."""
  text = _RUBRIC.format(
    equal=equal, different=different, gold=gold, candidate=candidate
  )
  return text.encode("utf-8", "replace").decode("utf-8")


def verdict(text: str | None, equal: str, different: str) -> bool | None:
  """What an answer says; None where it says neither.

  Of the last 200 characters the label that comes last wins; where neither
  is there, the label that comes first in the whole text.
  """
  if text is None:
    return None
  tail = text[-_TAIL:]
  last = tail.rfind(equal), tail.rfind(different)
  if max(last) >= 0:
    return last[0] > last[1]
  first = text.find(equal), text.find(different)
  if max(first) < 0:
    return None
  return first[0] >= 0 and (first[1] < 0 or first[0] < first[1])


def ask(
  judge: Judge | None,
  gold: str,
  candidate: str,
  config: Mapping[str, Any],
  details: Mapping[str, Any],
  setting: str,
) -> types.Verdict:
  """The judge's verdict, in both orders where `check_twice_swap` says so.

  A judge that cannot be asked, or that says neither label, gives no reward,
  unless `judge_fallback_reward` is set. In "compat" an answer without a label
  is 0, as in the original, which scores no rollout whose judge failed.

  Args:
    judge: who is asked.
    gold, candidate: the two answers.
    config: the terminus options.
    details: findings so far, handed on.
    setting: "default" or "compat".

  Raises:
    InputError: no judge.
  """
  if judge is None:
    raise errors.InputError(
      "verifier: enable_llm_judge without a judge; expected"
      " --config.verifier.judge.url, or --config.verifier.terminus_judge.enable_llm_judge=False"
    )
  labels = config["judge_equal_label"], config["judge_not_equal_label"]
  orders = [(gold, candidate, "judge_parsing_failed")]
  if config["check_twice_swap"]:
    orders.append((candidate, gold, "judge_swap_parsing_failed"))
  without = config["judge_fallback_reward"]
  babbled = 0.0 if without is None and setting == "compat" else without
  for i, (left, right, babble) in enumerate(orders):
    found = {**details, "judge_calls": i + 1}
    try:
      equal = verdict(judge(question(left, right, *labels)), *labels)
    except Unavailable as error:
      found["judge_error"] = str(error)
      return types.Verdict(without, "judge_unavailable", found)
    if equal is None:
      return types.Verdict(babbled, babble, found)
    if not equal:
      reward = config["reward_if_swap_fails"] if i else 0.0
      return types.Verdict(reward, "judge_not_equivalent", found)
  return types.Verdict(1.0, "none", found)


class Endpoint:
  """A judge behind an OpenAI-compatible chat endpoint."""

  def __init__(
    self,
    url: str,
    model: str,
    *,
    cache: pathlib.Path,
    key: str = "",
    timeout: float = 60.0,
    retries: int = 3,
    concurrency: int = 8,
    max_tokens: int = 1024,
    labels: Sequence[str] = ("[[A=B]]", "[[A!=B]]"),
  ):
    """Asks nothing yet.

    Args:
      url: base address, ending in /v1 as a rule.
      model: its name there.
      cache: folder of answers, made where missing.
      key: bearer token; "" sends none.
      timeout: seconds an attempt may take.
      retries: further attempts after transport errors, 429 and 5xx.
      concurrency: most requests at once.
      max_tokens: of an answer.
      labels: an answer without any of them is no verdict and is not kept, so
        that the question will be asked again.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    self._client = httpx2.Client(
      base_url=url.rstrip("/"), headers=headers, timeout=timeout
    )
    self._model, self._cache = model, cache
    self._max_tokens, self._labels = max_tokens, tuple(labels)
    self._slots = threading.BoundedSemaphore(concurrency)
    self._post = tenacity.Retrying(
      stop=tenacity.stop_after_attempt(retries + 1),
      wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
      retry=tenacity.retry_if_exception(_passing),
      reraise=True,
    ).wraps(self._once)
    cache.mkdir(parents=True, exist_ok=True)

  def __call__(self, text: str) -> str | None:
    body = {
      "model": self._model,
      "messages": [{"role": "user", "content": text}],
      "temperature": 0.0,
      "max_tokens": self._max_tokens,
    }
    name = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    path = self._cache / f"{name}.json"
    if path.exists():
      kept = json.loads(path.read_text())["answer"]
      if self._decides(kept):
        return kept
    with self._slots:
      try:
        answer = self._post(body)
      except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    if self._decides(answer):
      _store(path, {"answer": answer})
    return answer

  def _decides(self, answer):
    return answer is not None and any(x in answer for x in self._labels)

  def _once(self, body):
    response = self._client.post("/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()["choices"][0]["message"]["content"]
    if not isinstance(answer, str | None):
      raise TypeError(f"content is {type(answer).__name__}; expected text")
    return answer


class FromEngine:
  """A judge that is a policy of ours, asked greedily, one at a time."""

  def __init__(
    self,
    engine: base.Engine,
    tokenizer: tokenizer_lib.Tokenizer,
    max_tokens: int = 1024,
  ):
    self._engine, self._tokenizer = engine, tokenizer
    self._sampling = base.SamplingParams(
      max_tokens, tokenizer.stop_ids, temperature=0.0
    )
    self._lock = threading.Lock()

  def __call__(self, text: str) -> str | None:
    ids = render.prompt_ids(self._tokenizer, (types.Message("user", text),), ())
    with self._lock:
      [completion] = self._engine.sample([ids], self._sampling, [0])
    _, said = parse.read(
      self._tokenizer,
      completion,
      opened=render.opens_thinking(self._tokenizer, ids),
    )
    return said.content if isinstance(said, types.Message) else None


def _passing(error):
  """Whether another attempt may fare better."""
  if isinstance(error, httpx2.HTTPStatusError):
    return error.response.status_code in (408, 425, 429, 500, 502, 503, 504)
  return isinstance(error, httpx2.TransportError)


def _store(path, value):
  """A file that is there whole or not at all, whoever else writes it."""
  handle, temporary = tempfile.mkstemp(dir=path.parent)
  with os.fdopen(handle, "w") as file:
    json.dump(value, file)
  os.replace(temporary, path)


def stub(spec: Mapping[str, Any]) -> Judge:
  """A judge that says what a scoring case tells it to, call by call.

  Args:
    spec: `mode` is always_equal, always_different, error, `texts` (one a
      call) or `outputs` (the output items of each call).

  Raises:
    InputError: an unknown mode.
  """
  mode = spec.get("mode")
  if mode == "always_equal":
    answers = itertools.repeat("[[A=B]]")
  elif mode == "always_different":
    answers = itertools.repeat("[[A!=B]]")
  elif mode == "texts":
    answers = iter(spec["texts"])
  elif mode == "outputs":
    answers = (_last_text(items) for items in spec["outputs"])
  elif mode == "error":
    answers = iter(())
  else:
    raise errors.InputError(
      f"judge.mode: {mode!r}; expected always_equal, always_different, error,"
      " texts or outputs"
    )

  def answer(text):
    del text
    try:
      return next(answers)
    except StopIteration:
      raise Unavailable("the stub has no further answer") from None

  return answer


def _last_text(items):
  """Text of the last part of the last item, if that is a message."""
  if not items or items[-1].get("type") != "message":
    return None
  parts = items[-1].get("content") or []
  return parts[-1].get("text") if parts else None
