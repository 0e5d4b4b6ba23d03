"""Multi-task reinforcement learning: environments, the agent, its evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from conal_rl.config.checks import not_negative, positive, require, require_seed
from conal_rl.config.fields import convert_fields, field
from conal_rl.config.shared import LearnerConfig, RunConfig


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The tasks and their environments."""

    suite: str | tuple[str, ...]
    """The tasks: a suite such as mt10, mt25, mt50, mt1:reach-v3 or cartpole, or a list of
    environments. Give a list to learn your own tasks."""
    envs_per_task: int = 1
    """Number of environments per task, all stepped together. More environments give fresher data
    per update and need more memory."""
    engine: Literal["native", "official"] = "native"
    """Engine that steps Meta-World: native (compiled, in threads) or official. Both give equal
    numbers. Choose official, which is slower, if native refuses the installed metaworld or
    mujoco."""

    def __post_init__(self) -> None:
        convert_fields(self, "env")
        names = (self.suite,) if isinstance(self.suite, str) else self.suite
        require(bool(names) and all(names), "env.suite", self.suite, "a suite or a list of envs")
        positive(self, "env", "envs_per_task")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig(LearnerConfig):
    """Multi-task soft actor-critic: its networks and how they learn."""

    widths: tuple[int, ...] = field((256, 256, 256), changes_run=True, in_model=True)
    """Number of units of each hidden layer, in the actor and in the critics. Raise them for many
    tasks; wider layers need a GPU to be fast."""
    layer_norm: bool = field(True, changes_run=True, in_model=True)
    """Normalise each hidden layer of the actor and the critics (LayerNorm). Switch it off only to
    compare with networks that have no LayerNorm."""
    learning_rate_end: float | None = None
    """Learning rate at total_steps. A derived tree reaches it linearly; a search has a constant
    rate. Set it for long runs. A run that its minutes end does not reach it. None: the rate is
    always constant."""
    buffer_size: int = 200_000
    """Number of transitions per task that the replay buffer holds. Lower it if memory is short."""
    learning_starts: int = 1_000
    """Number of random env steps per task before the first update. Raise it if random actions
    rarely reach a reward."""
    update_every: int = 1
    """Number of steps of all environments between two rounds of updates. Raise it if updates take
    longer than env steps and env steps are cheap."""
    updates: int = 1
    """Number of updates in one round. Raise it to learn more from the same env steps."""
    actor_every: int = 1
    """Number of critic updates per update of the actor and its temperatures. Raise it to save
    time."""
    gamma: float = field(0.99, changes_run=True)
    """Discount per env step. Raise it if rewards come late."""
    n_steps: int = field(1, changes_run=True)
    """Number of env steps of reward in a TD target before it bootstraps. Raise it if values travel
    too slowly along an episode."""
    tau: float = 0.005
    """Share of the critics' weights that moves into the target critics at each update. Raise it if
    training is short."""
    target_entropy: float | None = None
    """Policy entropy that each task's temperature aims at, in nats. Raise it for more exploration,
    lower it for more precise actions. None: minus the number of action dimensions."""
    initial_temperature: float = 1.0
    """Entropy temperature of every task at the start, in units of the scaled reward. Lower it if
    scaled rewards are small."""
    critics: int = field(2, changes_run=True, in_model=True)
    """Number of critics; each is a separate network. One is faster. Two guard against values that
    are too high, if critic_reduce is min."""
    critic: Literal["hl_gauss", "mse"] = field("hl_gauss", changes_run=True, in_model=True)
    """Loss of the critics: hl_gauss classifies returns into bins, mse is the squared error. Choose
    mse if the range of returns is unknown."""
    critic_bins: int = field(101, changes_run=True, in_model=True)
    """Number of bins of the hl_gauss critic. Raise it if small differences of return matter."""
    critic_range: tuple[float, float] = field((-1.0, 11.0), changes_run=True, in_model=True)
    """Lowest and highest return, after reward_scale, that the hl_gauss critic can express. Widen it
    if a warning says that targets are clamped."""
    critic_linear_to: float | None = field(None, changes_run=True, in_model=True)
    """Return, after reward_scale, above which the hl_gauss bins widen with the return. Set it if
    some tasks have far smaller returns than others. None: all bins have the same width."""
    reward_scale: float = 0.01
    """Factor on the rewards before they enter the critics. Choose it for your own tasks so that
    returns are within critic_range; 0.01 does so for Meta-World."""
    normalize_returns: bool = False
    """Divide each task's rewards by the largest discounted return seen so far, before reward_scale.
    Switch it on if the scale of rewards differs a lot between tasks."""
    critic_reduce: Literal["min", "mean"] = "mean"
    """How the values of several critics become one, in targets and in the actor's loss. Choose min,
    as SAC does, if values are overestimated."""
    normalize_actor_loss: bool = False
    """Divide each task's actor loss by the mean magnitude of its values. Switch it on if tasks with
    small returns must move a shared actor as much as tasks with large returns."""
    mixed_precision: bool = field(False, in_model=True)
    """Compute matrix multiplications in bfloat16 and keep the weights in single precision. Switch
    it on for two to three times the speed. A processor without bfloat16 instructions computes in
    single precision, because it would be slow in bfloat16."""
    cuda_graphs: bool = True
    """On a CUDA device, capture updates as CUDA graphs and update while the environments step.
    Switch it off to debug. It has no effect with aggregations, normalize_returns, search.gumbel and
    ltb."""
    actor_averaging: float | None = field(None, changes_run=True, in_model=True)
    """Exponent of the weight average that acts in evaluation: update t has the weight t to this
    power. With 0 all updates count alike; with 4 mostly the last third counts. Raise it if the
    average lags behind. None: the last iterate acts."""
    reset_at: tuple[int, ...] = ()
    """Numbers of updates after which the derived agent draws its weights from scratch and keeps its
    replay. Set it if many updates per env step make learning stall."""

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
        expected = "the lower bound first, both in the range of single precision"
        require(fits, "agent.critic_range", self.critic_range, expected)

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.widths)

    @property
    def depth_field(self) -> str:
        """The field that sets `depth`, for errors."""
        return "the number of agent.widths"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How success is measured."""

    episodes: int = 50
    """Number of episodes per task after training. Lower it for a quick look; Meta-World's protocol
    has 50, one per goal."""
    seed: int = 1_000
    """Seed of the evaluation's environments. Keep it different from the seed of training, so that
    the goals differ too."""
    every: int = field(0, changes_experiment=False)
    """Number of env steps between evaluations during training, for the progress line. Set it to
    watch success without exploration noise. 0: training is not interrupted."""
    interim_episodes: int = field(5, changes_experiment=False)
    """Number of episodes per task in each evaluation during training. Raise it for less noise."""

    def __post_init__(self) -> None:
        convert_fields(self, "evaluation")
        positive(self, "evaluation", "episodes", "interim_episodes")
        not_negative(self, "evaluation", "every")
        require_seed("evaluation.seed", self.seed)

    @property
    def interim_seed(self) -> int:
        """Seed of evaluations during training, different from the seed of the last evaluation.

        So no choice is made on the episodes that are reported.
        """
        return self.seed ^ 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """An experiment in reinforcement learning."""

    env: EnvConfig
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    log_interval: int = field(20_000, changes_experiment=False)
    """Number of env steps between two lines of the log. A config without it logs a hundred lines,
    and at least one per 20,000 steps. Lower it for finer curves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        every, most = self.agent.update_every, self.total_steps  # a round of steps is never cut
        require(every <= most, "agent.update_every", every, f"at most total_steps, {most}")
