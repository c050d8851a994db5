"""A policy's tokenizer, from its own directory."""

import pathlib

from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerBase

from pivotrl_jax import errors


def load(path: pathlib.Path | str) -> PreTrainedTokenizerBase:
  """The Hugging Face tokenizer of a directory, with its chat template.

  Raises:
    InputError: there is none, or it has no chat template.
  """
  try:
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
  except (OSError, ValueError) as error:
    first = str(error).splitlines()[0]
    raise errors.InputError(
      f"{path}: no tokenizer; expected a Hugging Face directory ({first})"
    ) from error
  if not tokenizer.chat_template:
    raise errors.InputError(
      f"{path}: the tokenizer has no chat_template; expected one with tools"
    )
  return tokenizer


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
  """The ids that end a turn: the end of text, and `<|im_end|>` if known."""
  ids = {tokenizer.eos_token_id}
  vocabulary = tokenizer.get_vocab()
  ids |= {vocabulary[t] for t in ("<|im_end|>",) if t in vocabulary}
  return tuple(sorted(i for i in ids if i is not None))
