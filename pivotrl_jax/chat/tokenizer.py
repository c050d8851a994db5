"""A policy's tokenizer, from its own directory."""

from collections.abc import Mapping
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import jinja2
from jinja2 import meta
import tokenizers
from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase

from pivotrl_jax import errors
from pivotrl_jax.chat import markers

REASONING = ("keep", "drop", "last")
EMPTY_THINKING = ("keep", "drop")
# One of these sets holds a whole vocabulary.
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# What rendering gives a template itself.
_OURS = (
    "messages", "tools", "add_generation_prompt", "documents", "bos_token",
    "eos_token", "pad_token", "unk_token", "raise_exception", "strftime_now",
)  # fmt: skip
_SAMPLE = "Hello, world: 1 + 2"


@dataclasses.dataclass(frozen=True)
class Settings:
  """How chats are put to a template: `config.model` and `config.data`.

  Attributes:
    chat_template: a Jinja file in place of the tokenizer's own; "" = none.
    template_kwargs: further variables of the template.
    reasoning: which turns have their reasoning, as the data have it: "keep"
      all, as far as the template writes it; "last" the turn that is acted
      out, none of the history; "drop" none.
    empty_thinking: whether demonstrations keep the empty block that some
      templates write where there is no reasoning: "keep" or "drop".
  """

  chat_template: str = ""
  template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reasoning: str = "keep"
  empty_thinking: str = "keep"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A tokenizer with its chat template.

  Attributes:
    hf: the Hugging Face tokenizer.
    settings: how chats are put to the template.
    stop_ids: what ends a turn, ascending.
    special: finds the tokens that are control tokens whoever writes them.
    markers: finds these and the other added tokens that structure a chat.
  """

  hf: PreTrainedTokenizerBase
  settings: Settings
  stop_ids: tuple[int, ...]
  special: re.Pattern[str]
  markers: re.Pattern[str]

  @property
  def size(self) -> int:
    """The largest id, plus one."""
    return max(self.hf.get_vocab().values()) + 1

  @functools.cached_property
  def marker_ids(self) -> frozenset[int]:
    """The ids of all markers."""
    return frozenset(
      index
      for text, index in self.hf.get_added_vocab().items()
      if self.markers.fullmatch(text)
    )

  @functools.cached_property
  def _without_markers(self) -> tokenizers.Tokenizer:
    """The same tokenizer, to which markers are text like any other."""
    state = json.loads(self.hf.backend_tokenizer.to_str())
    state["added_tokens"] = [
      token
      for token in state["added_tokens"]
      if not self.markers.fullmatch(token["content"])
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(state))

  def encode(
    self,
    text: str,
    hidden: markers.StandIns | None = None,
    *,
    add_special_tokens: bool = False,
  ) -> list[int]:
    """Ids of `text`; what is hidden in it is encoded as text.

    Exactly the plain tokenizer's ids where nothing is hidden: tokenizers cut
    a text at its markers, and so does this.

    Args:
      text: markers in it are markers.
      hidden: what stands in it for markers that are text.
      add_special_tokens: as the plain tokenizer's, where nothing is hidden.
    """
    if hidden is None or not hidden.within(text):
      return self.hf.encode(text, add_special_tokens=add_special_tokens)
    ids, plain = [], ""
    for piece in re.split(f"({self.markers.pattern})", text):
      if hidden.within(piece):
        ids += self.hf.encode(plain, add_special_tokens=False)
        ids += self._without_markers.encode(
          hidden.show(piece), add_special_tokens=False
        ).ids
        plain = ""
      else:
        plain += piece
    return ids + self.hf.encode(plain, add_special_tokens=False)

  def decode(self, ids: Any) -> str:
    """The text of `ids`, markers included."""
    return self.hf.decode(
      ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def load(
  path: pathlib.Path | str, settings: Settings | None = None
) -> Tokenizer:
  """The tokenizer of a directory, with a chat template.

  Args:
    path: a Hugging Face directory.
    settings: how chats are put to the template.

  Raises:
    InputError: there is none or a broken one, it has no chat template, or
      one that is no Jinja or knows nothing of `template_kwargs`.
  """
  path, settings = pathlib.Path(path), settings or Settings()
  hf = _hf_tokenizer(path)
  template_place = path
  if settings.chat_template:
    template_place = pathlib.Path(settings.chat_template)
    hf.chat_template = _read_template(template_place)
  if not hf.chat_template:
    raise errors.InputError(
      f"{path}: the tokenizer has no chat_template; expected one with tools"
    )
  _check_template(hf.chat_template, settings, template_place)
  special, marked = _markers(hf)
  return Tokenizer(hf, settings, _stop_ids(path, hf), special, marked)


def _hf_tokenizer(path):
  if not any(all((path / f).is_file() for f in files) for files in _FILES):
    raise errors.InputError(
      f"{path}: no tokenizer; expected tokenizer.json, or vocab.json and"
      " merges.txt"
    )
  try:
    hf = AutoTokenizer.from_pretrained(
      str(path), local_files_only=True, trust_remote_code=False
    )
  # Of broken files the tokenizers library raises nothing narrower.
  except Exception as error:
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    raise errors.InputError(
      f"{path}: no tokenizer; expected a Hugging Face directory ({first})"
    ) from error
  if not hf.is_fast:
    raise errors.InputError(
      f"{path}: {type(hf).__name__} has no tokenizer.json; expected one"
    )
  back = hf.decode(hf.encode(_SAMPLE, add_special_tokens=False))
  if back != _SAMPLE:
    raise errors.InputError(
      f"{path}: the tokenizer reads {_SAMPLE!r} as {back!r}; expected the same"
    )
  return hf


def _read_template(path):
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "not UTF-8"
    raise errors.InputError(
      f"model.chat_template: {path}: {reason}; expected a Jinja file"
    ) from error
  if not text.strip():
    raise errors.InputError(
      f"model.chat_template: {path}: empty; expected a Jinja file"
    )
  return text


def _check_template(template, settings, place):
  """Its syntax, and that it reads what it is given."""
  texts = template.values() if isinstance(template, dict) else [template]
  environment = jinja2.Environment(
    extensions=["jinja2.ext.loopcontrols", _Generation]
  )
  known: set[str] = set()
  for text in texts:
    try:
      known |= meta.find_undeclared_variables(environment.parse(text))
    except jinja2.TemplateSyntaxError as error:
      raise errors.InputError(
        f"{place}: chat template, line {error.lineno}: {error.message};"
        " expected Jinja"
      ) from error
  for name in settings.template_kwargs:
    if name in _OURS or name not in known:
      raise errors.InputError(
        f"model.template_kwargs: {name!r}; expected some of"
        f" {sorted(known - set(_OURS))}, which the chat template of {place}"
        " reads"
      )


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`: transformers' own tag, around what a model says."""

  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


def _markers(hf):
  """Patterns of the special tokens, and of all that structure a chat.

  An added token that is a mere word or blanks is vocabulary, no marker.
  """
  template = str(hf.chat_template)
  special, marked = [], []
  for token in hf.added_tokens_decoder.values():
    text = token.content
    if not text.strip():
      continue
    if token.special:
      special.append(text)
    tag = text[0] + text[-1] in ("<>", "[]")
    if token.special or tag or text in template:
      marked.append(text)
  return markers.pattern(special), markers.pattern(marked)


def _stop_ids(path, hf):
  """All that the directory's files name, and `<|im_end|>` if known.

  Base models name the end of a text alone; Qwen's templates end a turn with
  `<|im_end|>` all the same.
  """
  ids = {hf.eos_token_id} - {None}
  ids |= {hf.get_vocab()[t] for t in ("<|im_end|>",) if t in hf.get_vocab()}
  for name in ("generation_config.json", "config.json"):
    file = path / name
    if not file.is_file():
      continue
    try:
      values = json.loads(file.read_text(encoding="utf-8"))
      named = values.get("eos_token_id")
    except (ValueError, AttributeError) as error:
      raise errors.InputError(
        f"{file}: {error}; expected a JSON object"
      ) from error
    named = named if isinstance(named, list) else [named]
    named = [index for index in named if index is not None]
    if not all(type(i) is int and i >= 0 for i in named):
      raise errors.InputError(
        f"{file}: eos_token_id {named}; expected token ids"
      )
    ids |= set(named)
  return tuple(sorted(ids))
