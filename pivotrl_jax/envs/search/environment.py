"""A search engine over an encyclopedia, pages to visit, one answer to give.

Success is the right answer, as it stands in the encyclopedia but for case,
articles and punctuation; there is one try.
"""

import dataclasses
import functools
import re
from typing import Any

from pivotrl_jax import types
from pivotrl_jax.envs import base
from pivotrl_jax.envs.search import tasks

DOMAIN = "search"
ROW: dict[str, Any] = {}
SYSTEM = "Look things up, hop by hop. Then answer."
TOOLS: tuple[dict[str, Any], ...] = (
    base.tool("search", "Find pages.", ("query",), query="string"),
    base.tool(
        "visit", "Read a page that was found.", ("page", "goal"),
        page="string", goal="string",
    ),
    base.tool(
        "answer", "Finish.", ("answer", "because"),
        answer="string", because="string",
    ),
)  # fmt: skip
RESULTS = 3
_SNIPPET = 6  # Words of a page that a result shows.


@dataclasses.dataclass(frozen=True)
class State:
  """An episode so far.

  Attributes:
    done: an answer was given.
    answer: which.
    found: titles of the last results.
    read: titles of the pages that were visited.
    queries: what was searched for.
  """

  done: bool = False
  answer: str = ""
  found: tuple[str, ...] = ()
  read: tuple[str, ...] = ()
  queries: tuple[str, ...] = ()


def reset(task: tasks.Task) -> tuple[State, tuple[types.Message, ...]]:
  """The first state, the system prompt and the question."""
  return State(), (
    types.Message("system", SYSTEM),
    types.Message("user", task.question),
  )


def step(
  task: tasks.Task, state: State, action: types.Action | types.ParseFailure
) -> tuple[State, tuple[types.Message, ...]]:
  """Carries out an action; whatever the model wrote gets an answer."""
  if isinstance(action, types.ParseFailure):
    return state, (types.Message("user", f"Bad tool call: {action.reason}."),)
  if action.type == "message":
    return state, (types.Message("user", "Use a tool."),)
  return base.answer_calls(action.calls, state, functools.partial(_call, task))


def success(task: tasks.Task, state: State) -> bool:
  """Whether the answer is right."""
  return state.done and normal(state.answer) == normal(task.answer)


def normal(text: str) -> str:
  """An answer without case, articles and punctuation."""
  words = re.findall(r"\w+", text.lower())
  return " ".join(w for w in words if w not in ("the", "a", "an"))


def _call(task, state, call):
  """One tool call -> next state and its answer."""
  if state.done:
    return state, "Answered."
  given = base.read_arguments(call, TOOLS)
  if isinstance(given, str):
    return state, given
  if call.name == "search":
    return _search(task, state, given["query"])
  if call.name == "visit":
    return _visit(task, state, given["page"])
  return dataclasses.replace(state, done=True, answer=given["answer"]), (
    "Answered."
  )


def _search(task, state, query):
  hits = task.corpus.search(query, RESULTS)
  state = dataclasses.replace(
    state,
    found=tuple(a.title for a in hits),
    queries=(*state.queries, query),
  )
  lines = [f"{a.title}: {' '.join(a.text.split()[:_SNIPPET])}..." for a in hits]
  return state, "\n".join(lines) or "No results."


def _visit(task, state, page):
  titles = {t.lower(): t for t in state.found}
  title = titles.get(page.strip().lower())
  if title is None:
    return state, "Not among the results."
  state = dataclasses.replace(state, read=(*state.read, title))
  return state, task.corpus.articles[title].text
