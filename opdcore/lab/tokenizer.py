"""The laboratory's tokenizer: byte-level BPE trained on the task's own text.

Every word of the task, with the space before it, is one token; the bytes and the merges on the way
there make up the rest of the vocabulary. There is no chat template: prompts are raw text, and a
prompt ends in a full stop while a solution begins with a space, so that their tokens line up.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from opdcore.lab.solutions import text_of
from opdcore.lab.tasks import FAMILIES, FamilyName

END = "<|end|>"
PAD = "<|pad|>"
CORPUS_EXERCISES = 1000


def train(family: FamilyName, *, context_length: int) -> PreTrainedTokenizerFast:
    """Return the family's tokenizer; it is the same for every seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Merging stops by itself, when every word of the corpus is one token.
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(family), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def _corpus(family: FamilyName) -> Iterator[str]:
    rng = Random(f"{family} corpus")
    for _ in range(CORPUS_EXERCISES):
        exercise = FAMILIES[family].draw(rng)
        yield exercise.prompt
        yield text_of(exercise.solution("L", "full", rng=rng))
        yield text_of(exercise.solution("K", "full", rng=rng))
