"""Terminal and search agents with structured calls: a rule a harness and tool.

The behaviour of NeMo Gym's terminal_multi_harness ("compat"), and the same
with its defects mended ("default"): what a tool without a rule is given
counts, and so does what is written; a schema's default is as good as its
absence; a batch of one is a call; batches are matched, not sorted.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
from typing import Any
import urllib.parse

import jsonschema
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.verifiers import arguments
from pivotrl_jax.verifiers import similarity

DEFAULTS = {
  "string_similarity_threshold": 0.9,
  "query_string_similarity_threshold": None,  # None: as for all strings.
  "floating_point_comparison_threshold": 1e-6,
  "ignored_argument_keys_by_tool": {},
}
_MISMATCH = "argument_value_mismatch"
_MISSING = object()
# Reasons for which the original refuses even a copy of the label.
_EMPTY = (
  "update_plan_empty_plan",
  "finish_missing_paths",
  "todowrite_empty_todos",
)

Rule = Callable[[dict[str, Any], dict[str, Any], "_Terms"], str | None]


class _Terms:
  """What rules compare by: thresholds and setting."""

  def __init__(self, config, setting, row):
    threshold = row.get("threshold")
    if threshold is None:
      threshold = config["string_similarity_threshold"]
    self.threshold = threshold
    self.config = config
    self.mended = setting == "default"
    query = config["query_string_similarity_threshold"]
    self.query_threshold = query if self.mended and query else threshold

  def alike(self, want: str, got: str, threshold: float | None = None) -> bool:
    """Whether two texts are similar enough."""
    least = self.threshold if threshold is None else threshold
    score = similarity.ratio(want, got, least=least, autojunk=not self.mended)
    return score >= least

  def same(self, want: Any, got: Any) -> bool:
    """Whether two values agree by the rules of single_step."""
    reason = arguments.mismatch(
      want,
      got,
      tolerance=self.config["floating_point_comparison_threshold"],
      words=0.25,
      setting="default",
    )
    return reason is None


def verify(
  demonstration: types.Action,
  action: types.Action,
  *,
  tools: Sequence[Mapping[str, Any]] = (),
  config: Mapping[str, Any],
  setting: str,
  row: Mapping[str, Any],
  judge: Any = None,
) -> types.Verdict:
  """See the module.

  Args:
    demonstration: the label.
    action: what the model did.
    tools: schemas in force, those of the row's `declared_tools` before them.
    config: see `DEFAULTS`.
    setting: "default" or "compat".
    row: `harness`, `threshold` and `declared_tools`.
    judge: not consulted.
  """
  del judge
  mended = setting == "default"
  if mended:
    demonstration, action = _single(demonstration), _single(action)
  if demonstration.type != action.type:
    return types.Verdict(0.0, "action_type_mismatch")
  if action.type == "message":
    if action.content.strip():
      return types.Verdict(1.0, "expected_chat_message_found")
    return types.Verdict(0.0, "empty_message")
  wanted, made = demonstration.calls, action.calls
  if len(wanted) != len(made):
    return types.Verdict(0.0, "function_call_batch_length_different")
  schemas = _declared(row.get("declared_tools") or tools)
  rules = _RULES.get(row.get("harness"), {})

  def compare(want, got):
    terms = _Terms(config, setting, row)
    return _compare(want, got, schemas, rules, terms)

  if demonstration.type == "function_call":
    reason = compare(wanted[0], made[0])
    return types.Verdict(float(reason is None), reason or "expected_tool_call")
  if mended:
    reason = _match(wanted, made, compare)
  else:
    pairs = zip(sorted(wanted, key=_order), sorted(made, key=_order))
    reason = next(filter(None, (compare(e, g) for e, g in pairs)), None)
  return types.Verdict(
    float(reason is None), reason or "expected_tool_call_batch"
  )


def _single(action):
  """A batch of one as the call it is."""
  if action.type == "function_call_batch" and len(action.calls) == 1:
    return types.Action("function_call", calls=action.calls)
  return action


def _match(wanted, made, compare):
  """None if calls can be paired off, else why one found no partner."""
  table = [[compare(e, g) for g in made] for e in wanted]
  if not table:
    return None
  fits = np.array([[reason is None for reason in row] for row in table], int)
  partner = maximum_bipartite_matching(csr_matrix(fits), perm_type="column")
  lonely = np.flatnonzero(partner < 0)
  if not lonely.size:
    return None
  reasons = [r for r in table[int(lonely[0])] if r is not None]
  return next((r for r in reasons if r != "unexpected_tool"), reasons[0])


def _order(call):
  """The original's sort key of a batch's calls."""
  value = arguments.decode(call.arguments)
  if value is arguments.UNREADABLE:
    return call.name, call.arguments
  return call.name, _canonical(value)


def _canonical(value, separators=(",", ":")):
  return json.dumps(value, sort_keys=True, separators=separators)


def _declared(tools):
  """Name -> parameters' schema; a later duplicate wins."""
  found = {}
  for tool in tools:
    function = tool.get("function")
    flat = function if isinstance(function, dict) else tool
    found[flat.get("name")] = flat.get("parameters")
  return found


def _compare(want, got, schemas, rules, terms):
  """Why `got` is not `want`; None where it is."""
  read = arguments.of_call if terms.mended else arguments.decode
  e, g = read(want.arguments), read(got.arguments)
  if arguments.UNREADABLE in (e, g):
    return "arguments_decode_error"
  if not isinstance(e, dict) or not isinstance(g, dict):
    return "arguments_not_object"
  schema = schemas.get(got.name)
  if not isinstance(schema, dict):
    return "tool_schema_not_found"
  properties = schema.get("properties")
  properties = properties if isinstance(properties, dict) else {}
  copied = _canonical(e) == _canonical(g)
  g = _coerced(g, properties)
  if not _validator(json.dumps(schema)).is_valid(g):
    return "tool_schema_validation_failed"
  if want.name != got.name:
    return "unexpected_tool"
  if terms.mended:
    # What a schema says of an absent key, its presence says as well.
    e, g = _explicit(e, g, properties), _explicit(g, e, properties)
  if set(g) - set(e):
    return "unexpected_argument_keys"
  rule = rules.get(got.name)
  if rule is None:
    return _same_values(e, g, got.name, terms) if terms.mended else None
  reason = rule(e, g, terms)
  if reason in _EMPTY and terms.mended and copied:
    return None
  return reason


def _same_values(e, g, name, terms):
  """All that is given to a tool without a rule; absent text is no text."""
  ignored = terms.config["ignored_argument_keys_by_tool"].get(name, ())
  want = {
    k: v for k, v in e.items() if k not in ignored and (k in g or v != "")
  }
  got = {k: v for k, v in g.items() if k not in ignored}
  return None if terms.same(want, got) else _MISMATCH


def _coerced(values, properties):
  """Arrays and objects that were given as JSON text, decoded."""
  kinds = {"array": list, "object": dict}
  found = dict(values)
  for key, value in values.items():
    declared = properties.get(key)
    kind = declared.get("type") if isinstance(declared, dict) else None
    if isinstance(value, str) and isinstance(kind, str) and kind in kinds:
      decoded = arguments.decode(value)
      if isinstance(decoded, kinds[kind]):
        found[key] = decoded
  return found


def _explicit(values, other, properties):
  """`values` with the defaults of keys that only `other` has."""
  found = dict(values)
  for key in other:
    declared = properties.get(key)
    if (
      key not in found and isinstance(declared, dict) and "default" in declared
    ):
      found[key] = declared["default"]
  return found


@functools.lru_cache(maxsize=1024)
def _validator(schema):
  value = json.loads(schema)
  try:
    jsonschema.Draft202012Validator.check_schema(value)
  except jsonschema.SchemaError as error:
    raise errors.InputError(
      f"tools: {error.message}; expected a JSON schema"
    ) from error
  return jsonschema.Draft202012Validator(value)


def _command(key, missing, below):
  """Similar commands under `key`; line ends and outer blanks aside."""

  def rule(e, g, terms):
    pair = [e.get(key), g.get(key)]
    if not all(isinstance(x, str) for x in pair):
      return missing
    want, got = (
      x.replace("\r\n", "\n").replace("\r", "\n").strip() for x in pair
    )
    return None if terms.alike(want, got) else below

  return rule


def _identical(*keys):
  """Equal values, absent ones included."""

  def rule(e, g, terms):
    del terms
    pairs = [(e.get(k, _MISSING), g.get(k, _MISSING)) for k in keys]
    return None if all(a == b for a, b in pairs) else _MISMATCH

  return rule


def _plan(e, g, terms):
  if not e.get("plan") or not g.get("plan"):
    return "update_plan_empty_plan"
  return None


def _write(e, g, terms):
  if e.get("filePath") != g.get("filePath"):
    return _MISMATCH
  if terms.mended and not _texts_alike(e, g, "content", terms):
    return _MISMATCH
  return None


def _edit(e, g, terms):
  if e.get("filePath") != g.get("filePath"):
    return _MISMATCH
  if g.get("oldString") == g.get("newString"):
    return _MISMATCH
  absent = False if terms.mended else _MISSING
  if e.get("replaceAll", absent) != g.get("replaceAll", absent):
    return _MISMATCH
  if terms.mended and not all(
    _texts_alike(e, g, key, terms) for key in ("oldString", "newString")
  ):
    return _MISMATCH
  return None


def _texts_alike(e, g, key, terms):
  want, got = e.get(key), g.get(key)
  if isinstance(want, str) and isinstance(got, str):
    return terms.alike(want, got)
  return want == got


def _todos(e, g, terms):
  del terms
  want, got = e.get("todos"), g.get("todos")
  if not isinstance(want, list) or not isinstance(got, list):
    return "todowrite_empty_todos"
  if len(want) != len(got) or any(
    _field(a, key) != _field(b, key)
    for a, b in zip(want, got)
    for key in ("status", "priority")
  ):
    return _MISMATCH
  return None


def _field(value, key):
  return value.get(key) if isinstance(value, dict) else value


def _code(e, g, terms):
  pair = [e.get("code"), g.get("code")]
  if not all(isinstance(x, str) and x.strip() for x in pair):
    return _MISMATCH
  if terms.alike(*pair):
    return None
  return "execute_python_code_similarity_below_threshold"


def _result(e, g, terms):
  want, got = (json.dumps(x.get("result"), sort_keys=True) for x in (e, g))
  if terms.alike(want, got):
    return None
  return "return_result_similarity_below_threshold"


def _query(e, g, terms):
  pair = [e.get("query"), g.get("query")]
  if not all(isinstance(x, str) and x for x in pair):
    return "web_search_missing_query"
  want, got = (x.lower().strip() for x in pair)
  if terms.alike(want, got, terms.query_threshold):
    return None
  # The same words in another order ask for the same.
  ordered = [" ".join(sorted(x.split())) for x in (want, got)]
  if terms.mended and terms.alike(*ordered, terms.query_threshold):
    return None
  return "web_search_query_similarity_below_threshold"


def _page(e, g, terms):
  pair = [e.get("url"), g.get("url")]
  if not all(isinstance(x, str) and x for x in pair):
    return "fetch_web_page_missing_url"
  if terms.mended:
    want, got = (_address(x.strip()) for x in pair)
  else:
    want, got = (x.lower().strip() for x in pair)
  return None if want == got else "fetch_web_page_urls_do_not_match"


def _address(url):
  """The address with scheme and host, of which case says nothing, lowered."""
  try:
    parts = urllib.parse.urlsplit(url)
  except ValueError:
    return url
  return urllib.parse.urlunsplit(
    parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower())
  )


def _finish(e, g, terms):
  reasons = [e.get("reason"), g.get("reason")]
  if not all(isinstance(x, str) and x for x in reasons):
    return "finish_missing_reason"
  paths = [e.get("paths"), g.get("paths")]
  if not all(
    isinstance(x, list) and x and all(isinstance(p, str) for p in x)
    for x in paths
  ):
    return "finish_missing_paths"
  want, got = (sorted(p.strip() for p in x) for x in paths)
  if want != got:
    return "finish_paths_do_not_match"
  want, got = (x.lower().strip() for x in reasons)
  # The one rule of the original that compares the other way round.
  if terms.alike(got, want):
    return None
  return "finish_reason_similarity_below_threshold"


_EXEC = _command(
  "cmd",
  "exec_command_missing_cmd",
  "exec_command_cmd_similarity_below_threshold",
)
_RULES: dict[str, dict[str, Rule]] = {
  "codex": {"exec_command": _EXEC, "update_plan": _plan},
  "opencode": {
    "bash": _command(
      "command",
      "bash_missing_command",
      "bash_command_similarity_below_threshold",
    ),
    "read": _identical("filePath"),
    "write": _write,
    "edit": _edit,
    "glob": _identical("pattern", "path"),
    "grep": _identical("pattern", "path", "include"),
    "webfetch": _identical("url", "format"),
    "skill": _identical("name"),
    "task": _identical("subagent_type"),
    "todowrite": _todos,
  },
  "agent006": {"execute_python": _code, "return_result": _result},
  "stirrup": {
    "code_exec": _EXEC,
    "web_search": _query,
    "fetch_web_page": _page,
    "finish": _finish,
  },
}
