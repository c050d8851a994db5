"""Trains the mini policy's byte-level BPE and writes its chat template.

  python launchers/build_mini_tokenizer.py --output=DIR

The text is that of `evaluation/mixture.py`, of all worlds and suites, and the
docstrings of the Python standard library, so that ordinary English and code
are compressed too.
"""

import ast
import json
import pathlib
import sys
import sysconfig

from absl import app
from absl import flags
from tokenizers import AddedToken
from tokenizers import Regex
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

# Runs from a checkout as it is.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from pivotrl_jax.chat import markers
from pivotrl_jax.chat import render
from pivotrl_jax.chat import tokenizer as tokenizer_lib
from pivotrl_jax.evaluation import mixture

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 2048, "Entries.")
_CHATS = flags.DEFINE_integer("chats", 4_000, "Chats to read.")
_LIBRARY = flags.DEFINE_integer(
  "library", 200_000, "Characters of the standard library's docstrings."
)

_SEED = 1  # Of the chats; other than that of training.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip

# One line a tool; thinking of earlier turns stays, so that prefixes nest.
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
{{- 'Tools:\\n' }}
{%- for tool in tools %}
{%- set f = tool.function %}
{{- f.name + '(' }}
{%- for key in (f.parameters or {}).properties or {} %}
{{- ('' if loop.first else ', ') + key }}
{%- endfor %}
{{- '): ' + (f.description or '') + '\\n' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n' }}{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>{"name": ' + call.function.name | tojson + ', "arguments": ' }}
{%- if call.function.arguments is string %}{{- call.function.arguments | tojson }}
{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


# Of tokenizer_config.json. The class is one that transformers 4 and 5 know.
CONFIG = {
  "tokenizer_class": "PreTrainedTokenizerFast",
  "eos_token": "<|im_end|>",
  "pad_token": "<|endoftext|>",
  "model_max_length": 32768,
  "clean_up_tokenization_spaces": False,
}


def _new():
  tokenizer = Tokenizer(models.BPE())
  # Words keep their leading blank; digits stand alone, so numbers are copied
  # and compared digit by digit.
  split = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(split, "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _texts():
  """Rendered chats without the markup, then docstrings."""
  plain = _new()
  plain.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
  nothing = markers.pattern(())
  wrapped = tokenizer_lib.Tokenizer(
    PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=TEMPLATE),
    tokenizer_lib.Settings(),
    stop_ids=(),
    special=nothing,
    markers=nothing,
  )
  for index in range(_CHATS.value):
    chat = mixture.chat(index, _SEED)
    text = render.text(wrapped, chat.messages, chat.tools)
    for mark in (*SPECIAL, *MARKUP):
      text = text.replace(mark, "\n")
    yield text
  yield from _docstrings(_LIBRARY.value)


def _docstrings(most):
  """Docstrings of the standard library, up to `most` characters."""
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(folder.glob("*.py")):
    tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in ast.walk(tree):
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        text = ast.get_docstring(node) or ""
        most -= len(text)
        if most < 0:
          return
        yield text


def main(_):
  tokenizer = _new()
  trainer = trainers.BpeTrainer(
    vocab_size=_VOCABULARY.value - len(MARKUP),
    special_tokens=list(SPECIAL),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(_texts(), trainer)
  tokenizer.add_tokens(
    [AddedToken(t, special=False, normalized=False) for t in MARKUP]
  )
  write(pathlib.Path(_OUTPUT.value).expanduser(), tokenizer)


def write(output: pathlib.Path, tokenizer: Tokenizer) -> None:
  """The tokenizer's files of a Hugging Face directory."""
  output.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(output / "tokenizer.json"))
  (output / "chat_template.jinja").write_text(TEMPLATE)
  ids = {t: tokenizer.token_to_id(t) for t in SPECIAL}
  generation = {
    "do_sample": True,
    "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
    "pad_token_id": ids["<|endoftext|>"],
  }
  for name, values in (
    ("tokenizer_config.json", CONFIG),
    ("generation_config.json", generation),
  ):
    (output / name).write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)
