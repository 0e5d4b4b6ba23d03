"""What experiments of all kinds have in common: the learner, the search, the run."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, get_args

import yaml

from conal_rl.config.checks import not_negative, positive, require, require_device, require_seed
from conal_rl.config.values import lists_for_tuples
from conal_rl.errors import ConfigError
from conal_rl.literals import AggregationName, LossWeights, Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What every learner has: a tree, and how the tasks' losses become updates."""

    tree: str = "search"
    """Which tasks share which module: search (CoNAL), shared, independent, or a tree's .json."""
    learning_rate: float = 3e-4
    """The optimiser's step size."""
    batch_size: int = 32
    """Samples, or transitions, per task in one update."""
    max_grad_norm: float | None = None
    """Longest gradient of an optimiser step; None: no clipping."""
    weighting: Literal[LossWeights, AggregationName] = "equal"
    """How the tasks' losses become one update.
    equal: their sum; random: RLW's weights, drawn anew each time; uncertainty: learnt weights, in
    SAC for the critics alone;
    the others: TorchJD's aggregation of that name, of the tasks' gradients in whatever a fixed tree
    shares; a search sums the losses and notices conflicts instead."""
    conflict_rule: Literal["ignore", Rule] = "ignore"
    """A rule of search.rule to follow while a fixed tree trains; none: conflicts are counted and
    nothing is dropped; ignore: they are not looked for."""
    compile: bool = False
    """Let torch.compile make a fixed tree's network faster; the first steps take longer. Not where
    each task's own gradients are needed: in a search, for agent.conflict_rule and aggregations."""

    def __post_init__(self) -> None:
        known = self.tree in ("search", "shared", "independent") or self.tree.endswith(".json")
        trees = "search, shared, independent or a .json file"
        require(known, "agent.tree", self.tree, trees)
        positive(self, "agent", "learning_rate", "batch_size", "max_grad_norm")
        if self.conflict_rule != "ignore" and self.weighting not in get_args(LossWeights):
            raise ConfigError(
                f"agent.conflict_rule: got {self.conflict_rule!r}, but agent.weighting is "
                f"{self.weighting!r}, and only one of them can treat the shared gradients"
            )

    @property
    def depth(self) -> int:
        """Modules of the encoder's chain, P - 1: layers that tasks may share."""
        raise NotImplementedError

    @property
    def depth_field(self) -> str:
        """The field that says so, for errors."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The architecture search; it runs where agent.tree is search."""

    method: Literal["conal", "conal_pro", "ltb", "recon"] = "conal"
    """What is searched, and how.
    conal: branch points, all at once; conal_pro: branch points in stages, for many tasks;
    ltb: Learning to Branch, every module's parent, with neither purely-specific modules nor
    conflict noticing;
    recon: everything is shared, and the layers with most conflicts become task-specific."""
    purely_specific: bool = True
    """False, for conal: an ablation in which tasks share branches (ltb's search space)."""
    copies: int = 4
    """Modules per layer in ltb's search space."""
    specific_layers: int = 1
    """Layers that recon makes task-specific (K)."""
    steps: int = 400_000
    """Steps of the search, counted in total_steps; where not given, a fifth of those. A smaller
    total_steps than beside it, on the command line or above a base, cuts it to a fifth as well."""
    rule: Rule = "consensus"
    """For conal and conal_pro: what is held back in a shared module where tasks conflict.
    any_pair: one conflicting pair holds the module for all tasks;
    conflicting_tasks: only the gradients of the tasks in a conflict are dropped;
    and_deeper: as any_pair, and every module after it is held too;
    consensus: a task's gradient is dropped where it opposes the mean of the others;
    none: nothing."""
    margin: float = 0.0
    """A conflict is a cosine below -margin (recon's S)."""
    smoothing: float = 0.0
    """Weight of the past in the running mean of gradient products; 0: this step alone."""
    specific_decay: float = 0.0
    """Weight decay of purely-specific modules (AdamW's): above 0, tasks share unless modules of
    their own are well worth it. 0: none, as in the paper."""
    gate_learning_rate: float = 1e-3
    """Adam's step size for the gates."""
    validation_share: float = 0.1
    """Share of the episodes, or of training samples where the data set has no validation part,
    kept aside for the gates' loss."""
    gumbel: bool = False
    """Sample the gates by straight-through Gumbel-softmax instead of mixing all branches, as ltb
    always does."""
    temperature: tuple[float, float] = (1.0, 0.1)
    """Gumbel-softmax temperature at the start and end of the search, or of conal_pro's stages."""
    gate_every: int = 1
    """Weight steps per gate step."""
    keep_replay: bool = True
    """In RL, the derived agent starts with the search's replay data."""
    only: bool = False
    """Stop once the tree is derived."""
    keep_weights: bool = False
    """The derived tree starts with what its modules and heads have learnt in the search, not from
    scratch as in the paper."""

    def __post_init__(self) -> None:
        not_negative(self, "search", "specific_decay")
        positive(self, "search", "steps", "gate_learning_rate", "gate_every", "specific_layers")
        require(self.copies >= 2, "search.copies", self.copies, "2 or more")
        if self.method != "conal" and not self.purely_specific:
            raise ConfigError(f"search.purely_specific: only conal has them, not {self.method}")
        if not self.purely_specific and self.rule == "and_deeper":
            raise ConfigError(
                "search.rule: and_deeper would hold all that is behind a conflict, and without "
                "purely-specific modules that is everything; take any_pair"
            )
        require(0 <= self.margin < 1, "search.margin", self.margin, "0 or more and below 1")
        smoothing = self.smoothing
        require(0 <= smoothing < 1, "search.smoothing", smoothing, "0 or more and below 1")
        share = self.validation_share
        require(0 < share < 1, "search.validation_share", share, "between 0 and 1")
        start, end = self.temperature
        temperatures = "two numbers above 0, the higher first"
        require(0 < end <= start, "search.temperature", self.temperature, temperatures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment, of whatever kind. Raises ConfigError where a value is out of its range."""

    name: str
    """Name in the run's folder; the YAML file's own name unless given."""
    total_steps: int
    """Steps of the whole run, search included: env steps over all tasks, or, in supervised
    learning, updates."""
    agent: LearnerConfig
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    seed: int = 0
    """Seed of every random stream in training."""
    device: str = "auto"
    """Where the networks run: auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads of torch; None: as torch decides. Small networks learn fastest on one."""
    minutes: float | None = None
    """Wall-clock minutes of the whole run after which its training ends, even before total_steps;
    a search is finished in any case, and evaluation comes on top. None: total_steps alone says."""
    checkpoint_minutes: float = 10.0
    """Wall-clock minutes between checkpoints."""
    log_interval: int = 100
    """Steps between lines of the log."""

    def __post_init__(self) -> None:
        named = re.fullmatch(r"\w[\w.-]*", self.name) is not None
        require(named, "name", self.name, "letters, digits, '_', '-' and '.' only")
        positive(self, "", "total_steps", "checkpoint_minutes", "log_interval", "threads")
        positive(self, "", "minutes")
        require((self.threads or 1) <= 1024, "threads", self.threads, "at most 1024")
        require_seed("seed", self.seed)
        require_device("device", self.device)
        if self.agent.tree == "search":
            layers, specific = self.agent.depth, self.search.specific_layers
            allowed = f"at most {layers}, {self.agent.depth_field}"
            if self.search.method == "recon":
                require(specific <= layers, "search.specific_layers", specific, allowed)
            # A search alone may use the whole budget; otherwise something must be left to train.
            longest = self.total_steps - (not self.search.only)
            allowed = f"at most {longest}, as total_steps is {self.total_steps}"
            require(self.search.steps <= longest, "search.steps", self.search.steps, allowed)
        elif self.search.only:
            raise ConfigError(
                f"search.only: there is no search, as agent.tree is {self.agent.tree!r}"
            )

    def to_yaml(self) -> str:
        """Return every field as YAML; `load_config` reads exactly this config from it."""
        return yaml.safe_dump(lists_for_tuples(dataclasses.asdict(self)), sort_keys=False)

    def differences(self, other: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Fields of this config that the other has otherwise, by path: `(here, there)`."""
        here, there = _by_path(self), _by_path(other)
        return {
            path: (here[path], there[path])
            for path in here
            if path in there and here[path] != there[path]
        }


def _by_path(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            found |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            found[name] = value
    return found
