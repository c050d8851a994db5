"""The policy behind SGLang servers: an `Engine` over HTTP.

A row's tokens are a function of its prompt, its seed and the weights, so any
request may be repeated, on any server that holds the weights. Nothing is taken
from a server that does not say it samples from them.
"""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
import time
from typing import Any

from absl import logging
import numpy as np
import tenacity

from pivotrl_jax import errors
from pivotrl_jax.data import trees
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines import handover

_POLL = 0.5  # Seconds between looks for a server that is not ready.


@dataclasses.dataclass
class Stats:
  """What the last `sample` did."""

  prompt_tokens: int = 0
  trie_tokens: int = 0
  sampled_tokens: int = 0
  computed_tokens: int = 0  # But for what the servers say they had.
  retries: int = 0


@dataclasses.dataclass
class _Server:
  """One server, and what it answered after its last hand-over."""

  calls: endpoint.Endpoint
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  version: str | None = None  # Of the weights it is known to hold.
  answer: base.Completion | None = None  # Of the server.
  wanted: base.Completion | None = None  # Of the trainer, then.
  asleep: str | None = None  # Version whose memory it has released.


class SGLang:
  """An `engines.base.Engine` over HTTP.

  Args:
    servers: each takes up weights.
    writer: of the weights, to a folder that all servers see.
    vocab_size: ids from 0 up to it are sent.
    router: generates in the servers' stead, if given.
    tolerance: greatest gap of greedy log-probs after a hand-over.
    deterministic: insist on servers that honour seeds.
    rows_per_request: most rows of one request.
    concurrency: most requests under way at a server.
    retries: further attempts of a request.
    patience: seconds to wait for a server that is not ready.
    stale: "refuse" completions of other weights than the last loaded, or
      "correct" them: take them, for importance weights to mend.
    experts: of a policy whose completions are to have routes.
  """

  def __init__(
    self,
    servers: Sequence[endpoint.Endpoint],
    writer: handover.Writer,
    *,
    vocab_size: int,
    router: endpoint.Endpoint | None = None,
    tolerance: float,
    deterministic: bool = True,
    rows_per_request: int = 1024,
    concurrency: int = 4,
    retries: int = 5,
    patience: float = 300.0,
    stale: str = "refuse",
    experts: endpoint.Experts | None = None,
  ):
    self._servers = [_Server(calls) for calls in servers]
    self._router = router
    self._writer = writer
    self._vocab_size = vocab_size
    self._tolerance = tolerance
    self._deterministic = deterministic
    self._rows_per_request = rows_per_request
    self._concurrency = concurrency
    self._retries = retries
    self._patience = patience
    self._stale = stale
    self._experts = experts
    self._path = ""
    self._wanted: base.Completion | None = None
    self._prepared: dict[str, Any] | None = None
    self.version = ""
    self.stats = Stats()

  def prepare(
    self,
    lengths: Sequence[int],
    sampling: base.SamplingParams,
    *,
    prompts: int,
    rows: int,
    longest: int = 0,
  ) -> None:
    """Hands the call on to servers of our own; SGLang needs none."""
    self._prepared = {
      "lengths": sorted({int(n) for n in lengths}),
      "sampling": dataclasses.asdict(sampling),
      "prompts": prompts,
      "rows": rows,
      "longest": longest,
    }
    with _for_good():
      for server in self._holders():
        self._prepare(server)

  def load(self, weights: Any, version: str) -> None:
    """Hands weights to all servers, and sees that each has them.

    A version stands for its weights: the same again is no work.

    Raises:
      EngineError: none has taken them.
    """
    if version == self.version and self._holders():
      return
    started = time.monotonic()
    self._path = str(self._writer.write(weights, version))
    self._wanted = self._writer.answer(weights, version)
    for server in self._servers:
      server.version = None
    first, self.version = not self.version, version
    with _for_good():
      for attempt in self._retrying():
        with attempt:
          again = attempt.retry_state.attempt_number > 1
          self._bring(all_of_them=first and not again, abort=again)
    holders = self._holders()
    logging.info(
        "sglang: %s handed over to %d of %d servers in %.2f s, greedy"
        " log-probs within %.1e", version, len(holders), len(self._servers),
        time.monotonic() - started,
        max(handover.gap(s.answer, self._wanted) for s in holders),
    )  # fmt: skip

  def release(self) -> None:
    """Servers give up the card's memory until the next `load`."""
    for server in self._holders():
      try:
        server.calls.release_memory()
        server.asleep = server.version
      except endpoint.Failure as failure:  # One that died has none.
        logging.warning("sglang: memory not released: %s", failure)
      server.version = None
    self._wanted = None

  def sample(
    self,
    prompts: Sequence[np.ndarray],
    sampling: base.SamplingParams,
    seeds: Sequence[int],
  ) -> list[base.Completion]:
    """See `engines.base.Engine`.

    Raises:
      EngineError: a request has failed for good.
    """
    if self._wanted is None:
      raise ValueError("no weights: call load before sample")
    if len(prompts) != len(seeds):
      raise ValueError(f"{len(seeds)} seeds; expected {len(prompts)}")
    _check_ids(prompts, self._vocab_size)
    self.stats = Stats(
      prompt_tokens=sum(len(p) for p in prompts),
      trie_tokens=trees.order(prompts).tokens(),
    )
    targets = 1 if self._router else max(1, len(self._holders()))
    out: list[base.Completion | None] = [None] * len(prompts)

    def request(part):
      place, rows = part
      found = self._request(
        place, [prompts[i] for i in rows], sampling, [seeds[i] for i in rows]
      )
      for i, completion in zip(rows, found, strict=True):
        out[i] = completion

    pool = concurrent.futures.ThreadPoolExecutor(self._concurrency * targets)
    with _for_good():
      try:
        list(pool.map(request, parts(prompts, targets, self._rows_per_request)))
      finally:
        pool.shutdown(cancel_futures=True)
    self.stats.sampled_tokens = sum(len(c.ids) for c in out)
    self.stats.computed_tokens = (
      self.stats.prompt_tokens + self.stats.sampled_tokens
      - sum(c.cached for c in out)
    )  # fmt: skip
    return out

  def _request(self, place, prompts, sampling, seeds):
    """One request, repeated on whatever server holds the weights."""
    for attempt in self._retrying():
      number = attempt.retry_state.attempt_number - 1
      with attempt:
        if number:
          self.stats.retries += 1
          self._bring(abort=True)
        found = self._generate(
          self._target(place + number), prompts, sampling, seeds
        )
    return found

  def _generate(self, calls, prompts, sampling, seeds):
    """What a server samples, from the weights it should."""
    found = calls.generate(
      prompts, sampling, seeds, vocab_size=self._vocab_size,
      experts=self._experts,
    )  # fmt: skip
    stale = {c.version for c in found} - {self.version}
    if stale and self._stale == "refuse":
      raise endpoint.Failure(
        f"{calls.address}: sampled from {min(stale)!r}; expected"
        f" {self.version!r}",
        passing=True,
      )
    return found

  def _target(self, number):
    """Who generates: the router, or one of those that hold the weights."""
    if self._router:
      return self._router
    holders = self._holders()
    if not holders:  # Another request found them gone, and brings them.
      raise endpoint.Failure("no server holds the weights", passing=True)
    return holders[number % len(holders)].calls

  def _holders(self):
    """The servers known to hold the weights."""
    return [s for s in self._servers if s.version == self.version]

  def _bring(self, *, all_of_them: bool = False, abort: bool = False):
    """Hands the weights to every server that is ready and lacks them.

    Args:
      all_of_them: wait for all servers; otherwise for any.
      abort: end what the servers are doing.

    Raises:
      Failure: no server holds the weights now.
    """
    failures = []
    ready = self._ready(all_of_them)
    for server in self._servers:
      if server not in ready:
        server.version = None
    with concurrent.futures.ThreadPoolExecutor(len(ready)) as pool:
      jobs = [pool.submit(self._renew, server, abort) for server in ready]
      for job in jobs:
        if (error := job.exception()) is None:
          continue
        if not isinstance(error, endpoint.Failure):
          raise error
        failures.append(error)
    if not self._holders():
      raise failures[0]
    for failure in failures:
      logging.warning("sglang: goes on without a server: %s", failure)

  def _ready(self, all_of_them):
    """The servers that take requests; waits for them."""
    end = time.monotonic() + self._patience
    while True:
      ready = [s for s in self._servers if s.calls.ready()]
      if len(ready) == len(self._servers) or (ready and not all_of_them):
        return ready
      if time.monotonic() > end:
        break
      time.sleep(_POLL)
    if not ready:
      raise endpoint.Failure(
        f"{', '.join(s.calls.address for s in self._servers)}: not ready after"
        f" {self._patience:g} s; expected SGLang, as"
        " launchers/sglang_sidecar.py starts it",
        passing=False,
      )
    return ready

  def _renew(self, server, abort):
    """Sees that a server holds the weights, handing them over if not."""
    with server.lock:
      held, server.version = server.version, None
      if held != self.version or not self._holds(server):
        self._hand_over(server, abort)
      server.version = self.version

  def _holds(self, server):
    """Whether it still has what was handed over."""
    try:
      if server.calls.weight_version() != self.version:
        return False
      self._verify(server)
    except endpoint.Failure as failure:
      logging.warning("sglang: hands over again: %s", failure)
      return False
    return True

  def _hand_over(self, server, abort):
    wanted = (
      (self._deterministic, endpoint.check_info),
      (self._experts, endpoint.check_routes),
    )
    checks = [check for on, check in wanted if on]
    info = server.calls.info() if checks else {}
    for check in checks:
      if wrong := check(info, server.calls.address):
        raise endpoint.Failure(wrong, passing=False)
    # One that was started again meanwhile is awake, with other weights.
    if server.asleep and server.asleep == server.calls.weight_version():
      server.calls.resume_memory()
    server.asleep = None
    server.calls.update_weights(self._path, self.version, abort=abort)
    found = server.calls.weight_version()
    if found != self.version:
      raise endpoint.Failure(
        f"{server.calls.address}: weights are {found!r} after a hand-over;"
        f" expected {self.version!r}",
        passing=True,
      )
    got = self._verify(server)
    # A tenth of the tolerance is taken to be more than rounding.
    if (
      server.answer is not None
      and handover.gap(self._wanted, server.wanted) > self._tolerance / 10
      and handover.same(server.answer, got)
    ):
      raise endpoint.Failure(
        f"{server.calls.address}: answers as before the hand-over of"
        f" {self.version!r}; expected its weights",
        passing=False,
      )
    server.answer, server.wanted = got, self._wanted
    if self._prepared:
      self._prepare(server)

  def _verify(self, server):
    """The server's greedy answer; Failure where the trainer's is another."""
    (got,) = self._generate(
      server.calls,
      [handover.prompt(self._vocab_size)],
      handover.GREEDY,
      [0],
    )
    gap = handover.gap(got, self._wanted)
    if not gap <= self._tolerance:
      raise endpoint.Failure(
        f"{server.calls.address}: greedy log-probs are {gap:.3g} from the"
        f" trainer's with the weights {self.version!r}; expected at most"
        f" {self._tolerance:g} (broken weights, or another model)",
        passing=False,
      )
    return got

  def _prepare(self, server):
    if endpoint.OURS in server.calls.info():
      server.calls.prepare(self._prepared)

  def _retrying(self):
    return tenacity.Retrying(
      stop=tenacity.stop_after_attempt(self._retries + 1),
      wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
      retry=tenacity.retry_if_exception(_passing),
      before_sleep=_say,
      reraise=True,
    )


def parts(
  prompts: Sequence[np.ndarray], targets: int, most: int
) -> list[tuple[int, list[int]]]:
  """Rows to requests, so that shared beginnings stay together.

  The turns of a trajectory, each a prefix of the next, go to one server, in
  one request if they fit; each server gets about as many rows.

  Args:
    prompts: token ids, one a row.
    targets: how many servers.
    most: rows of a request.

  Returns:
    (server, rows in ascending order), the servers in turns.
  """
  keys = [np.asarray(p, ">u4").tobytes() for p in prompts]
  # In lexicographic order a prefix stands right before its extensions.
  order = sorted(range(len(keys)), key=keys.__getitem__)
  requests: list[list[list[int]]] = [[] for _ in range(targets)]
  start = 0
  while start < len(order):
    end = start
    while end < len(order) and keys[order[end]].startswith(keys[order[start]]):
      end += 1
    mine = requests[start * targets // len(order)]
    for at in range(start, end, most):
      rows = order[at : min(at + most, end)]
      if mine and len(mine[-1]) + len(rows) <= most:
        mine[-1].extend(rows)
      else:
        mine.append(rows)
    start = end
  return [
    (place, sorted(rows))
    for turn in itertools.zip_longest(*requests)
    for place, rows in enumerate(turn)
    if rows
  ]


@contextlib.contextmanager
def _for_good():
  """A failure that is left over ends the run, with its one line."""
  try:
    yield
  except endpoint.Failure as error:
    raise errors.EngineError(f"engine: {error}") from error


def _passing(error):
  return isinstance(error, endpoint.Failure) and error.passing


def _say(retry_state):
  logging.warning(
    "sglang: attempt %d failed: %s",
    retry_state.attempt_number,
    retry_state.outcome.exception(),
  )


def _check_ids(prompts, vocab_size):
  """An id outside the vocabulary would end the server."""
  for i, prompt in enumerate(prompts):
    ids = np.asarray(prompt)
    if not len(ids) or ids.min() < 0 or ids.max() >= vocab_size:
      raise ValueError(
        f"prompt {i}: {'empty' if not len(ids) else f'ids {ids.min()} to {ids.max()}'};"
        f" expected ids from 0 to {vocab_size - 1}"
      )
