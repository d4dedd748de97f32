"""Pairs of sentences that mean the same, or nearly: a task without a download."""

import functools
import random

from kgpt.arguments import checked
from kgpt.data.stories import one_of, with_article, words_and_plots

_SAYINGS = (  # ways to say one thing
    (
        "{a} gave {b} {thing}.",
        "{a} gave {thing} to {b}.",
        "{b} got {thing} from {a}.",
        "{b} was given {thing} by {a}.",
    ),
    ("{a} sold {b} {thing}.", "{a} sold {thing} to {b}.", "{b} bought {thing} from {a}."),
    ("{a} lent {b} {thing}.", "{a} lent {thing} to {b}.", "{b} borrowed {thing} from {a}."),
    ("{a} sent {b} {thing}.", "{a} sent {thing} to {b}.", "{b} received {thing} from {a}."),
    ("{a} taught {b} to {skill}.", "{b} learned to {skill} from {a}."),
    ("{a} saw {b} {place}.", "{b} was seen by {a} {place}."),
    ("{a} followed {b} home.", "{b} was followed home by {a}."),
    ("{a} is older than {b}.", "{b} is younger than {a}.", "{b} is not as old as {a}."),
    ("{a} is taller than {b}.", "{b} is shorter than {a}.", "{b} is not as tall as {a}."),
    ("{a} runs faster than {b}.", "{b} runs slower than {a}.", "{b} does not run as fast as {a}."),
    ("{a} came home before {b}.", "{b} came home after {a}."),
    ("{a} won the race against {b}.", "{b} lost the race against {a}."),
)


@checked
def paraphrases(split: str = "train", num_pairs: int = 10_000, seed: int = 0) -> dict:
    """Returns pairs of sentences of the same words or nearly, with the same meaning or another.

    For `similarity`. "Ben sold Mia a red kite" and "Mia bought a red kite from Ben" have the label
    `"same"`, and "Mia sold Ben a red kite" would make it `"different"`. The second sentence always
    begins with the other one of the two people, so what the verbs say of each other decides, and
    no word alone: a small PAWS (Zhang et al. 2019).

    Args:
        split: `"train"` or `"validation"`: each drawn by itself, so that pairs may be in both; of
            10,000 in each 5% are.
        num_pairs: int.
        seed: int. Determines the pairs.

    Returns:
        dict of three lists: `"first_texts"`, `"second_texts"` and `"labels"` (all str).

    Raises:
        ValueError: for another split, and if `num_pairs` is not positive.

    Example:
        train = kgpt.data.similarity(**kgpt.data.paraphrases(), tokenizer=tokenizer)
    """
    generator = random.Random(f"{split} {seed}")
    pairs = [_pair(functools.partial(one_of, generator)) for _ in range(num_pairs)]
    first, second, labels = (list(column) for column in zip(*pairs, strict=True))
    return {"first_texts": first, "second_texts": second, "labels": labels}


def _pair(one_of) -> tuple[str, str, str]:
    words, _ = words_and_plots()
    names = words["girl"] + words["boy"]
    one = one_of(names)
    other = one_of([name for name in names if name != one])
    objects = {
        "thing": with_article(f"{one_of(words['colour'])} {one_of(words['noun'])}"),
        "skill": one_of(words["skill"]),
        "place": one_of(words["place"]),
    }
    sayings = one_of(_SAYINGS)
    first = one_of(sayings)
    label = one_of(("same", "different"))
    if label == "same":  # the same people, told from the other side
        second = one_of([saying for saying in sayings if saying[:3] != first[:3]])
        people = {"a": one, "b": other}
    else:  # the people have changed places
        second = one_of([saying for saying in sayings if saying[:3] == first[:3]])
        people = {"a": other, "b": one}
    return first.format(a=one, b=other, **objects), second.format(**people, **objects), label
