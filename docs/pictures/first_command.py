"""Draw the first command's run, its loss and what it writes, from what it printed.

python examples/pretrain.py > docs/pictures/first_command.log
python docs/pictures/first_command.py
"""

import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from kgpt.plot.figure import COLOURS

HERE = Path(__file__).resolve().parent
WIDTH = 69  # characters of a line of a sample


def read(log: str):
    """Returns the steps of an epoch, and the losses and the sample of each; the last is longer."""
    epochs = re.findall(r"^\n((?:.+\n)+)\n.* loss: (\S+) .* val_loss: (\S+)", log, re.M)
    steps = int(re.search(r"^(\d+)/\1 ", log, re.M)[1])
    last = re.search(r"^--- what it writes .*?\n(.*?)\n\n---", log, re.M | re.S)[1]
    samples = [sample for sample, *_ in epochs]
    return steps, [[float(e[i]) for e in epochs] for i in (1, 2)], [*samples[:-1], last]


def draw(steps, losses, samples):
    """Returns the figure."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 4.0), width_ratios=(1, 1.75), layout="constrained"
    )
    positions = [steps * (i + 1) for i in range(len(samples))]
    for values, label, line, colour in zip(
        losses, ("training", "held out"), ("--", "-"), COLOURS, strict=False
    ):
        left.plot(positions, values, line, marker="o", color=colour, label=label)
    left.set(xlabel="steps", ylabel="loss (nats per token)", xticks=positions, ylim=(0, None))
    left.grid(alpha=0.3)
    left.legend()
    right.axis("off")
    height = 1.0
    for position, loss, sample in zip(positions, losses[1], samples, strict=True):
        most = 6 if position == positions[-1] else 3
        text = sample.replace("\n", " ")
        lines = textwrap.wrap(text, WIDTH, max_lines=most, placeholder=" ...")
        title = f"after {position} steps, loss {loss:.2f}"
        right.text(0, height, title, weight="bold", va="top", color=COLOURS[1])
        right.text(0, height - 0.06, "\n".join(lines), va="top", linespacing=1.25)
        height -= 0.1 + 0.063 * len(lines)
    return figure


if __name__ == "__main__":
    picture = HERE / "first_command.png"
    draw(*read((HERE / "first_command.log").read_text())).savefig(picture, dpi=150)
    Image.open(picture).convert("RGB").quantize(48, dither=0).save(picture, optimize=True)
