"""Take the text of a module apart: what each statement binds, changes and needs.

Nothing is executed. Which names a function takes from its module is asked of Python's own
compiler, by `symtable`. Annotations count as text: they bind and need nothing.
"""

import ast
import importlib.util
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cvpipe.errors import InputError

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Origin(NamedTuple):
    """Where an object is defined; an empty name means the module itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Import:
    """One name that an import statement binds.

    Attributes:
        module: Absolute name of the module.
        name: What is taken from it; empty: the module itself.
        alias: What it is called; empty: `import a.b`, which binds `a`.
    """

    module: str
    name: str
    alias: str

    @property
    def bound(self) -> str:
        """The name that it binds."""
        return self.alias or self.module.partition(".")[0]

    @property
    def origin(self) -> Origin:
        """What it binds the name to."""
        return Origin(self.module, self.name) if self.alias else Origin(self.bound, "")


class Uses(NamedTuple):
    """The names of its module that a piece of text needs.

    Attributes:
        names: Those that it surely needs.
        perhaps: Those that a class binds as well as reads.
        rebound: Those that a function binds anew, by `global`.
    """

    names: frozenset[str]
    perhaps: frozenset[str]
    rebound: frozenset[str]


@dataclass(eq=False)
class Statement:
    """A statement of a module, not inside another one.

    Attributes:
        module: Name of the module.
        node: The statement, parsed.
        text: Its lines, with the comments directly above.
        first_line: Number of the first of these lines.
    """

    module: str
    node: ast.stmt
    text: str
    first_line: int

    @property
    def last_line(self) -> int:
        """Number of its last line."""
        return self.first_line + self.text.count("\n")

    @cached_property
    def bound(self) -> frozenset[str]:
        """The names that it binds."""
        return bound_names(self.text)

    @cached_property
    def uses(self) -> Uses:
        """The names that it needs when it is executed or what it defines is called."""
        return find_uses(self.text)

    @cached_property
    def annotated(self) -> frozenset[str]:
        """The names that its annotations mention."""
        return frozenset(names_in_annotations(self.node))

    def line_of(self, name: str) -> int:
        """Number of the first line that has a name in it."""
        nodes = [n for n in ast.walk(self.node) if isinstance(n, ast.Name) and n.id == name]
        return min([node.lineno for node in nodes], default=self.node.lineno)


class Module:
    """The text of a module, taken apart.

    Attributes:
        name: Absolute name.
        is_package: Whether it may have modules of its own.
        steps: What it does when it is imported, in order.
        type_only: Names that are bound for type checkers only.
    """

    def __init__(self, name: str, source: str, *, is_package: bool) -> None:
        self.name = name
        self.is_package = is_package
        self.steps: list[Statement | Import] = []
        self.type_only: set[str] = set()
        self._shared_lines: list[int] = []
        self._tree = ast.parse(source)
        lines = source.split("\n")  # as `ast` counts them; `splitlines` knows more line ends
        end = 0
        for node in self._tree.body:
            if first_line_of(node) <= end:
                self._shared_lines.append(end)
            self._add(node, lines, end)
            end = node.end_lineno or end

    def _add(self, node: ast.stmt, lines: list[str], end: int) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.steps += imports_of(node, self.home)
        elif is_for_type_checkers(node):
            self.type_only |= bound_names(ast.unparse(node))
        elif not does_nothing(node):
            first = first_line_of(node)
            while first - 1 > end and lines[first - 2].startswith("#"):
                first -= 1
            text = "\n".join(lines[first - 1 : node.end_lineno])
            self.steps.append(Statement(self.name, node, text, first))

    @property
    def home(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.is_package else parent_of(self.name)

    @property
    def statements(self) -> list[Statement]:
        """Its statements other than imports."""
        return [step for step in self.steps if isinstance(step, Statement)]

    @cached_property
    def read(self) -> frozenset[str]:
        """All names that are read in it."""
        return names_read(self._tree)

    @cached_property
    def imports(self) -> dict[str, list[Import]]:
        """Its imports by the name that they bind."""
        found: dict[str, list[Import]] = {}
        for step in self.steps:
            if isinstance(step, Import):
                found.setdefault(step.bound, []).append(step)
        return found

    @cached_property
    def definitions(self) -> dict[str, list[Statement]]:
        """By each name that it defines the statements that bind it or change its object."""
        known = {name for statement in self.statements for name in statement.bound}
        found: dict[str, list[Statement]] = {}
        for statement in self.statements:
            for name in known & {*statement.bound, *changed_objects(statement.node, known)}:
                found.setdefault(name, []).append(statement)
        return found

    def replace(self, name: str, text: str) -> None:
        """Put other text in the place of a definition.

        Raises:
            InputError: There is no such definition, it defines something else as well, or the
                text is not one statement that binds the name.
        """
        key = f"{self.name}.{name}"
        old = self.definitions.get(name, [])
        if not old or any(statement.bound != {name} for statement in old):
            raise InputError(
                f"cannot replace {key!r}, because no statement of {self.name} defines it and "
                "nothing else; name a function, a class or a constant of the module."
            )
        try:
            (node,) = ast.parse(text).body
        except (SyntaxError, ValueError):
            raise InputError(
                f"the text in place of {key!r} is not one statement; write one function, class "
                "or assignment."
            ) from None
        new = Statement(self.name, node, text.strip("\n"), old[0].first_line)
        if new.bound != {name}:
            raise InputError(
                f"the text in place of {key!r} defines {sorted(new.bound)}; define {name!r}."
            )
        position = self.steps.index(old[0])
        self.steps = [step for step in self.steps if step not in old]
        self.steps.insert(position, new)
        del self.definitions  # they are looked for anew

    def check(self) -> None:
        """Refuse a module of which it cannot be told what belongs to what.

        Raises:
            InputError: Lines hold several statements, a statement has an effect on nothing that
                the module defines, or a name is both imported and defined, or imported by `*`.
        """
        if self._shared_lines:
            raise InputError(
                f"line {self._shared_lines[0]} of {self.name} has two statements; write one in "
                "each line."
            )
        owned = {statement for found in self.definitions.values() for statement in found}
        for statement in self.statements:
            if statement not in owned:
                raise InputError(
                    f"line {statement.node.lineno} of {self.name} has an effect, but on none of "
                    "the names that the module defines, so it cannot be told who needs it; move "
                    "it into a function."
                )
        if "*" in self.imports:
            raise InputError(f"{self.name} imports `*`; import the names that it uses.")
        for name in sorted(self.definitions):
            if name in self.imports:
                raise InputError(f"{self.name} imports {name!r} and defines it, too; rename one.")


def read_module(name: str) -> Module:
    """Read the text of a module.

    Raises:
        InputError: There is none.
    """
    spec = importlib.util.find_spec(name)
    get_source = getattr(spec.loader, "get_source", None) if spec else None
    source = get_source(name) if get_source else None
    if spec is None or source is None:
        raise InputError(f"the module {name!r} has no source text; only Python can be gathered.")
    return Module(name, source, is_package=spec.submodule_search_locations is not None)


def parent_of(module: str) -> str:
    """Name the package that a module is in."""
    return module.rpartition(".")[0]


def first_line_of(node: ast.stmt) -> int:
    """Number of the line that a statement begins in, with its decorators."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def imports_of(node: ast.Import | ast.ImportFrom, home: str) -> list[Import]:
    """List what an import statement binds.

    Args:
        node: The statement.
        home: The package that relative names start from.
    """
    if isinstance(node, ast.Import):
        return [Import(alias.name, "", alias.asname or "") for alias in node.names]
    if node.module == "__future__":
        return []
    module = importlib.util.resolve_name("." * node.level + (node.module or ""), home)
    return [Import(module, alias.name, alias.asname or alias.name) for alias in node.names]


def is_for_type_checkers(node: ast.stmt) -> bool:
    """Tell whether a statement is never executed, but read by type checkers."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def does_nothing(node: ast.stmt) -> bool:
    """Tell whether a statement does nothing when its module is imported, such as a docstring."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant or isinstance(node, ast.Pass)


def bound_names(text: str) -> frozenset[str]:
    r"""List the names that a module of this text has, imported ones as well.

    Example:
        >>> sorted(bound_names("import os.path\nfor x in y: z = x"))
        ['os', 'x', 'z']
    """
    symbols = symtable.symtable(text, "<text>", "exec").get_symbols()
    return frozenset(s.get_name() for s in symbols if s.is_assigned() or s.is_imported())


def find_uses(text: str) -> Uses:
    r"""List the names of its module that a piece of text needs, as Python's compiler sees them.

    Example:
        >>> sorted(find_uses("def f(x: a, y=b):\n    z = x\n    return c(z)").names)
        ['b', 'c']
    """
    names: set[str] = set()
    perhaps: set[str] = set()
    rebound: set[str] = set()
    bare = ast.unparse(_WithoutAnnotations().visit(ast.parse(text)))
    tables = [symtable.symtable(bare, "<text>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            name = symbol.get_name()
            if table.get_type() == "module":
                names.update([name] if symbol.is_referenced() else [])
            elif symbol.is_global():
                names.add(name)
                rebound.update([name] if symbol.is_assigned() else [])
            elif table.get_type() == "class" and symbol.is_local() and symbol.is_referenced():
                perhaps.add(name)
    return Uses(frozenset(names), frozenset(perhaps), frozenset(rebound))


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)  # the name before it is still bound, or local
        self.generic_visit(node)
        return node


def changed_objects(node: ast.stmt, known: set[str]) -> Iterator[str]:
    """List names whose objects a statement changes without binding them anew.

    These are the targets of `x.a = ...` and `x[...] = ...`, what a call that stands alone is made
    on or is handed, and what a decorator is a method of: `@x.register`.

    Args:
        node: The statement.
        known: Names that its module defines; what is called on others changes its arguments.
    """
    if isinstance(node, DEFINITIONS):
        for decorator in node.decorator_list:
            function = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(function, ast.Attribute):
                yield innermost_name(function)
        return
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute | ast.Subscript) and not isinstance(part.ctx, ast.Load):
            yield innermost_name(part)
        elif isinstance(part, ast.Expr):
            yield from _changed_by_expression(part.value, known)


def _changed_by_expression(node: ast.expr, known: set[str]) -> Iterator[str]:
    if not isinstance(node, ast.Call):
        yield from names_read(node)
    elif isinstance(node.func, ast.Attribute) and innermost_name(node.func) in known:
        yield innermost_name(node.func)
    else:
        handed = [*node.args, *(keyword.value for keyword in node.keywords)]
        yield from (name for argument in handed for name in names_read(argument))


def innermost_name(node: ast.expr) -> str:
    """Name what an expression such as `x.a[0]` begins with; empty where that is no name."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def names_read(tree: ast.AST) -> frozenset[str]:
    """List all names that are read somewhere; annotations and `__all__` read as well."""
    found = names_in_annotations(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            found.update(texts_in(node.value))
    return frozenset(found)


def texts_in(tree: ast.AST) -> list[str]:
    """List the strings in an expression."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node.value for node in nodes if isinstance(node.value, str)]


def names_in_annotations(tree: ast.AST) -> set[str]:
    """List the names that the annotations inside a piece of text mention."""
    annotations = [
        annotation
        for node in ast.walk(tree)
        for field in ("annotation", "returns")
        if (annotation := getattr(node, field, None)) is not None
    ]
    return {name for annotation in annotations for name in _names_in_annotation(annotation)}


def _names_in_annotation(node: ast.AST) -> set[str]:
    """List the names in an annotation, in quoted parts of it as well, but not in a `Literal`."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        return _names_in_annotation(node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _names_in_annotation(ast.parse(node.value, mode="eval"))
        except SyntaxError:
            return set()  # a remark in an `Annotated`
    return {name for part in ast.iter_child_nodes(node) for name in _names_in_annotation(part)}
