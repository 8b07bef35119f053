"""What gpu.py found, as a table: each figure, and whether it meets its bar.

In: the entries of rows.jsonl. Out: Markdown, marked with the device's name and versions.

The one idea: a bar is judged here and nowhere else. A bar of speed holds on the GPUs that it was
set for, one of size or ratio on any, one of rightness everywhere; miniatures have none of the
former two.
"""

from pathlib import Path

from deepsynth_min.errors import UserError

CARDS = ("H100", "H200")  # that the bars of speed are for
BEGIN, END = "<!-- bench/gpu.py --table: begin -->", "<!-- bench/gpu.py --table: end -->"


def table_of(entries: list[dict]) -> str:
    """Of the newest try at each row; a row that did not end well is a line that says so."""
    dry = entries[0]["dry_run"]
    machine = next((e["machine"] for e in reversed(entries) if "machine" in e), {})
    rows = [_shown(entry, entries, machine, dry) for entry in newest(entries)]
    head = "| row | measured | figure | bar | | beside it |\n|---|---|---|---|---|---|"
    return "\n".join([_where(machine, dry), "", head, *rows, ""])


def newest(entries: list[dict]) -> list[dict]:
    """Lines and bad ends in the order of the rows' first tries. What a later try repeats replaces
    what an earlier one had."""
    tries: dict[str, list[list[dict]]] = {}
    for entry in entries[1:]:
        own = tries.setdefault(entry["row"], [[]])
        if own[-1] and "end" in own[-1][-1]:
            own.append([])
        own[-1].append(entry)
    found = []
    for own in tries.values():
        for entry in own[-1]:
            if "end" not in entry or entry["end"] != "done":
                found.append(entry)
    return found


def _where(machine: dict, dry: bool) -> str:
    if not machine:
        return "**Device unknown: the row `machine` did not end.**"
    of = f", {machine['memory'] / 2**30:.0f} GiB" if "memory" in machine else ""
    versions = ", ".join(
        f"{name} {number}" for name, number in machine["versions"].items() if "not" not in number
    )
    what = "Dry run in miniature: no figure here says anything about a GPU. " if dry else ""
    return f"{what}**{machine['device']}**{of}; commit {machine['commit']}; {versions}"


def _shown(entry: dict, entries: list[dict], machine: dict, dry: bool) -> str:
    if "end" in entry:
        return f"| {entry['row']} | {entry['end']}: {_clean(entry.get('error', ''))} | | | | |"
    value, unit = entry["value"], entry["unit"]
    figure = value if isinstance(value, str) else _figure(value, unit)
    bar, verdict = judged(entry, entries, machine.get("device", ""), dry)
    cells = (entry["row"], entry["what"], figure, bar, verdict, entry["note"])
    return "| " + " | ".join(map(_clean, cells)) + " |"


def _clean(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _figure(value: float, unit: str) -> str:
    if unit == "off":
        return f"{value:.1e}"
    return f"{value:,.{0 if unit == '' else 2}f} {unit}".strip()


def judged(entry: dict, entries: list[dict], device: str, dry: bool) -> tuple[str, str]:
    """(the bar in words, met, missed or why it is not judged)."""
    if not entry["bar"]:
        return "", ""
    sense, limit, kind = entry["bar"]
    words = f"{sense} {limit:g}" if not isinstance(limit, str) else f"{sense} {limit}"
    if kind != "right" and dry:
        return words, "miniature, no bar"
    if isinstance(limit, str):  # a share of another row's figure
        share, row = limit.split()
        others = [
            e["value"] for e in entries if e.get("row") == row and e.get("unit") == entry["unit"]
        ]
        if not others:
            return words, f"{row} was not measured"
        limit = float(share) * others[-1]
    elif kind == "speed" and not any(card in device for card in CARDS):
        return words, f"for {' and '.join(CARDS)}"
    is_met = entry["value"] >= limit if sense == ">=" else entry["value"] <= limit
    return words, "met" if is_met else "**missed**"


def write_readme(path: Path, text: str) -> None:
    """Puts the table between the two marks in bench/README.md. Raises UserError without them."""
    whole = path.read_text(encoding="utf-8")
    if BEGIN not in whole or END not in whole:
        raise UserError(f"{path}: no line {BEGIN} or {END}")
    before, after = whole.partition(BEGIN)[0], whole.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
