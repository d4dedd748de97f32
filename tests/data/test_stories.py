import itertools
import re
import zlib

import numpy as np
import pytest

from kgpt import data
from kgpt.data.stories import words_and_plots

WORDS, PLOTS = words_and_plots()
_, SHORT_PLOTS = words_and_plots(lines=2)
NAMES = {*WORDS["girl"], *WORDS["boy"]}


@pytest.fixture(scope="module")
def stories():
    return data.stories(1000)


def names_in(text):
    return [word for word in re.findall(r"\w+", text) if word in NAMES]


def test_stories_are_the_same_in_every_run_on_every_python(stories):
    assert stories[:50] == data.stories(50)
    assert zlib.crc32("".join(stories).encode()) == 4036011845


def test_another_seed_tells_other_stories(stories):
    others = data.stories(1000, seed=1)

    assert len(set(stories) | set(others)) == 2000


def test_a_story_has_three_paragraphs_of_plain_sentences(stories):
    for story in stories:
        assert story.count("\n") == 2
        assert not set("[]{}|") & set(story)
        assert "  " not in story
        assert all(line[0].isupper() or line[0] == '"' for line in story.splitlines())
        assert all(line[-1] in '."' for line in story.splitlines())
        assert story.count('"') % 2 == 0


def test_all_words_and_plots_occur(stories):
    text = "\n".join(stories)

    for kind in ("girl", "boy", "animal", "nature", "colour", "noun", "treat", "skill", "fear"):
        assert [word for word in WORDS[kind] if word not in text] == []
    for _, _, end in PLOTS:
        last_words = re.split(r"[\]}]", end)[-1]
        assert len(PLOTS) >= 10
        assert last_words in text


def test_a_story_keeps_to_its_two_people(stories):
    for story in stories:
        assert len(set(names_in(story))) == 2


def test_an_article_fits_its_word(stories):
    text = " ".join(stories)

    assert re.findall(r"\b[Aa] [aeiou]\w+", text) == []
    assert set(re.findall(r"\b[Aa]n [^aeiou]\w+", text)) <= {"an hour"}


@pytest.mark.parametrize("short", [False, True])
def test_the_right_end_tells_of_the_storys_own_people_and_things(short):
    columns = data.story_endings(num_stories=300, short=short)

    counts = [0, 0, 0, 0]
    for context, ends, label in zip(*columns.values(), strict=True):
        assert len(set(ends)) == len(ends) == 4
        others, other_things, _ = ends[:label] + ends[label + 1 :]
        assert set(names_in(ends[label])) <= set(names_in(context))
        assert names_in(ends[label])
        assert set(names_in(other_things)) <= set(names_in(context))
        assert not set(names_in(others)) & set(names_in(context))
        counts[label] += 1
    assert min(counts) > 50


def test_every_end_names_a_thing_so_that_an_end_of_other_things_is_wrong():
    assert len(PLOTS) == len(SHORT_PLOTS) == 10
    for *_, end in [*PLOTS, *SHORT_PLOTS]:
        kinds = re.findall(r"\{(noun|thing|treat|skill|fear)\}", re.sub(r"\[.*?\]", "", end))
        assert kinds, end


def test_a_short_story_has_three_sentences_and_an_end_of_one():
    columns = data.story_endings(num_stories=300, short=True)

    for context, ends in zip(columns["contexts"], columns["choices"], strict=True):
        assert context.endswith((". ", '" '))
        assert 3 <= len(re.findall(r"\.", context)) <= 4
        assert all(end.count(".") == 1 and end.endswith(".") for end in ends)
    texts = " ".join([*columns["contexts"], *itertools.chain(*columns["choices"])])
    assert not set("[]{}|\n") & set(texts)
    assert re.findall(r"\b[Aa] [aeiou]\w+", texts) == []


def test_the_splits_differ_and_stay_the_same():
    train, validation = (data.story_endings(split, 50) for split in ("train", "validation"))

    assert train == data.story_endings("train", 50)
    assert not set(train["contexts"]) & set(validation["contexts"])


def test_paraphrases_have_the_same_words_or_nearly_whatever_their_label():
    columns = data.paraphrases(num_pairs=500)

    for first, second, _ in zip(*columns.values(), strict=True):
        assert names_in(first) == names_in(second)[::-1]
    assert 200 < columns["labels"].count("same") < 300
    assert columns == data.paraphrases(num_pairs=500)
    assert columns != data.paraphrases("validation", num_pairs=500)


def test_of_the_pairs_held_out_one_in_twenty_is_in_training_too():
    train, validation = (data.paraphrases(split).values() for split in ("train", "validation"))

    seen = set(zip(*train, strict=True))
    assert 0.04 < np.mean([pair in seen for pair in zip(*validation, strict=True)]) < 0.06


BACKWARDS = re.compile(
    "got|was|bought|borrowed|received|learned|younger|shorter|slower|not as|does not|after|lost"
)


def test_a_pair_means_the_same_if_the_same_one_acts():
    """Whoever is named first acts, unless the verb says that it is done to him."""
    columns = data.paraphrases(num_pairs=2000)

    for *texts, label in zip(*columns.values(), strict=True):
        first, second = ((names_in(text)[0], BACKWARDS.search(text) is not None) for text in texts)
        is_same = (first[0] == second[0]) == (first[1] == second[1])
        assert label == ("same" if is_same else "different"), texts
