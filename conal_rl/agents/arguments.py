"""The arguments of `ConalSAC`: its settings as keywords, and the attributes of SB3's loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.utils import LinearSchedule

from conal_rl.config import AgentConfig, SearchConfig, marked, with_values
from conal_rl.config.checks import require, require_seed
from conal_rl.config.values import convert, describe, quoted
from conal_rl.core import Structure, Tree
from conal_rl.device import resolve_device
from conal_rl.errors import ConfigError

_AGENT = marked(AgentConfig, "keyword")
_SEARCH = marked(SearchConfig, "keyword")
_RENAMED = {
    "conflict_margin": "margin",
    "conflict_smoothing": "smoothing",
    "hold_after_search": "conflict_rule, which is 'ignore' or the rule of a fixed tree",
    "gumbel_temperature": "gumbel=True and temperature=(start, end)",
}
_OF_THE_SPACE = ("purely_specific", "copies", "specific_layers")


def _whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`; the error names the keyword."""
    try:
        number: int = convert(int, value)
    except ValueError:
        raise ConfigError(f"{name}: got {quoted(value)}, expected an integer. Give one") from None
    require(number >= least, name, number, f"{least} or more", "Give a larger number")
    return number


def _update_every(train_freq: Any) -> int | None:
    """Return SB3's train_freq as update_every; None if it counts episodes."""
    if not isinstance(train_freq, tuple | list):
        return _whole("train_freq", train_freq)
    units = [getattr(unit, "value", unit) for unit in train_freq[1:]]
    known = len(units) == 1 and units[0] in ("step", "episode")
    require(
        known, "train_freq", train_freq, "a number, or a pair such as (1, 'episode')", "Give one"
    )
    frequency = _whole("train_freq", train_freq[0])
    return frequency if units == ["step"] else None


def _updates(gradient_steps: Any) -> int | None:
    """Return SB3's gradient_steps as updates; None if it is -1: as many as vector steps."""
    if isinstance(gradient_steps, int) and gradient_steps == -1:
        return None
    return _whole("gradient_steps", gradient_steps)


def _initial_temperature(ent_coef: Any) -> float | None:
    """Return SB3's ent_coef as initial_temperature; None if the temperature is fixed."""
    learnt = isinstance(ent_coef, str) and (ent_coef == "auto" or ent_coef.startswith("auto_"))
    given = ent_coef[len("auto_") :] or 1.0 if learnt else ent_coef
    try:
        value: float = convert(float, given)
    except ValueError:
        value = -1.0
    fits = value > 0 if learnt else value >= 0
    expected = "'auto', 'auto_0.1' with a start above 0, or 0 or more"
    require(fits, "ent_coef", ent_coef, expected, "Give one")
    return value if learnt else None


def _learning_rate(rate: Any) -> float | None:
    """Return a learning rate; None if it is a schedule."""
    if callable(rate):
        return None
    try:
        return convert(float, rate)
    except ValueError:
        raise ConfigError(
            f"learning_rate: got {quoted(rate)}, expected a number or a schedule. Give one"
        ) from None


_SAVED = marked(AgentConfig, "changes_run") - {"tree", "gamma", "n_steps"} | {"initial_temperature"}
_SAVED_SEARCH = marked(SearchConfig, "changes_run")
"""Fields that a saved agent keeps. Its file has no replay, so that gamma and n_steps may change."""

_SB3: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "learning_rate": ("learning_rate", _learning_rate),
    "train_freq": ("update_every", _update_every),
    "gradient_steps": ("updates", _updates),
    "ent_coef": ("initial_temperature", _initial_temperature),
}
"""For each of SB3's keywords, its setting and its value there; None: not expressible."""

KEYWORDS = _AGENT | _SEARCH | frozenset(_SB3) | frozenset(_RENAMED)
"""Keywords of `ConalSAC` that become settings."""

SETTINGS = KEYWORDS | {"settings", "search"}
"""Attributes that SB3's `load` may have set for `_setup_model` to move."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The settings of an agent, from defaults and keywords.

    Attributes:
        settings: the agent's settings.
        search: the search's settings.
        sb3: values that only SB3's keywords can express, such as a schedule as `learning_rate`.
    """

    settings: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    sb3: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, settings: AgentConfig | None, search: SearchConfig | None) -> Arguments:
        """Return the arguments of a call, with defaults for what is None."""
        return cls(
            AgentConfig() if settings is None else settings,
            SearchConfig() if search is None else search,
        )

    def __post_init__(self) -> None:
        if not isinstance(self.settings, AgentConfig):
            raise TypeError(
                f"settings: got {self.settings!r}, expected an AgentConfig. "
                "Give load_config(NAME).agent"
            )
        if not isinstance(self.search, SearchConfig):
            raise TypeError(
                f"search: got {self.search!r}, expected a SearchConfig. "
                "Give load_config(NAME).search"
            )

    def with_keywords(self, keywords: Mapping[str, Any]) -> Arguments:
        """Return these arguments with some of `SETTINGS` replaced; single fields win.

        Raises:
            ConfigError: a keyword has a new name, or a value is of the wrong type or range.
        """
        given = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in keywords.items()
        }
        settings = given.pop("settings", self.settings)
        search = given.pop("search", self.search)
        for name, new in _RENAMED.items():
            if name in given:
                raise ConfigError(f"{name}: got an old keyword, expected its new name. Give {new}")
        sb3 = dict(self.sb3)
        for name, (setting, as_setting) in _SB3.items():
            if name in given or setting in given:
                sb3.pop(name, None)
            if name in given:
                value = given.pop(name)
                expressed = as_setting(value)
                if expressed is None:
                    sb3[name] = value
                else:
                    given[setting] = expressed
        entropy = given.get("target_entropy")
        if isinstance(entropy, str) and entropy == "auto":
            given["target_entropy"] = None
        of_agent = {name: given[name] for name in given.keys() & _AGENT}
        of_search = {name: given[name] for name in given.keys() & _SEARCH}
        return Arguments(
            with_values(settings, "agent", of_agent), with_values(search, "search", of_search), sb3
        )

    def with_settings(self, settings: AgentConfig) -> Arguments:
        """Return these arguments with different settings for an agent that exists.

        Raises:
            ConfigError: a field differs that the agent read when it was made.
        """
        if not isinstance(settings, AgentConfig):
            raise ConfigError(
                f"settings: got {settings!r}, expected an AgentConfig. Give load_config(NAME).agent"
            )
        for name in sorted({one.name for one in dataclasses.fields(settings)} - LIVE):
            new, old = getattr(settings, name), getattr(self.settings, name)
            if new != old:
                raise ConfigError(
                    f"agent.{name}: got {new!r}, expected {old!r}, which the agent was made with. "
                    "Make a new agent"
                )
        return dataclasses.replace(self, settings=settings)

    def require_same_networks(self, loaded: Arguments) -> None:
        """Check the arguments of an agent that is `loaded` from a file of an agent with these.

        Raises:
            ConfigError: a field differs that the saved weights, optimisers or counts depend on.
        """
        for section, fields in (("settings", _SAVED), ("search", _SAVED_SEARCH)):
            old, new = getattr(self, section), getattr(loaded, section)
            for name in sorted(fields):
                _require_saved(name, getattr(new, name), getattr(old, name))
        _require_saved("ent_coef", loaded.sb3.get("ent_coef"), self.sb3.get("ent_coef"))

    def with_loop(self, attributes: Mapping[str, Any], expected: Mapping[str, Any]) -> Arguments:
        """Return these arguments with the numbers of SB3's loop that differ from the `expected`.

        Users of SB3 set them on an agent, such as `agent.batch_size = 64`.
        """
        changed = {
            name: attributes[name]
            for name, value in expected.items()
            if isinstance(value, int | float)
            and isinstance(attributes.get(name), int | float)
            and attributes[name] != value
        }
        return dataclasses.replace(self, sb3=self.sb3 | changed)

    def loop(self, tasks: int, actions: int, searching: bool) -> dict[str, Any]:
        """Return the attributes of SB3's loop, by name.

        Args:
            tasks: number of tasks.
            actions: number of action dimensions.
            searching: whether a tree is searched; the learning rate is then constant.
        """
        settings, entropy = self.settings, self.settings.target_entropy
        end = None if searching else settings.learning_rate_end
        attributes = {
            "learning_rate": settings.learning_rate
            if end is None
            else LinearSchedule(settings.learning_rate, end, end_fraction=1.0),
            "buffer_size": settings.buffer_size,
            "learning_starts": settings.learning_starts * tasks,
            "batch_size": settings.batch_size,
            "tau": settings.tau,
            "gamma": settings.gamma,
            "n_steps": settings.n_steps,
            "train_freq": settings.update_every,
            "gradient_steps": settings.updates,
            "ent_coef": f"auto_{settings.initial_temperature}",
            "target_entropy": -float(actions) if entropy is None else entropy,
        }
        return attributes | self.sb3


_SB3_KINDS: dict[str, Any] = {
    "verbose": int,
    "target_update_interval": int,
    "stats_window_size": int,
    "seed": int | None,
    "use_sde": bool,
    "use_sde_at_warmup": bool,
    "optimize_memory_usage": bool,
}
"""Types of keywords that only SB3 has, whose errors do not name them."""

LIVE = frozenset(
    {
        *("actor_every", "batch_size", "critic_reduce", "max_grad_norm", "normalize_actor_loss"),
        *("reset_at", "reward_scale", "tau", "updates"),
    }
)
"""Settings that every update reads, so that they may change while an agent learns."""

LIVE_LOOP = ("batch_size", "gradient_steps", "tau")
"""Attributes of SB3's loop that hold some of them."""

LOOP = frozenset(Arguments().loop(tasks=1, actions=1, searching=False))
"""Attributes of SB3's loop that are filled from the settings."""


def _require_saved(name: str, new: Any, old: Any) -> None:
    if new != old:
        new, old = ("auto" if each is None else each for each in (new, old))
        raise ConfigError(
            f"{name}: got {quoted(new)}, expected {quoted(old)}, which the agent was saved with. "
            "Make a new agent"
        )


class MissingSettings(Exception):
    """A zip file was saved before agents had settings."""


class Given(NamedTuple):
    """Keywords of a call, by their owner."""

    ours: dict[str, Any]
    policy: dict[str, Any]
    sb3: dict[str, Any]


def split_keywords(keywords: Mapping[str, Any]) -> Given:
    """Return the keywords of a `ConalSAC`, sorted by owner; policy_kwargs may hold ours.

    Raises:
        ConfigError: a name is given twice.
        ValueError: SB3 would use a replay that is not balanced over tasks.
    """
    keywords = {**keywords, **of_sb3(keywords)}
    for name in ("replay_buffer_class", "optimize_memory_usage"):
        if keywords.get(name) is not None and keywords[name] is not False:
            raise ValueError(
                f"{name}: got {keywords[name]!r}, expected nothing, because the agent has a "
                "task-balanced replay. Leave it out"
            )
    nested = dict(keywords.get("policy_kwargs") or {})
    for name in ("settings", "tasks", "actor_tree", "critic_tree"):
        if name in nested:
            keyword = "tree" if name.endswith("tree") else name
            raise ConfigError(
                f"policy_kwargs: got {name!r}, expected a keyword of the agent. Give {keyword}"
            )
    ours = {name: nested.pop(name) for name in nested.keys() & KEYWORDS}
    if twice := ours.keys() & keywords.keys():
        raise ConfigError(
            f"{min(twice)}: got a keyword and a value in policy_kwargs, expected one. "
            "Leave out one of them"
        )
    ours |= {name: keywords[name] for name in keywords.keys() & KEYWORDS}
    rest = keywords.keys() - KEYWORDS - {"policy_kwargs", "replay_buffer_class"}
    return Given(ours, nested, {name: keywords[name] for name in rest})


def of_sb3(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that only SB3 has and whose values are checked here.

    Raises:
        ConfigError: a value is of the wrong type or out of its range.
    """
    checked: dict[str, Any] = {}
    for name in keywords.keys() & _SB3_KINDS.keys():
        value, kind = keywords[name], _SB3_KINDS[name]
        value = value.item() if isinstance(value, np.generic) else value
        try:
            checked[name] = convert(kind, value)
        except ValueError:
            expected = describe(kind)
            raise ConfigError(
                f"{name}: got {quoted(value)}, expected {expected}. Give a different value"
            ) from None
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        value = keywords.get(name)
        fits = value is None or isinstance(value, Mapping)
        require(fits, name, value, "a dict", "Give one")
    for name in checked.keys() & {"target_update_interval", "stats_window_size"}:
        require(checked[name] >= 1, name, checked[name], "1 or more", "Give a larger number")
    if checked.get("seed") is not None:
        require_seed("seed", checked["seed"])
    if "device" in keywords:
        checked["device"] = resolve_device("device", str(keywords["device"]))
    return checked


def require_fitting(
    keywords: Mapping[str, Any], structures: tuple[Structure, Structure], tree: Any
) -> None:
    """Raise ConfigError if keywords have no effect on these structures, given as `tree`."""
    searching = not all(isinstance(structure, Tree) for structure in structures)
    if searching and "conflict_rule" in keywords:
        raise ConfigError(
            "conflict_rule: got a value while a tree is searched, expected none. It is the rule of "
            "fixed trees. Give rule, the rule of the search"
        )
    tree_given = None not in (tree if isinstance(tree, tuple) else (tree,))
    for name in _OF_THE_SPACE:
        if tree_given and name in keywords:
            raise ConfigError(
                f"{name}: got a value and a tree, expected one of them. The tree says what is "
                f"searched. Leave out {name}"
            )


def move_arguments(
    attributes: dict[str, Any], structures: tuple[Structure, Structure]
) -> Arguments:
    """Return the arguments among an agent's attributes, with those that SB3's `load` put there.

    What `load` put there is removed from the attributes.

    Raises:
        MissingSettings: the attributes are of an older zip file, which has no settings.
        ConfigError: see `Arguments.with_keywords`, `Arguments.require_same_networks` and
            `require_fitting`.
    """
    if "_arguments" not in attributes:
        raise MissingSettings("settings are missing")
    loaded = {name: attributes.pop(name) for name in SETTINGS & attributes.keys()}
    require_fitting(loaded, structures, structures)
    saved: Arguments = attributes["_arguments"]
    arguments = saved.with_keywords(loaded)
    saved.require_same_networks(arguments)
    return arguments
