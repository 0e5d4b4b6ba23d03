"""The arguments of `ConalSAC`: its settings as keywords, and the attributes of SB3's loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from stable_baselines3.common.utils import LinearSchedule

from conal_rl.agents.policies import ConalPolicy
from conal_rl.agents.sb3_keywords import (
    AS_SETTINGS,
    NAMES,
    checked,
    require_known,
    split_policy_kwargs,
)
from conal_rl.config import AgentConfig, SearchConfig, marked
from conal_rl.config.values import plain, quoted
from conal_rl.core import ReconSearch, Structure, Tree
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


_SAVED = marked(AgentConfig, "changes_run") - {"tree", "gamma", "n_steps"} | {"initial_temperature"}
_SAVED_SEARCH = marked(SearchConfig, "changes_run")
"""Fields that a saved agent keeps. Its file has no replay, so that gamma and n_steps may change."""

KEYWORDS = _AGENT | _SEARCH | frozenset(AS_SETTINGS) | frozenset(_RENAMED)
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
                f"settings: got {quoted(self.settings)}, expected an AgentConfig. "
                "Give load_config(NAME).agent"
            )
        if not isinstance(self.search, SearchConfig):
            raise TypeError(
                f"search: got {quoted(self.search)}, expected a SearchConfig. "
                "Give load_config(NAME).search"
            )

    def with_keywords(self, keywords: Mapping[str, Any]) -> Arguments:
        """Return these arguments with some of `SETTINGS` replaced; single fields win.

        Raises:
            ConfigError: a keyword has a new name, or a value is of the wrong type or range.
        """
        given = {name: plain(value) for name, value in keywords.items()}
        whole = Arguments(given.pop("settings", self.settings), given.pop("search", self.search))
        for name, new in _RENAMED.items():
            if name in given:
                raise ConfigError(f"{name}: got an old keyword, expected its new name. Give {new}")
        sb3 = {} if "settings" in keywords else dict(self.sb3)
        if "ent_coef" in self.sb3:  # no setting can express a fixed temperature
            sb3["ent_coef"] = self.sb3["ent_coef"]
        for name in LOOP & sb3.keys():
            setting = AS_SETTINGS[name][0] if name in AS_SETTINGS else name
            if {name, setting} & given.keys():
                del sb3[name]
        for name in AS_SETTINGS.keys() & given.keys():
            setting, as_setting = AS_SETTINGS[name]
            value = given.pop(name)
            expressed = as_setting(value)
            if expressed is None:
                sb3[name] = value
            else:
                given[setting] = expressed
        if given.get("learning_rate_end") is not None and "learning_rate" in sb3:
            raise ConfigError(
                f"learning_rate_end: got {quoted(given['learning_rate_end'])}, expected none, "
                "because learning_rate is a schedule. Give a number as learning_rate"
            )
        entropy = given.get("target_entropy")
        if isinstance(entropy, str) and entropy == "auto":
            given["target_entropy"] = None
        of_agent = {name: given[name] for name in given.keys() & _AGENT}
        of_search = {name: given[name] for name in given.keys() & _SEARCH}
        return Arguments(
            dataclasses.replace(whole.settings, **of_agent),
            dataclasses.replace(whole.search, **of_search),
            sb3,
        )

    def with_settings(self, settings: AgentConfig) -> Arguments:
        """Return these arguments with different settings for an agent that exists.

        Raises:
            ConfigError: a field differs that the agent read when it was made.
        """
        if not isinstance(settings, AgentConfig):
            raise ConfigError(
                f"settings: got {quoted(settings)}, expected an AgentConfig. "
                "Give load_config(NAME).agent"
            )
        for name in sorted({one.name for one in dataclasses.fields(settings)} - LIVE):
            new, old = getattr(settings, name), getattr(self.settings, name)
            if new != old:
                raise ConfigError(
                    f"agent.{name}: got {new!r}, expected {old!r}, which the agent was made with. "
                    "Make a new agent"
                )
        return dataclasses.replace(self, settings=settings)

    def require_loadable(self, loaded: Arguments, structures: tuple[Structure, Structure]) -> None:
        """Check the arguments of an agent that is `loaded` from a file of an agent with these.

        Raises:
            ConfigError: a field differs that the saved weights, optimisers or counts depend on, or
                that has no effect on these structures.
        """
        saved, idle = "which the agent was saved with. Make a new agent", loaded._idle(structures)
        for section, fields in (("settings", _SAVED), ("search", _SAVED_SEARCH)):
            old, new = getattr(self, section), getattr(loaded, section)
            for name in sorted(fields):
                _require_equal(name, getattr(new, name), getattr(old, name), saved)
            for name in sorted(idle.keys() & vars(new).keys()):
                why = f"because {idle[name]}. Leave it out"
                _require_equal(name, getattr(new, name), getattr(old, name), why)
        new, old = (each.sb3.get("ent_coef", "auto") for each in (loaded, self))
        _require_equal("ent_coef", new, old, saved)

    def _idle(self, structures: tuple[Structure, Structure]) -> dict[str, str]:
        """Return the fields without an effect on an agent of these structures, and why."""
        idle: dict[str, str] = {}
        if not have_gates(structures):
            idle |= dict.fromkeys(("gate_every", "gate_learning_rate"), "the agent has no gates")
        if not have_gates(structures) or self.search.gumbel_temperature is None:
            idle["temperature"] = "the agent samples no gates"
        if are_searched(structures):
            idle["learning_rate_end"] = "a search has a constant learning rate"
            idle["reset_at"] = "a search keeps its weights"
        elif self.settings.conflict_rule == "ignore":
            idle |= dict.fromkeys(("margin", "smoothing"), "the agent computes no conflicts")
        if "ent_coef" in self.sb3:
            idle["target_entropy"] = "the temperature is fixed"
        return idle

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

    def replay(self, tasks: int, structures: tuple[Structure, Structure]) -> dict[str, Any]:
        """Return the arguments of the replay by name, except those of SB3's replay."""
        loop = {"n_steps": self.settings.n_steps, "gamma": self.settings.gamma} | self.sb3
        return {
            "num_tasks": tasks,
            "n_steps": loop["n_steps"],
            "gamma": loop["gamma"],
            "normalize_returns": self.settings.normalize_returns,
            "validation_share": self.search.validation_share * have_gates(structures),
        }


def are_searched(structures: tuple[Structure, Structure]) -> bool:
    """Return whether the tree of the actor or of the critics is still searched."""
    return not all(isinstance(structure, Tree) for structure in structures)


def have_gates(structures: tuple[Structure, Structure]) -> bool:
    """Return whether the actor's or the critics' network has gates."""
    return any(not isinstance(structure, Tree | ReconSearch) for structure in structures)


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


def _require_equal(name: str, new: Any, old: Any, otherwise: str) -> None:
    if new != old:
        raise ConfigError(f"{name}: got {quoted(new)}, expected {quoted(old)}, {otherwise}")


class MissingSettings(Exception):
    """A zip file was saved before agents had settings, or by a different algorithm."""


class Given(NamedTuple):
    """Keywords of a call, by their owner."""

    ours: dict[str, Any]
    policy: dict[str, Any]
    sb3: dict[str, Any]


POLICIES = ("ConalPolicy", "MlpPolicy")
"""Names of `ConalPolicy`; the second is SB3's."""


def require_policy(policy: Any, given: bool) -> bool:
    """Return whether the policy is the user's own, a class that derives from `ConalPolicy`.

    Args:
        policy: a class, or one of `POLICIES`.
        given: whether a user gave it; otherwise it is from a zip file.

    Raises:
        ConfigError: a user gave a different policy.
        MissingSettings: a file has a different policy.
    """
    is_class = isinstance(policy, type) and issubclass(policy, ConalPolicy)
    if is_class or (isinstance(policy, str) and policy in POLICIES):
        return is_class and policy is not ConalPolicy
    if not given:
        raise MissingSettings(f"its policy is {quoted(policy)}")
    raise ConfigError(
        f"policy: got {quoted(policy)}, expected 'MlpPolicy', 'ConalPolicy' or its subclass. "
        "Leave it out"
    )


def split_keywords(keywords: Mapping[str, Any], own_policy: bool = False) -> Given:
    """Return the keywords of a `ConalSAC`, sorted by owner; policy_kwargs may hold ours.

    Args:
        keywords: all keywords except those that `ConalSAC` itself takes.
        own_policy: whether the policy is the user's own, whose arguments are in policy_kwargs.

    Raises:
        ConfigError: a name is given twice, or a value does not fit its keyword.
        TypeError: a keyword is unknown.
    """
    if "method" in keywords:
        raise TypeError(
            "method: got a keyword, expected a field of search. Give "
            f"search=SearchConfig(method={keywords['method']!r})"
        )
    require_known(keywords, KEYWORDS | NAMES)
    ours, policy = split_policy_kwargs(keywords.get("policy_kwargs"), KEYWORDS, own_policy)
    if twice := ours.keys() & keywords.keys():
        raise ConfigError(
            f"{min(twice)}: got a keyword and a value in policy_kwargs, expected one. "
            "Leave out one of them"
        )
    ours |= {name: keywords[name] for name in keywords.keys() & KEYWORDS}
    rest = keywords.keys() - KEYWORDS - {"policy_kwargs"}
    return Given(ours, policy, checked({name: keywords[name] for name in rest}))


def for_load(keywords: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Return the keywords of `ConalSAC.load` as SB3's `load` takes them: attributes, `device`.

    Settings in `custom_objects` are keywords too, because the file has no attributes for them.

    Raises:
        ConfigError, TypeError: see `split_keywords`, or the file says it already.
    """
    for name in ("policy", "tasks", "tree"):
        if name in keywords:
            raise ConfigError(
                f"{name}: got {quoted(keywords[name])}, expected nothing, because the file has the "
                "agent's own. Make a new agent for a different one"
            )
    custom = keywords.get("custom_objects") or {}
    keywords = {n: custom[n] for n in custom.keys() & KEYWORDS} | dict(keywords)
    apart = {"settings", "search", "custom_objects", "print_system_info", "force_reset"}
    rest = {name: value for name, value in keywords.items() if name not in apart}
    given = split_keywords({**rest, "device": device})
    attributes = given.ours | given.sb3
    attributes |= {n: keywords[n] for n in keywords.keys() & apart if keywords[n] is not None}
    if "stats_window_size" in attributes:
        attributes["_stats_window_size"] = attributes.pop("stats_window_size")
    return attributes


def require_fitting(
    keywords: Mapping[str, Any], structures: tuple[Structure, Structure], tree: Any
) -> None:
    """Raise ConfigError if keywords have no effect on these structures, given as `tree`."""
    if are_searched(structures) and "conflict_rule" in keywords:
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
        ConfigError: see `Arguments.with_keywords`, `Arguments.require_loadable` and
            `require_fitting`.
    """
    if "_arguments" not in attributes:
        raise MissingSettings("settings are missing")
    loaded = {name: attributes.pop(name) for name in SETTINGS & attributes.keys()}
    require_fitting(loaded, structures, structures)
    saved: Arguments = attributes["_arguments"]
    arguments = saved.with_keywords(loaded)
    saved.require_loadable(arguments, structures)
    return arguments
