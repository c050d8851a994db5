"""Terminal agents. The embedded default: the mini terminal world.

Replies in JSON (terminus) by default; for structured tool calls
`--config.world=terminal_calls --config.verifier.name=terminal_multi_harness`.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  config = common.base("terminal", arg)
  config.verifier.name = "terminus_judge"
  config.verifier.terminus_judge.enable_string_similarity = True
  config.verifier.terminus_judge.string_similarity_threshold = 0.9
  config.verifier.terminus_judge.check_twice_swap = True
  # A judge's word needs a judge: the paper's scale has one, at judge.url.
  paper = common.parse_arg(arg)["paper"]
  config.verifier.terminus_judge.enable_llm_judge = paper
  if not paper:
    config.data.format = "world"
    config.e2e.max_turns = config.evaluation.max_turns = 10
    config.rollout.max_tokens = 128  # JSON takes its room.
  return config
