"""NVIDIA NeMo Gym rows: rollouts, and pivot rows there and back.

A rollout row is a request and what followed it. A pivot row is one turn: the
exact prefix, and the label that a verifier scores against.
"""

from collections.abc import Iterator
import copy
import json
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import responses
from pivotrl_jax.data.importers import terminus

_REQUEST = "responses_create_params"
_PARAMETERS = frozenset((
    "background", "include", "input", "instructions", "max_output_tokens",
    "max_tool_calls", "metadata", "model", "parallel_tool_calls",
    "previous_response_id", "prompt", "reasoning", "service_tier", "store",
    "stream", "temperature", "text", "tool_choice", "tools", "top_logprobs",
    "top_p", "truncation", "user",
))  # fmt: skip
_LABELS = ("expected_action", "expected_answer")


def matches_pivots(value: Any) -> bool:
  """Whether a row is a pivot row, scored or not.

  `expected_answer` alone is no label: rollouts of question answering have the
  true answer under that name. With it go terminus's harness, or no response.
  """
  if not isinstance(value, dict) or _REQUEST not in value:
    return False
  metadata = value.get("metadata")
  metadata = metadata if isinstance(metadata, dict) else {}
  if "expected_action" in value or "expected_action" in metadata:
    return True
  return ("expected_answer" in value or "expected_answer" in metadata) and (
    "harness" in metadata or "response" not in value
  )


def matches_rollouts(value: Any) -> bool:
  """Whether a row is a rollout, or one of the kind without a prompt."""
  return isinstance(value, dict) and (
    (_REQUEST in value and "response" in value)
    or ("trajectory" in value and "verifier_result" in value)
  )


def read_pivots(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory of one turn a row."""
  return chat.each_row(file, _pivot)


def read_rollouts(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a row."""
  return chat.each_row(file, _rollout)


def pivot_row(
  trajectory: types.Trajectory,
  candidate: types.Candidate,
  *,
  agent: str = "pivotrl",
) -> dict[str, Any]:
  """The NeMo Gym row of a candidate; that of an imported row as it was.

  Args:
    trajectory, candidate: whose turn it is.
    agent: name of the Gym agent that the row is routed to.
  """
  row = copy.deepcopy(trajectory.extra) if _is_row(trajectory.extra) else {}
  imported = bool(row)
  request = row.setdefault(_REQUEST, {})
  turn = trajectory.messages[candidate.prefix]
  prefix = turn.prompt or trajectory.messages[: candidate.prefix]
  request.setdefault("input", responses.items(prefix))
  if trajectory.tools or not imported:
    request.setdefault("tools", responses.flat_tools(trajectory.tools))
  if not imported:
    request.update(tool_choice="auto", parallel_tool_calls=True)
    row["agent_ref"] = {"type": "responses_api_agents", "name": agent}
    row["uuid"] = candidate.id
    if "metadata" in trajectory.extra:  # A terminus reply, and its harness.
      row["metadata"] = trajectory.extra["metadata"]
      row["expected_answer"] = candidate.demonstration.content
      row["expected_action"] = types.action_to_json(candidate.demonstration)
  if not any(key in row for key in _LABELS) and _label(row) is None:
    row["expected_action"] = types.action_to_json(candidate.demonstration)
  return row


def validate_row(
  row: Any, *, agent: str | None = None, server_models: bool = True
) -> str | None:
  """Why NeMo Gym would refuse a pivot row, None if it would not.

  The structure that its validator script asks for (verifiers.md, 7), with
  labels of several calls taken too, each checked like a single one.

  Args:
    row: one decoded line.
    agent: if given, the name that `agent_ref` must have.
    server_models: also check what its request model refuses: unknown
      parameters, metadata that is no text, nested tools.
  """
  try:
    request = _validate_request(row)
    _validate_label(row["expected_action"], request["tools"])
    _validate_agent(row["agent_ref"], agent)
    if server_models:
      _validate_models(request)
  except errors.InputError as error:
    return str(error)
  return None


def _validate_request(row):
  for key in (_REQUEST, "expected_action", "agent_ref"):
    _expect(isinstance(row, dict) and key in row, f"row.{key}", "to be there")
  request = row[_REQUEST]
  _expect(isinstance(request, dict), _REQUEST, "an object")
  found = request.get("input")
  _expect(isinstance(found, list) and found, "input", "a list, not empty")
  _expect(isinstance(request.get("tools"), list), "tools", "a list")
  parallel = request.get("parallel_tool_calls", True)
  _expect(isinstance(parallel, bool), "parallel_tool_calls", "a bool")
  choice = request.get("tool_choice", "auto")
  _expect(choice == "auto", "tool_choice", "'auto' or nothing")
  metadata = request.get("metadata", {})
  _expect(metadata is not None, "metadata", "to be left out or not null")
  return request


def _validate_label(label, tools):
  action = types.action_from_json(label, place="expected_action")
  if action.type != "message":
    _expect(bool(action.calls), "expected_action.calls", "at least one call")
  names = {
    (tool["function"] if isinstance(tool.get("function"), dict) else tool).get(
      "name"
    )
    for tool in tools
    if isinstance(tool, dict)
  }
  for call in action.calls:
    _expect(bool(call.name), "expected_action.name", "a name, not empty")
    _expect(call.name in names, f"expected_action.name {call.name!r}", "a tool")
    records.decode(
      call.arguments.encode("utf-8", "replace"), "expected_action.arguments"
    )


def _validate_agent(reference, agent):
  kind = records.field(reference, "type", str, "agent_ref")
  name = records.field(reference, "name", str, "agent_ref")
  _expect(kind == "responses_api_agents", "agent_ref.type", "an agent")
  _expect(bool(name), "agent_ref.name", "a name, not empty")
  _expect(agent in (None, name), f"agent_ref.name {name!r}", repr(agent))


def _validate_models(request):
  for key in request:
    _expect(key in _PARAMETERS, key, "a parameter of the Responses API")
  for key, value in request.get("metadata", {}).items():
    _expect(isinstance(value, str), f"metadata.{key}", "a string")
  for i, tool in enumerate(request["tools"]):
    records.field(tool, "name", str, f"tools[{i}]")


def _expect(condition, place, wanted):
  if not condition:
    raise errors.InputError(f"{place}: expected {wanted}")


def _is_row(extra: dict[str, Any]) -> bool:
  return isinstance(extra.get(_REQUEST), dict)


def _pivot(file, line, row):
  request = records.field(row, _REQUEST, dict, "row")
  label = _label(row)
  if label is None:
    raise errors.InputError(
      f"row: no label; expected one of {', '.join(_LABELS)}"
    )
  history = responses.messages(request.get("input"), f"{_REQUEST}.input")
  history = [
    chat.as_context(m) if m.role == "assistant" else m for m in history
  ]
  # A label's calls have no ids: an id in it would only be ours.
  demonstration = types.message_of(label)
  tools = request.get("tools") or row.get("declared_tools") or ()
  return chat.trajectory(
    file,
    "nemo_gym_pivots",
    line if row.get("uuid") is None else row["uuid"],
    [*history, demonstration],
    tools=tools,
    extra=_rest(row, history),
  )


def _label(row: dict[str, Any]) -> types.Action | None:
  """The demonstration: an action, or terminus's answer as a message."""
  if isinstance(row.get("expected_action"), dict):
    return types.action_from_json(
      row["expected_action"], place="expected_action"
    )
  metadata = row.get("metadata")
  sources = [row, metadata if isinstance(metadata, dict) else {}]
  for source in sources:
    answer = source.get("expected_answer")
    if isinstance(answer, str) and answer:
      return _answer_label(answer)
  found = sources[1].get("expected_action")
  if isinstance(found, dict):
    return types.action_from_json(found, place="metadata.expected_action")
  return None


def _answer_label(answer: str) -> types.Action:
  try:
    value = json.loads(answer)
  except (ValueError, RecursionError):
    value = None
  if isinstance(value, dict) and value.get("type") == "function_call":
    return types.action_from_json(value, place="expected_answer")
  return types.Action("message", content=answer)


def _rest(row, history):
  """What `pivot_row` needs to give back `row`: all it could not rebuild."""
  rest = {k: v for k, v in row.items() if k != _REQUEST}
  request = dict(row[_REQUEST])
  if _same(request.get("input"), responses.items(history)):
    del request["input"]
  tools = request.get("tools")
  if tools and _same(tools, responses.flat_tools(chat.wrap_tools(tools))):
    del request["tools"]
  return {_REQUEST: request, **rest}


def _same(one: Any, other: Any) -> bool:
  """Equality as JSON: 1 is neither 1.0 nor true, NaN is itself."""
  return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _rollout(file, line, row):
  if _REQUEST not in row:
    raise errors.InputError(
      f"row: no {_REQUEST}: the prompt is not recorded, so the turns'"
      " prefixes cannot be rebuilt"
    )
  request = records.field(row, _REQUEST, dict, "row")
  response = records.field(row, "response", dict, "row")
  prompt = responses.messages(request.get("input") or [], f"{_REQUEST}.input")
  instructions = records.field(
    request, "instructions", str, _REQUEST, default=None
  )
  if instructions:
    prompt.insert(0, types.Message("system", instructions))
  if not prompt:
    prompt = _configured_prompt(row)
  output = responses.messages(response.get("output") or [], "response.output")
  reward = records.field(row, "reward", (int, float), "row", default=None)
  return chat.trajectory(
    file,
    "nemo_gym_rollouts",
    line,
    [_terminus(m) for m in [*prompt, *output]],
    tools=request.get("tools") or (),
    task_id=_task(row),
    reward=reward,
    success=None if reward is None else reward >= 1,
  )


def _configured_prompt(row):
  """The prompt of agents that build it themselves, from their config."""
  config = records.field(row, "instance_config", dict, "row", default={})
  place = "instance_config"
  agent = records.field(config, "agent_kwargs", dict, place, default={})
  info = records.field(config, "problem_info", dict, place, default={})
  system, problem = agent.get("system_prompt"), info.get("problem_statement")
  if not isinstance(problem, str):
    raise errors.InputError(
      f"{_REQUEST}.input: empty, and no instance_config.problem_info"
      ".problem_statement; expected a prompt"
    )
  prompt = [types.Message("user", problem)]
  if isinstance(system, str):
    prompt.insert(0, types.Message("system", system))
  return prompt


def _terminus(message):
  """Drops calls that only repeat the keystrokes of a terminus reply."""
  batch = terminus.commands(message.content)
  if message.tool_calls and batch is not None:
    return types.Message("assistant", message.content, message.reasoning)
  return message


def _task(row):
  for key in ("instance_id", "task_id"):
    if row.get(key) is not None:
      return row[key]
  config = row.get("instance_config")
  if isinstance(config, dict) and isinstance(config.get("problem_info"), dict):
    found = config["problem_info"].get("instance_id")
    if found is not None:
      return found
  return row.get("_ng_task_index")
