"""Software engineering. The embedded default: the mini SWE world."""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  config = common.base("swe", arg)
  config.verifier.name = "swe_pivot"
  if common.parse_arg(arg)["paper"]:
    config.data.max_prompt_tokens = 131072
    config.train.clip_high = 0.28
    config.profile.group_size = 8
    # The paper's SWE reward is the tool alone.
    config.verifier.swe_pivot.enable_target_match = False
    config.verifier.swe_pivot.enable_argument_similarity = False
    return config
  config.data.format = "world"
  config.data.max_prompt_tokens = 1024
  config.data.trajectories = config.data.trajectories or 100
  # In a file of five lines a nearly right edit is a wrong one.
  config.verifier.swe_pivot.edit_scope = "changed"
  config.verifier.swe_pivot.similarity_full_credit = 1.0
  return config
