"""BERT as a chain of modules: the embeddings with the first layers, then groups of layers.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"
(NAACL 2019), built from the parts of Hugging Face transformers. Weights and configs come from local
folders. Nothing is downloaded.

A module maps one tensor to one tensor, so this tensor must contain the attention mask. The first
module finds padding by its token id. Each module sets the hidden states of padding to zero, and the
next module reads a zero state as padding. A real token's state is never zero in all features,
because of the layer norm. A mixture of several paths by gates keeps the zeros.
"""

import copy
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conal_rl.core import module_chain
from conal_rl.core.layers import LayerFactory
from conal_rl.errors import CheckpointError, ConfigError, import_extra
from conal_rl.files import read_json, user_path
from conal_rl.supervised.encoders import check_fit, fill, read_weights

if TYPE_CHECKING:
    from transformers import BertConfig

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read


def bert_chain(
    source: "str | Path | BertConfig", modules: int, pooler: bool = False
) -> list[LayerFactory]:
    """Return BERT as a chain of `modules` modules, with the layers spread as evenly as possible.

    The chain maps token and segment ids `(row, batch, 2, token)`, integers, to hidden states
    `(row, batch, token, hidden)`. The states of padding are zero. With `pooler`, the output is
    `(row, batch, hidden)`.

    Args:
        source: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`. Every
            module starts with the folder's weights, which the chain keeps in memory. Or a
            transformers config, for random weights.
        modules: the length of the chain, P - 1.
        pooler: end with BERT's pooler, tanh of a linear layer on the first token. LibMTL classifies
            sentences from it.

    Raises:
        ExtraError: transformers is not installed.
        CheckpointError: a folder or file is missing, damaged, or has a different kind or size.
        ConfigError: `modules` is below 1 or above the number of layers.
    """
    import_extra("transformers.models.bert.modeling_bert", "transformers", "nlp")
    folder = user_path(source) if isinstance(source, str | Path) else None
    config = read_config(user_path(source)) if isinstance(source, str | Path) else source
    layers = config.num_hidden_layers
    if not 1 <= modules <= layers:
        raise ConfigError(
            f"modules: got {modules}, expected 1 to {layers}, the layers of this BERT. "
            "Lower agent.modules"
        )
    starts = [-(-layers * number // modules) for number in range(modules + 1)]
    parts = [
        partial(BertPart, config, range(first, last), pooler and last == layers)
        for first, last in pairwise(starts)
    ]
    if folder is None:
        return module_chain(parts)
    weights = _read_bert(folder, pooler)
    with torch.device("meta"):
        parameters = [named for make in parts for named in make().named_tensors()]
    check_fit(parameters, weights, str(folder))
    return module_chain([partial(_filled, make, weights) for make in parts])


def read_config(folder: Path) -> "BertConfig":
    """Return the model's sizes from `config.json`.

    Raises:
        ExtraError: transformers is not installed.
        CheckpointError: the folder or file is missing, or describes a different model.
    """
    import_extra("transformers.models.bert.modeling_bert", "transformers", "nlp")
    from transformers import BertConfig

    path = folder / _CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: got no folder, expected a BERT's. Check the path")
    about = read_json(path)
    kind = about.get("model_type", "bert") if isinstance(about, dict) else None
    if kind != "bert":
        raise CheckpointError(
            f"{path}: got the model type {kind!r}, expected 'bert'. Use a different folder"
        )
    try:
        return BertConfig.from_dict(about)
    except Exception as error:  # transformers raises errors of many types
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: got values that do not fit ({reason}), expected a BERT's config. "
            "Use a different folder"
        ) from error


class BertPart(nn.Module):
    """Consecutive layers of BERT; the part with layer 0 also has the embeddings.

    Args:
        config: the config of the whole model.
        layers: the numbers of this part's layers, from 0.
        pooler: whether this part ends with BERT's pooler.
    """

    def __init__(self, config: "BertConfig", layers: range, pooler: bool = False):
        from transformers.models.bert import modeling_bert

        super().__init__()
        part_config = copy.deepcopy(config)
        part_config.num_hidden_layers = len(layers)
        part_config._attn_implementation = "sdpa"  # accepts a boolean mask
        self.start, self.positions = layers.start, config.max_position_embeddings
        self.padding = -1 if config.pad_token_id is None else config.pad_token_id
        kinds: Any = modeling_bert
        self.embeddings = kinds.BertEmbeddings(part_config) if self.start == 0 else None
        self.encoder = kinds.BertEncoder(part_config)
        self.pooler = kinds.BertPooler(part_config) if pooler else None
        self.apply(partial(_initialise, std=config.initializer_range))

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states `(batch, token, hidden)` to new ones; those of padding are zero.

        The first part takes token and segment ids `(batch, 2, token)`. A part with the pooler
        returns `(batch, hidden)`.

        Raises:
            ValueError: the ids have a wrong shape or type, or there are more tokens than positions.
        """
        if self.embeddings is None:
            hidden, real = x, (x != 0).any(dim=-1)
        else:
            hidden, real = self._embed(x)
        mask = real[:, None, None, :]  # (batch, head, from, to)
        hidden = self.encoder(hidden, attention_mask=mask).last_hidden_state
        if self.pooler is not None:
            return self.pooler(hidden)
        return hidden * real.unsqueeze(-1)

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.embeddings is not None
        if x.ndim != 3 or x.shape[1] != 2 or x.is_floating_point():
            raise ValueError(
                f"x: got {x.dtype} {tuple(x.shape)}, expected integers (batch, 2, token)"
            )
        if x.shape[2] > self.positions:
            raise ValueError(f"x: got {x.shape[2]} tokens, expected at most {self.positions}")
        ids, segments = x.unbind(dim=1)
        return self.embeddings(input_ids=ids, token_type_ids=segments), ids != self.padding

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Return the parameters with their names in the files of a whole BERT."""
        return [(self._file_name(name), tensor) for name, tensor in self.state_dict().items()]

    def _file_name(self, name: str) -> str:
        if not name.startswith("encoder.layer."):
            return name
        number, rest = name.removeprefix("encoder.layer.").split(".", 1)
        return f"encoder.layer.{int(number) + self.start}.{rest}"


def _initialise(module: nn.Module, std: float) -> None:
    """Initialise as BERT does: normal weights, zero biases, zeros for padding."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx] = 0


def _filled(make: Any, named: Mapping[str, Tensor]) -> BertPart:
    part: BertPart = make()
    fill(part.named_tensors(), named)
    return part


def _read_bert(folder: Path, pooler: bool) -> dict[str, Tensor]:
    """Return the encoder's tensors under current names, without the heads of the pretraining."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder}: got no weights, expected {' or '.join(_WEIGHTS)}. Use a different folder"
        )
    tensors = read_weights(path)
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    wanted = (f"{prefix}embeddings.", f"{prefix}encoder.", *([f"{prefix}pooler."] * pooler))
    named = {
        _current_name(name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
        if name.startswith(wanted)
    }
    named.pop("embeddings.position_ids", None)  # a buffer in files of old versions
    return named


def _current_name(name: str) -> str:
    """Return the current name of a parameter; old files say gamma and beta, as TensorFlow."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
