"""Cells -> an HTML table, for the pages.

In: heads and rows of HTML. Out: the table, which scrolls by itself where a page is narrow.
"""


def table(head: list[str], rows: list[list[str]], number: bool = False) -> str:
    """Cells are HTML already."""
    css = ' class="number"' if number else ""
    body = "".join(
        f"<tr><th>{row[0]}</th>{''.join(f'<td{css}>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
