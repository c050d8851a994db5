"""A desk: its tools and database, and the customer in front of it.

The customer is a function of what the agent says: tells what is asked for,
says yes to a proposal, takes a refusal with its reason, and leaves content,
or annoyed after a few useless answers. Success is the database that the rules
allow, what was told, and that no rule was broken on the way.
"""

import dataclasses
import functools
import re
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.tau import tasks

DOMAIN = "tau"
ROW: dict[str, Any] = {}
TOOLS: tuple[dict[str, Any], ...] = (
    base.tool(
        "find_customer", "Whose records are whose.", ("name", "pin"),
        name="string", pin="integer",
    ),
    base.tool("get_record", "Show one.", ("id",), id="string"),
    base.tool(
        "cancel", "Cancel one.", ("id", "reason"), id="string", reason="string"
    ),
    base.tool(
        "change", "Change one.", ("id", "value"), id="string", value="string"
    ),
    base.tool(
        "refund", "Pay money back.", ("id", "amount", "reason"),
        id="string", amount="integer", reason="string",
    ),
    base.tool(
        "transfer", "Hand over to a human.", ("summary",), summary="string"
    ),
)  # fmt: skip
PATIENCE = 3
REFUSING = re.compile(
  r"\b(cannot|can't|can not|not allowed|unable|not possible|too late)\b", re.I
)
_NUMBER = re.compile(r"(?<![\w-])\$?(\d+)(?![\w-])")


@dataclasses.dataclass(frozen=True)
class State:
  """A conversation so far.

  Attributes:
    records: the database.
    done: the customer has left, or was handed over.
    request: index of the request in hand.
    known: the customer's name and pin have been said.
    found: the customer was found with them.
    seen: ids of the records that were looked at.
    value: the new value of the request in hand has been said.
    yes: the customer has agreed to it.
    carried: what was done for it: "", or a tool's name.
    refunds: (id, amount) of all money paid back.
    broken: a rule was broken, or a request ended wrong.
    useless: answers that helped nobody.
  """

  records: tuple[tasks.Record, ...]
  done: bool = False
  request: int = 0
  known: bool = False
  found: bool = False
  seen: tuple[str, ...] = ()
  value: bool = False
  yes: bool = False
  carried: str = ""
  refunds: tuple[tuple[str, int], ...] = ()
  broken: bool = False
  useless: int = 0


def reset(task: tasks.Task) -> tuple[State, tuple[types.Message, ...]]:
  """The first state, the desk's rules and the customer's first words."""
  desk, rules = tasks.DESKS[task.desk], task.rules
  system = (
    f"{desk.opening} Find the customer first. Cancel or change only what is"
    f" {desk.statuses[0]}. Refund the price less ${rules.fee}, within"
    f" {rules.days} days; above ${rules.most} transfer."
  )
  if rules.confirm:
    system += " Get a yes before you act."
  state = State(task.records, known=task.introduces, value=_tells(task, 0))
  words = [_wish(task, 0)]
  if task.introduces:
    words.append(introduction(task))
  return state, (
    types.Message("system", system),
    types.Message("user", " ".join(words)),
  )


def step(
  task: tasks.Task, state: State, action: types.Action | types.ParseFailure
) -> tuple[State, tuple[types.Message, ...]]:
  """Carries out calls, or puts what is said to the customer."""
  if state.done:
    return state, ()
  if isinstance(action, types.ParseFailure):
    return _useless(state), (
      types.Message("user", f"Bad tool call: {action.reason}."),
    )
  if action.type == "message":
    state, text = _listen(task, state, action.content)
    return state, (types.Message("user", text),)
  return base.answer_calls(action.calls, state, functools.partial(_call, task))


def success(task: tasks.Task, state: State) -> bool:
  """Whether all requests ended as the rules have it, and nothing else did."""
  records, refunds = goal(task)
  return (
    state.done
    and not state.broken
    and state.request == len(task.requests)
    and state.records == records
    and state.refunds == refunds
  )


def goal(
  task: tasks.Task,
) -> tuple[tuple[tasks.Record, ...], tuple[tuple[str, int], ...]]:
  """The database and the money paid back, as the rules have them."""
  records, refunds = task.records, []
  for request in task.requests:
    if request.outcome == "do" and request.kind == "refund":
      refunds.append((request.record, int(request.fact)))
    elif request.outcome == "do":
      change = {"value": request.value}
      if request.kind == "cancel":
        change = {"status": "cancelled"}
      records = _with(records, request.record, change)
  return records, tuple(refunds)


def record_of(state: State, name: str) -> tasks.Record | None:
  """The record with an id."""
  return next((r for r in state.records if r.id == name), None)


def introduction(task: tasks.Task) -> str:
  """How a customer tells who it is."""
  forms = (
    f"{task.customer}, pin {task.pin}.",
    f"I am {task.customer}, my pin is {task.pin}.",
    f"My name is {task.customer}. Pin {task.pin}.",
  )
  return forms[task.style]


def _tells(task, index):
  """Whether a request's own words leave nothing to ask."""
  request = task.requests[index]
  return request.kind != "change" or request.tells


def _named(task, request):
  """How a customer calls the record that a request is about."""
  record = next(r for r in task.records if r.id == request.record)
  desk = tasks.DESKS[task.desk]
  if task.desk == "airline":
    return f"{desk.word} to {record.item}"
  return f"{record.item} {desk.word}"


def _wish(task, index):
  """A request in the customer's words."""
  request, desk = task.requests[index], tasks.DESKS[task.desk]
  if request.kind == "total":
    return (
      f"What do my {desk.word}s cost together?",
      f"How much are all my {desk.word}s?",
      f"Please add up the prices of my {desk.word}s.",
    )[task.style]
  name = _named(task, request)
  if request.kind == "price":
    return (
      f"What does my {name} cost?",
      f"How much is my {name}?",
      f"Please tell me the price of my {name}.",
    )[task.style]
  if request.kind == "change":
    to = f" to {request.value}" if request.tells else ""
    return (
      f"Change the {desk.field} of my {name}{to}.",
      f"My {name} needs another {desk.field}{to and ',' + to}.",
      f"Please set the {desk.field} of my {name}{to or ' anew'}.",
    )[task.style]
  verb = {"cancel": "cancel", "refund": "a refund for"}[request.kind]
  want = "I want" if request.kind == "refund" else "I want to"
  wish = (f"{want} {verb} my {name}.", f"{want} {verb} the {name}.")
  return f"{wish[task.style % 2]} {request.reason}"


def _listen(task, state, text):
  """The customer's answer to what the agent said, and the state after it."""
  if state.request >= len(task.requests):
    return _leave(state)
  request = task.requests[state.request]
  words = text.lower()
  if not state.known and re.search(r"\b(name|pin|who)\b", words):
    return dataclasses.replace(state, known=True), introduction(task)
  if not state.value and _asks_value(task, words):
    return dataclasses.replace(state, value=True), f"{request.value}, please."
  if REFUSING.search(text):
    return _refused(task, state, request, text)
  if request.outcome == "tell":
    if _tells_fact(task, text, request.fact):
      return _next(task, state, _seen(task, state, request))
    return _useless(state), "How much is it?"
  if state.carried:
    if request.kind != "refund" or _tells_fact(task, text, request.fact):
      return _next(task, state, True)
    return _useless(state), "How much do I get?"
  if "?" in text and _proposes(task, state, request, words):
    return dataclasses.replace(state, yes=True), "Yes, please."
  return _useless(state), _again(task, state)


def _again(task, state):
  """What a customer says who was not understood."""
  if not state.known:
    return "What do you need to know?"
  return ("Can you do it?", "Please go on.", "So?")[task.style]


def _asks_value(task, words):
  field = tasks.DESKS[task.desk].field
  return "?" in words and bool(re.search(rf"\b({field}|which|what)\b", words))


def _proposes(task, state, request, words):
  """Whether a question proposes what the customer wants."""
  record = record_of(state, request.record)
  named = record.id.lower() in words or record.item.lower() in words
  return state.found and state.value and named and request.kind in words


def _refused(task, state, request, text):
  """A refusal is taken where it tells why, and is right where it must be."""
  right = request.outcome == "refuse" and _seen(task, state, request)
  if right and not _tells_fact(task, text, request.fact):
    return _useless(state), "Why not?"
  return _next(task, state, right)


def _seen(task, state, request):
  """Whether all records that a request is about were looked at."""
  about = [
    r.id
    for r in task.records
    if r.owner == task.customer and request.record in ("", r.id)
  ]
  return set(about) <= set(state.seen)


def _tells_fact(task, text, fact):
  """Whether a text tells the fact, and no other of its kind."""
  if fact.isdigit():
    return set(_NUMBER.findall(text)) == {fact}
  statuses = tasks.DESKS[task.desk].statuses[1:]
  said = {s for s in statuses if re.search(rf"\b{s}\b", text.lower())}
  return said == {fact}


def _next(task, state, right):
  """The request in hand ends; the next one, or the customer goes."""
  index = state.request + 1
  state = dataclasses.replace(
    state,
    request=index,
    yes=False,
    carried="",
    broken=state.broken or not right,
    value=index < len(task.requests) and _tells(task, index),
  )
  if index == len(task.requests):
    return _leave(state)
  return state, f"{'Thanks' if right else 'OK'}. {_wish(task, index)}"


def _leave(state):
  return dataclasses.replace(state, done=True), "Thanks, bye."


def _useless(state):
  """One answer more that helped nobody; after a few the customer leaves."""
  useless = state.useless + 1
  return dataclasses.replace(
    state,
    useless=useless,
    done=state.done or useless > PATIENCE,
  )


def _call(task, state, call):
  """One tool call -> next state and its answer."""
  if state.done:
    return state, "The customer is gone."
  arguments = base.read_arguments(call, TOOLS)
  if isinstance(arguments, str):
    return _useless(state), arguments
  if call.name == "find_customer":
    return _find(task, state, **arguments)
  if call.name == "transfer":
    return _transfer(task, state)
  if not state.found:
    return state, "Find the customer first."
  record = record_of(state, arguments["id"])
  if record is None or record.owner != task.customer:
    return state, "No such record of this customer."
  if call.name == "get_record":
    seen = (*state.seen, record.id)
    return dataclasses.replace(state, seen=seen), _shown(task, record)
  return _act(task, state, call.name, record, arguments)


def _find(task, state, name, pin):
  if (name.strip().lower(), pin) != (task.customer.lower(), task.pin):
    return state, "No such customer."
  own = [r for r in state.records if r.owner == task.customer]
  listed = ", ".join(f"{r.id} {r.item}" for r in own)
  return dataclasses.replace(state, found=True), listed


def _transfer(task, state):
  """Right where the request in hand is a human's."""
  index = state.request
  right = (
    index < len(task.requests)
    and task.requests[index].outcome == "transfer"
    and _seen(task, state, task.requests[index])
  )
  return dataclasses.replace(
    state, done=True, request=index + 1, broken=state.broken or not right
  ), "A human takes over."


def _shown(task, record):
  field = tasks.DESKS[task.desk].field
  return (
    f"{record.item}, ${record.price}, {record.status}, {record.days} days ago,"
    f" {field} {record.value}"
  )


def _act(task, state, tool, record, arguments):
  """A change of the database or a payment; what it was worth shows later."""
  wanted = state.request < len(task.requests) and (
    (task.requests[state.request].kind, task.requests[state.request].record)
    == (tool, record.id)
  )
  broken = not wanted or (task.rules.confirm and not state.yes)
  state = dataclasses.replace(
    state, broken=state.broken or broken, carried=tool
  )
  if tool == "refund":
    paid = (*state.refunds, (record.id, arguments["amount"]))
    return dataclasses.replace(state, refunds=paid), "Paid."
  change = {"status": "cancelled"}
  if tool == "change":
    change = {"value": arguments["value"]}
  records = _with(state.records, record.id, change)
  return dataclasses.replace(state, records=records), "Done."


def _with(records, name, change):
  """`records` with one of them changed."""
  return tuple(
    dataclasses.replace(r, **change) if r.id == name else r for r in records
  )
