#!/usr/bin/env python3
"""Writes what a program is made of: the licences of its crates, and a bill of materials in the form of CycloneDX 1.5.

    provenance.py CRATE PROGRAM LICENCES.txt SBOM.cdx.json

The crates are those that cargo links into the program when it builds CRATE alone for x86_64, without development and build dependencies.
Their licence files come from the sources that cargo has downloaded. A crate without one has to allow Apache-2.0 or MIT, whose texts are in
this repository. Nothing in the two files depends on the machine or the time: SOURCE_DATE_EPOCH is the time of the bill.
"""

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def crates_of(crate):
    """Returns the crates in a program as (name, version), from its own to those at the bottom."""
    lines = cargo("tree", "--locked", "-p", crate, "--edges", "normal", "--target", TARGET, "--prefix", "none", "--no-dedupe", "--format", "{p}")
    found = {re.match(r"(\S+) v(\S+)", line).groups() for line in lines.splitlines() if line}
    return sorted(found)


def described():
    """Returns what cargo knows of every crate, by name and version."""
    packages = json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    return {(p["name"], p["version"]): {**p, "checksum": checksums.get((p["name"], p["version"]))} for p in packages}


def texts_of(package):
    """Returns the texts of the licence files in a crate's sources."""
    place = Path(package["manifest_path"]).parent
    files = {file for file in place.iterdir() if file.is_file() and LICENCE_FILE.match(file.name)}
    if package.get("license_file"):
        files.add(place / package["license_file"])
    return [file.read_text(errors="replace").strip() for file in sorted(files)]


def licences(packages):
    """Returns the licences of crates, each text once with the crates that have it."""
    holders, without = {}, []
    for package in packages:
        name = f"{package['name']} {package['version']} ({package['license'] or 'see its file'})"
        texts = texts_of(package)
        if not texts:
            without.append((name, package))
        for text in texts:
            holders.setdefault(text, []).append(name)
    general = {"Apache-2.0": ROOT / "LICENSE", "MIT": ROOT / "packaging/licences/MIT.txt"}
    for name, package in without:
        allowed = re.split(r"[^A-Za-z0-9.-]+", package["license"] or "")
        text = next((file.read_text().strip() for licence, file in general.items() if licence in allowed), None)
        if text is None:
            sys.exit(f"provenance.py: {name} has no licence file and allows neither Apache-2.0 nor MIT; say where its licence is")
        holders.setdefault(text, []).append(f"{name}, copyright {', '.join(package['authors']) or 'its authors'}")
    out = ["The licences of the third-party crates in this program, each text with the crates that have it."]
    for text, names in sorted(holders.items(), key=lambda item: item[1]):
        out += ["", "=" * 80, *names, "", text]
    return "\n".join(out) + "\n"


def component(package):
    """Returns a crate as a component of a bill of materials."""
    purl = f"pkg:cargo/{package['name']}@{package['version']}"
    found = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl}
    if package["license"]:
        found["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    if package["checksum"]:
        found["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
    return found


def bill(crate, program, packages):
    """Returns the bill of materials of a program."""
    own = next(package for package in packages if package["name"] == crate)
    components = [component(package) for package in packages if package is not own]
    time = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    root = {**component(own), "type": "application", "name": program}
    digest = hashlib.sha256(json.dumps([root, components]).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32], version=4)}",
        "version": 1,
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": root},
        "components": components,
        "dependencies": [{"ref": root["bom-ref"], "dependsOn": [part["bom-ref"] for part in components]}],
    }


def main():
    if len(sys.argv) != 5:
        sys.exit("usage: provenance.py CRATE PROGRAM LICENCES.txt SBOM.cdx.json")
    crate, program, licence_file, bill_file = sys.argv[1:]
    known = described()
    packages = [known[key] for key in crates_of(crate)]
    third_party = [package for package in packages if package["source"]]
    Path(licence_file).write_text(licences(third_party))
    Path(bill_file).write_text(json.dumps(bill(crate, program, packages), indent=1, ensure_ascii=False) + "\n")


main()
