"""A scripted agent for a desk, and its mediocre double.

`act` is right at every turn, in one of several wordings and orders.
`act_poorly` forgets to ask, breaks rules, miscounts, gives up early.
"""

from collections.abc import Callable

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.tau import environment
from pivotrl_jax.envs.tau import tasks


def act(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """A right action: who, what, may it, a yes, do it, tell."""
  if state.request >= len(task.requests):
    return _say(rng, "Goodbye.", "You are welcome.")
  request = task.requests[state.request]
  if not state.found:
    if not state.known:
      return _say(rng, "Your name and pin, please?", "What is your name and"
                  " pin?", "May I have your name and pin?")  # fmt: skip
    return base.call(rng, "find_customer", name=task.customer, pin=task.pin)
  unseen = [r for r in _about(task, state, request) if r.id not in state.seen]
  if unseen:
    return base.call(rng, "get_record", id=base.pick(rng, unseen).id)
  return _settle(task, state, request, rng)


def act_poorly(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """What a mediocre agent might do here instead."""
  return _POOR[rng.choice(len(_POOR), p=_POOR_SHARES)](task, state, rng)


def _about(task, state, request):
  """The records that a request is about."""
  own = [r for r in state.records if r.owner == task.customer]
  return [r for r in own if request.record in ("", r.id)]


def _settle(task, state, request, rng):
  """What comes after who asks and what it is about are known."""
  if request.outcome == "tell":
    return _say(rng, f"It is ${request.fact}.", f"That is ${request.fact}.",
                f"${request.fact} in all.")  # fmt: skip
  if request.outcome == "refuse":
    return _refuse(request, rng)
  if request.outcome == "transfer":
    return _transfer(request, rng)
  if not state.value:
    field = tasks.DESKS[task.desk].field
    return _say(rng, f"Which {field} do you want?", f"To which {field}?",
                f"What is the new {field}?")  # fmt: skip
  if state.carried:
    return _report(request, rng)
  if task.rules.confirm and not state.yes:
    return _propose(state, request, rng)
  return _do(request, rng, request.fact)


def _refuse(request, rng):
  if request.kind == "refund":
    return _say(
      rng,
      f"It cannot be refunded: it was {request.fact} days ago.",
      f"Sorry, {request.fact} days are too late for a refund.",
      f"I can't refund it after {request.fact} days.",
    )
  return _say(
    rng,
    f"It cannot be done: it is {request.fact}.",
    f"Sorry, I can't {request.kind} it. It is {request.fact}.",
    f"That is not possible, as it is {request.fact}.",
  )


def _transfer(request, rng):
  summary = base.pick(
    rng,
    (
      f"refund for {request.record} above the limit",
      f"refund of {request.record} is above the limit",
      f"{request.record} refund above limit",
    ),
  )
  return base.call(rng, "transfer", summary=summary)


def _report(request, rng):
  if request.kind == "refund":
    return _say(rng, f"You get ${request.fact} back.",
                f"Done, ${request.fact} are on their way.",
                f"I have refunded ${request.fact}.")  # fmt: skip
  verb = {"cancel": "cancelled", "change": "changed"}[request.kind]
  return _say(rng, f"It is {verb}.", f"Done, it is {verb}.",
              f"I have {verb} it.")  # fmt: skip


def _propose(state, request, rng):
  name = f"{environment.record_of(state, request.record).item}"
  to = f" to {request.value}" if request.kind == "change" else ""
  return _say(
    rng,
    f"Shall I {request.kind} {request.record}{to}?",
    f"{request.kind.capitalize()} {request.record}{to}, yes?",
    f"Do you want me to {request.kind} the {name}{to}?",
  )


def _do(request, rng, fact):
  if request.kind == "change":
    return base.call(rng, "change", id=request.record, value=request.value)
  reason = base.pick(rng, tasks.REASONS[request.reason])
  if request.kind == "cancel":
    return base.call(rng, "cancel", id=request.record, reason=reason)
  return base.call(
    rng, "refund", id=request.record, amount=int(fact), reason=reason
  )


def _hasty(task, state, rng):
  """Does what is asked without a look at rules, records or the customer."""
  request = _request(task, state)
  if request.kind == "refund":
    record = environment.record_of(state, request.record)
    return _do(request, rng, str(record.price))
  if request.kind in ("cancel", "change"):
    if not state.value:  # Makes one up.
      other = base.pick(rng, task.records).value
      return base.call(rng, "change", id=request.record, value=other)
    return _do(request, rng, "")
  return _say(rng, f"It is ${int(rng.integers(12, 100))}.")


def _miscounts(task, state, rng):
  """A wrong number, id or pin."""
  request = _request(task, state)
  if not state.found:
    return base.call(rng, "find_customer", name=task.customer,
                     pin=int(rng.integers(1000, 10000)))  # fmt: skip
  other = base.pick(rng, state.records)
  if request.kind == "refund" and other.id in state.seen:
    return _do(request, rng, str(other.price + task.rules.fee))
  return base.call(rng, "get_record", id=other.id)


def _refuses(task, state, rng):
  desk = tasks.DESKS[task.desk]
  why = f"it is {base.pick(rng, desk.statuses)}"
  if _request(task, state).kind == "refund":
    why = f"it was {int(rng.integers(1, 80))} days ago"
  return _say(rng, f"It cannot be done: {why}.")


def _hands_over(task, state, rng):
  del task, state
  return base.call(rng, "transfer", summary="customer wants help")


def _chats(task, state, rng):
  del task, state
  return _say(rng, "How can I help you?", "It is done.", "One moment.",
              "Your name and pin, please?")  # fmt: skip


_POOR: tuple[Callable[..., types.Action], ...] = (
    _hasty, _miscounts, _refuses, _hands_over, _chats,
)  # fmt: skip
_POOR_SHARES = (0.4, 0.2, 0.15, 0.1, 0.15)


def _request(task, state):
  return task.requests[min(state.request, len(task.requests) - 1)]


def _say(rng, *texts):
  return base.say(base.pick(rng, texts))
