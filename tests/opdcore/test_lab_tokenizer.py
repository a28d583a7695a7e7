from random import Random

import pytest

from opdcore.lab.solutions import ANSWER_MARKS, text_of
from opdcore.lab.tasks import FAMILIES
from opdcore.lab.tokenizer import train


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request):
    return request.param, train(request.param, context_length=256)


def texts(family, count=50):
    rng = Random("tokens")
    for _ in range(count):
        exercise = FAMILIES[family].draw(rng)
        for style in ANSWER_MARKS:
            yield exercise.prompt, text_of(exercise.solution(style, "full", rng=rng))


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_the_vocabulary_has_at_least_300_tokens(trained):
    _, tokenizer = trained
    assert len(tokenizer) >= 300


def test_texts_come_back_from_their_tokens(trained):
    family, tokenizer = trained
    assert all(tokenizer.decode(ids(tokenizer, p + s)) == p + s for p, s in texts(family))


def test_any_text_comes_back_from_its_tokens(trained):
    _, tokenizer = trained
    assert tokenizer.decode(ids(tokenizer, "Größe 7 ≠ 8\n")) == "Größe 7 ≠ 8\n"


def test_tokens_line_up_where_the_response_begins(trained):
    family, tokenizer = trained
    for prompt, solution in texts(family):
        joined = ids(tokenizer, prompt + solution)
        assert joined == ids(tokenizer, prompt) + ids(tokenizer, solution)


def test_each_word_is_one_token(trained):
    family, tokenizer = trained
    words = {word.strip(".,:;~/!") for p, s in texts(family) for word in s.split()} - {""}
    assert all(len(ids(tokenizer, f" {word}")) == 1 for word in words)


def test_training_it_again_gives_the_same_tokens(trained):
    family, tokenizer = trained
    assert train(family, context_length=256).get_vocab() == tokenizer.get_vocab()
