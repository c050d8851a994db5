"""A scripted agent that looks things up, and its mediocre double.

`act` is right at every turn: it searches for the next hop, reads the page
that tells it, and answers after the last. `act_poorly` searches for too much,
reads the wrong page, skips a hop or answers what it has.
"""

from collections.abc import Callable

import numpy as np

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.search import environment
from pivotrl_jax.envs.search import tasks

_BECAUSE = (
  "the {relation} of {x} is {value}",
  "{value} is the {relation} of {x}",
  "page of {page}: the {relation} of {x} is {value}",
)
_BECAUSE_BACK = (
  "{value} has {x} as {relation}",
  "the {relation} of {value} is {x}",
  "page of {page}: the {relation} of {value} is {x}",
)


def act(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """A right action."""
  leg = next((leg for leg in task.legs if leg.page not in state.read), None)
  if leg is None:
    return _answer(task.legs[-1], task.answer, rng)
  if leg.page in state.found:
    goal = base.pick(rng, leg.hop.goals).format(x=leg.start)
    return base.call(rng, "visit", page=leg.page, goal=goal)
  # What finds the page, as far as that was not tried.
  queries = [q.format(x=leg.start) for q in leg.hop.queries]
  queries += [leg.page]
  good = [
    q for q in queries
    if leg.page in [a.title for a in task.corpus.search(
        q, environment.RESULTS)]
  ]  # fmt: skip
  return base.call(rng, "search", query=base.pick(rng, good[:3]))


def act_poorly(
  task: tasks.Task, state: environment.State, rng: np.random.Generator
) -> types.Action:
  """What a mediocre agent might do here instead."""
  return _POOR[rng.choice(len(_POOR), p=_POOR_SHARES)](task, state, rng)


def _answer(leg, value, rng):
  forms = _BECAUSE_BACK if leg.hop.back else _BECAUSE
  because = base.pick(rng, forms).format(
    x=leg.start, value=leg.value, page=leg.page, relation=leg.hop.relation
  )
  return base.call(rng, "answer", answer=value, because=because)


def _whole_question(task, state, rng):
  """Searches for all hops at once."""
  del state
  return base.call(rng, "search", query=task.question.rstrip("?."))


def _wrong_relation(task, state, rng):
  """Searches for another fact, or for one of another entry."""
  del state
  leg = base.pick(rng, task.legs)
  hop = base.pick(rng, tasks.HOPS)
  return base.call(rng, "search", query=hop.queries[0].format(x=leg.start))


def _wrong_page(task, state, rng):
  """Reads any of the results, or one that is not there."""
  page = base.pick(rng, state.found or (task.legs[0].start,))
  leg = base.pick(rng, task.legs)
  goal = base.pick(rng, leg.hop.goals).format(x=leg.start)
  return base.call(rng, "visit", page=page, goal=goal)


def _early(task, state, rng):
  """Answers with the last thing read, or with what the question names."""
  leg = base.pick(rng, task.legs)
  article = task.corpus.articles[(*state.read, leg.start)[-1]]
  value = base.pick(rng, tuple(article.facts.values()))
  return _answer(leg, value, rng)


def _talk(task, state, rng):
  del state
  return base.say(base.pick(rng, ("I will look it up.", task.question)))


_POOR: tuple[Callable[..., types.Action], ...] = (
    _whole_question, _wrong_relation, _wrong_page, _early, _talk,
)  # fmt: skip
_POOR_SHARES = (0.2, 0.25, 0.25, 0.25, 0.05)
