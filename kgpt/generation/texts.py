"""From tokens to text: whole or piece by piece, up to the first stop string."""


def settled(tokenizer, ids):
    """Returns the text of tokens without the bytes of a character that may still be incomplete."""
    return tokenizer.decode(ids).rstrip("\ufffd")


def stop_in(text, begin, stops):
    """Returns where the stop string begins that is complete first from `begin` on, or None."""
    found = [(text.find(stop, begin), len(stop)) for stop in stops]
    ends = [(at + length, at) for at, length in found if at >= 0]
    return min(ends)[1] if ends else None


def first_begin(tokenizer, start, new, min_new_tokens):
    """Returns from where on a stop string may begin: after the prompt and the first new tokens."""
    begin = len(tokenizer.decode(start))
    return max(begin, len(settled(tokenizer, start + new[:min_new_tokens])))


def new_text(tokenizer, start, new, stops=(), min_new_tokens=0):
    """Returns the text of new tokens up to the first stop string, and how many tokens it takes."""
    text = tokenizer.decode(start + new)
    end = stop_in(text, first_begin(tokenizer, start, new, min_new_tokens), stops)
    count = len(new)
    if end is not None:
        sizes = (len(settled(tokenizer, start + new[:n])) for n in range(len(new)))
        count = next((n for n, size in enumerate(sizes) if size >= end), count)
    return text[len(tokenizer.decode(start)) : end], count


def has_stop(tokenizer, start, new, stops, min_new_tokens):
    """Returns whether the text of new tokens has a stop string."""
    begin = first_begin(tokenizer, start, new, min_new_tokens)
    return stop_in(settled(tokenizer, start + new), begin, stops) is not None


def stream_text(tokenizer, start, tokens, stops=(), min_new_tokens=0):
    """Yields the text of new tokens up to the first stop string.

    The bytes of an incomplete character wait for the rest, and so does what may begin a stop
    string.
    """
    ids, shown = list(start), len(tokenizer.decode(start))
    begin = shown
    for count, token in enumerate(tokens, 1):
        ids.append(token)
        text = settled(tokenizer, ids)
        if count <= min_new_tokens:
            begin = max(begin, len(text))
        stop = stop_in(text, begin, stops)
        end = len(text) - _held_back(text, begin, stops) if stop is None else stop
        if end > shown:
            yield text[shown:end]
            shown = end
        if stop is not None:
            return
    text = tokenizer.decode(ids)
    if rest := text[shown : stop_in(text, begin, stops)]:
        yield rest


def _held_back(text, begin, stops):
    """Returns how many characters at the end of a text may be the beginning of a stop string."""
    lengths = (
        length
        for stop in stops
        for length in range(1, min(len(stop), len(text) - begin + 1))
        if text.endswith(stop[:length])
    )
    return max(lengths, default=0)
