"""Results as Markdown tables, as pictures, and in README.md."""

import json
import shlex
import statistics
from pathlib import Path

BEGIN, END = "<!-- tables: written by run.py --write-readme -->", "<!-- end of tables -->"
# Facts that a set's table shows beside the values: the column's name, and its format.
COLUMNS = {
    "train": {"first_step_seconds": ("first step, s", ".1f"), "peak_mb": ("peak RSS, MB", ",.0f")},
    "generate": {
        "first_call_seconds": ("first call, s", ".1f"),
        "ready_seconds": ("from process start, s", ".1f"),
    },
    "memory": {"imports_mb": ("imports before, MB", ",.0f")},
    "startup": {},
    "tokenize": {"tokens": ("tokens", ",.0f")},
    "data": {},
    "gpu": {
        "attention": ("attention", ""),
        "peak_mb": ("peak memory, MB", ",.0f"),
        "batch": ("batch", ".0f"),
    },
}
COLORS = {"kgpt": "#1f5fa8", "keras_hub": "#c2571a"}


def command_line(arguments):
    script, *rest = arguments
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *rest])


def markdown(result):
    """The set's table under its name, with the machine, the command and its limits."""
    facts, limits = result["machine"], result["limits"]
    columns = COLUMNS[result["set"]]
    units = {row["unit"] for row in result["rows"]}
    unit = units.pop() if len(units) == 1 else None  # several stand beside their values
    has_limit = any(row.get("share_of_limit") for row in result["rows"])
    header = ["case", "implementation", unit or "value", *(["of the limit"] if has_limit else [])]
    header += [f"{result['rows'][0]['implementation']} is better by (range)"]
    header += ["difference, s"] if result["set"] == "startup" else []
    header += [name for name, _ in columns.values()]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    failures = []
    for row in result["rows"]:
        if "value" not in row:
            failures.append(f"{row['case']}, {row['implementation']}: {row['facts']['error']}")
            continue
        share = row.get("share_of_limit")
        cells = [row["case"], row["implementation"], number(row["value"])]
        cells[-1] += "" if unit else f" {row['unit']}"
        cells += [f"{share:.0%}" if share else "-"] if has_limit else []
        cells += [ratio_and_range(row["ratios"])]
        if result["set"] == "startup":
            cells += ["-" if row["difference"] is None else f"{row['difference']:+.2f}"]
        for key, (_, form) in columns.items():
            cells.append(format(row["facts"][key], form) if key in row["facts"] else "-")
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    known = [
        f"{limits[f'{dtype}_flops'] / 1e9:,.0f} GFLOP/s in {dtype}"
        for dtype in ("float32", "bfloat16")
        if f"{dtype}_flops" in limits
    ]
    bandwidth = limits["bytes_per_second"] / 1e9
    device = f", {facts['device']}" if facts.get("device", "cpu") != "cpu" else ""
    parts = [
        f"### {result['set']}",
        f"`{result['command']}`, {count(result['rounds'], 'round')}; {facts['cores']} cores of "
        f"{facts['processor']}{device}; Python {facts['python']}; {versions}.",
        f"Limits in the same run: matrix products {' and '.join(known)}, memory "
        f"{bandwidth:,.1f} GB/s.",
        "\n".join(lines),
    ]
    if failures:
        parts.append("Not measured: " + "; ".join(failures) + ".")
    return "\n\n".join(parts) + "\n"


def count(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio_and_range(ratios):
    """The median of the rounds' ratios, and their range if there are several."""
    if not ratios:
        return "-"
    middle = statistics.median(ratios)
    if len(ratios) == 1:
        return f"{middle:.2f}"
    return f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def picture(result, path):
    """A bar for each row; without matplotlib there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = [row for row in result["rows"] if "value" in row]
    if not rows:
        return
    figure = Figure(figsize=(9, 1 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['case']}: {row['implementation']}" for row in rows]
    colors = [COLORS.get(row["implementation"], "#9a9a9a") for row in rows]
    axes.barh(range(len(rows)), [row["value"] for row in rows], color=colors)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    better = "less" if rows[0]["unit"] in ("s", "MB") else "more"
    units = " or ".join(sorted({row["unit"] for row in rows}))
    axes.set_xlabel(f"{units} ({better} is better)")
    axes.set_title(result["set"])
    figure.savefig(path, dpi=130)


def write_readme(readme, folder):
    """Replaces what is between the marks in a file by the tables of all results in a folder."""
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    tables = "\n".join(markdown(result) for result in results)
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
