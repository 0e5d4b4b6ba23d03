"""SB3's keywords of `ConalSAC`: their settings, their types, and what to give instead of some."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from stable_baselines3 import SAC
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.sac.policies import SACPolicy

from conal_rl.agents.replay import TaskReplayBuffer
from conal_rl.config.checks import require, require_seed, whole
from conal_rl.config.values import convert, describe, plain, quoted, scalar
from conal_rl.device import resolve_device
from conal_rl.errors import ConfigError, of_user_code


def _update_every(train_freq: Any) -> int | None:
    """Return SB3's train_freq as update_every; None if it counts episodes."""
    if not isinstance(train_freq, tuple | list):
        return whole("train_freq", train_freq)
    units = [getattr(unit, "value", unit) for unit in train_freq[1:]]
    known = len(units) == 1 and isinstance(units[0], str) and units[0] in ("step", "episode")
    expected = "a number, or a pair such as (1, 'episode')"
    require(known, "train_freq", train_freq, expected, "Give one")
    frequency = whole("train_freq", train_freq[0])
    return frequency if units == ["step"] else None


def _updates(gradient_steps: Any) -> int | None:
    """Return SB3's gradient_steps as updates; None if it is -1: as many as vector steps."""
    if isinstance(gradient_steps, int) and gradient_steps == -1:
        return None
    return whole("gradient_steps", gradient_steps)


def _initial_temperature(ent_coef: Any) -> float | None:
    """Return SB3's ent_coef as initial_temperature; None if the temperature is fixed."""
    learnt = isinstance(ent_coef, str) and (ent_coef == "auto" or ent_coef.startswith("auto_"))
    given = ent_coef
    if learnt:
        given = 1.0 if ent_coef == "auto" else ent_coef.removeprefix("auto_")
    try:
        value: float = convert(float, scalar(given) if isinstance(given, str) else given)
    except ValueError:
        value = -1.0
    fits = value > 0 if learnt else value >= 0
    expected = "'auto', 'auto_0.1' with a start above 0, or 0 or more"
    require(fits, "ent_coef", ent_coef, expected, "Give one")
    return value if learnt else None


def _learning_rate(rate: Any) -> float | None:
    """Return a learning rate; None if it is a schedule."""
    if not callable(rate):
        try:
            return convert(float, rate)
        except ValueError:
            raise ConfigError(
                f"learning_rate: got {quoted(rate)}, expected a number or a schedule. Give one"
            ) from None
    try:
        first: Any = rate(1.0)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"learning_rate: got a schedule that fails ({of_user_code(error)}), expected a "
            "function of the remaining share of training, from 1 to 0. Correct it"
        ) from error
    try:
        fits = convert(float, first) >= 0
    except ValueError:
        fits = False
    require(fits, "learning_rate", first, "a schedule that begins with 0 or more", "Give one")
    return None


AS_SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "learning_rate": ("learning_rate", _learning_rate),
    "train_freq": ("update_every", _update_every),
    "gradient_steps": ("updates", _updates),
    "ent_coef": ("initial_temperature", _initial_temperature),
}
"""For each of SB3's keywords, its setting and its value there; None: not expressible."""

NAMES = frozenset(signature(SAC.__init__).parameters) - {"self", "policy", "env"}
"""The keywords of SB3's SAC."""

_KINDS: dict[str, Any] = {
    "verbose": int | bool,
    "target_update_interval": int,
    "stats_window_size": int,
    "seed": int | None,
}
"""Types of keywords that only SB3 has, whose errors do not name them."""

_EXPLORATION = "state-dependent exploration is not supported"
_REPLAY = "the agent has a task-balanced replay"
_ONLY: dict[str, tuple[str, tuple[Any, ...]]] = {
    "use_sde": (_EXPLORATION, (False,)),
    "use_sde_at_warmup": (_EXPLORATION, (False,)),
    "sde_sample_freq": (_EXPLORATION, (-1,)),
    "optimize_memory_usage": (_REPLAY, (False, None)),
    "replay_buffer_class": (_REPLAY, (None, TaskReplayBuffer)),
}
"""Keywords that must keep SB3's default, and why."""

_FLAT = "Leave it out, because the network reads flat observations"
_OF_SB3S_POLICIES = {
    "net_arch": "Give one list for the actor and the critics",
    "use_sde": f"Leave it out, because {_EXPLORATION}",
    "activation_fn": "Leave it out, because the activation is ReLU",
    "optimizer_class": "Leave it out, because the optimiser is Adam",
    "optimizer_kwargs": "Leave it out, because Adam has torch's defaults",
    "features_extractor_class": _FLAT,
    "features_extractor_kwargs": _FLAT,
    "normalize_images": _FLAT,
    "share_features_extractor": "Leave it out, because the trees say what is shared",
}
"""What to do about the arguments of SB3's policy whose values `policy_kwargs` cannot hold."""

_AS_FIELDS = {"net_arch": "widths", "n_critics": "critics"}
"""Arguments of SB3's policy, and their settings."""

_DEFAULTS = {name: each.default for name, each in signature(SACPolicy).parameters.items()}
"""The defaults of SB3's policy, which `policy_kwargs` may hold."""


def checked(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that only SB3 has, with the types that SB3 expects.

    Raises:
        ConfigError: a value is of the wrong type, out of its range, or not supported.
        TypeError: a noise or a folder is of the wrong type.
    """
    found = {name: keywords[name] for name in keywords.keys() & NAMES - AS_SETTINGS.keys()}
    for name in found.keys() & _KINDS.keys():
        try:
            found[name] = convert(_KINDS[name], found[name])
        except ValueError:
            expected = describe(_KINDS[name])
            raise ConfigError(
                f"{name}: got {quoted(found[name])}, expected {expected}. Give one"
            ) from None
    for name in found.keys() & {"target_update_interval", "stats_window_size"}:
        require(found[name] >= 1, name, found[name], "1 or more", "Give a larger number")
    if found.get("seed") is not None:
        require_seed("seed", found["seed"])
    for name in found.keys() & _ONLY.keys():
        _require_default(name, found.pop(name))
    if "device" in found:
        found["device"] = resolve_device("device", str(found["device"]))
    noise, folder = found.get("action_noise"), found.get("tensorboard_log")
    if noise is not None and not isinstance(noise, ActionNoise):
        raise TypeError(
            f"action_noise: got {quoted(noise)}, expected an ActionNoise or None. "
            "Give one of stable_baselines3.common.noise"
        )
    if folder is not None:
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(
                f"tensorboard_log: got {quoted(folder)}, expected a folder or None. Give its path"
            )
        found["tensorboard_log"] = str(folder)
    _require_no_replay_kwargs(found.pop("replay_buffer_kwargs", None))
    return found


def _require_default(name: str, given: Any) -> None:
    (reason, allowed), value = _ONLY[name], plain(given)
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise ConfigError(
            f"{name}: got {quoted(value)}, expected {quoted(allowed[0])}, because {reason}. "
            "Leave it out"
        )


def _require_no_replay_kwargs(given: Any) -> None:
    """Refuse arguments of SB3's replay; its own default of time limits is what ours does."""
    require(
        given is None or isinstance(given, Mapping),
        "replay_buffer_kwargs",
        given,
        "a dict",
        "Give one",
    )
    for name, value in (given or {}).items():
        if not (name == "handle_timeout_termination" and value is True):
            raise ConfigError(
                f"replay_buffer_kwargs: got {quoted(name)}, expected no argument, because the "
                "agent makes its task-balanced replay itself. Give settings such as n_steps as "
                "keywords"
            )


def split_policy_kwargs(
    given: Any, settings: frozenset[str], own_policy: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the `settings` in `policy_kwargs`, and arguments of a policy of the user's own.

    Arguments of SB3's policy that are settings become those, and its defaults are left out.

    Raises:
        ConfigError: `given` is not a dict, or it holds something that is not for it.
    """
    require(
        given is None or isinstance(given, Mapping), "policy_kwargs", given, "a dict", "Give one"
    )
    rest = dict(given or {})
    if rest.get("use_sde") is False:
        del rest["use_sde"]  # SB3 adds it
    if not own_policy:
        rest = _renamed({n: v for n, v in rest.items() if not _is_default(n, v)})
    ours = {name: rest.pop(name) for name in rest.keys() & settings}
    for name in rest:
        if name in ("settings", "search", "tasks", "actor_tree", "critic_tree"):
            advice = f"Give the agent's keyword {'tree' if name.endswith('tree') else name}"
        elif own_policy:
            continue
        else:
            advice = _OF_SB3S_POLICIES.get(name) or _closest(name, settings)
        raise ConfigError(f"policy_kwargs: got {quoted(name)}, expected settings. {advice}")
    return ours, rest


def _is_default(name: Any, value: Any) -> bool:
    if name == "n_critics" or name not in _DEFAULTS:
        return False  # critics: the setting may have a different default
    return type(value) is type(_DEFAULTS[name]) and bool(value == _DEFAULTS[name])


def _renamed(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, of which those of SB3's policy have the names of their settings."""
    renamed = {}
    for name, value in given.items():
        setting = _AS_FIELDS.get(name, name)
        if setting != name and setting in given:
            raise ConfigError(
                f"policy_kwargs: got {name} and {setting}, expected one of them. Leave out {name}"
            )
        renamed[name if isinstance(value, Mapping) else setting] = value
    return renamed


def require_known(keywords: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise TypeError, as Python does, for a keyword that `ConalSAC` does not have."""
    for name in sorted(keywords.keys() - known):
        raise TypeError(
            f"{name}: got an unknown keyword, expected one of ConalSAC. {_closest(name, known)}"
        )


def _closest(name: Any, known: frozenset[str]) -> str:
    close = difflib.get_close_matches(str(name), known, 1)
    return f"Did you mean {close[0]}?" if close else "See help(conal_rl.agents.ConalSAC)"
