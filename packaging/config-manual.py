#!/usr/bin/env python3
"""Writes the man pages of the configuration files, agent.toml(5) and broker.toml(5), from the chapters of docs/ that describe their keys.

    config-manual.py DIR

The pages say what docs/ says: their text is written nowhere else. lowdown(1) turns Markdown into a page; before that, each table of
keys becomes a list of definitions, because a table with long cells is hard to read in a terminal.
"""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"

# Each page: its one-line description, its opening words, and the chapters (file, heading, heading on the page).
PAGES = {
    "agent.toml": (
        "configuration of the agent of Postern",
        "postern-agent(8) reads `/etc/postern/agent.toml`, or the file that `--config` or `POSTERN_AGENT_CONFIG` names, when it starts. The "
        "file is TOML. An unknown key is an error. `postern-agent check-config` checks the file and changes nothing.",
        [("operations.md", "Configuration of an agent", "KEYS")],
        "postern-agent(8)",
    ),
    "broker.toml": (
        "configuration of the broker of Postern",
        "postern-broker(8) reads `/etc/postern/broker.toml`, or the file that `--config` or `POSTERN_BROKER_CONFIG` names, when it starts. The "
        "file is TOML. An unknown key is an error. `postern-broker check-config` checks the file and changes nothing.",
        [
            ("operations.md", "Configuration", "KEYS"),
            ("operations.md", "Limits", "LIMITS"),
            ("operations.md", "Quotas", "QUOTAS"),
            ("operations.md", "Retention", "RETENTION"),
            ("operations.md", "The store on Redis", "STORE"),
            ("operations.md", "Traces", "TRACES"),
            ("aws.md", "Every key", "AWS"),
            ("azure.md", "Every key", "AZURE"),
        ],
        "postern-broker(8)",
    ),
}


def chapter(file, heading):
    """Returns the text under a heading, up to the next heading of its level or above."""
    lines = (DOCS / file).read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if re.fullmatch(r"#+ " + re.escape(heading), line)), None)
    if start is None:
        sys.exit(f"config-manual.py: docs/{file} has no chapter {heading!r}; correct PAGES, which names it")
    level = len(lines[start].split()[0])
    body = []
    for line in lines[start + 1 :]:
        found = re.match(r"(#+) ", line)
        if found and len(found[1]) <= level:
            break
        body.append(line)
    return body, level


def cells(row):
    """Returns the cells of a table's row."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def definitions(rows):
    """Turns a table into a list of definitions: the first cell is the term, the others with their columns' names are its text."""
    head, *rest = [cells(row) for row in rows if not re.fullmatch(r"[|\s:-]+", row)]
    out = []
    for term, *values in rest:
        facts = [f"{name} {value}" for name, value in zip(head[1:-1], values) if value]
        text = values[-1] + (f" ({'; '.join(facts)})" if facts else "")
        out += [term, f": {text}", ""]
    return out


def without_links(line):
    """Replaces links within the documentation by their text."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", line)


def markdown(name):
    """Returns a page as Markdown."""
    description, opening, chapters, see_also = PAGES[name]
    out = ["# NAME", "", f"{name} - {description}", "", "# DESCRIPTION", "", opening, ""]
    for file, heading, title in chapters:
        body, level = chapter(file, heading)
        out += [f"# {title}", ""]
        table = []
        for line in [*body, ""]:
            line = without_links(line)
            if line.startswith("|"):
                table.append(line)
                continue
            if table:
                out += definitions(table)
                table = []
            found = re.match(r"(#+) (.*)", line)
            out.append(f"## {found[2]}" if found else line)
    return "\n".join([*out, "# SEE ALSO", "", see_also, ""])


def conventional(page):
    """Returns the page with headings that apropos(1) finds, and code in bold, as man-pages(7) has it."""
    page = re.sub(r"(?m)^\.(SH|SS)\n(.*)\n\.LP$", r".\1 \2", page)
    definition = r'(?m)(?:^\.LP\n)?^(.+)\n\.if n \\\n\.sp -1v\n\.if t \\\n\.sp -0\.25v\n\.IP "" 5n$'
    return re.sub(definition, r".TP\n\1", page.replace("\\fC", "\\fB"))


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: config-manual.py DIR")
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        command = ["lowdown", "-s", "-Tman", "-m", f"title={name}", "-m", "section=5", "-m", "source=Postern"]
        page = subprocess.run(command, input=markdown(name), capture_output=True, text=True, check=True).stdout
        (place / f"{name}.5").write_text(conventional(page))


main()
