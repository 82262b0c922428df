#!/usr/bin/env python3
"""Writes the man pages of the configuration files, agent.toml(5) and broker.toml(5), from the chapters of docs/ that describe their keys.

    config-manual.py DIR               writes the pages into DIR
    config-manual.py check PROGRAMS    compares the keys on the pages with those that the programs in PROGRAMS take, and tries the examples

The pages say what docs/ says: their text is written nowhere else. lowdown(1) turns Markdown into a page; before that, each table of
keys becomes a list of definitions, because a table with long cells is hard to read in a terminal.
"""

import os
import re
import subprocess
import sys
import tempfile
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


def defined(name):
    """Returns the keys in the first column of the tables of keys of a page, without their sections."""
    found = set()
    for file, heading, _ in PAGES[name][2]:
        table = []
        for line in [*chapter(file, heading)[0], ""]:
            if line.startswith("|"):
                table.append(cells(line)[0])
                continue
            # The second row is the line under the head.
            if table[:1] == ["key"]:
                found |= {last(term.strip("` []").rpartition(" ")[2]) for row in table[2:] for term in row.split(", ")}
            table = []
    return found


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


def page(name):
    """Returns a page."""
    command = ["lowdown", "-s", "-Tman", "-m", f"title={name}", "-m", "section=5", "-m", "source=Postern"]
    done = subprocess.run(command, input=markdown(name), capture_output=True, text=True, check=True)
    return conventional(done.stdout)


# A key that no program knows, and the keys that a program cannot do without.
UNKNOWN = "zzz"
REQUIRED = {
    "agent.toml": 'broker = "https://broker.example.org:7443"',
    "broker.toml": 'data_dir = "/var/lib/postern-broker"\nlisten = "[::]:7443"\nnames = ["broker.example.org"]',
}


class Program:
    """The program that reads a configuration."""

    def __init__(self, programs, name):
        self.name = name
        self.path = Path(programs) / ("postern-" + name.removesuffix(".toml"))

    def refusal(self, text):
        """Returns what `check-config` says of a configuration that it refuses as such; empty if the text is good."""
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / self.name
            file.write_text(text)
            # A broker that is sure of its settings looks for its store next, which is not there.
            command = [self.path, "--config", file, "check-config"]
            environment = {**os.environ, "RUST_BACKTRACE": "0"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        wrong = ("is not a good configuration", "does not parse", "has a wrong value")
        return " ".join(done.stderr.split()) if any(words in done.stderr for words in wrong) else ""

    def keys_of(self, section):
        """Returns the keys of a section as the program itself names them when it refuses another; empty if there is no such section."""
        lines = [f"{section}.{UNKNOWN} = 1".lstrip(".")] + ([f"{section} = [{{ {UNKNOWN} = 1 }}]"] if section else [])
        for line in lines:
            said = self.refusal(f"{line}\n{REQUIRED[self.name]}")
            if found := re.search(rf"unknown field `{UNKNOWN}`, expected (.*)", said):
                return re.findall(r"`([^`]+)`", found[1])
            if found := re.search(rf"{UNKNOWN}: is not known; use one of (.*)", said):
                return found[1].split(", ")
        return []

    def keys(self):
        """Returns every key with its sections, such as `azure.credential`."""
        found, open_sections = set(), [""]
        while open_sections:
            section = open_sections.pop()
            for key in self.keys_of(section):
                whole = f"{section}.{key}".lstrip(".")
                found.add(whole)
                # A limit is a number, and no section.
                if not section.startswith(("limits", "quotas")):
                    open_sections.append(whole)
        return found


def last(key):
    """Returns a key without its sections."""
    return key.rpartition(".")[2]


def check(programs):
    """Compares the pages with the programs, and tries the examples. Ends the script with what differs."""
    wrong = []
    for name in PAGES:
        program, text = Program(programs, name), page(name)
        keys = program.keys()
        bold = re.findall(r"\\fB(.*?)\\fR", text)
        written = {word for part in bold for word in re.split(r"[^A-Za-z0-9_]+", part)}
        wrong += [f"{name}(5) does not describe {key}, which the program takes" for key in sorted(keys) if last(key) not in written]
        # The program names the kinds of a credential only once there is one.
        known = {last(key) for key in keys} | {"kind"}
        wrong += [f"{name}(5) describes {key}, which the program does not take" for key in sorted(defined(name) - known)]
        example = (DOCS.parent / "packaging/examples" / name).read_text()
        # In an example, what is commented out begins right after the #, and words after a blank.
        for how, tried in (("as it stands", example), ("with all that is commented out", re.sub(r"(?m)^#(?! |$)", "", example))):
            if said := program.refusal(tried):
                wrong.append(f"packaging/examples/{name} {how}: {said}")
        print(f"config-manual: {name}(5) has the {len(keys)} keys of {program.path.name}, and its example is good")
    if wrong:
        sys.exit("\n".join(wrong))


def main():
    match sys.argv[1:]:
        case ["check", programs]:
            check(programs)
        case [place]:
            os.makedirs(place, exist_ok=True)
            for name in PAGES:
                (Path(place) / f"{name}.5").write_text(page(name))
        case _:
            sys.exit("usage: config-manual.py DIR, or config-manual.py check PROGRAMS")


main()
