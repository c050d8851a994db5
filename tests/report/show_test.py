"""What `--show` prints is what a run renders."""

import json

import pytest

from pivotrl_jax import types
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.data import importers
from pivotrl_jax.data.importers import __main__ as command
from pivotrl_jax.engines import policy
from pivotrl_jax.pivots import candidates
from pivotrl_jax.pivots import rollouts
from pivotrl_jax.report import show

_CHAT = [
  {"role": "user", "content": "old question"},
  {"role": "assistant", "content": "copied", "weight": 0},
  {"role": "user", "content": "question"},
  {"role": "assistant", "content": "x" * 5000},
  {"role": "user", "content": "more"},
  {"role": "assistant", "content": ""},
  {"role": "user", "content": "and?"},
  {"role": "assistant", "content": "last"},
]


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.load(policy.MINI)


def test_turns_are_as_a_run_renders_them(tmp_path, tokenizer):
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps({"messages": _CHAT, "reward": 0.0}) + "\n")
  (shown,) = importers.import_path(path)
  text = show.trajectory(tokenizer, shown)
  first, empty, last = candidates.candidates(shown)
  assert types.says_nothing(shown.messages[empty.prefix])
  prompts, actions = {}, {}
  for turn in (first, last):
    prompts[turn] = rollouts.render_turn(tokenizer, shown, turn).prompt
    actions[turn] = rollouts.render_demonstration(tokenizer, shown, turn)
  lines = text.splitlines()
  assert lines[0] == "=== a:1 (openai:a.jsonl)"
  assert f"prompt, {len(prompts[first])} tokens:" in lines
  assert tokenizer.decode(prompts[first]) in text
  assert f"demonstration, {len(actions[first])} tokens:" in lines
  # 5,000 letters and what ends the turn, of which 1,800 are shown.
  said = tokenizer.decode(actions[first])
  assert f"[... {len(said) - 1800} characters ...]" in lines
  assert said[:1200] in text and said not in text
  # Of the last prompt, what the first turn has is not said again.
  shared = len(prompts[first]) + len(actions[first])
  assert (
    f"prompt, {len(prompts[last])} tokens, the first {shared} as above:"
    in lines
  )
  assert text.count("old question") == 1
  assert tokenizer.decode(actions[last]) in text
  assert "no candidate: an empty demonstration, without text and call" in lines
  assert 'context, no candidate: messages[1]: "copied"' in lines
  assert any("did not solve" in line for line in lines)


def test_command_shows_so_many(tmp_path, capsys):
  rows = [{"messages": [*_CHAT[2:3], {"role": "assistant", "content": str(n)}]}
          for n in range(3)]  # fmt: skip
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  tools = tmp_path / "schemas.txt"
  tools.write_text(json.dumps([{"name": "f", "parameters": {}}]))
  arguments = [str(path), "--show=2", f"--tools={tools}"]
  assert command.main(arguments) == 0
  out = capsys.readouterr().out
  assert out.count("=== a:") == 2
  assert out.count("tools: f") == 2
  assert command.main([str(path), "--show=1", f"--model={tmp_path}"]) == 2
  line = capsys.readouterr().err
  assert str(tmp_path) in line and line.count("\n") == 1
  with pytest.raises(SystemExit) as raised:
    command.main([str(path), "--show=0"])
  assert raised.value.code == 2
