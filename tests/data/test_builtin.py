import ast

import pytest

from kgpt import data


@pytest.fixture(scope="module")
def categories():
    return {split: data.character_categories(split) for split in ("train", "validation")}


def test_characters_come_with_the_category_that_the_unicode_standard_gives_them(categories):
    columns = categories.values()
    known = {t: c for x in columns for t, c in zip(x["texts"], x["labels"], strict=True)}

    assert known["LATIN SMALL LETTER A"] == "Ll"
    assert known["EURO SIGN"] == "Sc"
    assert known["HEBREW LETTER ALEF"] == "Lo"


def test_categories_come_in_words_that_stand_for_one_code_each(categories):
    codes = categories["validation"]
    words = data.character_categories("validation", in_words=True)

    pairs = set(zip(codes["labels"], words["labels"], strict=True))
    assert words["texts"] == codes["texts"]
    assert len(pairs) == len(dict(pairs)) == len({word for _, word in pairs})
    assert {("Ll", "lowercase letter"), ("Sc", "currency symbol"), ("Nd", "decimal digit")} < pairs


def test_a_sum_is_right_and_in_one_split():
    columns = {split: data.arithmetic(split) for split in ("train", "validation")}
    prompts = [prompt for split in columns.values() for prompt in split["prompts"]]

    for prompt, completion in zip(*columns["validation"].values(), strict=True):
        first, sign, second, equals = prompt.split()
        result = int(first) + int(second) if sign == "+" else int(first) - int(second)
        assert (completion, equals) == (str(result), "=")
    assert len(set(prompts)) == len(prompts) == 20_000
    assert 1800 < len(columns["validation"]["prompts"]) < 2200


def test_the_splits_share_no_example_and_stay_the_same(categories):
    train, validation = (set(categories[split]["texts"]) for split in ("train", "validation"))

    assert not train & validation
    assert 0.07 < len(validation) / (len(train) + len(validation)) < 0.13
    assert data.character_categories() == categories["train"]


def test_numbers_come_with_their_value():
    columns = [data.character_values(split) for split in ("train", "validation")]
    known = {t: v for c in columns for t, v in zip(c["texts"], c["targets"], strict=True)}

    assert known["VULGAR FRACTION ONE HALF"] == 0.5
    assert known["ROMAN NUMERAL ONE THOUSAND"] == 1000.0
    assert len(known) > 1000


def test_a_function_has_its_own_docstring_among_the_choices():
    columns = data.function_docstrings("validation", num_choices=3)
    known = {
        choices[label]: context
        for context, choices, label in zip(
            columns["contexts"], columns["choices"], columns["labels"], strict=True
        )
    }

    assert len(known) == len(columns["labels"]) > 100
    assert all(len(set(choices)) == 3 for choices in columns["choices"])
    assert {0, 1, 2} == set(columns["labels"])
    for source in known.values():
        [function] = ast.parse(source).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) is None
    assert columns == data.function_docstrings("validation", num_choices=3)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (data.character_categories, {"split": "test"}, "Received: split='test'"),
        (data.character_values, {"split": None}, "Received: split=None"),
        (data.arithmetic, {"split": "dev"}, "Received: split='dev'"),
        (data.function_docstrings, {"split": "all"}, "Received: split='all'"),
        (data.function_docstrings, {"num_choices": 1}, "Received: num_choices=1"),
    ],
)
def test_wrong_arguments_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**arguments)
