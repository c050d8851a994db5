"""tau2-bench: the `Results` of its simulator, and Sierra's SFT splits.

A simulation by itself holds neither the policy nor the tools: its chat comes
without a system prompt.

The system prompt, the tools and what the agent sees are those of
sierra-research/tau2-bench (MIT).
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from pivotrl_jax import errors
from pivotrl_jax import types
from pivotrl_jax.data import records
from pivotrl_jax.data.importers import chat
from pivotrl_jax.data.importers import files
from pivotrl_jax.data.importers import openai

_ROLE = (
  "You are a customer service agent that helps the user according to the"
  " <policy> provided below.\n"
)
_MANNER = (
  "always follow the policy. Always make sure you generate valid JSON only."
)
_AGENT = (
  f"{_ROLE}During each turn you can either:\n"
  "- Send a message to the user.\n"
  "- Make a tool call.\n"
  "IMPORTANT: You cannot do both at the same time!!\n"
  "If you send text content while making a tool call, the agent will raise"
  " an error.\n"
  "Text content will be sent to the user. Do not use this field for your own"
  " reasoning.\n\n"
  f"Try to be helpful and {_MANNER}"
)
# The wording that releases had from autumn 2025 on, by git commit.
_AGENT_BY_COMMIT = {
  "8d005b0e": (
    f"{_ROLE}In each turn you can either:\n"
    "- Send a message to the user.\n"
    "- Make a tool call.\n"
    "You cannot do both at the same time.\n\n"
    f"Try to be helpful and {_MANNER}"
  )
}
_SOLO_AGENT = (
  f"{_ROLE}You will be provided with a <ticket> that contains the user's"
  " request.\n"
  "You will need to plan and call the appropriate tools to solve the"
  " ticket.\n\n"
  "You cannot communicate with the user, only make tool calls.\n"
  "Only tool calls are allowed, do not output anything else.\n\n"
  "Stop when you consider that you have solved the ticket.\n"
  "To do so, send a message containing a single tool call to the `done`"
  " tool. Do not include any other tool calls in this last message.\n\n"
  f"{_MANNER[0].upper()}{_MANNER[1:]}"
)
# Keys of a message beside those of a chat.
_ASIDE = ("errors", "raw_data")
_DONE = {
  "type": "function",
  "function": {
    "name": "done",
    "description": "Call this function when you are done with the task.",
    "parameters": {"type": "object", "properties": {}},
  },
}


def matches(value: Any) -> bool:
  """Whether it is a `Results`, a set of SFT splits, or one simulation."""
  return isinstance(value, dict) and (
    {"simulations", "tasks", "info"} <= set(value)
    or "splits" in value
    or _is_simulation(value)
  )


def _is_simulation(value):
  return (
    isinstance(value.get("messages"), list)
    and "task_id" in value
    and ("reward_info" in value or "termination_reason" in value)
  )


def read(file: files.File) -> Iterator[types.Trajectory | files.Skip]:
  """One trajectory a simulation, or a row of a split."""
  for line, value in file.rows():
    if isinstance(value, files.Skip):
      yield value
      continue
    if isinstance(value, dict) and _is_simulation(value):
      yield chat.attempt(file, line, _alone, file, value)
      continue
    try:
      records.field(value, "splits", dict, "file", default=None)
      chosen = _split_rows if value.get("splits") else _simulations
      yield from chosen(file, value)
    except errors.InputError as error:
      yield files.Skip(file.name, None, str(error))


def system_prompt(results: dict[str, Any], ticket: str | None) -> str:
  """The agent's first message; `ticket` is set in solo mode only."""
  info = records.field(results, "info", dict, "results")
  commit = records.field(info, "git_commit", str, "info", default="")
  environment = records.field(info, "environment_info", dict, "info")
  policy = records.field(environment, "policy", str, "environment_info")
  if ticket is not None:
    agent = _SOLO_AGENT
  else:
    agent = _AGENT_BY_COMMIT.get(commit[:8], _AGENT)
  prompt = (
    f"<instructions>\n{agent}\n</instructions>\n<policy>\n{policy}\n</policy>"
  )
  if ticket is not None:
    prompt += f"\n<ticket>\n{ticket}\n</ticket>"
  return prompt


def _simulations(file, results):
  tasks = {
    task.get("id"): task
    for task in records.field(results, "tasks", list, "results")
    if isinstance(task, dict) and isinstance(task.get("id"), str)
  }
  tools = _tools(file, results)
  for i, simulation in enumerate(
    records.field(results, "simulations", list, "results")
  ):
    where = simulation.get("id", i) if isinstance(simulation, dict) else i
    yield chat.attempt(
      file, where, _of_results, file, results, simulation, tasks, tools
    )


def _alone(file, simulation):
  return _trajectory(file, simulation, _seen(simulation), ())


def _of_results(file, results, simulation, tasks, tools):
  seen = _seen(simulation)
  ticket = None
  if _is_solo(results):
    task_id = records.field(simulation, "task_id", str, "simulation")
    ticket = records.field(tasks.get(task_id), "ticket", str, "task")
    # This text stands for `done()`; no model wrote it.
    if seen and seen[-1].content == "###STOP###":
      seen.pop()
  prompt = types.Message("system", system_prompt(results, ticket))
  return _trajectory(file, simulation, [prompt, *seen], tools)


def _seen(simulation):
  """What the agent said and saw."""
  found = records.field(simulation, "messages", list, "simulation")
  return [
    chat.message(_as_openai(value), f"messages[{i}]", also=_ASIDE)
    for i, value in enumerate(found)
    if not _is_the_users_own(value)
  ]


def _trajectory(file, simulation, messages, tools):
  place = "simulation"
  outcome = records.field(simulation, "reward_info", dict, place, default={})
  reward = records.field(
    outcome, "reward", (int, float), "reward_info", default=None
  )
  return chat.trajectory(
    file,
    "tau2",
    simulation.get("id"),
    messages,
    tools=tools,
    task_id=records.field(simulation, "task_id", str, place),
    reward=reward,
    success=None if reward is None else reward == 1,
  )


def _is_solo(results):
  info = records.field(results, "info", dict, "results")
  agent = records.field(info, "agent_info", dict, "info", default={})
  return str(agent.get("implementation", "")).endswith("solo")


def _tools(file, results):
  info = records.field(results, "info", dict, "results")
  environment = records.field(info, "environment_info", dict, "info")
  domain = records.field(
    environment, "domain_name", str, "environment_info", default=""
  )
  tools = file.beside(f"domains/{domain}/tools.json") or []
  if not _is_solo(results):
    return tools
  return [
    *tools,
    *(file.beside(f"domains/{domain}/user_tools.json") or []),
    _DONE,
  ]


def _is_the_users_own(value):
  """What happens on the user's side: the agent never sees it."""
  return isinstance(value, dict) and (
    (value.get("role") == "tool" and value.get("requestor") == "user")
    or (
      value.get("role") == "user"
      and bool(value.get("tool_calls"))
      and not value.get("content")
    )
  )


def _as_openai(value):
  if isinstance(value, dict) and value.get("role") == "tool":
    return {**value, "tool_call_id": value.get("id")}
  if isinstance(value, dict) and value.get("role") == "user":
    return {k: v for k, v in value.items() if k != "tool_calls"}
  return value


def _split_rows(file, value):
  splits = records.field(value, "splits", dict, "file")
  for name in splits:
    for i, row in enumerate(records.field(splits, name, list, "splits")):
      found = chat.attempt(
        file, f"{name}[{i}]", openai.trajectory, file, f"{name}[{i}]", row
      )
      if isinstance(found, types.Trajectory):
        found = dataclasses.replace(found, source=f"tau2:{file.name}")
      yield found
