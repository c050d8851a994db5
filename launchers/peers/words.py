"""Numbered words, a vocabulary without a download, for peers that want text."""

import tokenizers
import transformers


def tokenizer(kind=transformers.PreTrainedTokenizerFast):
  """A `kind` of tokenizer of 4,096 ids: `w3` is 3, and so on."""
  words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
  words |= {f"w{i}": i for i in range(3, 4096)}
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(words, unk_token="<unk>")
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return kind(
    tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>",
    unk_token="<unk>",
  )  # fmt: skip


def text(draw, length):
  """`length` words drawn by a `random.Random`."""
  return " ".join(f"w{draw.randint(3, 4095)}" for _ in range(length))
