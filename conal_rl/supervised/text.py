"""XTREME's benchmarks as problems: each language is a task, and BERT is the encoder.

Hu et al., "XTREME" (ICML 2020). As in LibMTL, pairs of texts are classified from BERT's pooler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from conal_rl.config.checks import require
from conal_rl.config.supervised import SupervisedConfig
from conal_rl.core.layers import LayerFactory
from conal_rl.device import require_memory
from conal_rl.errors import ConfigError
from conal_rl.files import user_path
from conal_rl.supervised.bert import bert_chain, read_config
from conal_rl.supervised.data.common import Batch, Indexed, Joined, TaskItem, TaskLoaders
from conal_rl.supervised.data.common import stack_tasks as stack
from conal_rl.supervised.data.text import IGNORED, LABELS, Name, Split, load_tokenizer, xtreme
from conal_rl.supervised.decoders import token_head
from conal_rl.supervised.losses import cross_entropy, token_cross_entropy
from conal_rl.supervised.metrics import Accuracy, SpanF1
from conal_rl.supervised.problem import (
    Part,
    Problem,
    Task,
    chosen_tasks,
    require_full_batch,
    root_of,
)

if TYPE_CHECKING:
    from transformers import BertConfig

USUAL = {
    "pawsx": ("en", "zh", "de", "es"),
    "xnli": ("en", "zh", "de", "es"),
    "panx": ("en", "zh", "de", "es"),
    "udpos": ("en", "zh", "te", "vi"),
}
"""The default languages of each benchmark, which are LibMTL's."""

_SPLITS: dict[Part, tuple[Split, ...]] = {
    "train": ("train",),
    "validation": ("dev",),
    "both": ("train", "dev"),
    "test": ("test",),
}


def text_problem(config: SupervisedConfig) -> Problem:
    """Return the problem of a config whose data set is text; see `problem.make_problem`."""
    name = cast(Name, config.data.set)
    folder, about = _bert(config)
    root = root_of(config, f"{name}/train-en.tsv and the other files")
    known = _languages(root / name)
    languages = chosen_tasks(config, known or USUAL[name], USUAL[name])
    tokenizer = _tokenizer(folder, about)

    @lru_cache
    def texts(split: Split) -> Mapping[str, Indexed[TaskItem]]:
        return xtreme(root, name, languages, split, tokenizer, config.data.tokens)

    texts("test")
    batch = 4 * about.hidden_size * len(languages) * config.agent.batch_size
    require_memory("agent.batch_size", config.agent.batch_size, batch)

    def loader(part: Part, batch_size: int, training: bool) -> TaskLoaders:
        splits = [texts(split) for split in _SPLITS[part]]
        datasets = {of: Joined([split[of] for split in splits]) for of in languages}
        longest = max(len(dataset) for dataset in datasets.values())
        workers = config.data.workers
        if training:
            require_full_batch(longest, batch_size, part)
            return TaskLoaders(
                datasets, batch_size, seed=config.seed, drop_last=True, workers=workers
            )
        padded = {of: Padded(dataset, longest) for of, dataset in datasets.items()}
        return TaskLoaders(padded, batch_size, stack_padded, shuffle=False, workers=workers)

    task = _task(name, about.hidden_size, config.agent.dropout)
    chain = _chain(config, folder, about, pooler=task.loss is cross_entropy)
    return Problem(dict.fromkeys(languages, task), chain, loader, lambda network: None)


class Padded:
    """A language's texts, followed by unlabelled copies of its last text up to a length.

    With this padding, an epoch reads each text of every language once, although languages have
    different numbers of texts.
    """

    def __init__(self, dataset: Indexed[TaskItem], length: int):
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TaskItem:
        last = len(self.dataset) - 1
        x, target = self.dataset[min(index, last)]
        return x, target if index <= last else torch.full_like(target, IGNORED)


def stack_padded(items: Mapping[str, Sequence[TaskItem]]) -> Batch:
    """Stack as `stack_tasks`; unlabelled texts get a mask of False and targets of 0."""
    batch = stack(items)
    masks = {of: _labelled(target) for of, target in batch.targets.items()}
    targets = {
        of: target.where(masks[of].view(-1, *[1] * (target.ndim - 1)), 0)
        for of, target in batch.targets.items()
    }
    return batch._replace(targets=targets, masks=masks)


def _labelled(target: Tensor) -> Tensor:
    return (target != IGNORED).view(len(target), -1).any(dim=1)


def _task(name: Name, hidden: int, dropout: float) -> Task:
    labels = LABELS[name]
    head = partial(token_head, hidden, len(labels), dropout)
    if name in ("pawsx", "xnli"):
        return Task(head, cross_entropy, Accuracy)
    return Task(head, token_cross_entropy, partial(SpanF1, labels))


def _bert(config: SupervisedConfig) -> tuple[Path, BertConfig]:
    """Return BERT's folder and its sizes."""
    agent, tokens = config.agent, config.data.tokens
    because = f"because {config.data.set} is text"
    require(agent.encoder == "bert", "agent.encoder", agent.encoder, f"bert, {because}")
    if agent.bert is None:
        raise ConfigError(
            "agent.bert: got no value, expected a folder with config.json, vocab.txt and weights "
            "of a BERT. Give --agent.bert DIR"
        )
    if agent.pretrained is not None:
        raise ConfigError(
            f"agent.pretrained: got {agent.pretrained!r}, expected no value, because the weights "
            "are in agent.bert. Remove it"
        )
    require(config.data.size is None, "data.size", config.data.size, f"no value, {because}")
    folder = user_path(agent.bert)
    about = read_config(folder)
    longest = about.max_position_embeddings
    allowed = f"5 to {longest}, the positions of {folder}"
    require(5 <= tokens <= longest, "data.tokens", tokens, allowed)
    return folder, about


def _chain(
    config: SupervisedConfig, folder: Path, about: BertConfig, pooler: bool
) -> list[LayerFactory]:
    layers, modules = about.num_hidden_layers, config.agent.modules
    allowed = f"1 to {layers}, the layers of {folder}"
    require(modules <= layers, "agent.modules", modules, allowed)
    return bert_chain(about if config.agent.bert_from_config else folder, modules, pooler)


def _tokenizer(folder: Path, about: BertConfig) -> Any:
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > about.vocab_size:
        raise ConfigError(
            f"agent.bert: got {tokenizer.vocab_size} lines in {folder}/vocab.txt, expected at most "
            f"{about.vocab_size}, as config.json says. Use files of the same model"
        )
    if tokenizer.pad_token_id != about.pad_token_id:  # the model would read padding as text
        raise ConfigError(
            f"agent.bert: got id {tokenizer.pad_token_id} of [PAD] in {folder}/vocab.txt, expected "
            f"{about.pad_token_id}, as config.json says. Use files of the same model"
        )
    return tokenizer


def _languages(folder: Path) -> tuple[str, ...]:
    """Return the languages that have a file for training."""
    files = [*folder.glob("train-*.tsv"), *folder.glob("train-*.conllu")]
    return tuple(sorted({path.stem.removeprefix("train-") for path in files}))
