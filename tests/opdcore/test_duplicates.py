"""Which texts repeat an earlier one, exactly and nearly, and how long it takes to find them."""

import random
import time

from opdcore.duplicates import repeats

LONG = "A farmer has twelve sheep and sells five of them at the market before buying three new ones"


def test_case_width_and_space_make_no_difference():
    texts = ["Add 2 and 3.", "  add 2\nand 3. ", "ADD ２ and 3.", "Add 2 and 4."]
    assert repeats(texts, similarity=1.0) == {1: (0, True), 2: (0, True)}


def test_a_word_changed_in_a_long_text_is_near_and_another_number_in_a_short_one_is_not():
    texts = [LONG, LONG.replace("new", "young"), "What is 12 plus 7?", "What is 12 plus 8?"]
    assert repeats(texts, similarity=0.8) == {1: (0, False)}


def test_at_similarity_one_only_equal_texts_repeat():
    assert repeats([LONG, LONG + " again", LONG], similarity=1.0) == {2: (0, True)}


def test_whoever_equals_a_near_duplicate_repeats_what_that_one_repeats():
    near = LONG.replace("new", "young")
    assert repeats([LONG, near, near], similarity=0.8) == {1: (0, False), 2: (0, False)}


def test_words_that_every_prompt_of_a_set_has_make_none_of_them_alike():
    template = "Solve the problem step by step and put the final answer alone in a box at the end: "
    texts = [f"{template}{a} times {b}" for a in range(10) for b in range(100, 110)]
    assert repeats(texts, similarity=0.8) == {}


def test_texts_without_spaces_are_compared_too():
    text = "一个农民有十二只羊在市场上卖掉了五只然后又买了三只新的羊请问现在有几只羊"
    assert repeats([text, text + "呢", "今天天气很好我们去公园散步吧"], similarity=0.8) == {
        1: (0, False)
    }


def test_every_pair_that_a_plain_comparison_finds_is_found():
    draw = random.Random(1)
    words = [2 * one + 3 * two for one in "abcdefg" for two in "uvwxyz"]
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(60)]
    for _ in range(40):
        changed = draw.choice(texts).split()
        changed[draw.randrange(12)] = draw.choice(words)
        texts.append(" ".join(changed))
    pieces = [frozenset(piece(text, at) for at in starts(text)) for text in texts]
    first = []
    for place, own in enumerate(pieces):
        if all(len(own & pieces[one]) / len(own | pieces[one]) < 0.6 for one in first):
            first.append(place)
    assert set(range(100)) - set(repeats(texts, similarity=0.6)) == set(first)


def piece(text, at):
    return text[at : at + (12 if "a" <= text[at] <= "z" else 4)]


def starts(text):
    return [at for at in range(len(text)) if at == 0 or not ("a" <= text[at - 1] <= "z")]


def test_twenty_thousand_prompts_take_seconds():
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(35, 50))) for _ in range(18_000)]
    texts += [f"{draw.choice(texts)} too" for _ in range(2000)]
    began = time.process_time()
    found = repeats(texts, similarity=0.8)
    assert time.process_time() - began < 40
    assert set(range(18_000, 20_000)) <= set(found)
