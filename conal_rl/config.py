"""Experiment configs: typed, frozen, read from YAML and the command line, with one-line errors.

A preset is a file in `conal_rl/configs`. A YAML file lists only what differs from the defaults
below, nested by section; the docstring under each field is its `--help`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import yaml

from conal_rl.errors import ConfigError
from conal_rl.names import AggregationName, LossWeights, Rule
from conal_rl.options import convert, describe, lists_for_tuples, parse_options, shown, suggestion


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
        _require(bool(names) and all(names), "env.suite", self.suite, "a suite or a list of envs")
        _positive(self, "env", "envs_per_task")


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Multi-task soft actor-critic: its networks and how they learn."""

    tree: str = "search"
    """Which tasks share which module: search (CoNAL), shared, independent, or a tree's .json."""
    widths: tuple[int, ...] = (256, 256, 256)
    """Units of each hidden layer, in actor and critics."""
    layer_norm: bool = True
    """Normalise each hidden layer of actor and critics (LayerNorm)."""
    learning_rate: float = 3e-4
    """Adam's step size for actor, critics and temperatures."""
    learning_rate_end: float | None = None
    """Step size at the end of training, reached linearly; the search keeps it constant. None: it
    stays constant throughout."""
    batch_size: int = 32
    """Transitions per task in one update."""
    buffer_size: int = 200_000
    """Transitions per task that the replay buffer holds."""
    learning_starts: int = 1_000
    """Random env steps per task before the first update."""
    update_every: int = 1
    """Vector env steps (one step of every env) between training rounds."""
    updates: int = 1
    """Updates in one training round."""
    gamma: float = 0.99
    """Discount per env step."""
    tau: float = 0.005
    """Share of the critics that moves into their targets at each update."""
    target_entropy: float | None = None
    """Policy entropy that each task's temperature aims at, in nats; None: -(action dimensions)."""
    initial_temperature: float = 1.0
    """Entropy temperature of every task at the start."""
    critic: Literal["hl_gauss", "mse"] = "hl_gauss"
    """Critic's loss: classification over bins of return (HL-Gauss), or squared error."""
    critic_bins: int = 101
    """Bins of the hl_gauss critic."""
    critic_range: tuple[float, float] = (-1.0, 11.0)
    """Lowest and highest return, after reward_scale, that the hl_gauss critic can express."""
    reward_scale: float = 0.01
    """Factor on the critics' rewards; 0.01 brings Meta-World's returns into critic_range."""
    critic_reduce: Literal["min", "mean"] = "mean"
    """How the two target critics are combined."""
    max_grad_norm: float | None = None
    """Longest gradient of an optimiser step; None: no clipping."""
    weighting: Literal[LossWeights, AggregationName] = "equal"
    """How the tasks' losses become one update.
    equal: their sum; random: RLW's weights, drawn anew each time; uncertainty: learnt weights, for
    the critics;
    the others: TorchJD's aggregation of that name, of the tasks' gradients in whatever a fixed tree
    shares; a search sums the losses and notices conflicts instead."""
    conflict_rule: Literal["ignore", Rule] = "ignore"
    """A rule of search.rule to follow while a fixed tree trains; none: conflicts are counted and
    nothing is dropped; ignore: they are not looked for."""
    actor_averaging: float | None = None
    """Evaluate an average of the actor's weights in which update t counts as t**this (0: all alike;
    4: mostly the last third of training); None: evaluate the newest weights."""

    def __post_init__(self) -> None:
        known = self.tree in ("search", "shared", "independent") or self.tree.endswith(".json")
        trees = "search, shared, independent or a .json file"
        _require(known, "agent.tree", self.tree, trees)
        widths_fit = len(self.widths) > 0 and min(self.widths) > 0
        _require(widths_fit, "agent.widths", self.widths, "one or more integers above 0")
        _positive(self, "agent", "learning_rate", "batch_size", "buffer_size", "update_every")
        _positive(self, "agent", "updates", "initial_temperature", "reward_scale", "max_grad_norm")
        _positive(self, "agent", "learning_rate_end")
        _not_negative(self, "agent", "learning_starts", "actor_averaging")
        _require(0 <= self.gamma < 1, "agent.gamma", self.gamma, "0 or more and below 1")
        _require(0 < self.tau <= 1, "agent.tau", self.tau, "above 0 and at most 1")
        _require(self.critic_bins >= 2, "agent.critic_bins", self.critic_bins, "2 or more")
        if self.conflict_rule != "ignore" and self.weighting not in get_args(LossWeights):
            raise ConfigError(
                f"agent.conflict_rule: got {self.conflict_rule!r}, but agent.weighting is "
                f"{self.weighting!r}, and only one of them can treat the shared gradients"
            )
        low, high = self.critic_range
        _require(low < high, "agent.critic_range", self.critic_range, "the lower bound first")


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
    """Env steps of the search, counted in total_steps; where not given, a fifth of those. A smaller
    total_steps on the command line cuts it to a fifth as well."""
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
    gate_learning_rate: float = 1e-3
    """Adam's step size for the gates."""
    validation_share: float = 0.1
    """Share of the episodes kept aside for the gates' loss."""
    gumbel: bool = False
    """Sample the gates by straight-through Gumbel-softmax instead of mixing all branches, as ltb
    always does."""
    temperature: tuple[float, float] = (1.0, 0.1)
    """Gumbel-softmax temperature at the search's start and end."""
    gate_every: int = 1
    """Weight steps per gate step."""
    keep_replay: bool = True
    """The derived agent starts with the search's replay data."""
    only: bool = False
    """Stop once the tree is derived."""

    def __post_init__(self) -> None:
        _positive(self, "search", "steps", "gate_learning_rate", "gate_every", "specific_layers")
        _require(self.copies >= 2, "search.copies", self.copies, "2 or more")
        if self.method != "conal" and not self.purely_specific:
            raise ConfigError(f"search.purely_specific: only conal has them, not {self.method}")
        _require(0 <= self.margin < 1, "search.margin", self.margin, "0 or more and below 1")
        smoothing = self.smoothing
        _require(0 <= smoothing < 1, "search.smoothing", smoothing, "0 or more and below 1")
        share = self.validation_share
        _require(0 < share < 1, "search.validation_share", share, "between 0 and 1")
        start, end = self.temperature
        temperatures = "two numbers above 0, the higher first"
        _require(0 < end <= start, "search.temperature", self.temperature, temperatures)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How success is measured."""

    episodes: int = 50
    """Episodes per task after training."""
    seed: int = 1_000
    """Seed of the evaluation's environments; a stream of its own, apart from training's."""
    every: int = 0
    """Env steps between evaluations during training, for the progress line; 0: none."""
    every_episodes: int = 5
    """Episodes per task in each of those."""

    def __post_init__(self) -> None:
        _positive(self, "evaluation", "episodes", "every_episodes")
        _not_negative(self, "evaluation", "every")
        _require_seed("evaluation.seed", self.seed)


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. Raises ConfigError where a value is out of its range."""

    name: str
    """Name in the run's folder; the YAML file's own name unless given."""
    total_steps: int
    """Env steps of the whole run, over all tasks, search included."""
    env: EnvConfig
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    seed: int = 0
    """Seed of every random stream in training."""
    device: str = "auto"
    """Where the networks run: auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """CPU threads of torch; None: as torch decides. Small networks learn fastest on one."""
    checkpoint_minutes: float = 10.0
    """Wall-clock minutes between checkpoints."""
    log_interval: int = 20_000
    """Env steps between lines of the log."""

    def __post_init__(self) -> None:
        named = re.fullmatch(r"\w[\w.-]*", self.name) is not None
        _require(named, "name", self.name, "letters, digits, '_', '-' and '.' only")
        _positive(self, "", "total_steps", "checkpoint_minutes", "log_interval", "threads")
        _require_seed("seed", self.seed)
        placed = re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device) is not None
        _require(placed, "device", self.device, "auto, cpu, cuda, cuda:N or mps")
        if self.agent.tree == "search":
            layers, specific = len(self.agent.widths), self.search.specific_layers
            allowed = f"at most {layers}, the number of agent.widths"
            if self.search.method == "recon":
                _require(specific <= layers, "search.specific_layers", specific, allowed)
            # A search alone may use the whole budget; otherwise something must be left to train.
            longest = self.total_steps - (not self.search.only)
            allowed = f"at most {longest}, as total_steps is {self.total_steps}"
            _require(self.search.steps <= longest, "search.steps", self.search.steps, allowed)
        elif self.search.only:
            raise ConfigError(
                f"search.only: there is no search, as agent.tree is {self.agent.tree!r}"
            )

    def to_yaml(self) -> str:
        """Return every field as YAML; `load_config` reads exactly this config from it."""
        return yaml.safe_dump(lists_for_tuples(dataclasses.asdict(self)), sort_keys=False)

    def save(self, path: Path) -> None:
        """Write `to_yaml()` to `path`."""
        path.write_text(self.to_yaml(), encoding="utf-8")


def presets() -> tuple[str, ...]:
    """Return the names of the configs that come with the package."""
    files = (resources.files("conal_rl") / "configs").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a preset by its name, or a YAML file by its path, and apply command-line overrides.

    `overrides` are options such as `["--agent.batch-size", "64", "--search.only"]`.
    Raises ConfigError, in one line: where, which field, what was given, what is allowed.
    """
    given, words = parse_options(overrides, _FIELDS)
    if words:
        raise ConfigError(f"command line: unexpected {words[0]!r}; options start with --")
    return _load(str(name_or_path), given)


class CommandLine(NamedTuple):
    """What `python -m conal_rl.train ...` was asked to do."""

    config: Config
    out: Path | None  # the new run's folder; None: the default
    resume: Path | None  # the folder of the run to go on with; None: a new run


def parse_command_line(argv: Sequence[str], description: str) -> CommandLine:
    """Read `NAME_OR_YAML [--out DIR] [--resume DIR] [--section.field VALUE ...]`.

    `--resume DIR` stands without a name and starts from the run's own config. `--help` prints
    every field, with the named config's values as defaults, and exits. Raises ConfigError.
    """
    if "-h" in argv or "--help" in argv:
        _print_help([word for word in argv if not word.startswith("-")], description)
    given, words = parse_options(argv, {**_FIELDS, "out": str, "resume": str})
    out, resume = given.pop("out", None), given.pop("resume", None)
    if resume is not None and (words or out is not None):
        other = words[0] if words else "--out"
        raise ConfigError(f"command line: --resume reads the run's own config; leave out {other}")
    if resume is not None:
        words = [str(Path(resume) / "config.yaml")]
    if len(words) != 1:
        found = f"got {' '.join(words)}" if words else "name one"
        names = ", ".join(presets())
        raise ConfigError(f"command line: {found}, expected one of {names}, or one YAML file")
    config = _load(words[0], given)
    return CommandLine(config, Path(out) if out else None, Path(resume) if resume else None)


def _load(name: str, overrides: Mapping[str, Any]) -> Config:
    path: Any = resources.files("conal_rl") / "configs" / f"{name}.yaml"
    source = f"{name}.yaml"
    if name not in presets():
        path, source = Path(name), name
        if not path.suffix and not path.exists():
            close = difflib.get_close_matches(name, presets(), 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(presets())}"
            raise ConfigError(f"{name}: no such config; {hint}")
    flat = {"name": Path(source).stem, **_read_flat(path, source)}
    # The file is checked alone first, so that an error says which of the two is at fault.
    config = _build(flat, source)
    if not overrides:
        return config
    if "total_steps" in overrides and "search.steps" not in overrides:
        # A smaller budget shrinks a search that the file sized for its own.
        fifth = _build({**flat, **overrides, "search.steps": 1}, "command line").total_steps // 5
        flat["search.steps"] = max(1, min(config.search.steps, fifth))
    return _build({**flat, **overrides}, "command line")


def _read_flat(path: Any, source: str) -> dict[str, Any]:
    """Read a YAML file; return its nested sections as `{"section.field": value}`."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{source}: not valid YAML: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected fields and their values, got {shown(data)}")
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _SECTIONS:
            flat[str(key)] = value
        elif isinstance(value, dict):
            flat.update({f"{key}.{field}": inner for field, inner in value.items()})
        else:
            raise ConfigError(f"{source}: {key}: expected a section of fields, got {shown(value)}")
    return flat


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} is given twice in the mapping {node.start_mark}")
        return super().construct_mapping(node, deep)


def _build(flat: Mapping[str, Any], source: str) -> Config:
    """Check names and types, then construct the config, whose classes check the ranges."""
    values: dict[str, dict[str, Any]] = {section: {} for section in ("", *_SECTIONS)}
    for path, value in flat.items():
        if path not in _FIELDS:
            raise ConfigError(f"{source}: {path}: no such field{suggestion(path, _FIELDS)}")
        section, _, name = path.rpartition(".")
        try:
            values[section][name] = convert(_FIELDS[path], value)
        except (ValueError, OverflowError):
            expected = describe(_FIELDS[path])
            raise ConfigError(
                f"{source}: {path}: got {shown(value)}, expected {expected}"
            ) from None
    for path in ("total_steps", "env.suite"):
        if path not in flat:
            raise ConfigError(f"{source}: {path}: missing, expected {describe(_FIELDS[path])}")
    values["search"].setdefault("steps", max(1, values[""]["total_steps"] // 5))
    try:
        sections = {name: kind(**values[name]) for name, kind in _SECTIONS.items()}
        return Config(**values[""], **sections)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _print_help(words: Sequence[str], description: str) -> None:
    import tyro  # only help needs it, and it is slow to import

    named = next((word for word in words if word in presets() or word.endswith(".yaml")), "mt10")

    def field(name: str, kind: Any, metavar: str, meaning: str, hint: str = "") -> Any:
        shown_as = tyro.conf.arg(help=meaning, metavar=metavar, help_behavior_hint=hint)
        return name, Annotated[kind, shown_as], dataclasses.field(default="")

    choice = f"One of {', '.join(presets())}, or a YAML file."
    old = "Folder of a run to go on with, by its own config; stands without a name."
    command: Any = dataclasses.make_dataclass(
        "Command",
        [
            field("name_or_yaml", tyro.conf.Positional[str], "NAME_OR_YAML", choice),
            field("out", str, "DIR", "Folder of the new run.", "(default: runs/NAME-SEED-TIME)"),
            field("resume", str, "DIR", old),
        ],
        bases=(Config,),
        frozen=True,
    )
    tyro.cli(
        command,
        prog="python -m conal_rl.train",
        description=f"{description}\n\nThe defaults shown are those of {named}.",
        default=command(**vars(_load(named, {}))),
        args=["--help"],
    )


def _require(holds: bool, field: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{field}: got {shown(value)}, expected {allowed}")


def _require_seed(field: str, seed: int) -> None:
    _require(0 <= seed < 2**32, field, seed, "0 or more and below 2**32, as numpy's seeds are")


def _positive(section: Any, prefix: str, *fields: str) -> None:
    for field in fields:
        value = getattr(section, field)
        _require(value is None or value > 0, f"{prefix}.{field}".lstrip("."), value, "more than 0")


def _not_negative(section: Any, prefix: str, *fields: str) -> None:
    for field in fields:
        value = getattr(section, field)
        _require(value is None or value >= 0, f"{prefix}.{field}".lstrip("."), value, "0 or more")


_SECTIONS: dict[str, Any] = {
    "env": EnvConfig,
    "agent": AgentConfig,
    "search": SearchConfig,
    "evaluation": EvaluationConfig,
}
_FIELDS: dict[str, Any] = {
    name: kind for name, kind in get_type_hints(Config).items() if name not in _SECTIONS
} | {
    f"{section}.{name}": kind
    for section, owner in _SECTIONS.items()
    for name, kind in get_type_hints(owner).items()
}
