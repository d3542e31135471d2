"""The options of a command, read from the source of its function: no module is run, so that help needs no torch."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

PACKAGES = Path(__file__).parents[2]
PLAIN = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH"}
SWITCH = "bool"
STRUCTURES = {"SpreadPlace": "where to compute", "Place": "where to compute", "Backend": "how torch computes",
              "Foreign": "weights from elsewhere"}  # fmt: skip
OWN = "this command"


@dataclass(frozen=True)
class Option:
    """One option, or argument without a name, as a reader sees it.

    Attributes:
        name: As it is typed; of an argument without a name, in capitals.
        takes: What is given after it in plain words, such as INTEGER or "sgd|adamw"; "" for a switch.
        default: As it would be typed; "" where nothing is to be said of it.
        help: A sentence or more.
        group: The heading that it belongs under.
        positional: Whether it is given without its name.
    """

    name: str
    takes: str
    default: str
    help: str
    group: str
    positional: bool = False


@dataclass(frozen=True)
class Usage:
    """A command: what it does, in paragraphs, and its options in the order of the function."""

    about: str
    options: tuple[Option, ...]


def usage(place: str) -> Usage:
    """Read a command.

    Args:
        place: The module of `analysis.cli`, a dot, and the function in it.
    """
    module, _, name = place.partition(".")
    source, function = found(f"analysis.cli.{module}", name)
    assert isinstance(function, ast.FunctionDef)
    about, helps = _documented(function, "Args")
    signature = function.args
    positional = list(zip(signature.args, _padded(signature.defaults, len(signature.args)), strict=True))
    named = list(zip(signature.kwonlyargs, signature.kw_defaults, strict=True))
    options: list[Option] = []
    for argument, default in (*positional, *named):
        assert argument.annotation is not None
        options += _options(source, argument.arg, argument.annotation, default, helps.get(argument.arg, ""), OWN)
    return Usage(about, tuple(options))


@dataclass(frozen=True)
class Source:
    """A module of ours as it is written."""

    module: str
    text: str
    tree: ast.Module


@cache
def source_of(module: str) -> Source:
    """The source of a module of our packages."""
    place = PACKAGES.joinpath(*module.split("."))
    text = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")
    return Source(module, text, ast.parse(text))


def found(module: str, name: str) -> tuple[Source, ast.AST]:
    """Where a name of a module is defined: the function or class, or the value that it is given.

    Raises:
        LookupError: If it is not defined in our packages.
    """
    source = source_of(module)
    for node in _statements(source.tree.body):
        match node:
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return source, node
            case ast.Assign(targets=[ast.Name(id=given)], value=value) if given == name:
                return source, value
            case ast.AnnAssign(target=ast.Name(id=given), value=ast.expr() as value) if given == name:
                return source, value
            case ast.ImportFrom(module=str() as other, names=names) if _is_ours(other):
                for imported in names:
                    if (imported.asname or imported.name) == name:
                        return found(other, imported.name)
    raise LookupError(f"{module} defines no {name}")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those for the type checker first where it says more than what runs."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
        else:
            yield node


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("landscape", "trainers", "analysis")


def _options(
    source: Source, name: str, annotation: ast.expr, default: ast.expr | None, told: str, group: str
) -> Iterator[Option]:
    """The options of one argument or field: one, or those of the fields of a class."""
    kind = _bare(source, annotation)
    if kind.structure is not None:
        yield from _fields(*kind.structure)
        return
    label = (kind.renamed or name).replace("_", "-")
    given = _given(source, default)
    switch = kind.takes == SWITCH
    if kind.positional:
        yield Option(label.upper(), kind.takes, given, told, group, positional=True)
    elif switch and given == "True":
        yield Option(f"--{label} / --no-{label}", "", "on", told, group)
    elif switch:
        yield Option(f"--{label}", "", "", told, group)
    else:
        yield Option(f"--{label}", kind.takes, given, told, group)


def _fields(source: Source, made: ast.ClassDef) -> Iterator[Option]:
    """Options of the fields of a dataclass, those of its bases first, or of a configuration, in its sections."""
    group = STRUCTURES.get(made.name, OWN)
    for base in made.bases:
        if isinstance(base, ast.Name) and base.id in STRUCTURES:
            above, parent = found(source.module, base.id)
            assert isinstance(parent, ast.ClassDef)
            yield from _fields(above, parent)
    _, helps = _documented(made, "Attributes")
    for field, after in zip(made.body, [*made.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        said = after.value if isinstance(after, ast.Expr) else None
        below = cleandoc(str(said.value)) if isinstance(said, ast.Constant) else ""
        told = helps.get(field.target.id, " ".join(below.split()))
        section = group if group != OWN else _section(source.text, field.lineno)
        yield from _options(source, field.target.id, field.annotation, field.value, told, section)


def _section(text: str, line: int) -> str:
    """The comment on a line of its own that stands nearest above a field."""
    comments = [c[1] for c in (re.fullmatch(r"    # (.+)", above) for above in text.splitlines()[:line]) if c]
    return comments[-1] if comments else OWN


@dataclass(frozen=True)
class Kind:
    """What an annotation says to a reader."""

    takes: str = ""
    positional: bool = False
    renamed: str | None = None
    structure: tuple[Source, ast.ClassDef] | None = None


def _bare(source: Source, node: ast.expr) -> Kind:
    """What an annotation says, followed through the names that it is made of."""
    match node:
        case ast.Name(id=name) if name in PLAIN or name == SWITCH:
            return Kind(PLAIN.get(name, SWITCH))
        case ast.Name(id=name):
            try:
                where, meant = found(source.module, name)
            except LookupError:  # of another package
                return Kind(name)
            return (
                Kind(structure=(where, meant)) if isinstance(meant, ast.ClassDef) else _bare(where, _expression(meant))
            )
        case ast.BinOp(left=left, right=right):
            return Kind(_either(_bare(source, left).takes, _bare(source, right).takes))
        case ast.Subscript(value=ast.Attribute(attr=mark), slice=inner):  # of tyro: Positional, OmitArgPrefixes
            kind = _bare(source, inner)
            return Kind(kind.takes, mark == "Positional", kind.renamed, kind.structure)
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *marks])):
            kind = _bare(source, inner)
            return Kind(kind.takes, kind.positional, _renamed(marks), kind.structure)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            named = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return Kind("|".join(str(ast.literal_eval(choice)) for choice in named))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[inner, *_])):
            return Kind(f"{_bare(source, inner).takes} ...")
        case ast.Subscript(value=ast.Name(id="dict")):
            return Kind("NAME VALUE ...")
        case ast.Constant(value=None):
            return Kind()
    return Kind(ast.unparse(node))


def _either(left: str, right: str) -> str:
    """One of two; what says nothing (None) is left out, and a text can be anything."""
    return "|".join(part for part in dict.fromkeys((left, right)) if part)


def _renamed(marks: list[ast.expr]) -> str | None:
    """The name in `tyro.conf.arg(name=...)`, if there is one."""
    for mark in marks:
        for keyword in mark.keywords if isinstance(mark, ast.Call) else ():
            if keyword.arg == "name":
                return str(ast.literal_eval(keyword.value))
    return None


def _expression(node: ast.AST) -> ast.expr:
    assert isinstance(node, ast.expr)
    return node


def _given(source: Source, default: ast.expr | None) -> str:
    """A default as it would be typed; "" for none, nothing and what is made anew each time."""
    if isinstance(default, ast.Name):
        return _given(*_defined(source, default.id))
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:
        if isinstance(default, ast.Call) and len(default.args) == 1:  # Path("runs")
            return _given(source, default.args[0])
        return ""
    if (value in (None, (), False) and value != 0) or value is False:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _defined(source: Source, name: str) -> tuple[Source, ast.expr]:
    where, value = found(source.module, name)
    return where, _expression(value)


def _padded(defaults: list[ast.expr], count: int) -> list[ast.expr | None]:
    return [*[None] * (count - len(defaults)), *defaults]


def _documented(node: ast.FunctionDef | ast.ClassDef, heading: str) -> tuple[str, dict[str, str]]:
    """What a docstring says before its sections, and of each name under a heading."""
    text = ast.get_docstring(node) or ""
    about = re.split(r"\n\n(?:Args|Attributes|Returns|Raises):\n", text)[0]
    section = re.search(rf"(?:^|\n){heading}:\n((?:    .*\n?|\n)*)", text)
    entries = re.findall(r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return about, {name: " ".join(said.split()) for name, said in entries}
