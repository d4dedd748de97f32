import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import CLASSIFY, DELIMITER, PLAIN, START, TOKENIZER, ids

from kgpt.data.sequences import choice_sequences, pair_sequences, single_sequences

short_text = st.text("abcdefgh", max_size=25)
length = st.integers(5, 30)


def test_special_tokens_spelled_out_are_plain_text():
    [[sequence]] = single_sequences(["<|classify|><|delimiter|>"], TOKENIZER, 64)

    assert sequence[0] == START
    assert sequence[-1] == CLASSIFY
    assert len(sequence) == 2 + len("<|classify|><|delimiter|>")
    assert not {START, DELIMITER, CLASSIFY} & set(sequence[1:-1])


@given(text=short_text, length=length)
@settings(max_examples=60, deadline=None)
def test_a_long_text_is_cut_at_its_end(text, length):
    [[sequence]] = single_sequences([text], TOKENIZER, length)

    assert sequence == [START, *ids(text[: length - 2]), CLASSIFY]


@given(first=short_text, second=short_text, length=length)
@settings(max_examples=150, deadline=None)
def test_of_a_pair_the_longer_text_is_cut_first(first, second, length):
    [[sequence]] = pair_sequences([(first, second)], TOKENIZER, length, both_orders=False)

    assert len(sequence) <= length
    assert sequence[0] == START
    assert sequence[-1] == CLASSIFY
    place = sequence.index(DELIMITER)
    a, b = sequence[1:place], sequence[place + 1 : -1]
    assert a == ids(first)[: len(a)]
    assert b == ids(second)[: len(b)]
    room = length - 3
    if len(first) + len(second) <= room:
        assert (len(a), len(b)) == (len(first), len(second))
    else:
        assert len(a) + len(b) >= room - 1  # of an odd room, one place may stay free
        cut = [len(kept) < len(text) for kept, text in ((a, first), (b, second))]
        if all(cut):
            assert len(a) == len(b)
        else:
            assert (len(a) > len(b)) == cut[0] or len(a) == len(b)


@given(first=short_text, second=short_text, length=length)
@settings(max_examples=60, deadline=None)
def test_swapping_a_pair_swaps_its_two_sequences(first, second, length):
    [pair] = pair_sequences([(first, second)], TOKENIZER, length, both_orders=True)
    [swapped] = pair_sequences([(second, first)], TOKENIZER, length, both_orders=True)

    assert swapped == pair[::-1]


@given(context=short_text, choices=st.lists(short_text, min_size=2, max_size=4), length=length)
@settings(max_examples=150, deadline=None)
def test_of_a_long_context_the_end_is_kept_the_same_for_all_choices(context, choices, length):
    [sequences] = choice_sequences([context], [choices], TOKENIZER, length)

    contexts = set()
    for sequence, choice in zip(sequences, choices, strict=True):
        assert len(sequence) <= length
        assert sequence[0] == START
        assert sequence[-1] == CLASSIFY
        place = sequence.index(DELIMITER)
        contexts.add(tuple(sequence[1:place]))
        assert sequence[place + 1 : -1] == ids(choice)[: length - 3]
    [kept] = contexts
    assert list(kept) == ids(context)[len(context) - len(kept) :]
    assert len(kept) == len(context) or max(map(len, sequences)) == length


def test_a_tokenizer_without_task_tokens_is_refused():
    with pytest.raises(ValueError, match=r"start, delimiter and classify.*with_special_tokens\(\)"):
        single_sequences(["a"], PLAIN, 8)
