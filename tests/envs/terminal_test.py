"""The simulated shell, its patterns, and the terminal world's tasks."""

import itertools
import random
import re

import pytest

from pivotrl_jax import types
from pivotrl_jax.envs import worlds
from pivotrl_jax.envs.terminal import environment
from pivotrl_jax.envs.terminal import patterns
from pivotrl_jax.envs.terminal import shell
from pivotrl_jax.envs.terminal import tasks

FILES = {
  "/app": None,
  "/app/a": None,
  "/app/a/x.log": "red one\nblue two\nred red\n",
  "/app/a/.hidden": "",
  "/app/b c": "x,y,z\n1,2,3\n",
  "/app/n.txt": "9\n10\n2\n10\n",
}


# What GNU's commands print on these files (`ls -l` and `wc` shortened).
@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("ls", "a  b c  n.txt\n"),
        ("ls | cat", "a\nb c\nn.txt\n"),
        ("ls -a a", ".hidden  x.log\n"),
        ("ls -l", "d 0 a\n- 12 b c\n- 10 n.txt\n"),
        ("ls nope", "ls: nope: No such file or directory\n"),
        ("cat 'b c'", "x,y,z\n1,2,3\n"),
        ('cat "b c" | cut -d, -f2', "y\n2\n"),
        ("cut -d , -f 2- b\\ c", "y,z\n2,3\n"),
        ("cut -d, -f1,3 'b c'", "x,z\n1,3\n"),
        ("head -n 1 a/x.log", "red one\n"),
        ("tail -2 a/x.log", "blue two\nred red\n"),
        ("tail -n +3 a/x.log", "red red\n"),
        ("wc -l n.txt", "4 n.txt\n"),
        ("wc n.txt", "4 4 10 n.txt\n"),
        ("cat n.txt | wc -l", "4\n"),
        ("grep red a/x.log", "red one\nred red\n"),
        ("grep -c red a/*.log n.txt", "a/x.log:2\nn.txt:0\n"),
        ("grep -vn red a/x.log", "2:blue two\n"),
        ("grep -rl two .", "./a/x.log\n"),
        ("grep -r two", "a/x.log:blue two\n"),
        ("grep -io 'RED' a/x.log", "red\nred\n"),
        ("grep -E '^(a|b)' a/x.log", "grep: groups are not supported\n"),
        ("grep -E '^red|two$' a/x.log", "red one\nblue two\nred red\n"),
        ("grep nothing n.txt || echo none", "none\n"),
        ("grep nothing n.txt && echo some", ""),
        ("sort n.txt", "10\n10\n2\n9\n"),
        ("sort -n n.txt", "2\n9\n10\n10\n"),
        ("sort -nru n.txt", "10\n9\n2\n"),
        ("sort n.txt | uniq -c", "2 10\n1 2\n1 9\n"),
        ("sort -n n.txt | tail -n 1", "10\n"),
        ("sed 's/red/green/' a/x.log", "green one\nblue two\ngreen red\n"),
        ("sed 's/red/[&]/g' a/x.log", "[red] one\nblue two\n[red] [red]\n"),
        ("sed -n 2p n.txt", "10\n"),
        ("sed '2,3d' n.txt", "9\n10\n"),
        ("sed '/red/d' a/x.log", "blue two\n"),
        ("sed 's/x*/-/g' 'b c' | head -1", "-,-y-,-z-\n"),
        ("tr a-z A-Z < a/x.log | head -1", "RED ONE\n"),
        ("echo a b | tr -d ' '", "ab\n"),
        ("awk '{print $2}' a/x.log", "one\ntwo\nred\n"),
        ("awk -F, '{print $3}' 'b c'", "z\n3\n"),
        ("find . -name '*.log'", "./a/x.log\n"),
        ("find a -type f -empty", "a/.hidden\n"),
        ("find . -name '*.txt' | xargs cat | head -1", "9\n"),
        ("echo 'a  b'  c", "a  b c\n"),
        ("echo -n x; echo y", "xy\n"),
        ("printf 'a\\nb\\n'", "a\nb\n"),
        ("cd a && pwd && ls", "/app/a\nx.log\n"),
        ("cd nope; pwd", "cd: nope: No such directory\n/app\n"),
        ("cat ../../etc/passwd", "cat: ../../etc/passwd: No such file\n"),
        ("echo $HOME", "sh: $ is not supported\n"),
        ("python x.py", "sh: python: command not found\n"),
        ("ls nope 2>/dev/null; echo ok", "ok\n"),
        ("echo x > nope/y", "sh: nope/y: No such file or directory\n"),
        ("echo 'x", "sh: unclosed '\n"),
    ],
)  # fmt: skip
def test_commands(line, printed):
  assert shell.run(shell.Shell(FILES), line)[1] == printed


# What lines do to the files: path -> text, None for gone, ... for a folder.
@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("echo x > new", {"new": "x\n"}),
        ("echo x >> n.txt", {"n.txt": "9\n10\n2\n10\nx\n"}),
        ("mkdir d && mv n.txt d", {"d": ..., "d/n.txt": "9\n10\n2\n10\n",
                                   "n.txt": None}),
        ("mkdir d/e", {}),
        ("mkdir -p d/e", {"d": ..., "d/e": ...}),
        ("cp a d", {}),
        ("cp -r a d", {"d": ..., "d/x.log": "red one\nblue two\nred red\n",
                       "d/.hidden": ""}),
        ("mv a a/b", {}),
        ("rm a", {}),
        ("rm -r a", {"a": None, "a/x.log": None, "a/.hidden": None}),
        ("rm -rf /; rm -r .", {}),
        ("find . -name '*.log' -delete", {"a/x.log": None}),
        ("sed -i 's/1/7/' n.txt", {"n.txt": "9\n70\n2\n70\n"}),
        ("sort n.txt > n.txt", {"n.txt": "10\n10\n2\n9\n"}),
        ("touch n.txt t", {"t": ""}),
        ("echo x | tee t >> n.txt", {"t": "x\n", "n.txt":
                                     "9\n10\n2\n10\nx\n"}),
    ],
)  # fmt: skip
def test_files(line, changes):
  want = dict(FILES)
  for path, text in changes.items():
    if text is None:
      del want[f"/app/{path}"]
    else:
      want[f"/app/{path}"] = None if text is ... else text
  assert shell.run(shell.Shell(FILES), line)[0].files == want


def test_the_disk_is_small():
  start = shell.Shell({"/app": None, "/app/x": "a" * 4000})
  for line in ("cat x x > y", "cp x y; cp x z", "cat x >> x"):
    after, said = shell.run(start, line)
    assert "disk full" in said
    assert sum(len(t or "") for t in after.files.values()) <= shell.MOST_TEXT
  names = " ".join(map(str, range(150)))
  assert shell.run(start, f"touch {names}")[1] == "touch: disk full\n"


def test_patterns_find_what_re_finds():
  rng = random.Random(0)
  pieces = ("a", "b", ".", "a*", "b*", "[ab]", "[^a]*", "a+", "b?")
  for _ in range(1500):
    inner = "".join(rng.choices(pieces, k=rng.randint(1, 5)))
    head, tail = rng.choice(("", "", "^")), rng.choice(("", "", "$"))
    text = "".join(rng.choices("abc", k=rng.randint(0, 7)))
    found = patterns.compile_pattern(head + inner + tail, extended=True)
    # Leftmost, then longest.
    ends = itertools.product(range(len(text) + 1), range(len(text), -1, -1))
    want = next(
      (
        (start, end)
        for start, end in ends
        if start <= end
        and re.compile(inner).fullmatch(text, start, end)
        and not (head and start)
        and not (tail and end < len(text))
      ),
      None,
    )
    assert found.span(text) == want, (head + inner + tail, text)


def test_no_pattern_runs_away():
  text = "a" * 5000
  for pattern in ("a*a*a*a*a*a*b", "[ab]*[ab]*[ab]*c", "a\\?" * 15 + "a" * 14):
    assert patterns.compile_pattern(pattern).span(text) is not None or (
      pattern[-1] in "bc"
    )


def test_all_ways_lead_to_the_goal_and_no_wrong_one():
  kinds = set()
  for i in range(150):
    task = tasks.make_task(i, "train")
    kinds.add(task.draft.instruction.split()[0])
    start = shell.Shell(task.start)
    assert task.start != task.goal
    for way in task.draft.ways:
      after, _ = shell.run(start, way)
      assert after == shell.Shell(task.goal), (task.draft.instruction, way)
    for wrong in task.draft.wrong:
      assert shell.run(start, wrong)[0].files != task.goal, wrong
    for stage in task.draft.looks:
      for look in stage:
        after, said = shell.run(start, look)
        assert after == start and said, look
  assert len(kinds) > 10


def test_keystrokes_wait_for_their_line_break():
  state = environment.State(shell.Shell(FILES))
  state, said = environment.feed(state, "ec")
  assert (said, state.typed) == ("", "ec")
  state, said = environment.feed(state, "ho x\nls a\nech")
  assert (said, state.typed) == ("x\nx.log\n", "ech")
  state, _ = environment.feed(state, "C-c")
  assert state.typed == "" and state.log == ("echo x", "ls a")


def test_replies_follow_the_schema():
  for text, why in (
      ("no", "no JSON"), ("[]", "no JSON object"), ("{}", "no analysis"),
      ('{"analysis": "", "plan": "", "commands": {}}', "no commands"),
      ('{"analysis": "", "plan": "", "commands": [{}]}',
       "a command without keystrokes"),
      ('{"analysis": "", "plan": "", "commands": [], "task_complete": 1}',
       "task_complete is no boolean"),
  ):  # fmt: skip
    assert environment.read(text) == why


def test_both_harnesses_play_the_same_world():
  replies, calls = (
    [worlds.demonstrate(name, i, "train", 0) for i in range(10)]
    for name in ("terminal", "terminal_calls")
  )
  for trajectory in replies:
    assert trajectory.extra == {"metadata": {"harness": "terminus_2"}}
    assert all(not m.tool_calls for m in trajectory.messages)
  for trajectory in calls:
    assert trajectory.extra == {"harness": "codex"}
    spoken = [m for m in trajectory.messages if m.role == "assistant"]
    actions = [types.action_of(m).type for m in spoken]
    assert actions == ["function_call"] * (len(actions) - 1) + ["message"]
