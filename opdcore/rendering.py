"""Prompts become text and token ids by one side's own chat template and tokenizer.

Templates come from model folders, so they run in Jinja's immutable sandbox, with the names that
transformers gives them: what is rendered here equals what `apply_chat_template` renders. It knows
no weights and no other side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Prompt
from opdcore.contract.rendering import Rendering
from opdcore.inspection import declared_ids
from opdcore.tokenizer_files import TokenizerFiles, read_tokenizer

_BATCH = 10_000  # prompts encoded at once, which bounds the memory of a long prompt set


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as one side reads it."""

    text: str
    ids: tuple[int, ...]


class Renderer:
    """Renders prompts for one side of a pair, and reads token ids back."""

    def __init__(
        self, files: TokenizerFiles, rendering: Rendering, *, stop_ids: tuple[int, ...] = ()
    ) -> None:
        """`stop_ids` are the model's own; the rendering's extra ones join them."""
        self.rendering = rendering
        self.special_tokens = files.special_tokens
        self._tokenizer = files.tokenizer
        self._token_map = files.token_map
        self._added = {
            token_id: token.content
            for token_id, token in files.tokenizer.get_added_tokens_decoder().items()
        }
        self.special_ids = frozenset(
            token_id
            for token_id, token in files.tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self.added_ids = frozenset(self._added)
        self._template = _compiled(files, rendering)
        self._bytes_of = _piece_reader(files)
        self._trailing = _trailing_special_tokens(files)
        self.stop_ids = tuple(sorted({*stop_ids, *self._known(rendering.extra_stop_ids)}))
        # What this side writes at the end of a response.
        own = files.special_id("eos_token")
        self.end = () if not self.stop_ids else (own if own in self.stop_ids else self.stop_ids[0],)

    @classmethod
    def from_folder(cls, folder: Path | str, rendering: Rendering) -> Renderer:
        """Load the renderer of a model folder; every EOS that the folder declares stops."""
        files = read_tokenizer(Path(folder))
        eos = declared_ids(Path(folder), files, "eos")
        return cls(files, rendering, stop_ids=eos.all())

    def render(self, prompt: Prompt) -> Rendered:
        """Render one prompt; raise BadInput where the template refuses it."""
        return self.render_many([prompt])[0]

    def render_many(self, prompts: Sequence[Prompt]) -> list[Rendered]:
        """Render prompts in order; encoding uses the tokenizer's own threads."""
        rendered: list[Rendered] = []
        for start in range(0, len(prompts), _BATCH):
            texts = [self.text(prompt) for prompt in prompts[start : start + _BATCH]]
            ids = self._encode(texts)
            rendered.extend(Rendered(*pair) for pair in zip(texts, ids, strict=True))
        return rendered

    def text(self, prompt: Prompt) -> str:
        """What the model is to read, before it is encoded."""
        if self._template is None:
            return self._raw_text(prompt)
        try:
            return self._template.render(**self._variables(prompt))
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise BadInput(
                "rendering.template_refused",
                f"The chat template refused a prompt: {error}.",
                remedy="Change the prompt's messages or the system prompt to what the template "
                "accepts, or set chat_template to none.",
                field="rendering.chat_template",
            ) from error

    def responses(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of texts as this side would have written them: none of its own before, its end after."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [(*encoding.ids, *self.end) for encoding in encodings]

    def decode(self, ids: Sequence[int], *, keep_special: bool = True) -> str:
        """The text of ids; incomplete UTF-8 reads as the replacement character."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not keep_special))

    def token_text(self, token_id: int) -> str:
        """One token for display: its own bytes as text, or a name for an id without a token."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._token_map.get(token_id)
        if token is None:
            return f"[unused {token_id}]"
        return self._bytes_of(token).decode("utf-8", "replace")

    def _encode(self, texts: list[str]) -> Iterator[tuple[int, ...]]:
        """Ids of texts; only a raw text gets the tokenizer's BOS, a template writes its own."""
        raw = self._template is None
        end = -self._trailing if raw and self._trailing else None
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=raw)
        return (tuple(encoding.ids[:end]) for encoding in encodings)

    def _known(self, ids: Sequence[int]) -> Sequence[int]:
        for token_id in ids:
            if token_id not in self._token_map:
                raise BadInput(
                    "rendering.unknown_stop_id",
                    f"Stop id {token_id} is no token of this model, which has "
                    f"{len(self._token_map)}.",
                    remedy="Give ids of the model's own token map.",
                    field="rendering.extra_stop_ids",
                )
        return ids

    def _raw_text(self, prompt: Prompt) -> str:
        if self.rendering.system_prompt is not None:
            raise _no_template("a system prompt", "rendering.system_prompt")
        if prompt.prompt is not None:
            return prompt.prompt
        if self.rendering.chat_template == "auto":
            raise _no_template("chat messages", "messages")
        return "\n\n".join(message.content for message in prompt.messages or ())

    def _variables(self, prompt: Prompt) -> dict[str, Any]:
        thinking = self.rendering.thinking
        return {
            **self.special_tokens,
            **({} if thinking is None else {"enable_thinking": thinking}),
            "messages": self._messages(prompt),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }

    def _messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The conversation; the rendering's system prompt stands in for the prompt's own."""
        if prompt.messages is None:
            turns = [{"role": "user", "content": prompt.prompt or ""}]
        else:
            turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        system = self.rendering.system_prompt
        if system is None:
            return turns
        if turns[0]["role"] == "system":
            turns = turns[1:]
        return [{"role": "system", "content": system}, *turns]


def _no_template(what: str, field: str) -> BadInput:
    return BadInput(
        "rendering.no_template",
        f"This side has {what} to render and no chat template to do it with.",
        remedy="Use a model with a chat template, give raw prompts without a system prompt, or "
        "set chat_template to none, which joins the messages' contents by blank lines.",
        field=field,
    )


def _compiled(files: TokenizerFiles, rendering: Rendering) -> Template | None:
    if files.chat_template is None or rendering.chat_template == "none":
        return None
    try:
        return _environment().from_string(files.chat_template)
    except TemplateError as error:
        raise BadInput(
            "rendering.broken_template",
            f"The chat template does not compile: {error}.",
            remedy="Repair the folder's chat template, or set chat_template to none.",
            field="rendering.chat_template",
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _plain_dict
    environment.globals["namespace"] = _PlainNamespace
    return environment


class _Generation(Extension):
    """The block `{% generation %}`, which marks a response for training and renders as its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _PlainNamespace(Namespace):
    """Jinja's namespace without underscored attributes, by which a template could reach out."""

    def __init__(self, *pairs: Iterable[tuple[str, object]], **entries: object) -> None:
        super().__init__()
        for name, value in dict(*pairs, **entries).items():
            self[name] = value

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise TemplateError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


def _strftime_now(form: str) -> str:
    """Local time, as transformers gives it to templates that state today's date."""
    return datetime.now().astimezone().strftime(form)


def _plain_dict(*pairs: Iterable[tuple[str, object]], **entries: object) -> dict[str, object]:
    """A dict by call, without handing the template the type itself."""
    return dict(*pairs, **entries)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: object,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _trailing_special_tokens(files: TokenizerFiles) -> int:
    """How many tokens (an EOS) encoding appends; a prompt to be continued must not end in them."""
    mask = files.tokenizer.encode("a").special_tokens_mask
    return mask[::-1].index(0) if 0 in mask else 0


def _piece_reader(files: TokenizerFiles) -> Callable[[str], bytes]:
    """How a vocabulary piece spells its bytes: GPT-2's byte alphabet, or SentencePiece's marks."""
    serialized = json.loads(files.tokenizer.to_str())
    if '"ByteLevel"' in json.dumps([serialized.get("decoder"), serialized.get("pre_tokenizer")]):
        alphabet = _byte_alphabet()
        return lambda piece: _from_byte_alphabet(piece, alphabet)
    return _from_sentencepiece


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte: itself where visible, else from U+0100 upwards."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    shifted = {chr(0x100 + place): byte for place, byte in enumerate(hidden)}
    return {**{chr(byte): byte for byte in visible}, **shifted}


def _from_byte_alphabet(piece: str, alphabet: Mapping[str, int]) -> bytes:
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return piece.encode("utf-8", "replace")


def _from_sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode("utf-8", "replace")
