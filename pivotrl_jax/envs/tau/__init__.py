"""The mini tau world: a customer, rules to keep, a database behind tools."""

from pivotrl_jax.envs.tau.environment import DOMAIN, ROW, TOOLS
from pivotrl_jax.envs.tau.environment import reset, step, success
from pivotrl_jax.envs.tau.expert import act, act_poorly
from pivotrl_jax.envs.tau.tasks import make_task

__all__ = [
    "DOMAIN", "ROW", "TOOLS", "act", "act_poorly", "make_task", "reset",
    "step", "success",
]  # fmt: skip
