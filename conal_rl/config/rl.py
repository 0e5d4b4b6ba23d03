"""Multi-task reinforcement learning: environments, the agent, its evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from conal_rl.config.checks import not_negative, positive, require, require_seed
from conal_rl.config.shared import LearnerConfig, RunConfig


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The tasks and the environments that play them."""

    suite: str | tuple[str, ...]
    """Tasks: a suite such as mt10, mt25, mt50, mt1:reach-v3, cartpole; or a list of envs."""
    envs_per_task: int = 1
    """Environments stepped side by side for each task."""
    engine: Literal["native", "official"] = "native"
    """What steps Meta-World: native (compiled, in threads) or official; their numbers are equal."""

    def __post_init__(self) -> None:
        names = (self.suite,) if isinstance(self.suite, str) else self.suite
        require(bool(names) and all(names), "env.suite", self.suite, "a suite or a list of envs")
        positive(self, "env", "envs_per_task")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig(LearnerConfig):
    """Multi-task soft actor-critic: its networks and how they learn."""

    widths: tuple[int, ...] = (256, 256, 256)
    """Units of each hidden layer, in actor and critics."""
    layer_norm: bool = True
    """Normalise each hidden layer of actor and critics (LayerNorm)."""
    learning_rate_end: float | None = None
    """Step size at total_steps, reached linearly; the search keeps it constant, and a run that its
    minutes end before does not get there. None: it stays constant throughout."""
    buffer_size: int = 200_000
    """Transitions per task that the replay buffer holds."""
    learning_starts: int = 1_000
    """Random env steps per task before the first update."""
    update_every: int = 1
    """Vector env steps (one step of every env) between training rounds."""
    updates: int = 1
    """Updates in one training round."""
    actor_every: int = 1
    """Updates of the critics for each update of the actor and its temperatures."""
    gamma: float = 0.99
    """Discount per env step."""
    n_steps: int = 1
    """Env steps of reward in a TD target before it bootstraps."""
    tau: float = 0.005
    """Share of the critics that moves into their targets at each update."""
    target_entropy: float | None = None
    """Policy entropy that each task's temperature aims at, in nats; None: -(action dimensions)."""
    initial_temperature: float = 1.0
    """Entropy temperature of every task at the start."""
    critics: int = 2
    """Critics, each a network of its own."""
    critic: Literal["hl_gauss", "mse"] = "hl_gauss"
    """Critic's loss: classification over bins of return (HL-Gauss), or squared error."""
    critic_bins: int = 101
    """Bins of the hl_gauss critic."""
    critic_range: tuple[float, float] = (-1.0, 11.0)
    """Lowest and highest return, after reward_scale, that the hl_gauss critic can express."""
    critic_linear_to: float | None = None
    """Return, after reward_scale, above which the hl_gauss bins grow with the return, so that small
    returns are resolved as finely, relatively, as large ones; None: all bins are equally wide."""
    reward_scale: float = 0.01
    """Factor on the critics' rewards; 0.01 brings Meta-World's returns into critic_range."""
    normalize_returns: bool = False
    """Divide each task's rewards by the largest discounted sum of them so far, before reward_scale,
    which is then about the largest return."""
    critic_reduce: Literal["min", "mean"] = "mean"
    """How several critics' values are combined, in targets and in the actor's loss."""
    normalize_actor_loss: bool = False
    """Divide each task's actor loss by the mean magnitude of its values, so that tasks of small
    returns move a shared actor as much as those of large ones."""
    mixed_precision: bool = False
    """Matrix products in bfloat16, weights in single precision: two to three times faster products.
    On CPUs and GPUs that have none, all is in single precision."""
    cuda_graphs: bool = True
    """On a CUDA device, record updates as CUDA graphs, and update while the environments step. Not
    with aggregations, normalize_returns, search.gumbel or LTB, which cannot be recorded."""
    actor_averaging: float | None = None
    """Evaluate an average of the actor's weights in which update t counts as t**this (0: all alike;
    4: mostly the last third of training); None: evaluate the newest weights."""
    reset_at: tuple[int, ...] = ()
    """Updates of the derived agent after which its weights begin anew, with the replay as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths_fit = len(self.widths) > 0 and min(self.widths) > 0
        require(widths_fit, "agent.widths", self.widths, "one or more integers above 0")
        positive(self, "agent", "buffer_size", "update_every", "updates")
        positive(self, "agent", "initial_temperature", "reward_scale", "critic_linear_to")
        positive(self, "agent", "actor_every", "n_steps", "critics")
        resets_fit = min(self.reset_at, default=1) > 0
        require(resets_fit, "agent.reset_at", self.reset_at, "integers above 0")
        not_negative(self, "agent", "learning_rate_end", "learning_starts", "actor_averaging")
        require(0 <= self.gamma < 1, "agent.gamma", self.gamma, "0 or more and below 1")
        require(0 < self.tau <= 1, "agent.tau", self.tau, "above 0 and at most 1")
        require(self.critic_bins >= 2, "agent.critic_bins", self.critic_bins, "2 or more")
        low, high = self.critic_range
        fits = -1e30 < low < high < 1e30
        allowed = "the lower bound first, both of single precision"
        require(fits, "agent.critic_range", self.critic_range, allowed)

    @property
    def depth(self) -> int:
        """Hidden layers."""
        return len(self.widths)

    @property
    def depth_field(self) -> str:
        """See `LearnerConfig`."""
        return "the number of agent.widths"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How success is measured."""

    episodes: int = 50
    """Episodes per task after training."""
    seed: int = 1_000
    """Seed of the evaluation's environments; not that of training."""
    every: int = 0
    """Env steps between evaluations during training, for the progress line; 0: none."""
    every_episodes: int = 5
    """Episodes per task in each of those."""

    def __post_init__(self) -> None:
        positive(self, "evaluation", "episodes", "every_episodes")
        not_negative(self, "evaluation", "every")
        require_seed("evaluation.seed", self.seed)

    @property
    def brief_seed(self) -> int:
        """Of evaluations during training: nothing is chosen on the episodes of the last one."""
        return self.seed ^ 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """An experiment in reinforcement learning."""

    env: EnvConfig
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    log_interval: int = 20_000
    """Env steps between lines of the log."""
