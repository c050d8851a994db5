"""The mini SWE world: one bug in two small files, fixed through five tools."""

from pivotrl_jax.envs.swe.environment import DOMAIN, ROW, TOOLS, State, Task
from pivotrl_jax.envs.swe.environment import make_task, reset, step, success
from pivotrl_jax.envs.swe.expert import act, act_poorly

__all__ = [
    "DOMAIN", "ROW", "TOOLS", "State", "Task", "act", "act_poorly",
    "make_task", "reset", "step", "success",
]  # fmt: skip
