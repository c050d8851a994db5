"""The tau world: rules, customers, and what must come of a visit."""

from pivotrl_jax import types
from pivotrl_jax.envs import tau
from pivotrl_jax.envs.tau import environment
from pivotrl_jax.envs.tau import tasks


def _tasks(count=400):
  return [tau.make_task(i, "train") for i in range(count)]


def test_outcomes_follow_the_rules():
  seen = set()
  for task in _tasks():
    own = [r for r in task.records if r.owner == task.customer]
    for request in task.requests:
      record = next((r for r in own if r.id == request.record), None)
      kind, outcome = request.kind, request.outcome
      seen.add((task.desk, kind, outcome))
      if kind == "total":
        assert request.fact == str(sum(r.price for r in own))
      elif kind == "price":
        assert request.fact == str(record.price)
      elif kind == "refund":
        amount = record.price - task.rules.fee
        late, much = record.days > task.rules.days, amount > task.rules.most
        want = "refuse" if late else "transfer" if much else "do"
        assert outcome == want
        assert request.fact == {"refuse": str(record.days), "transfer": "",
                                "do": str(amount)}[want]  # fmt: skip
      else:
        first = tasks.DESKS[task.desk].statuses[0]
        assert (outcome == "do") == (record.status == first)
  # Of each desk: 2 kinds done or refused, refunds in three ways, 2 questions.
  assert len(seen) == 3 * (2 * 2 + 3 + 2)


def test_the_goal_changes_what_is_asked_for_and_nothing_else():
  for task in _tasks(100):
    records, refunds = environment.goal(task)
    changed = {
      a.id for a, b in zip(task.records, records, strict=True) if a != b
    }
    done = [r for r in task.requests if r.outcome == "do"]
    assert changed == {r.record for r in done if r.kind != "refund"}
    assert [r for r, _ in refunds] == [
      r.record for r in done if r.kind == "refund"
    ]


def test_a_customer_tells_what_is_asked_for_and_leaves_annoyed():
  task = next(
    t for t in _tasks() if not t.introduces
    and t.requests[0].kind == "change" and not t.requests[0].tells
    and t.requests[0].outcome == "do" and t.rules.confirm
  )  # fmt: skip
  request, field = task.requests[0], tasks.DESKS[task.desk].field
  state, messages = tau.reset(task)
  assert request.value not in messages[1].content
  assert str(task.pin) not in messages[1].content

  def say(text):
    nonlocal state
    state, answers = tau.step(task, state, types.Action("message", text))
    return answers[0].content

  assert say("Hello!") == "What do you need to know?"
  assert say("Your name and pin?") == environment.introduction(task)
  assert say(f"Which {field}?") == f"{request.value}, please."
  assert say(f"Shall I change {request.record}?") != "Yes, please."  # Who?
  for _ in range(2):
    say("Hm.")
  assert state.done and not tau.success(task, state)


def test_a_prompt_states_the_rules():
  for task in _tasks(20):
    text = tau.reset(task)[1][0].content
    assert f"less ${task.rules.fee}, within {task.rules.days} days" in text
    assert f"above ${task.rules.most} transfer" in text
    assert ("Get a yes" in text) is task.rules.confirm
