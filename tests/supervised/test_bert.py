"""The chain of BERT's modules against transformers' BertModel; folders; errors."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conal_rl.core import ConalProStage, SearchNetwork, Supernet, Tree, TreeNetwork
from conal_rl.core.gradients import TaskGradients
from conal_rl.core.ltb import LTBSearch
from conal_rl.core.tree_network import parameter_count
from conal_rl.errors import CheckpointError, ConfigError, ExtraError
from conal_rl.supervised.bert import bert_chain
from conal_rl.supervised.encoders import read_weights
from tests.helpers.refusals import refused

pytest.importorskip("transformers")
from transformers import BertConfig, BertForTokenClassification, BertModel

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "pad_token_id": 3,
    "initializer_range": 0.3,
}
TASKS = ("en", "zh")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def make_ids(rows: int, batch: int = 3, tokens: int = 9) -> Tensor:
    """Token and segment ids `(row, batch, 2, token)` of texts of several lengths."""
    ids = torch.randint(4, SIZES["vocab_size"], (rows, batch, tokens))
    segments = torch.arange(tokens).ge(4).long().expand_as(ids).clone()
    for row in range(rows):
        for text in range(batch):
            ids[row, text, 9 - 3 * text - row :] = SIZES["pad_token_id"]
            segments[row, text, 9 - 3 * text - row :] = 0
    return torch.stack([ids, segments], dim=2)


def whole(model: BertModel, x: Tensor) -> Any:
    """The output of transformers for `(batch, 2, token)`."""
    mask = (x[:, 0] != SIZES["pad_token_id"]).long()
    return model(input_ids=x[:, 0], token_type_ids=x[:, 1], attention_mask=mask)


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    model: Any = BertModel(BertConfig(**SIZES))
    return model.eval()


@pytest.fixture(scope="module")
def folder(model: BertModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    model.save_pretrained(path)
    return path


def shared(chain: Any) -> TreeNetwork:
    return TreeNetwork(Tree.shared(TASKS, len(chain)), chain)


def check_equal(hidden: Tensor, model: BertModel, x: Tensor) -> None:
    """Hidden states `(row, batch, token, hidden)` equal the model's; those of padding are zero."""
    for states, texts in zip(hidden, x, strict=True):
        real = texts[:, 0] != SIZES["pad_token_id"]
        torch.testing.assert_close(states[real], whole(model, texts).last_hidden_state[real])
        assert not states[~real].any()


@pytest.mark.parametrize("modules", [1, 2, 3, 5])
def test_the_chain_computes_what_bert_computes(
    model: BertModel, folder: Path, modules: int
) -> None:
    network = shared(bert_chain(folder, modules)).eval()
    layers = [len(layer.modules_[0].encoder.layer) for layer in network.layers]  # type: ignore
    assert sum(layers) == 5
    assert max(layers) - min(layers) <= 1
    x = make_ids(2)
    with torch.no_grad():
        check_equal(network(x), model, x)
        one = make_ids(1)
        check_equal(network(one), model, one.expand(2, -1, -1, -1))


def test_the_pooler_computes_what_berts_pooler_computes(model: BertModel, folder: Path) -> None:
    network = shared(bert_chain(str(folder), 2, pooler=True)).eval()
    assert parameter_count(network) == parameter_count(model)
    x = make_ids(2)
    with torch.no_grad():
        for pooled, texts in zip(network(x), x, strict=True):
            torch.testing.assert_close(pooled, whole(model, texts).pooler_output)


def test_gates_keep_the_mask(model: BertModel, folder: Path) -> None:
    """All paths start with the same weights, so every mixture of paths equals BERT."""
    chain, x = bert_chain(folder, 3), make_ids(2)
    networks: list[SearchNetwork] = [
        ConalProStage(3, (None, None)).network(TASKS, chain),
        LTBSearch(copies=2).network(TASKS, chain),
        Supernet(TASKS, chain),
    ]
    for network in networks:
        with torch.no_grad():
            network.eval().gates.normal_()
            check_equal(network(x), model, x)
    network.train().gumbel_temperature = 1.0
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        check_equal(network(x), model, x)


def test_captured_gradients_are_those_of_every_task(folder: Path) -> None:
    """One captured pass has the gradients of one pass per task."""
    network = shared(bert_chain(folder, 2)).eval()
    x = make_ids(1)
    gradients_of = TaskGradients(network.shared_layers())
    with gradients_of.capture():
        losses = [z.square().mean() * (task + 1) for task, z in enumerate(network(x))]
    captured = gradients_of.backward(torch.stack(losses))
    for task in range(2):
        network.zero_grad()
        (network(x)[task].square().mean() * (task + 1)).backward()
        for layer, rows in zip(network.layers, captured, strict=True):
            for parameter, gradient in zip(layer.parameters(), rows, strict=True):
                torch.testing.assert_close(gradient[task], parameter.grad)


def test_random_weights_are_initialised_as_berts() -> None:
    config = BertConfig(**SIZES | {"vocab_size": 900, "initializer_range": 0.02})
    network = shared(bert_chain(config, 5))
    first: Any = network.layers[0].modules_[0]  # type: ignore[index]
    words = first.embeddings.word_embeddings.weight
    assert not words[SIZES["pad_token_id"]].any()
    for weight in (words, first.encoder.layer[0].intermediate.dense.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not first.encoder.layer[0].intermediate.dense.bias.any()
    assert first.encoder.layer[0].output.LayerNorm.weight.eq(1).all()
    assert config.num_hidden_layers == 5  # the caller's config is unchanged


def test_multilingual_bert_has_the_published_size() -> None:
    config = BertConfig(vocab_size=119_547)
    with torch.device("meta"):
        plain, pooled = (shared(bert_chain(config, 4, pooler)) for pooler in (False, True))
    assert parameter_count(plain) == 177_262_848
    assert parameter_count(pooled) == 177_853_440
    assert [len(layer.modules_[0].encoder.layer) for layer in plain.layers] == [3] * 4  # type: ignore


def test_old_files_with_heads_are_read(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tagger: Any = BertForTokenClassification(BertConfig(**SIZES))
    tagger.eval()
    tagger.config.save_pretrained(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tagger.state_dict().items()
    }
    assert any(name.endswith("gamma") for name in old)
    old["bert.embeddings.position_ids"] = torch.arange(12)[None]
    torch.save(old, tmp_path / "pytorch_model.bin")
    x = make_ids(2)
    with torch.no_grad():
        check_equal(shared(bert_chain(tmp_path, 4)).eval()(x), tagger.bert, x)
    with refused(CheckpointError, tmp_path, "pooler.dense.weight, pooler.dense.bias"):
        bert_chain(tmp_path, 4, pooler=True)


def test_a_batch_with_an_empty_text_stays_finite(folder: Path) -> None:
    network = shared(bert_chain(folder, 2)).eval()
    x = make_ids(2)
    x[:, 1, 0] = SIZES["pad_token_id"]
    z = network(x)
    z.square().sum().backward()
    assert not z[:, 1].any()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_folders_without_a_bert_are_named(model: BertModel, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Any, ...]] = [
        (tmp_path / "absent", "folder"),
        (tmp_path / "empty", "empty/config.json: "),
        (with_config(tmp_path / "bare", config), "model.safetensors or pytorch_model.bin"),
        (with_config(tmp_path / "other", {"model_type": "roberta"}), "other/config.json: got the"),
        (with_config(tmp_path / "list", []), "list/config.json: got the model type None"),
        (with_config(tmp_path / "wrong", {"hidden_size": "many"}), "wrong/config.json: got"),
    ]
    changes: list[tuple[dict[str, int], tuple[str, ...]]] = [
        ({"hidden_size": 18}, ("shape of embeddings.word_embeddings.weight ((40, 16)",)),
        ({"num_hidden_layers": 6}, ("without encoder.layer.5.attention", "13 more")),
        ({"num_hidden_layers": 4}, ("unknown encoder.layer.4.attention",)),
    ]
    for changed, parts in changes:
        path = with_config(tmp_path / "-".join(f"{k}{v}" for k, v in changed.items()), config)
        (path / "config.json").write_text(json.dumps(config | changed))
        (path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        cases.append((path, *parts))
    damaged = with_config(tmp_path / "damaged", config)
    (damaged / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:99])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text("<html>")
    cases += [
        (damaged, "damaged/model.safetensors: got"),
        (tmp_path / "text", "text/config.json: "),
    ]
    for path, *names in cases:
        with refused(CheckpointError, path, *names):
            bert_chain(path, 2)
    assert read_weights(folder / "model.safetensors").keys() == model.state_dict().keys()


def with_config(path: Path, config: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_wrong_numbers_of_modules_and_ids_are_refused() -> None:
    config = BertConfig(**SIZES)
    for modules in (0, 6):
        with refused(ConfigError, f"modules: got {modules}", "1 to 5"):
            bert_chain(config, modules)
    network = shared(bert_chain(config, 2))
    with refused(ValueError, "got 13 tokens", "12"):
        network(torch.ones(1, 1, 2, 13, dtype=torch.long))
    with refused(ValueError, "got torch.int64 (1, 9)", "(batch, 2, token)"):
        network(torch.ones(1, 1, 9, dtype=torch.long))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(**SIZES)
    monkeypatch.setitem(sys.modules, "transformers.models.bert.modeling_bert", None)
    with refused(ExtraError, "transformers", ".[nlp]"):
        bert_chain(config, 2)
