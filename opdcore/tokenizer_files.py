"""The tokenizer of a model folder as its files declare it: token map, special tokens, template.

`tokenizer.json` is the truth, its BOS and EOS included; `tokenizer_config.json` names the special
tokens and may add some. Whoever encodes for a model encodes with what is loaded here. It knows no
weights and no prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from opdcore.contract.errors import BadInput
from opdcore.json_files import read_object_if_there

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"

_SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A loaded tokenizer with the special tokens and the chat template that come with it."""

    tokenizer: Tokenizer
    token_map: Mapping[int, str]  # every real token by id, added tokens included
    special_tokens: Mapping[str, str]
    chat_template: str | None

    def special_id(self, name: str) -> int | None:
        """The id of a special token such as `eos_token`; None where the tokenizer has none."""
        token = self.special_tokens.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Load a folder's fast tokenizer; raise BadInput where it has none or it cannot be read."""
    config = read_object_if_there(folder / TOKENIZER_CONFIG, "model.broken_tokenizer")
    special_tokens = _special_tokens(folder, config)
    tokenizer = _load(folder)
    _add_declared_tokens(tokenizer, config, special_tokens)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TokenizerFiles(
        tokenizer, _token_map(tokenizer), special_tokens, _chat_template(folder, config)
    )


def token_map_sha256(token_map: Mapping[int, str]) -> str:
    """Fingerprint of a token map: equal exactly when every id means the same token."""
    pairs = "".join(f"{token_id}\0{token}\0" for token_id, token in sorted(token_map.items()))
    return hashlib.sha256(pairs.encode("utf-8", "surrogatepass")).hexdigest()


def _token_map(tokenizer: Tokenizer) -> dict[int, str]:
    """Tokens by id; of two tokens that a broken file gives one id, the added or the later one."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    if len(tokens) < len(vocabulary):
        tokens = {token_id: token for token, token_id in sorted(vocabulary.items())}
    added = tokenizer.get_added_tokens_decoder()
    return tokens | {token_id: token.content for token_id, token in added.items()}


def _load(folder: Path) -> Tokenizer:
    file = folder / TOKENIZER
    if not file.is_file():
        raise BadInput(
            "model.no_tokenizer",
            f"{folder} has no {TOKENIZER}.",
            remedy="Save the tokenizer there as a fast one: "
            "`AutoTokenizer.from_pretrained(model, use_fast=True).save_pretrained(folder)`.",
            field=TOKENIZER,
        )
    raw = file.read_bytes()
    try:
        return Tokenizer.from_buffer(raw)
    except ValueError as error:
        raise BadInput(
            "model.broken_tokenizer",
            f"{file} cannot be read as a tokenizer: {error}.",
            remedy="Save it again with `tokenizer.save_pretrained(folder)`.",
            field=TOKENIZER,
        ) from error


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; the older special_tokens_map.json counts where transformers reads it."""
    declared = dict(config)
    if "added_tokens_decoder" not in config:
        legacy = folder / "special_tokens_map.json"
        declared.update(read_object_if_there(legacy, "model.broken_tokenizer"))
    values = {name: _content(declared.get(name)) for name in _SPECIAL_NAMES}
    return {name: value for name, value in values.items() if value is not None}


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _add_declared_tokens(
    tokenizer: Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Add what only tokenizer_config.json declares, in the order in which transformers does."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder") or {}
    for _, token in sorted(declared.items(), key=lambda item: int(item[0])):
        content = _content(token)
        if content is not None and content not in added:
            flags = {key: bool(token[key]) for key in _TOKEN_FLAGS if key in token}
            tokenizer.add_tokens([AddedToken(content, **flags)])
            added.add(content)
    for content in special_tokens.values():
        if content not in added:
            tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: the file if there is one, else what tokenizer_config.json carries."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
