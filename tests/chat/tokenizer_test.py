"""Tokenizers as users have them: stop ids, broken files, both transformers."""

import dataclasses
import json
import os
import shutil
import subprocess

import pytest

from pivotrl_jax import errors
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.engines import policy

# What a transformers of either major version says of a directory.
_SAYS = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tools, messages, texts = json.load(sys.stdin)
text = tokenizer.apply_chat_template(
    messages, tools=tools, tokenize=False, add_generation_prompt=True)
ids = [tokenizer(t)["input_ids"] for t in [text, *texts]]
print(json.dumps([text, ids, [tokenizer.decode(i) for i in ids],
                  tokenizer.eos_token_id, tokenizer.pad_token_id]))
"""
_CHAT = (
  [{"type": "function", "function": {
      "name": "view", "description": "Shows a file.",
      "parameters": {"type": "object", "properties": {"path": {}}}}}],
  [{"role": "system", "content": "Be brief."},
   {"role": "user", "content": "Ünï, \u65e5\u672c , 12.5 ?"},
   {"role": "assistant", "content": "", "reasoning_content": "Look.",
    "tool_calls": [{"id": "c", "type": "function", "function": {
        "name": "view", "arguments": {"path": "a\n'b' <|im_end|>"}}}]},
   {"role": "tool", "tool_call_id": "c", "content": "x = 1  # <think>"}],
  ["", " two  blanks , and a stop .", "a\r\n\tb", "<|im_end|><tool_call>"],
)  # fmt: skip


def _copy(path, *left_out):
  """The mini policy's tokenizer files, without some."""
  path.mkdir()
  for name in (
      "config.json", "generation_config.json", "tokenizer.json",
      "tokenizer_config.json", "chat_template.jinja",
  ):  # fmt: skip
    if name not in left_out:
      shutil.copyfile(policy.MINI / name, path / name)
  return path


def _dump(path, **values):
  found = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(found | values))


@pytest.mark.parametrize(
    ("generation", "config", "want"),
    [
        # The tokenizer's own is <|im_end|>, 2.
        ({"eos_token_id": [2, 0]}, {}, (0, 2)),
        ({"eos_token_id": 1}, {}, (1, 2)),
        ({"eos_token_id": None}, {"eos_token_id": 0}, (0, 2)),
        ({"eos_token_id": [1]}, {"eos_token_id": [0, 3]}, (0, 1, 2, 3)),
        (None, {}, (2,)),
    ],
)  # fmt: skip
def test_stop_ids_are_those_of_all_files(tmp_path, generation, config, want):
  path = _copy(tmp_path / "m", "generation_config.json")
  if generation is not None:
    _dump(path / "generation_config.json", **generation)
  _dump(path / "config.json", **config)
  assert tokenizer_lib.load(path).stop_ids == want


def test_the_mini_policy_stops_at_both_of_its_ids():
  assert tokenizer_lib.load(policy.MINI).stop_ids == (0, 2)


def _write(name, text):
  return lambda path: (path / name).write_text(text)


def _drop(*names):
  return lambda path: [(path / name).unlink() for name in names]


def _without_merges(path):
  state = json.loads((path / "tokenizer.json").read_text())
  state["model"] |= {"vocab": {"a": 0}, "merges": []}
  (path / "tokenizer.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop("tokenizer.json"), "no tokenizer; expected tokenizer.json"),
        (_drop("tokenizer.json", "tokenizer_config.json"), "no tokenizer;"),
        (_write("tokenizer.json", "{"), "no tokenizer; .*JSONDecodeError"),
        (_write("tokenizer.json", "{}"), "no tokenizer; expected"),
        (_write("tokenizer.json", '{"model": {}, "added_tokens": []}'),
         "no tokenizer; expected"),
        (_without_merges, "reads 'Hello.*' as '.*'; expected the same"),
        (_write("tokenizer_config.json", "[]"), "no tokenizer; expected"),
        (_write("tokenizer_config.json", "{"), "no tokenizer; expected"),
        (_drop("chat_template.jinja"), "has no chat_template; expected"),
        (_write("chat_template.jinja", "{% for %}"), "line 1: .*; expected"),
        (_write("generation_config.json", "["), "generation_config.json: "),
        (_write("generation_config.json", '{"eos_token_id": "2"}'),
         "eos_token_id .'2'.; expected token ids"),
        (_write("generation_config.json", '{"eos_token_id": [true, -1]}'),
         "expected token ids"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_tokenizer_is_one_line(tmp_path, change, reason):
  path = _copy(tmp_path / "m")
  change(path)
  with pytest.raises(errors.InputError, match=reason) as error:
    tokenizer_lib.load(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_vocabulary_and_its_merges_are_a_tokenizer(tmp_path):
  path = _copy(tmp_path / "m", "tokenizer.json")
  model = json.loads((policy.MINI / "tokenizer.json").read_text())["model"]
  (path / "vocab.json").write_text(json.dumps(model["vocab"]))
  merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
  (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
  _dump(path / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
  tokenizer = tokenizer_lib.load(path)
  assert tokenizer.hf.encode("def f") == (
    tokenizer_lib.load(policy.MINI).hf.encode("def f")
  )


def test_added_words_and_blanks_are_vocabulary_no_markers(tmp_path):
  path = _copy(tmp_path / "m")
  state = json.loads((path / "tokenizer.json").read_text())
  for index, text in enumerate(("    ", "kubectl", "<|fim|>"), 2048):
    state["added_tokens"].append(
      state["added_tokens"][-1] | {"id": index, "content": text}
    )
  (path / "tokenizer.json").write_text(json.dumps(state))
  tokenizer = tokenizer_lib.load(path)
  assert tokenizer.marker_ids == {0, 1, 2, *range(2042, 2048), 2050}
  assert tokenizer.size == 2051


def test_the_mini_policys_class_is_known_to_transformers_4_and_5():
  values = json.loads((policy.MINI / "tokenizer_config.json").read_text())
  assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
  # Of version 5 alone; a list there stops version 4.57.
  assert not {"backend", "extra_special_tokens"} & set(values)


def _says(python, path):
  done = subprocess.run(
    [python, "-c", _SAYS, str(path)],
    input=json.dumps(_CHAT),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_transformers_4_reads_the_same(tmp_path):
  """The mini policy, an export of it, and one with another template."""
  python = os.environ.get("PIVOTRL_TRANSFORMERS4_PYTHON")
  if not python:
    pytest.skip("set PIVOTRL_TRANSFORMERS4_PYTHON to try transformers 4.57")
  own = (policy.MINI / "chat_template.jinja").read_text()
  template = tmp_path / "t.jinja"
  template.write_text(own.replace("Tools:", "Functions:"))
  loaded = policy.load(policy.MINI)
  policy.save(tmp_path / "export", loaded, loaded.params)
  replaced = tokenizer_lib.load(
    policy.MINI, tokenizer_lib.Settings(chat_template=str(template))
  )
  policy.save(
    tmp_path / "other",
    dataclasses.replace(loaded, tokenizer=replaced),
    loaded.params,
  )
  tools, messages, texts = _CHAT
  for path, tokenizer in (
    (policy.MINI, loaded.tokenizer),
    (tmp_path / "export", loaded.tokenizer),
    (tmp_path / "other", replaced),
  ):
    text, ids, back, eos, pad = _says(python, path)
    hf = tokenizer.hf
    assert text == hf.apply_chat_template(
      messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert ids == [hf(t)["input_ids"] for t in [text, *texts]]
    assert back == [text, *texts]
    assert (eos, pad) == (hf.eos_token_id, hf.pad_token_id)
  assert "Functions:" in text
