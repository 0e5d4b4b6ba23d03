"""Sections and fields that all experiments have: the learner, the search, the run."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, get_args

from conal_rl.config.checks import not_negative, positive, require, require_device, require_seed
from conal_rl.config.fields import convert_fields, field
from conal_rl.config.values import lists_for_tuples
from conal_rl.config.yaml_text import dump_yaml
from conal_rl.errors import ConfigError
from conal_rl.files import user_path
from conal_rl.literals import AggregationName, LossWeights, Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What every learner has: a tree, and how the tasks' losses become updates."""

    tree: str = field("search", changes_run=True, keyword=False)
    """Which tasks share which module: search (search.method finds it), shared, independent, or the
    .json file of a tree. Give a file to train a tree from an earlier run."""
    learning_rate: float = 3e-4
    """Learning rate of the weights' optimiser. Lower it if training diverges."""
    batch_size: int = 32
    """Number of samples, or transitions, per task in one update. Larger batches are steadier and
    slower."""
    max_grad_norm: float | None = None
    """Largest norm of the gradient in an optimiser step; a longer gradient is scaled down. Set it
    if single batches throw training back. None: gradients are not clipped."""
    weighting: Literal[LossWeights, AggregationName] = field("equal", changes_run=True)
    """How the tasks' losses become one update. Change it to compare weightings.
    equal: the losses are summed.
    random: each update draws the weights of RLW.
    uncertainty: the weights are learnt; in SAC only those of the critics' losses.
    others: TorchJD aggregates the tasks' gradients in the modules that a fixed tree shares. A
    search sums the losses and notices conflicts instead."""
    conflict_rule: Literal["ignore", Rule] = field("ignore", changes_run=True)
    """Rule of search.rule that the training of a fixed tree follows. With none, conflicts are
    counted and no gradient is dropped. With ignore, conflicts are not computed. Set it to study
    conflicts."""
    compile: bool = False
    """Let torch.compile make a fixed tree's network faster; the first steps take longer. It has no
    effect in a search, with conflict_rule and with aggregations. Switch it on for long runs."""

    def __post_init__(self) -> None:
        convert_fields(self, "agent")
        known = self.tree in ("search", "shared", "independent") or self.tree.endswith(".json")
        trees = "search, shared, independent or a .json file"
        require(known, "agent.tree", self.tree, trees, "Give one of them")
        positive(self, "agent", "learning_rate", "batch_size", "max_grad_norm")
        if self.conflict_rule != "ignore" and self.weighting not in get_args(LossWeights):
            raise ConfigError(
                f"agent.conflict_rule: got {self.conflict_rule!r}, expected 'ignore' with the "
                f"aggregation {self.weighting!r}. Only one of them can treat the shared "
                "gradients. Leave out agent.conflict_rule or agent.weighting"
            )

    @property
    def rule_of_fixed_trees(self) -> Rule:
        """The rule that a fixed tree's training follows; none if conflicts are ignored."""
        return "none" if self.conflict_rule == "ignore" else self.conflict_rule

    @property
    def depth(self) -> int:
        """Number of modules of the encoder's chain, P - 1: layers that tasks may share."""
        raise NotImplementedError

    @property
    def depth_field(self) -> str:
        """The field that sets `depth`, for errors."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The architecture search, which runs if agent.tree is search."""

    method: Literal["conal", "conal_pro", "ltb", "recon"] = field(
        "conal", changes_run=True, keyword=False
    )
    """What is searched, and how.
    conal: all branch points are searched at once.
    conal_pro: branch points are searched in stages. Choose it for many tasks.
    ltb: Learning to Branch searches the parent of every module. It has neither purely-specific
    modules nor conflict noticing.
    recon: everything is shared, and the layers with most conflicts become task-specific."""
    purely_specific: bool = field(True, changes_run=True)
    """Give each task purely-specific modules in the search space of conal. Switch it off for an
    ablation, in which tasks share branches (the search space of ltb)."""
    copies: int = field(4, changes_run=True)
    """Number of modules per layer in the search space of ltb. Raise it for more tasks."""
    specific_layers: int = field(1, changes_run=True)
    """Number of layers that recon makes task-specific (K in its paper). Raise it if tasks conflict
    in many layers."""
    steps: int = field(400_000, keyword=False)
    """Number of steps of the search, which total_steps includes. Raise it if gates are still
    undecided. A config without it, or with a lowered total_steps, takes a fifth of total_steps."""
    rule: Rule = field("consensus", changes_run=True)
    """What conal and conal_pro drop in a shared module if tasks conflict. Change it to compare
    rules.
    any_pair: one conflicting pair holds the module for all tasks.
    conflicting_tasks: only the gradients of the tasks in a conflict are dropped.
    and_deeper: one conflicting pair also holds every module after it.
    consensus: a task's gradient is dropped if it opposes the mean of the others.
    none: nothing is dropped."""
    margin: float = 0.0
    """Margin of a conflict: two gradients conflict if their cosine is below -margin (S in Recon's
    paper). Raise it to count only strong conflicts."""
    smoothing: float = 0.0
    """Weight of the past in the running mean of gradient products. Raise it if the conflicts of
    single batches are noise. 0: only the current step counts."""
    specific_decay: float = field(0.0, changes_run=True)
    """Weight decay of purely-specific modules (AdamW's). Raise it if the search should share unless
    separate modules are clearly better. 0: no decay, as in the paper."""
    gate_learning_rate: float = 1e-3
    """Learning rate of the gates' optimiser, Adam. Raise it if gates hardly move in a short
    search."""
    validation_share: float = field(0.1, changes_run=True)
    """Share of the episodes that only the gates learn from. Raise it if data are plenty. In
    supervised learning it is a share of the training samples, and is used only if the data set has
    no validation part."""
    gumbel: bool = field(False, changes_run=True)
    """Sample the gates by straight-through Gumbel-softmax instead of mixing all branches. Switch it
    on to train with one branch at a time. The method ltb always samples."""
    temperature: tuple[float, float] = (1.0, 0.1)
    """Gumbel-softmax temperature at the start and at the end of the search, or of each stage of
    conal_pro. Raise the end to explore longer."""
    gate_every: int = 1
    """Number of weight steps per gate step. Raise it to save time."""
    keep_replay: bool = field(True, keyword=False)
    """In reinforcement learning, start the derived agent with the search's replay. Switch it off to
    compare with a tree that is trained from scratch."""
    only: bool = field(False, keyword=False)
    """Stop after the tree is derived. Switch it on to train the tree later, in a different run."""
    keep_weights: bool = field(False, keyword=False)
    """Start the derived tree with the weights of its modules and heads from the search. Switch it
    on if the budget after the search is short. The paper trains the tree from scratch."""

    def __post_init__(self) -> None:
        convert_fields(self, "search")
        not_negative(self, "search", "specific_decay")
        positive(self, "search", "steps", "gate_learning_rate", "gate_every", "specific_layers")
        require(self.copies >= 2, "search.copies", self.copies, "2 or more")
        if self.method != "conal" and not self.purely_specific:
            raise ConfigError(
                f"search.purely_specific: got False, expected True with search.method "
                f"{self.method}. Only conal has this ablation. Leave it out"
            )
        if not self.purely_specific and self.rule == "and_deeper":
            raise ConfigError(
                "search.rule: got 'and_deeper', expected a different rule if "
                "search.purely_specific is False. It would hold every module. Give any_pair"
            )
        require(0 <= self.margin < 1, "search.margin", self.margin, "0 or more and below 1")
        smoothing = self.smoothing
        require(0 <= smoothing < 1, "search.smoothing", smoothing, "0 or more and below 1")
        share = self.validation_share
        require(0 < share < 1, "search.validation_share", share, "between 0 and 1")
        start, end = self.temperature
        temperatures = "two numbers above 0, the higher first"
        require(0 < end <= start, "search.temperature", self.temperature, temperatures)

    @property
    def noticing_rule(self) -> Rule:
        """The rule that a search follows; none for methods that do not hold modules."""
        return self.rule if self.method in ("conal", "conal_pro") else "none"

    @property
    def gumbel_temperature(self) -> tuple[float, float] | None:
        """Temperature of straight-through Gumbel gates `(start, end)`; None for the softmax."""
        return self.temperature if self.gumbel or self.method == "ltb" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One experiment of any kind. Raises ConfigError if a value is out of its range."""

    name: str = field(changes_experiment=False)
    """Name of the run, a part of its folder's name. Give one to tell runs apart. Without it, the
    name is that of the preset or the YAML file."""
    total_steps: int
    """Number of steps of the whole run, search included. Lower it for a quick try. A step is an env
    step of any task, or an update in supervised learning."""
    agent: LearnerConfig
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    seed: int = field(0, changes_run=True, changes_experiment=False)
    """Seed of every random stream in training. Give several runs different seeds."""
    device: str = field("auto", changes_experiment=False)
    """Device of the networks: auto, cpu, cuda, cuda:N or mps. Name one if auto chooses a device
    that is busy."""
    threads: int | None = field(None, changes_experiment=False)
    """Number of torch's CPU threads. Raise it for large networks; small ones learn fastest on one
    thread. None: torch decides."""
    minutes: float | None = None
    """Wall-clock minutes after which training ends, even before total_steps. Set it if time is
    short. A search is always finished, and the evaluation follows. None: only total_steps ends
    training."""
    checkpoint_minutes: float = field(10.0, changes_experiment=False)
    """Wall-clock minutes between two checkpoints. Lower it if the machine may stop at any time.
    The first checkpoint comes within a minute."""
    log_interval: int = field(100, changes_experiment=False)
    """Number of steps between two lines of the log. Lower it for finer curves."""

    def __post_init__(self) -> None:
        convert_fields(self, "")
        named = re.fullmatch(r"\w[\w.-]*", self.name) is not None
        require(named, "name", self.name, "letters, digits, '_', '-' and '.' only", "Give --name")
        positive(self, "", "total_steps", "checkpoint_minutes", "log_interval", "threads")
        positive(self, "", "minutes")
        require((self.threads or 1) <= 1024, "threads", self.threads, "at most 1024")
        require_seed("seed", self.seed)
        require_device("device", self.device)
        if self.agent.tree == "search":
            layers, specific = self.agent.depth, self.search.specific_layers
            expected = f"at most {layers}, {self.agent.depth_field}"
            if self.search.method == "recon":
                name = "search.specific_layers"
                require(specific <= layers, name, specific, expected, f"Lower {name}")
            # With search.only the search may use the whole budget; otherwise a step is left to
            # train the tree.
            longest = self.total_steps - (not self.search.only)
            expected = f"at most {longest}, because total_steps is {self.total_steps}"
            lower, steps = "Lower search.steps, or raise total_steps", self.search.steps
            require(steps <= longest, "search.steps", steps, expected, lower)
        elif self.search.only:
            raise ConfigError(
                f"search.only: got True, expected False if agent.tree is {self.agent.tree!r}. "
                "A fixed tree is not searched. Leave out search.only"
            )

    @property
    def method(self) -> str:
        """Short name of the method, as in results/: hps, stl, tree, conal, conal_pro, and so on."""
        agent, search = self.agent, self.search
        if agent.tree != "search":
            name = {"shared": "hps", "independent": "stl"}.get(agent.tree, "tree")
        else:
            noticing = search.method not in ("conal", "conal_pro") or search.rule != "none"
            name = search.method + "_no_purely_specific" * (not search.purely_specific)
            name += "_no_noticing" * (not noticing)
        return name if agent.weighting == "equal" else f"{name}_{agent.weighting}"

    def with_whole_paths(self) -> Any:
        """Return the same config with absolute paths, so that they mean the same in any folder.

        An env may change the working folder, and a resume may begin in a different one.
        """
        if not self.agent.tree.endswith(".json"):
            return self
        return dataclasses.replace(self, agent=with_whole(self.agent, "tree"))

    def to_yaml(self) -> str:
        """Return every field as YAML; `load_config` reads exactly this config from it."""
        return dump_yaml(lists_for_tuples(dataclasses.asdict(self)))

    def differences(self, other: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which the other differs, by path: `(here, there)`."""
        here, there = _by_path(self), _by_path(other)
        return {
            path: (here[path], there[path])
            for path in here
            if path in there and here[path] != there[path]
        }


def with_whole(section: Any, *fields: str) -> Any:
    """Return a section whose fields of these names, which are paths or None, are absolute."""
    given = {name: getattr(section, name) for name in fields}
    absolute = {
        name: str(user_path(path).absolute()) for name, path in given.items() if path is not None
    }
    return dataclasses.replace(section, **absolute)


def _by_path(config: RunConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            values |= {f"{name}.{inner_name}": inner for inner_name, inner in value.items()}
        else:
            values[name] = value
    return values
