from collections import Counter
from random import Random

import pytest

from opdcore.lab import cups, sums
from opdcore.lab.solutions import ANSWER_MARKS, check, text_of
from opdcore.lab.tasks import FAMILIES, HELD_OUT_PROMPTS, TRAIN_PROMPTS, prompt_sets

families = pytest.mark.parametrize("family", FAMILIES)
styles = pytest.mark.parametrize("style", ANSWER_MARKS)


def draws(family, count=200):
    rng = Random(f"{family} tests")
    return [FAMILIES[family].draw(rng) for _ in range(count)]


def written(exercise, style, knowledge="full"):
    return text_of(exercise.solution(style, knowledge, rng=Random(0)))


@families
@styles
def test_a_right_solution_is_accepted(family, style):
    assert all(check(each.answer, written(each, style)) for each in draws(family))


@families
@styles
def test_the_answer_of_another_exercise_is_rejected(family, style):
    one, *others = draws(family)
    two = next(other for other in others if other.answer != one.answer)
    assert check(one.answer, written(two, style)) is False


@families
@styles
def test_a_solution_cut_off_before_its_answer_is_rejected(family, style):
    exercise = draws(family, 1)[0]
    text = written(exercise, style)
    assert check(exercise.answer, text[: text.rindex(ANSWER_MARKS[style])]) is False


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (" Answer: 2", True),
        (" result = 2", True),
        (" Answer: 2.", True),
        (" Answer: 3 Answer: 2", True),
        (" Answer: 2 result = 3", False),
        (" Answer: 2 2", False),
        (" Answer: 2 = 2", False),
        (" Answer:", False),
        (" 2", False),
        ("", False),
    ],
)
def test_only_what_follows_the_last_answer_mark_counts(response, verdict):
    assert check("2", response) is verdict


def test_without_a_reference_there_is_no_verdict():
    assert check("", " Answer: 2") is None


def test_a_sum_is_written_in_both_styles():
    exercise = sums.Sum((sums.Term(4, "plus", 3), sums.Term(3, "times", 4)))
    assert exercise.prompt == "Find the sum: a 4 plus 3; b 3 times 4."
    assert exercise.answer == "4"
    assert exercise.tags == ["sums", "new-skill", "steps-2"]
    words = written(exercise, "L").split()
    assert " ".join(words[1:12]) == "a: 4 plus 3 is 2, 0 plus 2 is 2."
    assert written(exercise, "L").endswith(" is 2, 2 plus 2 is 4. Answer: 4")
    assert written(exercise, "K").endswith(
        " b scale 4 by 3 yields 2/ add 2 to 2 yields 4~ result = 4"
    )


def test_cups_move_as_their_names_say():
    row = ("plum", "lime", "gray", "mint")
    assert cups.apply("reverse", row) == ("mint", "gray", "lime", "plum")
    assert cups.apply("shift", row) == ("lime", "gray", "mint", "plum")
    assert cups.apply("flip", row) == ("lime", "plum", "mint", "gray")
    assert cups.apply("swap", row) == ("mint", "lime", "gray", "plum")


@families
def test_no_opening_word_belongs_to_both_styles(family):
    openers = FAMILIES[family].OPENERS
    assert len(set(openers["L"]) | set(openers["K"])) == 24


def test_partial_knowledge_is_right_mistaken_or_random():
    exercise = cups.Cups(("swap",), ("plum", "lime", "gray", "mint"))
    rng = Random(5)
    answers = Counter(exercise.solution("L", "partial", rng=rng)[-1].text for _ in range(4000))
    right = answers[" Answer: mint lime gray plum."] / 4000
    mistaken = answers[" Answer: mint gray lime plum."] / 4000
    assert right == pytest.approx(0.3 + 0.3 / 24, abs=0.03)
    assert mistaken == pytest.approx(0.4 + 0.3 / 24, abs=0.03)


@families
def test_partial_knowledge_leaves_known_operations_right(family):
    known = [each for each in draws(family) if "known" in each.tags]
    assert known
    assert all(check(each.answer, written(each, "K", "partial")) for each in known)


@families
def test_what_partial_knowledge_guesses_is_not_settled(family):
    skilled = next(each for each in draws(family) if "new-skill" in each.tags)
    full = skilled.solution("L", "full", rng=Random(0))
    partial = skilled.solution("L", "partial", rng=Random(0))
    assert sum(piece.settled for piece in partial) < sum(piece.settled for piece in full)


@families
def test_prompt_sets_are_disjoint_distinct_and_repeatable(family):
    sets = prompt_sets(family, seed=3)
    train = {each.prompt for each in sets.train}
    held_out = {each.prompt for each in sets.held_out}
    assert (len(train), len(held_out)) == (TRAIN_PROMPTS, HELD_OUT_PROMPTS)
    assert not train & held_out
    assert sets == prompt_sets(family, seed=3)
    assert sets != prompt_sets(family, seed=4)
