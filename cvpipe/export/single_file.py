"""Gather functions and classes of a package, with all that they need, into one Python file.

The file runs where the package is not installed. It is made of the package's own text, so that
the two cannot drift apart. Names are looked up in the text of the modules; nothing is executed.

1. A function or class brings every function, class and constant of the package that its code
   names, and so on. A constant brings every statement that binds or changes it.
2. Statements stay as they are, with the comments directly above them, in the order in which
   Python executes them when it imports the modules.
3. Imports from outside the package are merged at the top. Of those, only what is used stays, and
   what a module of which something is needed imports without using it: such an import is made
   for its effect. Imports inside functions stay where they are.
4. Annotations are never evaluated. They bring what costs nothing: names of the standard library,
   and aliases made of what is there already. What needs them at run time, such as a model of
   pydantic, cannot be gathered.
5. What cannot be told from the text is refused, and so are two objects of one name.

`__name__` and `__file__` mean the new file.
"""

import ast
import builtins
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import NamedTuple

from cvpipe.errors import InputError
from cvpipe.export.module_text import (
    DEFINITIONS,
    Import,
    Module,
    Origin,
    Statement,
    bound_names,
    find_uses,
    imports_of,
    parent_of,
    read_module,
    texts_in,
)

LINE_LENGTH = 100
BUILTINS = frozenset({*dir(builtins), "__file__"})
# What these give depends on the module that they stand in, or on text that is not known.
UNKNOWABLE = frozenset(
    {"__import__", "__loader__", "__package__", "__spec__", "eval", "exec", "globals"}
)


class Meaning(NamedTuple):
    """What a name of a module stands for, and the imports from outside that bring it."""

    origin: Origin
    imports: tuple[Import, ...] = ()


class Piece(NamedTuple):
    """Text of the new file.

    Attributes:
        text: One statement.
        is_block: Whether it is a function or class.
        module: Where it stood.
        first_line: Its first line there.
        last_line: Its last line there.
    """

    text: str
    is_block: bool = False
    module: str = ""
    first_line: int = 0
    last_line: int = 0


class Gathering:
    """What has been gathered so far.

    Attributes:
        kept: The statements that are needed.
        imports: Imports from outside the package that are needed.
        effects: Those of them that are made for their effect.
    """

    def __init__(self, package: str, without: Mapping[Origin, str]) -> None:
        self.kept: dict[Statement, None] = {}
        self.imports: set[Import] = set()
        self.effects: set[Import] = set()
        self._package = package
        self._without = without
        self._modules: dict[str, Module] = {}
        self._contributing: set[str] = set()
        self._names: dict[str, Origin] = {}  # what each name of the new file stands for
        self._renamed: dict[Import, str] = {}  # imports from the package under another name
        self._imported: set[Origin] = set()
        self._waiting: list[Origin] = []

    def need(self, origins: Sequence[Origin]) -> None:
        """Gather objects of the package, and all that they need.

        Raises:
            InputError: Something cannot be told from the text, or a name would mean two things.
        """
        self._waiting += origins
        while self._waiting:
            wanted = self._waiting.pop()
            definitions = self._module(wanted.module).definitions
            if wanted.name not in definitions:
                raise InputError(
                    f"the text of {wanted.module} does not define {wanted.name!r}; only what is "
                    "written there can be gathered."
                )
            for statement in definitions[wanted.name]:
                if statement not in self.kept:
                    self._keep(statement)

    def need_annotations(self) -> None:
        """Gather what annotations name, where that costs nothing."""
        done: set[Statement] = set()
        while new := [statement for statement in self.kept if statement not in done]:
            done.update(new)
            for statement in new:
                module = self._module(statement.module)
                for name in sorted(statement.annotated):
                    if self._costs_nothing(module, name):
                        self._refer(module, name)
            self.need([])

    def check(self) -> None:
        """Refuse what would behave otherwise than in the package.

        Raises:
            InputError: A function binds anew a global name that is imported elsewhere, or a
                replacement is not needed.
        """
        for statement in self.kept:
            for name in sorted(statement.uses.rebound):
                if Origin(statement.module, name) in self._imported:
                    raise InputError(
                        f"{statement.module} binds {name!r} anew by `global`, which modules that "
                        "import it do not see, but one file would; keep it in an object."
                    )
        needed = {Origin(s.module, name) for s in self.kept for name in s.bound}
        for origin in self._without:
            if origin not in needed:
                raise InputError(
                    f"nothing that is gathered needs {str(origin)!r}, for which there is another "
                    "text; was it renamed?"
                )

    def claim(self, name: str, origin: Origin) -> None:
        """Reserve a name of the new file.

        Raises:
            InputError: It stands for something else already.
        """
        other = self._names.setdefault(name, origin)
        if other != origin:
            raise InputError(
                f"two different objects are called {name!r}: {other} and {origin}; one file "
                "cannot hold both, so rename one of them."
            )

    def pieces(self, modules: Sequence[str]) -> list[Piece]:
        """List what is kept in the order in which Python executes it.

        Args:
            modules: The modules that are imported, one after the other.
        """
        started: set[str] = set()
        found = [piece for name in modules for piece in self._execute(name, started)]
        return list(dict.fromkeys(found))  # several modules may give an object the same new name

    def _execute(self, name: str, started: set[str]) -> Iterator[Piece]:
        if name in started:
            return
        started.add(name)
        if name != self._package:
            yield from self._execute(parent_of(name), started)
        for step in self._module(name).steps:
            if isinstance(step, Import) and self._is_inside(step.module):
                yield from self._execute(self._module_behind(step), started)
                if step in self._renamed:
                    yield Piece(f"{step.alias} = {self._renamed[step]}")
            elif isinstance(step, Statement) and step in self.kept:
                is_block = isinstance(step.node, DEFINITIONS)
                yield Piece(step.text, is_block, step.module, step.first_line, step.last_line)

    def _is_inside(self, module: str) -> bool:
        return f"{module}.".startswith(f"{self._package}.")

    def _module(self, name: str) -> Module:
        if name not in self._modules:
            module = read_module(name)
            for origin, text in self._without.items():
                if origin.module == name:
                    module.replace(origin.name, text)
            self._modules[name] = module
        return self._modules[name]

    def _module_behind(self, step: Import) -> str:
        """Name the module that an import from the package executes last."""
        module = self._module(step.module)
        if not module.is_package or not step.name:
            return step.module
        if step.name in module.definitions or step.name in module.imports:
            return step.module
        inner = f"{step.module}.{step.name}"
        return inner if importlib.util.find_spec(inner) else step.module

    def _keep(self, statement: Statement) -> None:
        self.kept[statement] = None
        module = self._module(statement.module)
        self._contribute(module)
        self._check_imports_inside(statement)
        for name in statement.bound:
            self.claim(name, Origin(module.name, name))
            self._waiting.append(Origin(module.name, name))
        for name in sorted(statement.uses.names):
            self._refer(module, name, f"line {statement.line_of(name)} of ")
        for name in sorted(statement.uses.perhaps):
            if name in module.definitions or name in module.imports:
                self._refer(module, name)

    def _contribute(self, module: Module) -> None:
        """Take over what a module imports for its effect, once something of it is needed."""
        if module.name in self._contributing:
            return
        self._contributing.add(module.name)
        module.check()
        for name, imports in module.imports.items():
            unused = [] if name in module.read else imports
            for step in (step for step in unused if not self._is_inside(step.module)):
                self.claim(name, step.origin)
                self.imports.add(step)
                self.effects.add(step)

    def _refer(self, module: Module, name: str, where: str = "") -> None:
        found = self._meaning(module, name, where)
        self.claim(name, found.origin)
        self.imports.update(found.imports)
        if not self._is_inside(found.origin.module):
            return
        self._waiting.append(found.origin)
        if name in module.imports:
            self._imported.add(found.origin)
            if name != found.origin.name:
                self._renamed.update(dict.fromkeys(module.imports[name], found.origin.name))

    def _meaning(self, module: Module, name: str, where: str = "") -> Meaning:
        if name in module.definitions:
            return Meaning(Origin(module.name, name))
        if name in module.imports:
            found = [self._follow(step, module.name) for step in module.imports[name]]
            origins = sorted({str(meaning.origin) for meaning in found})
            if len(origins) > 1:
                both = " and ".join(origins)
                raise InputError(f"{module.name} calls both {both} {name!r}; rename one of them.")
            return Meaning(found[0].origin, tuple(step for m in found for step in m.imports))
        if name in UNKNOWABLE:
            raise InputError(
                f"{where}{module.name} uses {name!r}, of which it cannot be told what it needs; "
                "write it without."
            )
        if name in BUILTINS:
            return Meaning(Origin("builtins", name))
        reason = "neither defined nor imported there"
        if name in module.type_only:
            reason = "there for type checkers only"
        raise InputError(
            f"{where}{module.name} uses {name!r}, which is {reason}; import it at the top."
        )

    def _follow(self, step: Import, module: str) -> Meaning:
        """Say what an import means, through all modules that only hand it on."""
        if not self._is_inside(step.module):
            return Meaning(step.origin, (step,))
        if not step.name or self._module_behind(step) != step.module:
            raise InputError(
                f"{module} imports the module {step.origin} as a whole, so it cannot be told what "
                "it needs of it; import the names."
            )
        home = self._module(step.module)
        if step.name not in home.definitions and step.name not in home.imports:
            raise InputError(
                f"{module} imports {step.name!r} from {step.module}, whose text does not define "
                "it; import it from the module that does."
            )
        found = self._meaning(home, step.name)
        if any("." in inner.module and not inner.alias for inner in found.imports):
            raise InputError(
                f"{module} imports {step.name!r} through {step.module}; import it directly."
            )
        imports = tuple(replace(inner, alias=step.alias) for inner in found.imports)
        return Meaning(found.origin, imports)

    def _check_imports_inside(self, statement: Statement) -> None:
        home = self._module(statement.module).home
        for node in ast.walk(statement.node):
            inner: list[str] = []
            if isinstance(node, ast.Import | ast.ImportFrom):
                inner = [step.module for step in imports_of(node, home)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                inner = [text for argument in node.args for text in texts_in(argument)]
            for name in filter(self._is_inside, inner):
                raise InputError(
                    f"{' and '.join(sorted(statement.bound))} in {statement.module} imports "
                    f"{name} when it runs; import it at the top of the module, or have another "
                    "text in its place."
                )

    def _costs_nothing(self, module: Module, name: str) -> bool:
        """Tell whether a name brings nothing but the standard library and what is there."""
        try:
            found = self._meaning(module, name)
        except InputError:
            return False
        if name in self._names:
            return self._names[name] == found.origin
        if not self._is_inside(found.origin.module):
            return is_standard(found.origin.module)
        home = self._module(found.origin.module)
        return all(
            isinstance(statement.node, ast.Assign | ast.AnnAssign)
            and all(self._costs_nothing(home, use) for use in statement.uses.names)
            for statement in home.definitions[found.origin.name]
        )


def gather(
    roots: Sequence[Callable | type],
    package: str = "cvpipe",
    *,
    without: Mapping[str, str] = {},
    docstring: str = "",
    tail: str = "",
) -> str:
    """Write the text of one module that holds objects of a package and all that they need.

    Args:
        roots: Functions and classes that stand in modules of the package, not inside others.
        package: The package whose modules vanish.
        without: By `"module.name"` of an object of the package one statement that takes its
            place; it may use the names of that module.
        docstring: Of the new module, without its quotes.
        tail: Statements for the end of the new module; they may use the names of the roots.

    Returns:
        Python that needs only what is outside the package.

    Raises:
        InputError: A root is none of the package, something cannot be told from the text, two
            different objects have one name, or a replacement is not needed.

    Example:
        >>> from cvpipe.errors import nearest_name
        >>> text = gather([nearest_name])
        >>> [line for line in text.splitlines() if line.startswith(("import", "def"))]
        ['import difflib', 'def nearest_name(name: str, choices: Iterable[str]) -> str:']
    """
    replaced = {Origin(*key.rpartition(".")[::2]): text for key, text in without.items()}
    gathering = Gathering(package, replaced)
    origins = [origin_of(root, package) for root in roots]
    gathering.need(origins)
    gathering.need_annotations()
    gathering.check()
    for name in sorted(bound_names(tail)):
        gathering.claim(name, Origin("the end of the file", name))
    pieces = gathering.pieces([origin.module for origin in origins])
    if tail:
        pieces.append(Piece(tail.strip("\n"), is_block=True))
    text = (
        f"# Generated from the source text of {package}{version_of(package)} by the rules of\n"
        f"# {__name__}: statements are copied as they are, imports are merged.\n"
        f"# Change {package} instead of this file.\n"
        + write_docstring(docstring)
        + write_imports(gathering.imports, gathering.effects)
        + join_pieces(pieces)
    )
    check_complete(text)
    return text


def origin_of(root: Callable | type, package: str) -> Origin:
    """Say where a root is defined.

    Raises:
        InputError: It is not a function or class that stands in a module of the package.
    """
    module = getattr(root, "__module__", None) or ""
    name = getattr(root, "__qualname__", "")
    home = sys.modules.get(module)
    if not f"{module}.".startswith(f"{package}.") or getattr(home, name, None) is not root:
        raise InputError(
            f"cannot gather {root!r}; give functions and classes that stand in modules of "
            f"{package}, not inside others."
        )
    return Origin(module, name)


def is_standard(module: str) -> bool:
    """Tell whether a module belongs to the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names | {"builtins"}


def version_of(package: str) -> str:
    """Read the version of a package, with a space before it; empty where it is not installed."""
    try:
        return f" {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


def check_complete(text: str) -> None:
    """Check that a module names nothing that it does not have.

    Raises:
        InputError: It does.

    Example:
        >>> check_complete("def double(x): return 2 * x")
    """
    missing = find_uses(text).names - bound_names(text) - BUILTINS
    if missing:
        raise InputError(
            f"the text names {sorted(missing)}, which it does not have; add them to the roots."
        )


def write_docstring(docstring: str) -> str:
    """Put a module's docstring into quotes; nothing where there is none."""
    stripped = docstring.strip()
    end = "\n" if "\n" in stripped else ""
    return f'"""{stripped}{end}"""\n\n' if stripped else ""


def join_pieces(pieces: Sequence[Piece]) -> str:
    """Join statements: two empty lines around functions and classes, one between others.

    Those others that stood in touching lines still do.
    """
    text = ""
    before = Piece("")
    for piece in pieces:
        is_touching = (before.module, before.last_line + 1) == (piece.module, piece.first_line)
        gap = "\n" if is_touching else "\n\n"
        text += ("\n\n\n" if before.is_block or piece.is_block else gap) + piece.text
        before = piece
    return f"{text}\n"


def write_imports(imports: set[Import], effects: set[Import]) -> str:
    """Write imports as `ruff` sorts them, the standard library first.

    Args:
        imports: All of them.
        effects: Those whose names are not used.
    """
    sections = ["from __future__ import annotations"]
    for is_own in (True, False):
        section = sorted(
            (step for step in imports if is_standard(step.module) is is_own),
            key=lambda step: (step.module.lower(), step.module, step.alias),
        )
        lines = [_write_import(step, step in effects) for step in section if not step.name]
        for module in dict.fromkeys(step.module for step in section if step.name):
            names = [step for step in section if step.module == module and step.name]
            lines += _write_names(module, names, effects)
        sections += ["\n".join(lines)] if lines else []
    return "\n\n".join(sections)


def _write_import(step: Import, is_effect: bool) -> str:
    alias = f" as {step.alias}" if step.alias not in ("", step.module) else ""
    return f"import {step.module}{alias}{'  # noqa: F401' if is_effect else ''}"


def _write_names(module: str, steps: list[Import], effects: set[Import]) -> list[str]:
    def order(step: Import) -> tuple[int, str, str]:
        if step.name.isupper() and len(step.name) > 1:
            return 0, step.name, step.alias  # constants first, then classes
        return 1 if step.name[0].isupper() else 2, step.name.lower(), step.alias

    ordered = sorted(steps, key=order)
    plain = [step for step in ordered if step.alias == step.name]
    lines = [
        f"from {module} import {step.name} as {step.alias}"
        for step in ordered
        if step.alias != step.name
    ]
    line = f"from {module} import {', '.join(step.name for step in plain)}"
    if any(step in effects for step in plain) or len(line) > LINE_LENGTH:
        parts = [f"    {s.name},{'  # noqa: F401' if s in effects else ''}" for s in plain]
        line = "\n".join([f"from {module} import (", *parts, ")"])
    return [line, *lines] if plain else lines
