"""Model cards agree with torch and transformers, and every unusable folder says why."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from opdcore.contract.errors import BadInput
from opdcore.inspection import inspect
from opdcore.weights_files import fingerprint, read_weights
from tests.opdcore.model_folders import SHAPES, edit_json, make_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_folder(root / kind, kind) for kind in SHAPES}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A Qwen2 folder of one's own, to be damaged."""
    return Path(shutil.copytree(folders["qwen2"], tmp_path / "model"))


def code_of(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        inspect(folder)
    assert caught.value.info.remedy
    return caught.value.info.code


@pytest.mark.parametrize("kind", SHAPES)
def test_card_equals_what_transformers_loads(folders: dict[str, Path], kind: str) -> None:
    card = inspect(folders[kind])
    model = AutoModelForCausalLM.from_pretrained(folders[kind])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])
    config = model.config

    assert card.architecture == type(model).__name__
    assert card.model_type == config.model_type
    assert card.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert card.dtypes == ("F32",)
    assert card.vocabulary == len(tokenizer)
    assert card.padded_vocabulary == model.get_input_embeddings().weight.shape[0]
    assert card.padded_vocabulary > card.vocabulary
    assert card.context_length == 256
    assert (card.hidden_size, card.layers, card.heads) == (32, 2, 4)
    assert card.kv_heads == getattr(config, "num_key_value_heads", 4)
    assert card.head_dim == getattr(config, "head_dim", 8)
    assert card.intermediate_size == 64
    assert card.tied_embeddings == config.tie_word_embeddings
    assert card.has_chat_template == (tokenizer.chat_template is not None)
    assert card.bos.tokenizer == tuple(one for one in [tokenizer.bos_token_id] if one is not None)
    assert card.eos.tokenizer == (tokenizer.eos_token_id,)
    assert card.eos.config == (config.eos_token_id,)
    assert card.eos.generation_config == tuple(model.generation_config.eos_token_id or ())
    assert card.weights_bytes == (folders[kind] / "model.safetensors").stat().st_size


def test_eos_is_told_apart_by_file(folders: dict[str, Path]) -> None:
    eos = inspect(folders["qwen2"]).eos
    assert (eos.tokenizer, eos.config, eos.generation_config) == ((590,), (588,), (590, 588))
    assert eos.all() == (588, 590)


def test_sharded_card_equals_single_file_card(tmp_path: Path) -> None:
    one = inspect(make_folder(tmp_path / "one", "llama"))
    sharded = make_folder(tmp_path / "many", "llama", max_shard_size="100KB")
    assert len(read_weights(sharded).files) > 1
    many = inspect(sharded)
    assert many.parameters == one.parameters
    assert many.padded_vocabulary == one.padded_vocabulary


def test_half_precision_is_reported(tmp_path: Path) -> None:
    card = inspect(make_folder(tmp_path / "half", "qwen3", dtype=torch.bfloat16))
    assert card.dtypes == ("BF16",)
    assert card.weights_bytes < 3 * card.parameters


def test_saved_buffers_and_a_stored_tied_head_are_no_parameters(folder: Path) -> None:
    before = inspect(folder).parameters
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file)
    assert inspect(folder).parameters == before


def test_head_dim_is_read_off_the_weights_where_the_config_is_silent(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["qwen3"], tmp_path / "model"))
    edit_json(folder / "config.json", head_dim=None)
    assert inspect(folder).head_dim == 16


def test_other_weights_of_the_same_shape_have_another_fingerprint(tmp_path: Path) -> None:
    one = read_weights(make_folder(tmp_path / "one", seed=0))
    two = read_weights(make_folder(tmp_path / "two", seed=1))
    again = read_weights(make_folder(tmp_path / "again", seed=0))
    assert fingerprint(one) == fingerprint(again) != fingerprint(two)
    assert fingerprint(one, full=True) == fingerprint(again, full=True)
    assert fingerprint(one, full=True) != fingerprint(two, full=True)


def test_template_in_the_tokenizer_config_counts_and_the_file_wins(folder: Path) -> None:
    from_file = inspect(folder).chat_template_sha256
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    assert inspect(folder).chat_template_sha256 == from_file
    (folder / "chat_template.jinja").unlink()
    assert inspect(folder).chat_template_sha256 not in (None, from_file)


def test_what_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path / "absent") == "model.not_a_folder"


def test_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert code_of(folder) == "model.no_config"


def test_adapter_is_refused_as_one(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert code_of(folder) == "model.adapter"


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert code_of(folder) == "model.broken_config"


def test_incomplete_config_names_the_missing_key(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=None)
    with pytest.raises(BadInput, match="num_hidden_layers") as caught:
        inspect(folder)
    assert caught.value.info.code == "model.config_incomplete"


def test_remote_code_is_refused(folder: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_json(folder / "config.json", model_type="own", auto_map=auto_map)
    assert code_of(folder) == "model.remote_code"


def test_auto_map_beside_a_native_architecture_is_ignored(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert inspect(folder).model_type == "qwen2"


def test_encoder_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["BertForMaskedLM"])
    assert code_of(folder) == "model.not_causal"


def test_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert code_of(folder) == "model.no_safetensors"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickle_checkpoint_is_refused_with_the_way_out(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(BadInput, match="safe_serialization") as caught:
        inspect(folder)
    assert caught.value.info.code == "model.pickle"
    assert caught.value.info.field == name


@pytest.mark.parametrize("kept", [0, 5, 8, 200, 20_000, -1])
def test_truncated_safetensors_is_refused(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert code_of(folder) == "model.truncated"


def put_header(file: Path, header: object, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def span(start: int, stop: int, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [start, stop], **changes}


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        [],
        {"a": 3},
        {"a": span(0, 8)},
        {"a": span(0, 4), "b": span(5, 9)},
        {"a": span(0, 4), "b": span(0, 4)},
        {"a": span(0, 4, dtype="F5")},
        {"a": span(0, 4, shape=[-1])},
        {"a": span(0, 4)},
    ],
)
def test_broken_safetensors_header_is_refused(folder: Path, header: object) -> None:
    put_header(folder / "model.safetensors", header, bytes(9))
    assert code_of(folder) == "model.broken_weights"


def test_huge_declared_header_is_refused_without_reading_it(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert code_of(folder) == "model.broken_weights"


def test_git_lfs_pointer_is_named(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)
    assert code_of(folder) == "model.lfs_pointer"


def make_sharded(folder: Path) -> Path:
    return make_folder(folder, "llama", max_shard_size="100KB")


def drop_shard(folder: Path) -> None:
    next(folder.glob("model-00002-*")).unlink()


def swap_shard(folder: Path) -> None:
    save_file({"other": torch.ones(2)}, next(folder.glob("model-00001-*")))


def leave_folder(folder: Path) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map={"a": "../secret.safetensors"})


def empty_index(folder: Path) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map=None)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (drop_shard, "model.missing_shard"),
        (swap_shard, "model.missing_tensor"),
        (leave_folder, "model.broken_index"),
        (empty_index, "model.broken_index"),
    ],
)
def test_damaged_shards_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], code: str
) -> None:
    folder = make_sharded(tmp_path / "model")
    damage(folder)
    assert code_of(folder) == code


def test_width_that_the_config_misstates_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=700)
    assert code_of(folder) == "model.width_mismatch"


def test_folder_without_a_fast_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="fast") as caught:
        inspect(folder)
    assert caught.value.info.code == "model.no_tokenizer"


@pytest.mark.parametrize("text", ["{", '{"version": "1.0"}', "\xff"])
def test_broken_tokenizer_is_refused(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text, encoding="latin-1")
    assert code_of(folder) == "model.broken_tokenizer"
