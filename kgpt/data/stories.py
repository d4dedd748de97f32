"""Short stories that are made up: text for pretraining, and a task, without a download."""

import functools
import random
import re
from pathlib import Path

from kgpt.arguments import checked

_PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}
_THINGS = ("noun", "colour", "treat", "skill", "fear")  # what a story is about
_SURROUNDINGS = ("place", "home", "relative", "job", "hidden", "day")


@checked
def stories(num_stories: int = 10_000, seed: int = 0) -> list[str]:
    """Returns short stories in plain English, made up from plots and words: text for pretraining.

    A story is told in three paragraphs, of about 600 characters: there is a hero with a friend, a
    plot, and an end that fits it. Its people and things stay the same from line to line, which is
    what a language model has to learn beyond words and grammar. Text of so few words (about 750)
    and plots is learned within minutes, as in TinyStories (Eldan and Li 2023), whose stories are a
    large model's; it shows that a model works, not how well it would do on books.

    Args:
        num_stories: int. The default is about 7 MB.
        seed: int. The same seed gives the same stories, on every machine and version of Python.

    Returns:
        list of str.

    Raises:
        ValueError: if `num_stories` is not positive.

    Example:
        tokenizer = kgpt.Tokenizer.train(kgpt.data.stories(1000), vocabulary_size=2048)
    """
    generator = random.Random(seed)
    return ["\n".join(_Story(generator).told()) for _ in range(num_stories)]


@checked
def story_endings(
    split: str = "train", num_stories: int = 2_000, seed: int = 0, short: bool = False
) -> dict:
    """Returns stories without their ends, each with four ends to choose from.

    For `multiple_choice`, and in the manner of the Story Cloze Test (Mostafazadeh et al. 2016), on
    which GPT-1 was measured. The wrong ends are told of other people, of other things, and of
    another plot.

    Args:
        split: `"train"` or `"validation"`: different stories; of short ones, which have fewer
            choices, one in a thousand may be in both.
        num_stories: int.
        seed: int. Determines the stories and the place of the right end.
        short: bool. Whether the stories are of four sentences, of which the last one is the end.
            Those of `stories` are about six times as long, which a small model has little time for.

    Returns:
        dict of three lists: `"contexts"` (str), `"choices"` (lists of str) and `"labels"` (int).

    Raises:
        ValueError: for another split, and if `num_stories` is not positive.

    Example:
        train = kgpt.data.story_endings(short=True)
        train = kgpt.data.multiple_choice(**train, tokenizer=tokenizer)
    """
    generator = random.Random(f"{split} {seed}")
    columns, after = {"contexts": [], "choices": [], "labels": []}, " " if short else "\n"
    for _ in range(num_stories):
        story = _Story(generator, lines=2 if short else 3)
        *context, end = story.lines() if short else story.told()
        ends = [story.end_of_others(), story.end_of_other_things(), story.end_of_another_plot()]
        label = one_of(generator, range(4))
        columns["contexts"].append("".join(f"{line}{after}" for line in context))
        columns["choices"].append([*ends[:label], end, *ends[label:]])
        columns["labels"].append(label)
    return columns


@functools.cache
def words_and_plots(lines: int = 3) -> tuple[dict, list]:
    """Returns the words of each kind, and the plots of so many lines, as tuples of them."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    _, words, *plots = text.strip().split("\n\n")
    lists = (line.split(": ", 1) for line in words.splitlines())
    words = {kind: known.split(" | ") for kind, known in lists}
    plots = [tuple(plot.splitlines()[1:]) for plot in plots]
    return words, [plot for plot in plots if len(plot) == lines]


def one_of(generator: random.Random, choices):
    """Returns one of the choices. The same on every Python, which `choice` does not promise."""
    return choices[int(generator.random() * len(choices))]


def with_article(noun: str) -> str:
    """Returns "a cup" for "cup", and "an old cup" for "old cup"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


class _Story:
    """A plot with its people and things."""

    def __init__(self, generator: random.Random, lines: int = 3):
        self._words, self._plots = words_and_plots(lines)
        self._one_of = functools.partial(one_of, generator)
        self._plot = self._one_of(self._plots)
        self._people = self._draw_people()
        self._things = self._draw(_THINGS)
        self._surroundings = self._draw(_SURROUNDINGS)
        self._surroundings["day"] = self._choose(self._surroundings["day"])
        for number in "23":  # three different places to look
            known = self._surroundings.values()
            left = [place for place in self._words["hidden"] if place not in known]
            self._surroundings[f"hidden{number}"] = self._one_of(left)

    def told(self) -> list[str]:
        """Returns beginning, middle and end, with an opening that says who they are."""
        opening = " ".join(self._draw(["opening", "friendship"]).values())
        beginning, middle, end = self._plot
        return [self._tell(part) for part in (f"{opening} {beginning}", middle, end)]

    def lines(self) -> list[str]:
        """Returns the lines of the plot, told."""
        return [self._tell(line) for line in self._plot]

    def end_of_others(self) -> str:
        """Returns the end of the story as told of other people."""
        return self._tell(self._plot[-1], people=self._draw_people(besides=self._people))

    def end_of_other_things(self) -> str:
        """Returns the end of the story as told of other things."""
        return self._tell(self._plot[-1], things=self._draw(_THINGS, besides=self._things))

    def end_of_another_plot(self) -> str:
        """Returns the end of another story about the same people and things."""
        return self._tell(self._one_of([plot for plot in self._plots if plot != self._plot])[-1])

    def _draw(self, kinds, besides=None):
        """Returns a word of each kind, another one than some words."""
        besides = besides or {}
        return {
            kind: self._one_of([word for word in self._words[kind] if word != besides.get(kind)])
            for kind in kinds
        }

    def _draw_people(self, besides=None):
        """Returns the words for a hero and a friend, of other names than those of some people."""
        names = [besides["hero"], besides["friend"]] if besides else []
        people = {}
        for person, number in (("hero", ""), ("friend", "2")):
            child = self._one_of(["girl", "boy"])
            people[person] = self._one_of([n for n in self._words[child] if n not in names])
            names.append(people[person])
            kinds = [*self._words["animal"], *[child] * 6]
            people[f"kind{number}"] = self._one_of(kinds)
            people[f"nature{number}"] = self._one_of(self._words["nature"])
            for name, pronoun in zip(("he", "him", "his"), _PRONOUNS[child], strict=True):
                people[name + number] = pronoun
                people[name.title() + number] = pronoun.title()
        return people

    def _tell(self, text, people=None, things=None):
        people, things = people or self._people, things or self._things
        thing = f"{things['colour']} {things['noun']}"
        return self._choose(text).format(
            **people,
            **things,
            **self._surroundings,
            thing=thing,
            a_thing=with_article(thing),
            A_thing=with_article(thing).capitalize(),
            a_treat=with_article(things["treat"]),
            Place=self._surroundings["place"].capitalize(),
        )

    def _choose(self, text):
        """Makes the choices of a text, inner ones first."""
        while "[" in text:
            text = re.sub(r"\[([^\[\]]*)\]", lambda one: self._one_of(one[1].split("|")), text)
        return text
