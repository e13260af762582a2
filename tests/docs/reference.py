"""The generated parts of the documentation: spec fields, output columns, commands and checks, from
the code that defines them.

`python tests/docs/reference.py` writes them between their markers; test_readme.py fails when they
are stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from integrand.schemas.specs.job import AttributeSpec
from integrand.schemas.specs.part import Part, branches_of
from integrand.schemas.tables import BESIDE, COLUMNS, OPTIONAL_COLUMNS
from integrand.service.checks.rows.columns import CHECK as COLUMN_CHECK
from integrand.service.checks.rows.footer import CHECK as FOOTER
from integrand.service.checks.rows.table import ROW_CHECKS
from integrand.service.checks.table import CHECKS
from integrand.service.cli.commands import app

ROOT = Path(__file__).parents[2]


def sections() -> dict[str, type[Part]]:
    """Every part of a spec under the words that lead to it: the job first, then level by level."""
    found: dict[str, type[Part]] = {"Job": AttributeSpec}
    level = [("", AttributeSpec)]
    while level:
        below = [place for path, part in level for place in _fields(path, part)]
        new = {title: part for title, part in below if part not in found.values()}
        found |= new
        level = [(f"{title}.", part) for title, part in new.items()]
    return found


def _fields(path: str, part: type[Part]) -> Iterator[tuple[str, type[Part]]]:
    """The parts that the fields of a part may hold, each under its own title."""
    for name, field in part.model_fields.items():
        branches = branches_of(field.annotation)
        for kind, below in branches.items():
            yield f"{path}{name}: {kind}" if len(branches) > 1 else f"{path}{name}", below


def spec_tables() -> str:
    """One table per part of the spec: field, default, meaning."""
    return "\n\n".join(_part(title, part) for title, part in sections().items())


def _part(title: str, part: type[Part]) -> str:
    lines = [f"**{title}** {_first_sentence(part.__doc__ or '')}"]
    fields = {name: f for name, f in part.model_fields.items() if name != "kind"}
    if fields:
        lines += ["", "| field | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = (
            "required"
            if field.is_required()
            else _default(field.get_default(call_default_factory=True))
        )
        lines.append(f"| `{name}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, Part):
        return f"`{getattr(value, 'kind', '…')}`" if hasattr(value, "kind") else "all defaults"
    return f"`{str(value).lower() if value is None or isinstance(value, bool) else value}`"


def _first_sentence(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def column_table() -> str:
    rows = [f"| `{name}` | {_cell(meaning)} |" for name, meaning in COLUMNS.items()]
    rows.append(
        "| `attr.<feature>` | Attribution of a named feature, one float column each, in units of"
        " f. |"
    )
    rows.append(
        "| `attr.<input>` | Attributions of a tensor input: one fixed-size list; its shape is in"
        " the field's metadata. Of ids in lists of varying length, a list as long as the row's"
        " own. |"
    )
    rows.append(
        "| `index.<input>` | With `output.store: {kind: top_k, k: ...}`, which keeps the largest"
        " attributions of each input as a list `attr.<input>`: their places in it, flat and from"
        " 0. |"
    )
    for role, meaning in BESIDE.items():
        name = "group" if role == "group" else "feature"
        rows.append(f"| `{role}.<{name}>` | {_cell(meaning)} |")
    for name, meaning in OPTIONAL_COLUMNS.items():
        rows.append(f"| `{name}` | {_cell(meaning)} |")
    return "\n".join(["| column | meaning |", "|---|---|", *rows])


def command_table() -> str:
    """Every verb with its options, from the command line itself."""
    rows = ["| command | what it does | options |", "|---|---|---|"]
    for name, command in _commands(get_command(app), ()):
        options = [
            f"`{'/'.join(p.opts)}` {_cell(p.help or '')}"
            for p in command.params
            if p.param_type_name == "option" and p.name != "help"
        ]
        arguments = " ".join(
            str(p.metavar or p.name).upper()
            for p in command.params
            if p.param_type_name == "argument"
        )
        rows.append(
            f"| `integrand {name}{' ' + arguments if arguments else ''}` |"
            f" {_first_sentence(command.help or '')} | {'<br>'.join(options) or '–'} |"
        )
    return "\n".join(rows)


def _commands(group: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found += _commands(command, (*path, name))
        else:
            found.append((" ".join((*path, name)), command))
    return found


def check_table() -> str:
    """What `verify` asks of a run, and of the rows of each of its shards."""
    asked = [*CHECKS, FOOTER, COLUMN_CHECK, *ROW_CHECKS]
    rows = [f"| `{check.name}` | {_cell(check.description)} |" for check in asked]
    return "\n".join(["| check | what it holds a run to |", "|---|---|", *rows])


GENERATED = {
    "schemas/README.md": {"spec": spec_tables, "columns": column_table},
    "service/README.md": {"commands": command_table, "checks": check_table},
}
"""What is generated, by document and by the name in its marker."""


def rendered(document: str) -> str:
    """A document with every generated part made anew."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for name, make in GENERATED[document].items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{document} has no place for the generated part `{name}`")
        text = pattern.sub(lambda m, made=make(): m[1] + made + "\n" + m[2], text)
    return text


if __name__ == "__main__":
    for document in GENERATED:
        (ROOT / document).write_text(rendered(document), encoding="utf-8")
