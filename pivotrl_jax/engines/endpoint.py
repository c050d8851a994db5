"""One SGLang server over HTTP: its native calls, and how each may fail.

The fields and their traps are SGLang 0.5.23's; `engines/server.py` answers
the same calls in front of any engine.
"""

import base64
from collections.abc import Sequence
import dataclasses
import itertools
import math
import re
from typing import Any
import uuid

import httpx2
import numpy as np

from pivotrl_jax.engines import base

KEY_VARIABLE = "PIVOTRL_SGLANG_KEY"
ADMIN_KEY_VARIABLE = "PIVOTRL_SGLANG_ADMIN_KEY"
OURS = "pivotrl_jax"  # Field of /server_info by which our own server is known.
_OLDEST = (0, 5, 22)  # Weight updates and versions changed until then.
_QUICK = 5.0  # Seconds to connect, and of calls that answer at once.
_PASSING = {408, 425, 429}  # And 5xx.
_SIGN = 1 << 63
TELLS_ROUTES = "enable_return_routed_experts"  # Another field of it.
TAGS = ("weights", "kv_cache", "cuda_graph")


class Failure(Exception):
  """A call did not succeed; the message names the server and says how.

  Attributes:
    passing: whether saying it again may help: nobody there, too slow, 429,
      5xx, an answer that is torn, incomplete or of other weights.
  """

  def __init__(self, message: str, *, passing: bool):
    super().__init__(message)
    self.passing = passing


@dataclasses.dataclass(frozen=True)
class Experts:
  """Of a policy, what its routes are told in.

  SGLang tells int32 `[tokens, layers, each]`, in base64, of all layers and of
  all tokens but the last: what a token's routes led to is the next one.

  Attributes:
    layers: how many, with experts or not.
    sparse: those with experts.
    each: experts of a token.
    count: experts of a layer.
  """

  layers: int
  sparse: tuple[int, ...]
  each: int
  count: int

  def written(self, routes: np.ndarray, before: int) -> str:
    """`Completion.routes` as SGLang tells them, -1 where there is nothing to
    say: of the `before` tokens ahead, and of layers without experts.
    """
    told = np.full((before + len(routes), self.layers, self.each), -1, "<i4")
    told[before:, list(self.sparse)] = routes
    return base64.b64encode(told).decode()

  def read(self, text: str, size: int) -> np.ndarray:
    """`Completion.routes` of the last `size` tokens; ValueError where they are
    not there.
    """
    told = np.frombuffer(base64.b64decode(text), "<i4")
    told = told.reshape(-1, self.layers, self.each)
    if len(told) < size:
      raise ValueError(f"routes of {len(told)} tokens; expected {size}")
    found = told[len(told) - size :, list(self.sparse)]
    if found.min(initial=0) < 0 or found.max(initial=0) >= self.count:
      raise ValueError(f"routes to others than {self.count} experts")
    return found.astype(np.int16)


class Endpoint:
  """A server's calls. Every method raises `Failure`."""

  def __init__(
    self,
    address: str,
    *,
    timeout: float,
    key: str = "",
    admin_key: str = "",
    transport: httpx2.BaseTransport | None = None,
  ):
    """Calls nothing yet.

    Args:
      address: such as http://127.0.0.1:30000.
      timeout: seconds that generating, or taking up weights, may take.
      key, admin_key: bearer tokens; SGLang's `--admin-api-key` opens the
        calls that change weights or memory, `--api-key` the others.
      transport: in the network's stead.
    """
    self.address = address.rstrip("/")
    self._client = httpx2.Client(
      base_url=self.address,
      timeout=httpx2.Timeout(timeout, connect=_QUICK),
      limits=httpx2.Limits(max_connections=None),
      transport=transport,
    )
    self._headers = _bearer(key)
    self._admin_headers = _bearer(admin_key or key)

  def ready(self) -> bool:
    """Whether it takes requests now."""
    try:
      return self._client.get("/ready", timeout=_QUICK).status_code == 200
    except httpx2.HTTPError:
      return False

  def info(self) -> dict[str, Any]:
    """`/server_info`: its version, and the flags it was started with."""
    return _object(self._call("GET", "/server_info", quick=True), self)

  def weight_version(self) -> str:
    """The name its weights were handed over with."""
    found = _object(self._call("GET", "/model_info", quick=True), self)
    return str(found.get("weight_version"))

  def generate(
    self,
    prompts: Sequence[np.ndarray],
    sampling: base.SamplingParams,
    seeds: Sequence[int],
    *,
    vocab_size: int,
    experts: Experts | None = None,
  ) -> list[base.Completion]:
    """One completion a row, in one request; complete and well-formed.

    Without stop ids every row has `sampling.max_tokens` tokens; with `experts`
    completions have routes.
    """
    asked = {
      "rid": [uuid.uuid4().hex for _ in prompts],
      "input_ids": [np.asarray(p).tolist() for p in prompts],
      "sampling_params": [_sampling(sampling, seed) for seed in seeds],
      "return_logprob": True,
    }
    if experts:  # One start for all rows; a token's routes lead to the next.
      asked |= {
        "return_routed_experts": True,
        "routed_experts_start_len": min(map(len, prompts)) - 1,
      }
    reply = self._call("POST", "/generate", asked)
    if not isinstance(reply, list) or len(reply) != len(prompts):
      got = len(reply) if isinstance(reply, list) else type(reply).__name__
      raise self._torn(f"{got} completions; expected {len(prompts)}")
    try:
      found = [_completion(row, experts) for row in reply]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as e:
      raise self._torn(f"{type(e).__name__}: {e} in a completion") from e
    for completion in found:
      wrong = _wrong(completion, sampling, vocab_size)
      if wrong:
        raise self._torn(wrong)
    return found

  def update_weights(self, path: str, version: str, *, abort: bool) -> None:
    """Takes up the safetensors in a folder that the server sees.

    Args:
      path: the folder.
      version: their name from now on.
      abort: whether requests under way end; otherwise they are waited for.
    """
    reply = self._call(
        "POST", "/update_weights_from_disk",
        {
            "model_path": path, "weight_version": version,
            "flush_cache": True, "abort_all_requests": abort,
        },
        admin=True,
    )  # fmt: skip
    if _object(reply, self).get("success") is not True:
      raise Failure(f"{self.address}: {_short(reply)}", passing=False)

  def prepare(self, call: dict[str, Any]) -> None:
    """Our own servers only: `Engine.prepare`, as JSON."""
    self._call("POST", "/prepare", call, admin=True)

  def release_memory(self) -> None:
    """Gives up the card's memory; weights must come again afterwards."""
    self._call("POST", "/release_memory_occupation", {"tags": TAGS}, admin=True)

  def resume_memory(self) -> None:
    """Takes the memory again."""
    self._call("POST", "/resume_memory_occupation", {"tags": TAGS}, admin=True)

  def _call(self, method, path, body=None, *, admin=False, quick=False):
    knobs = {"timeout": 6 * _QUICK} if quick else {}
    try:
      response = self._client.request(
          method, path, json=body,
          headers=self._admin_headers if admin else self._headers, **knobs,
      )  # fmt: skip
    except httpx2.HTTPError as error:
      raise Failure(
        f"{self.address}{path}: {type(error).__name__} {error}", passing=True
      ) from error
    code = response.status_code
    if code != 200:
      raise Failure(
        f"{self.address}{path}: {code} {_short(response.text)}",
        passing=code in _PASSING or code >= 500,
      )
    if not response.content:
      return None
    try:
      return response.json()
    except (ValueError, RecursionError) as error:
      raise self._torn(f"{path} answered no JSON ({error})") from error

  def _torn(self, what):
    return Failure(f"{self.address}: {what}", passing=True)


def check_routes(info: dict[str, Any], address: str) -> str | None:
  """Why a server whose `/server_info` this is tells no routes, or None."""
  if info.get(TELLS_ROUTES):
    return None
  flag = "--" + TELLS_ROUTES.replace("_", "-")
  if OURS in info:
    flag = "--config.train.replay_routes=True"
  return f"{address}: tells no routes; expected a server started with {flag}"


def check_info(info: dict[str, Any], address: str) -> str | None:
  """What a server's `/server_info` has against it, or None."""
  if OURS in info:
    return None
  version = str(info.get("version"))
  numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
  if not numbers or tuple(map(int, numbers.groups())) < _OLDEST:
    oldest = ".".join(map(str, _OLDEST))
    return f"{address}: SGLang {version}; expected {oldest} or newer"
  if not info.get("enable_deterministic_inference"):
    return (
      f"{address}: seeds are ignored without --enable-deterministic-inference;"
      " expected that flag, or --config.engine.deterministic=False"
    )
  return None


def signed(seed: int) -> int:
  """A 64-bit seed as the signed integer that SGLang takes."""
  return (seed & (2 * _SIGN - 1)) - 2 * _SIGN * bool(seed & _SIGN)


def unsigned(seed: int) -> int:
  """What `signed` was made of."""
  return seed % (2 * _SIGN)


def _sampling(sampling, seed):
  return {
    "max_new_tokens": sampling.max_tokens,
    "stop_token_ids": list(sampling.stop_ids),
    "ignore_eos": not sampling.stop_ids,
    "temperature": sampling.temperature,
    "top_p": sampling.top_p,
    "top_k": sampling.top_k or -1,
    "sampling_seed": signed(seed),
    "skip_special_tokens": False,
  }


def _completion(row, experts):
  meta = row["meta_info"]
  triples = meta["output_token_logprobs"]
  if [int(t[1]) for t in triples] != row["output_ids"]:
    raise ValueError("output_token_logprobs are not of output_ids")
  parts = [p["version"] for p in meta.get("weight_versions") or ()]
  versions = parts or [meta["weight_version"]]
  return base.Completion(
    np.array(row["output_ids"], np.int32),
    np.array([float(t[0]) for t in triples], np.float32),
    str(meta["finish_reason"]["type"]),
    ", ".join(str(v) for v, _ in itertools.groupby(versions)),
    int(meta.get("cached_tokens", 0)),
    experts and experts.read(meta["routed_experts"], len(triples)),
  )


def _wrong(completion, sampling, vocab_size):
  """What is wrong with a completion, or None."""
  ids, finish = completion.ids, completion.finish
  if finish not in ("stop", "length"):
    return f"a completion ended by {finish!r}; expected stop or length"
  if not 0 < len(ids) <= sampling.max_tokens:
    return f"{len(ids)} tokens; expected 1 to {sampling.max_tokens}"
  if finish == "length" and len(ids) != sampling.max_tokens:
    return f"cut off after {len(ids)} tokens of {sampling.max_tokens}"
  if ids.min() < 0 or ids.max() >= vocab_size:
    return f"a token outside the vocabulary of {vocab_size}"
  if not all(math.isfinite(x) for x in completion.log_probs):
    return "a log-prob that is not finite"
  return None


def _object(reply, endpoint):
  if not isinstance(reply, dict):
    raise Failure(
      f"{endpoint.address}: {_short(reply)}; expected an object", passing=True
    )
  return reply


def _bearer(key):
  return {"Authorization": f"Bearer {key}"} if key else {}


def _short(value):
  return f"{' '.join(str(value).split()):.200}"
