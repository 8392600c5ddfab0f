#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the single headers of a release: single_header.py FOLDER writes FOLDER/lora.hpp, and FOLDER/lora_io.hpp where
the library has a room io.

lora.hpp is all that <lora/lora.hpp> brings and needs Eigen alone; lora_io.hpp holds the headers of lora/io/, includes
lora.hpp from the folder that it lies in, and needs nlohmann-json. Every header of the tree stands in one of them once,
behind all that it includes. Includes of other libraries are gathered at the top, once and sorted; those under an #if
stay where they are. The same sources give the same bytes.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include"
OWN = re.compile(r"#include <(lora/[\w/.]+)>$")
FOREIGN = re.compile(r"#include <([\w/.+-]+)>(?:  //.*)?$")
ANY = re.compile(r"\s*#\s*include\b")
SPDX = "// SPDX-License-Identifier: MIT"


def fail(name, number, rule):
    sys.exit(f"single_header.py: include/{name}:{number}: {rule}")


class SingleHeader:
    """One file in the making: `add` appends a header of the tree behind the headers that it includes."""

    def __init__(self, elsewhere=()):
        self.elsewhere = set(elsewhere)  # headers that another single header brings
        self.done, self.open, self.parts, self.foreign = [], [], [], set()

    def add(self, name, asked_by=("", 0)):
        if name in self.elsewhere or name in self.done:
            return
        if name in self.open:
            fail(*asked_by, f"includes in a circle: {' -> '.join([*self.open, name])}")
        if not (INCLUDE / name).is_file():
            fail(*asked_by, f"no such header: {name}")
        self.open.append(name)
        lines = (INCLUDE / name).read_text(encoding="utf-8").splitlines()
        if lines[0] != SPDX or "#pragma once" not in lines:
            fail(name, 1, f"must begin with '{SPDX}' and hold '#pragma once'")
        body, depth = [], 0
        for number, line in enumerate(lines[1:], 2):
            if re.match(r"\s*#\s*if", line):
                depth += 1
            elif re.match(r"\s*#\s*endif\b", line):
                depth -= 1
            own, foreign = OWN.match(line), FOREIGN.match(line)
            if own:
                if depth:
                    fail(name, number, "a header of the library under an #if")
                self.add(own[1], (name, number))
            elif foreign and not depth:
                self.foreign.add(foreign[1])
            elif ANY.match(line) and not foreign:
                fail(name, number, "an include of another form than #include <...>")
            elif line != "#pragma once":
                body.append(line)
        self.open.pop()
        self.done.append(name)
        if any(line and not line.startswith("//") for line in body):  # not where includes were all
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(body)).strip("\n")
            self.parts.append(f"// ---- {name} ----\n{text}\n")

    def text(self, what, guard, own_includes=()):
        libraries = sorted(name for name in self.foreign if re.match(r"(Eigen|nlohmann)/", name))
        system = sorted(self.foreign.difference(libraries))
        groups = [list(own_includes), *([f"#include <{name}>" for name in names] for names in (libraries, system))]
        includes = "\n\n".join("\n".join(group) for group in groups if group)
        licence = "\n".join(f"// {line}".rstrip() for line in (ROOT / "LICENSE").read_text("utf-8").splitlines())
        head = f"{SPDX}\n{what}\n//\n{licence}\n#pragma once\n\n{guard}{includes}\n"
        return "\n".join([head, *self.parts])


def version():
    text = (INCLUDE / "lora/version.hpp").read_text(encoding="utf-8")
    return ".".join(re.findall(r"^#define LORA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", text, re.MULTILINE))


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: single_header.py FOLDER")
    folder = pathlib.Path(sys.argv[1])
    tree = sorted(str(p.relative_to(INCLUDE).as_posix()) for p in (INCLUDE / "lora").rglob("*.hpp"))
    io_headers = [name for name in tree if name.startswith("lora/io/")]
    made = f"lora {version()} in one file, made by docs/packaging/single_header.py from the headers named below."

    core = SingleHeader()
    core.add("lora/lora.hpp")
    left_out = [name for name in tree if name not in io_headers and name not in core.done]
    if left_out:
        fail("lora/lora.hpp", 1, f"does not include {left_out[0]}")
    guard = ('#ifdef LORA_VERSION_MAJOR\n#error "lora: one file includes the single header or headers of the tree, not '
             'both"\n#endif\n\n')
    folder.mkdir(parents=True, exist_ok=True)
    files = {"lora.hpp": core.text(f"// {made}", guard)}
    if io_headers:
        io = SingleHeader(elsewhere=core.done)
        for name in io_headers:
            io.add(name)
        files["lora_io.hpp"] = io.text(f"// The room io of {made}", "", ['#include "lora.hpp"'])
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / name}: {len(text.splitlines())} lines")


main()
