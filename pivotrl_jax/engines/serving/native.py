"""SGLang's `/generate`, as far as `engines/endpoint.py` and others use it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import secrets
from typing import Any

import numpy as np

from pivotrl_jax import seeds
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import base
from pivotrl_jax.engines import endpoint
from pivotrl_jax.engines.serving import fields
from pivotrl_jax.engines.serving import scheduler
from pivotrl_jax.engines.serving import text as text_lib

_HONOURED = frozenset((
    "rid", "text", "input_ids", "sampling_params", "return_logprob", "stream",
    "return_routed_experts", "routed_experts_start_len",
))  # fmt: skip
_NEUTRAL = {
  "logprob_start_len": (-1,),
  "top_logprobs_num": (0,),
  "return_text_in_logprobs": (False,),
}
_SAMPLING = frozenset((
    "max_new_tokens", "stop_token_ids", "ignore_eos", "temperature", "top_p",
    "top_k", "sampling_seed", "n", "stop", "skip_special_tokens",
))  # fmt: skip
_SAMPLING_NEUTRAL = {
  "min_p": (0,),
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "repetition_penalty": (1,),
  "min_new_tokens": (0,),
  "no_stop_trim": (False,),
  "spaces_between_special_tokens": (True,),
}


@dataclasses.dataclass(frozen=True)
class Generate:
  """A `/generate` request, checked.

  Attributes:
    rows: to sample.
    rids: their names.
    stops: stop strings of each.
    many: whether the answer is a list.
    logprobs: whether to tell log-probs.
    stream: whether parts are told as they come.
    routes_from: the first token whose routes are told; None: of none.
  """

  rows: list[scheduler.Row]
  rids: list[str]
  stops: list[tuple[str, ...]]
  many: bool
  logprobs: bool
  stream: bool
  routes_from: int | None


def generate(
  body: Mapping[str, Any],
  *,
  encode: Callable[[str], list[int]],
  vocab_size: int,
  context: int,
  most: int,
  stop_ids: Sequence[int],
  tells_routes: bool,
) -> Generate:
  """Reads a request; ApiError where it is not one.

  Args:
    body: the request.
    encode: ids of a text prompt.
    vocab_size: ids are below it.
    context: most tokens of a prompt and its completion.
    most: completions of a prompt.
    stop_ids: end a completion unless `ignore_eos`.
    tells_routes: whether the engine does.
  """
  fields.check_known(
    body, honoured=_HONOURED, harmless=frozenset(), neutral=_NEUTRAL
  )
  name = "input_ids" if body.get("input_ids") is not None else "text"
  given = body.get(name)
  single = isinstance(given, str) or (
    name == "input_ids"
    and isinstance(given, list)
    and not (given and isinstance(given[0], list))
  )
  prompts = [given] if single else given
  if not isinstance(prompts, list) or not prompts:
    raise fields.ApiError(400, f"{name}: {given!r:.80}; expected prompts")
  knobs = body.get("sampling_params") or {}
  knobs = knobs if isinstance(knobs, list) else [knobs] * len(prompts)
  rids = body.get("rid")
  rids = rids if isinstance(rids, list) else [rids] * len(prompts)
  if not len(knobs) == len(rids) == len(prompts):
    raise fields.ApiError(
      400,
      f"{len(prompts)} prompts, {len(knobs)} sampling_params, {len(rids)} rids;"
      " expected as many",
    )
  rows, names, stops = [], [], []
  for prompt, knob, rid in zip(prompts, knobs, rids, strict=True):
    if name == "text":
      prompt = encode(fields.of_kind({"text": prompt}, "text", str, ""))
    ids = np.array(fields.token_ids(prompt, name, vocab_size), np.int32)
    sampling, row_seeds, texts = _sampling(knob, stop_ids, most, vocab_size)
    if len(ids) + sampling.max_tokens > context:
      raise fields.ApiError(
        400,
        f"The input ({len(ids)} tokens) and max_new_tokens="
        f"{sampling.max_tokens} are longer than the context ({context} tokens)",
      )
    for seed in row_seeds:
      rows.append(scheduler.Row(ids, sampling, seed))
      names.append(str(rid or secrets.token_hex(16)))
      stops.append(texts)
  routes_from = None
  if fields.of_kind(body, "return_routed_experts", bool, False):
    if not tells_routes:
      raise fields.ApiError(
        400,
        "return_routed_experts: expected a policy of experts, served with"
        " --config.train.replay_routes=True",
      )
    routes_from = fields.number(
      body, "routed_experts_start_len", 0, least=0, whole=True,
      most=min(len(row.prompt) for row in rows),
    )  # fmt: skip
  return Generate(
    rows=rows,
    rids=names,
    stops=stops,
    many=not single or len(rows) > 1,
    logprobs=fields.of_kind(body, "return_logprob", bool, False),
    stream=fields.of_kind(body, "stream", bool, False),
    routes_from=routes_from,
  )


def _sampling(knob, stop_ids, most, vocab_size):
  """(SamplingParams, a seed for each of n, stop strings)."""
  if not isinstance(knob, dict):
    raise fields.ApiError(400, f"sampling_params: {knob!r:.80}; an object")
  fields.check_known(
    knob, honoured=_SAMPLING, harmless=frozenset(), neutral=_SAMPLING_NEUTRAL
  )
  stops = set()
  if knob.get("stop_token_ids"):
    stops |= {
      *fields.token_ids(knob["stop_token_ids"], "stop_token_ids", vocab_size)
    }
  if not fields.of_kind(knob, "ignore_eos", bool, False):
    stops |= set(stop_ids)
  texts = knob.get("stop") or []
  texts = [texts] if isinstance(texts, str) else texts
  if not isinstance(texts, list) or not all(
    isinstance(t, str) and t for t in texts
  ):
    raise fields.ApiError(400, f"stop: {texts!r:.80}; expected texts")
  seed = fields.number(
      knob, "sampling_seed", None, least=-(1 << 63), most=(1 << 63) - 1,
      whole=True,
  )  # fmt: skip
  seed = secrets.randbits(64) if seed is None else endpoint.unsigned(seed)
  n = fields.number(knob, "n", 1, least=1, most=most, whole=True)
  sampling = base.SamplingParams(
    max_tokens=fields.number(knob, "max_new_tokens", 128, least=1, whole=True),
    stop_ids=tuple(sorted(stops)),
    temperature=fields.number(knob, "temperature", 1.0, least=0, most=100),
    top_p=fields.number(knob, "top_p", 1.0, least=1e-6, most=1),
    top_k=fields.top_k(knob),
  )
  others = [seeds.row_seed(seed, "choice", i) for i in range(1, n)]
  return sampling, [seed, *others], tuple(texts)


def answer(
  tokenizer: tokenizer_lib.Tokenizer,
  row: scheduler.Row,
  rid: str,
  stops: Sequence[str],
  *,
  logprobs: bool,
  experts: endpoint.Experts | None = None,
  routes_from: int | None = None,
) -> dict[str, Any]:
  """A row as `/generate` tells it, so far or at its end."""
  ended = row.finish == "stop" and row.ids[-1] in row.sampling.stop_ids
  spoken = row.ids[:-1] if ended else row.ids
  cut = text_lib.cut_at_stop(tokenizer, spoken, stops)
  count = cut[0] if cut else len(row.ids)
  reason: dict[str, Any] | None = None
  if cut:
    matched = next(s for s in stops if s in tokenizer.decode(spoken))
    reason = {"type": "stop", "matched": matched}
  elif row.finish == "stop":
    reason = {"type": "stop", "matched": row.ids[-1]}
  elif row.finish == "length":
    reason = {"type": "length", "length": count}
  elif row.finish == "abort":
    reason = {"type": "abort", "message": "aborted"}
  meta: dict[str, Any] = {
    "id": rid,
    "finish_reason": reason,
    "prompt_tokens": len(row.prompt),
    "completion_tokens": count,
    "weight_version": row.versions[-1][0] if row.versions else "",
    "weight_versions": [
      {"version": version, "start": start, "end": min(end, count)}
      for version, start, end in row.versions
    ],
  }
  if logprobs:
    meta["input_token_logprobs"] = []
    meta["output_token_logprobs"] = [
      [log_prob, token, None]
      for log_prob, token in zip(
        row.log_probs[:count], row.ids[:count], strict=True
      )
    ]
  if routes_from is not None and row.routes:
    first = len(row.prompt) - 1  # Its routes lead to the first that is sampled.
    routes = np.concatenate(row.routes)[:count]
    meta["routed_experts"] = experts.written(
      routes[max(0, routes_from - first) :], max(0, first - routes_from)
    )
  return {
    "text": cut[1] if cut else tokenizer.decode(spoken),
    "output_ids": row.ids[:count],
    "meta_info": meta,
  }
