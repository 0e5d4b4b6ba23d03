"""Experiment configs: typed, frozen, read from YAML and the command line, with one-line errors.

A preset is a file in `conal_rl/configs`. A YAML file lists, by section, only the fields that differ
from the defaults of the classes here. The docstring under each field is its `--help`. A section
`env` makes it an experiment in reinforcement learning, a section `data` a supervised one.
"""

from conal_rl.config.fields import marked
from conal_rl.config.loading import (
    AnyConfig,
    CommandLine,
    load_config,
    parse_command_line,
    presets,
)
from conal_rl.config.rl import AgentConfig, Config, EnvConfig, EvaluationConfig
from conal_rl.config.shared import LearnerConfig, RunConfig, SearchConfig
from conal_rl.config.supervised import (
    DataConfig,
    ModelConfig,
    SupervisedConfig,
    SupervisedEvaluationConfig,
)

__all__ = [
    "AgentConfig",
    "AnyConfig",
    "CommandLine",
    "Config",
    "DataConfig",
    "EnvConfig",
    "EvaluationConfig",
    "LearnerConfig",
    "ModelConfig",
    "RunConfig",
    "SearchConfig",
    "SupervisedConfig",
    "SupervisedEvaluationConfig",
    "load_config",
    "marked",
    "parse_command_line",
    "presets",
]
