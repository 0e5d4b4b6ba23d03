"""BERT as a chain of modules: embeddings and the first layers, then further groups of layers.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"
(NAACL 2019), from the parts of Hugging Face transformers. Weights and configs come from local
folders; nothing here ever asks the network.

Modules map one tensor to one tensor, so the attention mask has to be in it. The first module
takes token ids, of which the config's padding id is no token. Each puts out zeros in place of
padding, and the next one takes a place of zeros for padding: no token's state is zero in every
feature after a layer norm, and mixtures of several paths by gates keep the zeros. So the shape is
that of the hidden states, and heads need not know.
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
from conal_rl.runs.files import read_json
from conal_rl.supervised.encoders import check_fit, fill, read_weights

if TYPE_CHECKING:
    from transformers import BertConfig

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


def bert_chain(
    source: "str | Path | BertConfig", modules: int, pooler: bool = False
) -> list[LayerFactory]:
    """BERT in `modules` modules, of as equal numbers of layers as can be.

    Maps integers `(row, batch, 2, token)`, token ids and segment ids, to hidden states
    `(row, batch, token, hidden)`, zero in place of padding, or with `pooler` to
    `(row, batch, hidden)`.

    Args:
        source: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, whose
            weights every module starts with (the chain keeps them in memory); or a transformers
            config, for random weights.
        modules: the chain's length, P - 1.
        pooler: end with BERT's pooler, tanh of a linear layer on the first token: what LibMTL
            classifies sentences from.

    Raises:
        ExtraError: transformers is not installed.
        CheckpointError: a folder or file is missing, damaged, or of another kind or size.
        ConfigError: fewer than 1 or more modules than layers.
    """
    import_extra("transformers.models.bert.modeling_bert", "transformers", "nlp")
    folder = Path(source) if isinstance(source, str | Path) else None
    config = read_config(Path(source)) if isinstance(source, str | Path) else source
    layers = config.num_hidden_layers
    if not 1 <= modules <= layers:
        raise ConfigError(f"a BERT of {layers} layers has 1 to {layers} modules, not {modules}")
    starts = [-(-layers * number // modules) for number in range(modules + 1)]
    parts = [
        partial(BertPart, config, range(first, last), pooler and last == layers)
        for first, last in pairwise(starts)
    ]
    if folder is None:
        return module_chain(parts)
    named = _read_bert(folder, pooler)
    with torch.device("meta"):
        places = [place for make in parts for place in make().places()]
    check_fit(places, named, str(folder))
    return module_chain([partial(_filled, make, named) for make in parts])


def read_config(folder: Path) -> "BertConfig":
    """The model's sizes, from `config.json`.

    Raises:
        ExtraError: transformers is not installed.
        CheckpointError: no such folder or file, or it describes no BERT.
    """
    import_extra("transformers.models.bert.modeling_bert", "transformers", "nlp")
    from transformers import BertConfig

    path = folder / _CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    about = read_json(path)
    kind = about.get("model_type", "bert") if isinstance(about, dict) else None
    if kind != "bert":
        raise CheckpointError(f"{path}: describes a model of type {kind!r}, not 'bert'")
    try:
        return BertConfig.from_dict(about)
    except Exception as error:  # its checks raise errors of their own kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not describe a BERT: {reason}") from error


class BertPart(nn.Module):
    """Consecutive layers of BERT, with the embeddings if they are the first.

    Args:
        config: of the whole model.
        layers: which of its layers, from 0.
        pooler: whether BERT's pooler follows.
    """

    def __init__(self, config: "BertConfig", layers: range, pooler: bool = False):
        from transformers.models.bert import modeling_bert

        super().__init__()
        own = copy.deepcopy(config)
        own.num_hidden_layers = len(layers)
        own._attn_implementation = "sdpa"  # takes a mask of booleans
        self.start, self.positions = layers.start, config.max_position_embeddings
        self.padding = -1 if config.pad_token_id is None else config.pad_token_id
        kinds: Any = modeling_bert
        self.embeddings = kinds.BertEmbeddings(own) if self.start == 0 else None
        self.encoder = kinds.BertEncoder(own)
        self.pooler = kinds.BertPooler(own) if pooler else None
        self.apply(partial(_initialise, std=config.initializer_range))

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states `(batch, token, hidden)` to the same, zero in place of padding.

        The first part takes token and segment ids, `(batch, 2, token)`, and one with the pooler
        gives `(batch, hidden)`.

        Raises:
            ValueError: not token and segment ids, or more tokens than the model has positions.
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
            raise ValueError(f"expected ids (batch, 2, token), got {x.dtype} {tuple(x.shape)}")
        if x.shape[2] > self.positions:
            raise ValueError(f"{x.shape[2]} tokens, but the model has {self.positions} positions")
        ids, segments = x.unbind(dim=1)
        return self.embeddings(input_ids=ids, token_type_ids=segments), ids != self.padding

    def places(self) -> list[tuple[str, Tensor]]:
        """Its parameters under their names in the files of a whole BERT."""
        return [(self._file_name(name), own) for name, own in self.state_dict().items()]

    def _file_name(self, name: str) -> str:
        if not name.startswith("encoder.layer."):
            return name
        number, rest = name.removeprefix("encoder.layer.").split(".", 1)
        return f"encoder.layer.{int(number) + self.start}.{rest}"


def _initialise(module: nn.Module, std: float) -> None:
    """As BERT: normal weights, no bias, nothing for padding."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx] = 0


def _filled(make: Any, named: Mapping[str, Tensor]) -> BertPart:
    part: BertPart = make()
    fill(part.places(), named)
    return part


def _read_bert(folder: Path, pooler: bool) -> dict[str, Tensor]:
    """The encoder's tensors under today's names; heads of whatever it was trained for are left."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: holds neither {' nor '.join(_WEIGHTS)}")
    found = read_weights(path)
    within = "bert." if any(name.startswith("bert.") for name in found) else ""
    wanted = (f"{within}embeddings.", f"{within}encoder.", *([f"{within}pooler."] * pooler))
    named = {
        _today(name.removeprefix(within)): tensor
        for name, tensor in found.items()
        if name.startswith(wanted)
    }
    named.pop("embeddings.position_ids", None)  # a buffer of old versions
    return named


def _today(name: str) -> str:
    """Old files say gamma and beta, as TensorFlow does."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
