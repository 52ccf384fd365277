import ast
import doctest
import importlib
import itertools
import json
import re
import subprocess
import sys
import textwrap
import types

import pytest

from cvpipe import errors, formats
from cvpipe.data import truncation
from cvpipe.errors import InputError
from cvpipe.export.module_text import bound_names, find_uses
from cvpipe.export.single_file import check_complete, gather

NAME = "thrown"  # the package that each test writes for itself
NUMBERS = itertools.count()


class Thrown:
    """A package to throw away."""

    def __init__(self, folder):
        self.folder = folder / NAME
        self.write({"__init__.py": ""})

    def write(self, files):
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        importlib.invalidate_caches()

    def get(self, path):
        module, name = path.split(":")
        return getattr(importlib.import_module(f"{NAME}.{module}"), name)

    def gather(self, *paths, **options):
        return gather([self.get(path) for path in paths], NAME, **options)


class NoPackage:
    """Makes every import of the package fail."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == NAME:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in (NAME, "outside")]:
        del sys.modules[name]


@pytest.fixture
def thrown(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield Thrown(tmp_path)
    forget()


def execute(text, monkeypatch):
    """Run a gathered module where the package cannot be imported."""
    forget()
    module = types.ModuleType(f"gathered_{next(NUMBERS)}")
    module.__file__ = __file__
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look
    with monkeypatch.context() as context:
        context.setattr(sys, "meta_path", [NoPackage(), *sys.meta_path])
        exec(compile(text, "gathered.py", "exec"), module.__dict__)
    return module


def imported(text):
    """List the modules that are imported anywhere in a text."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


# The same results. By name: the files, the expression, and whether names must be there or not.

SAME = {
    "functions, classes and constants of other modules": (
        {
            "a.py": """
                from thrown.b import LIMIT, cut

                def f(values):
                    return cut(values)[:LIMIT]

                def unused():
                    return not_there
                """,
            "b.py": """
                LIMIT = 2
                UNUSED = 1 / 1
                def cut(values):
                    return Cutter().cut(values)
                class Cutter:
                    def cut(self, values):
                        return values[STEP:]
                STEP = 1
                """,
        },
        "f([1, 2, 3, 4])",
        "LIMIT cut Cutter STEP !unused !UNUSED",
    ),
    "constants of constants, several at once": (
        {
            "a.py": """
                from thrown.b import TABLE
                def f():
                    return TABLE, HIGH
                LOW, (HIGH, *REST) = 1, (2, 3)
                """,
            "b.py": """
                FIRST: int = 1
                SECOND = FIRST + 1
                TABLE = {FIRST: [SECOND] * make(2)} if False else {FIRST: SECOND}
                def make(number):
                    return number
                """,
        },
        "f()",
        "FIRST SECOND LOW REST",
    ),
    "a constant made by calling a function": (
        {
            "a.py": """
                from thrown.b import twice
                BASE = 21
                def make():
                    return twice(BASE)
                MADE = make()
                def f():
                    return MADE
                """,
            "b.py": "def twice(x): return FACTOR * x\nFACTOR = 2\n",
        },
        "f()",
        "",
    ),
    "a constant made by several statements": (
        {
            "a.py": """
                import sys
                TABLE, SECOND = {}, {}
                TABLE["a"] = 1
                TABLE.update(b=2)
                ORDER = []
                for key in ("c", "d"):
                    TABLE[key] = len(TABLE)
                    ORDER.append(key)
                TABLE |= {"e": 5}
                if sys.version_info > (3,):
                    TABLE["f"] = 6
                else:
                    TABLE["g"] = 7
                def put(table, name):
                    table[name] = OTHER
                OTHER = 8
                put(TABLE, name="h")
                put(name="i", table=SECOND)
                setattr(TABLE, "x", 1) if False else None
                class Box:
                    pass
                Box.size = 3
                del TABLE["a"]
                def f():
                    return TABLE, SECOND, Box.size
                """
        },
        "f()",
        "ORDER put OTHER",
    ),
    "definitions inside of statements": (
        {
            "a.py": """
                import sys
                try:
                    import no_such_module as fast
                except ImportError:
                    fast = None
                if sys.version_info > (99,):
                    def g(): return 99
                else:
                    def g(): return fast
                with open(__file__) as file:
                    FIRST = len(file.readline()) * 0
                def f():
                    return g(), FIRST
                """
        },
        "f()",
        "",
    ),
    "decorators": (
        {
            "a.py": """
                import functools
                from thrown.b import times

                @functools.lru_cache(maxsize=None)
                @times(3)
                def f(x):
                    return x + 1
                """,
            "b.py": """
                import functools
                def times(number):
                    def decorate(function):
                        @functools.wraps(function)
                        def call(*args):
                            return [function(*args) for _ in range(number + EXTRA)]
                        return call
                    return decorate
                EXTRA = 1
                """,
        },
        "f(1)",
        "times EXTRA",
    ),
    "functions that are registered with another one": (
        {
            "a.py": """
                from functools import singledispatch
                @singledispatch
                def f(x):
                    return "other"
                @f.register
                def of_int(x: int):
                    return name("int")
                @f.register(str)
                def _(x):
                    return name("str")
                def name(x):
                    return x.upper()
                """
        },
        "f(1), f('a'), f(1.0)",
        "of_int",
    ),
    "dataclasses": (
        {
            "a.py": """
                from dataclasses import InitVar, KW_ONLY, astuple, dataclass, field
                import dataclasses
                import typing
                from typing import ClassVar
                from thrown.b import SIZE, Base, default

                @dataclass(frozen=True)
                class Rule(Base):
                    kinds: ClassVar[list] = []
                    others: typing.ClassVar[list] = []
                    start: InitVar[int] = 3
                    size: int = SIZE
                    items: list = field(default_factory=default)
                    _: KW_ONLY
                    last: "Rule | None" = None
                    def __post_init__(self, start):
                        object.__setattr__(self, "name", start)

                def f():
                    rule = Rule(start=5, last=Rule())
                    names = [part.name for part in dataclasses.fields(Rule)]
                    return astuple(rule), names, rule.kinds, rule.others, repr(rule)
                """,
            "b.py": """
                from dataclasses import dataclass
                SIZE = 7
                @dataclass(frozen=True)
                class Base:
                    name: str = "base"
                def default():
                    return [SIZE]
                """,
        },
        "f()",
        "Base default",
    ),
    "named tuples, enums and generic classes": (
        {
            "a.py": """
                import enum
                from typing import Generic, NamedTuple, TypeVar
                T = TypeVar("T")
                class Kind(enum.IntEnum):
                    A = 1
                    B = A + 1
                class Pair(NamedTuple):
                    first: int
                    second: "Kind" = Kind.B
                    def total(self): return self.first + self.second + OFFSET
                OFFSET = 10
                class Box(Generic[T]):
                    def __init__(self, x: T): self.x = x
                def f():
                    return Pair(1).total(), Pair._fields, list(Kind), Box[int](3).x
                """
        },
        "f()",
        "OFFSET T",
    ),
    "base classes, meta classes and what class bodies compute": (
        {
            "a.py": """
                from thrown import b
                from thrown.c import Base, Meta, make, ONLY_HERE, SIZE

                class C(Base, metaclass=Meta, extra=make()):
                    SIZE = SIZE
                    ONLY_HERE = ONLY_HERE + 1
                    table = {key: make() for key in "xy"}
                    @property
                    def size(self): return self._size
                    @size.setter
                    def size(self, value): self._size = value * SIZE
                    @staticmethod
                    def helper(): return make() + "!"
                    class Inner:
                        deep = SIZE
                        def get(self): return super().__repr__ is not None, __class__.deep

                def f():
                    c = C()
                    c.size = 4
                    return (c.size, c.table, C.ONLY_HERE, C.extra, C.helper(), C.Inner().get(),
                            c.hello())
                """,
            "b.py": "raise_if_needed = 1\n",
            "c.py": """
                ONLY_HERE = 5
                SIZE = 6
                def make(): return "made"
                class Meta(type):
                    def __new__(cls, name, bases, space, extra=""):
                        made = super().__new__(cls, name, bases, space)
                        made.extra = extra
                        return made
                class Base(metaclass=Meta):
                    def hello(self): return GREETING
                GREETING = "hello"
                """,
        },
        "f()",
        "Base Meta make SIZE GREETING !raise_if_needed",
    ),
    "default arguments": (
        {
            "a.py": """
                from thrown.b import A, make
                def f(x=A, *args, y=make(), z=lambda: LATE, **kw):
                    return x, y, z()
                LATE = 3
                """,
            "b.py": "A = 1\nB = 2\ndef make(b=B): return b\n",
        },
        "f()",
        "A B make LATE",
    ),
    "names in inner functions, comprehensions and the like": (
        {
            "a.py": """
                from thrown.b import A, B, C, D, E, F, G, H
                def f(values):
                    def inner():
                        nonlocal total
                        total += A
                        return lambda: B
                    total = 0
                    inner()
                    match values:
                        case [C.one, *rest]:
                            total += 100
                    if (found := D) and any(x == E for x in values):
                        total += found
                    try:
                        raise F("x")
                    except F as error:
                        text = f"{error}{G:>{H}}"
                    A_ = [A for A in values]
                    return total, inner()(), text, A_
                """,
            "b.py": """
                A, B, D, E, G, H = 1, 2, 4, 5, 7, 8
                class C:
                    one = 1
                class F(Exception):
                    pass
                """,
        },
        "f([1, 5])",
        "",
    ),
    "local names that are called like others": (
        {
            "a.py": """
                from thrown import b
                def f(helper, values):
                    TABLE = [helper for helper in values]
                    for unused in TABLE: pass
                    import json as other
                    return helper, TABLE, other.dumps(1)
                def helper(): return missing_everywhere
                def other(): return 1
                TABLE = unused = helper
                """,
            "b.py": "",
        },
        "f(1, [2])",
        "!helper !TABLE !unused",
    ),
    "imports from outside, in every form": (
        {
            "a.py": """
                import os.path
                import xml.etree.ElementTree
                import collections.abc as abc, json as json, math
                import numpy as np
                from math import floor as down, ceil
                from os import path
                from thrown.b import text_of
                def unused(): return math, json
                def f():
                    tree = xml.etree.ElementTree.fromstring("<a/>")
                    return (os.path.join("a", "b"), tree.tag, abc.Sized.__name__, down(1.5),
                            ceil(1.5), path.basename("a/b"), np.arange(3).sum(), text_of(1))
                """,
            "b.py": """
                import json
                import tomllib
                def text_of(x): return json.dumps(x)
                def unused(): return tomllib
                """,
        },
        "f()",
        "!tomllib !math json !unused",
    ),
    "imports inside functions": (
        {
            "a.py": """
                def f():
                    import json
                    from os.path import join as put
                    return json.dumps([1]), put("a", "b")
                """
        },
        "f()",
        "!json",
    ),
    "objects under another name and through other modules": (
        {
            "a.py": """
                from thrown.b import handed as own, again, use, np as numbers, floor as down
                from .sub.c import value as imported
                from . import sub
                VALUES = own(1)
                def f():
                    return VALUES, again(2), use(3), imported, numbers.arange(2).sum(), down(2.5)
                """,
            "b.py": """
                import numpy as np
                from math import floor
                from thrown.sub import original as handed
                from thrown.sub import original as again
                from thrown.e import use
                """,
            "sub/__init__.py": "from .c import original\n",
            "sub/c.py": "from ..d import add\nvalue = 5\ndef original(x): return add(x) + value\n",
            "d.py": "def add(x): return x + 1\n",
            "e.py": "from .sub.c import original as own\ndef use(x): return own(x)\n",
        },
        "f()",
        "own again imported original !handed",
    ),
    "modules that import one another": (
        {
            "a.py": """
                BASE = 1
                def even(n): return n == 0 or odd(n - 1)
                from thrown.b import odd, TOP
                def f(n): return even(n), TOP
                """,
            "b.py": """
                from thrown.a import BASE, even
                TOP = BASE + 1
                def odd(n): return n != 0 and even(n - 1)
                """,
        },
        "f(6)",
        "",
    ),
    "packages whose own text comes first": (
        {
            "a.py": """
                from thrown.sub.c import SECOND
                from thrown.sub import FIRST
                def f(): return FIRST, SECOND
                """,
            "sub/__init__.py": "from thrown.d import number\nFIRST = number()\n",
            "sub/c.py": "from thrown.d import number\nSECOND = number()\n",
            "d.py": """
                import itertools
                NUMBERS = itertools.count()
                def number(): return next(NUMBERS)
                """,
        },
        "f()",
        "",
    ),
    "a variable that functions change": (
        {
            "a.py": """
                from thrown.b import count, read
                def f(): return count(), count(), read()
                """,
            "b.py": """
                number = 0
                def count():
                    global number
                    number += 1
                    return number
                def read(): return number
                """,
        },
        "f()",
        "",
    ),
    "what a module imports for its effect": (
        {
            "a.py": "from thrown.b import names\ndef f(): return names()\n",
            "b.py": """
                import outside.effect
                from outside.heavy import heavy
                __all__ = ["names", "heavy"]
                from outside import (
                    other,  # noqa: F401
                    registry,
                )
                def names(): return sorted(registry.NAMES)
                """,
            "../outside/__init__.py": "",
            "../outside/registry.py": "NAMES = []\n",
            "../outside/heavy.py": "heavy = 1\n",
            "../outside/effect.py": "from outside.registry import NAMES\nNAMES.append('e')\n",
            "../outside/other.py": "from outside.registry import NAMES\nNAMES.append('o')\n",
        },
        "f()",
        "!heavy !__all__",
    ),
    "annotations of what is too much": (
        {
            "a.py": """
                from __future__ import annotations
                from collections.abc import Iterator
                from typing import TYPE_CHECKING, Literal
                import outside.heavy as heavy
                from thrown.b import Huge, Kept
                if TYPE_CHECKING:
                    from thrown.c import Never
                Fit = Literal["Huge", "json"]
                Both = Huge | None
                Quoted = dict[str, int]
                TABLE = 1
                class Light: pass
                def f(
                    x: Huge | "Never", *args: "Huge", fit: Fit = "Huge", light: Light = 1,
                    quoted: "Quoted | None" = None, mode: Literal["TABLE"] = "TABLE", **kw: Both
                ) -> Iterator[heavy.Model]:
                    y: Huge = x
                    z: Huge
                    def inner(a: Huge) -> Huge: return a
                    return [inner(y), Kept.__name__]
                """,
            "b.py": """
                import outside.heavy
                class Huge(outside.heavy.Model):
                    pass
                class Kept: pass
                """,
            "../outside/__init__.py": "",
            "../outside/heavy.py": "class Model: pass\n",
        },
        "f(1)",
        "Fit Quoted Iterator Literal !TABLE !Light !Both !Huge !heavy !Never Kept",
    ),
    "asynchronous functions and generators": (
        {
            "a.py": """
                import asyncio
                from thrown.b import source
                async def collect(): return [x async for x in source()]
                def f(): return asyncio.run(collect())
                """,
            "b.py": """
                N = 3
                async def source():
                    for x in range(N): yield x
                """,
        },
        "f()",
        "",
    ),
    "own functions that are called like what is refused": (
        {
            "a.py": """
                from thrown.b import eval as exec
                def f(): return exec(1), globals()
                def globals(): return 2
                """,
            "b.py": "def eval(x): return x + 1\n",
        },
        "f()",
        "eval exec globals",
    ),
    "a name that only a class binds and reads": (
        {
            "a.py": """
                def f(): return C.x, C.y
                class C:
                    x = 1
                    y = x + 1
                    def loaded(self): return 1
                    again = loaded
                """
        },
        "f()",
        "",
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_gathered_functions_give_the_same(case, thrown, monkeypatch):
    files, expression, names = SAME[case]
    thrown.write(files)
    original = eval(expression, dict(vars(importlib.import_module(f"{NAME}.a"))))
    text = thrown.gather("a:f")
    assert eval(expression, execute(text, monkeypatch).__dict__) == original
    assert not {name for name in imported(text) if name.startswith((NAME, "."))}
    bound = bound_names(text)
    for name in names.split():
        assert (name.lstrip("!") in bound) is not name.startswith("!"), name
    assert thrown.gather("a:f", "a:f") == text  # each once, and always the same


def test_nothing_stands_there_twice(thrown):
    for files, *_ in SAME.values():
        thrown.write(files)
        forget()
        statements = [ast.dump(node) for node in ast.parse(thrown.gather("a:f")).body]
        assert len(statements) == len(set(statements))


def test_only_what_is_needed_is_imported(thrown):
    thrown.write({
        "a.py": """
            import json
            import numpy as np
            import pandas as pd
            from thrown.b import g
            def f(x: np.ndarray, y: pd.DataFrame) -> pd.DataFrame: return g(x)
            def h(): return json, pd
            """,
        "b.py": """
            import numpy as np
            def g(x: np.ndarray): return np.sum(x)
            """,
    })  # fmt: skip
    assert imported(thrown.gather("a:f")) == {"__future__", "numpy"}
    assert imported(thrown.gather("b:g")) == {"__future__", "numpy"}
    assert imported(thrown.gather("a:h")) == {"__future__", "json", "pandas"}


# The layout

PACKAGE = {
    "a.py": '''
        """Not taken."""
        import os
        import numpy as np
        from thrown.b import (
            LIMITS,  # a remark that goes with the import
            Rule as Own,
        )

        # A remark on its own, with an empty line below.

        # Why it is so,
        # in two lines.
        STEP = 2  # at most
        OTHER = (
            1,

            STEP,
        )

        LAST = "a\\
        b"
        def f(x: int) -> "Own":
            """Do it.

              Indented  text, with a  tab:	.
            """
            # Inside.
            return Own(x, STEP, LIMITS, OTHER, LAST, np.pi, os.sep)  # behind
        # After.
        ''',
    "b.py": """
        from os import path as way, sep, PathLike, O_RDONLY
        import zlib
        from abc import abstractmethod, ABC
        import ast as tree
        LIMITS = [
            1,
        ]
        LIMITS.append(2)
        # About the class.
        @tree.NodeVisitor.__class__.__call__.__class__
        class Rule(ABC):
            def __init__(self, *args): self.args = (args, way, sep, PathLike, O_RDONLY, zlib)
            @abstractmethod
            def g(self): ...
        """,
}
LAYOUT = '''\
# Generated from the source text of thrown by the rules of
# cvpipe.export.single_file: statements are copied as they are, imports are merged.
# Change thrown instead of this file.
"""What it is.

More.
"""

from __future__ import annotations

import ast as tree
import os
import zlib
from abc import ABC, abstractmethod
from os import O_RDONLY, PathLike, sep
from os import path as way

import numpy as np

LIMITS = [
    1,
]
LIMITS.append(2)


# About the class.
@tree.NodeVisitor.__class__.__call__.__class__
class Rule(ABC):
    def __init__(self, *args): self.args = (args, way, sep, PathLike, O_RDONLY, zlib)
    @abstractmethod
    def g(self): ...


Own = Rule

# Why it is so,
# in two lines.
STEP = 2  # at most
OTHER = (
    1,

    STEP,
)

LAST = "a\\
b"


def f(x: int) -> "Own":
    """Do it.

      Indented  text, with a  tab:	.
    """
    # Inside.
    return Own(x, STEP, LIMITS, OTHER, LAST, np.pi, os.sep)  # behind


run = f
'''


def test_layout(thrown):
    thrown.write(PACKAGE)
    spec = importlib.util.find_spec(f"{NAME}.a")
    # It is never executed, which its decorator would not survive.
    module = types.ModuleType(spec.name)
    module.f = types.FunctionType((lambda x: x).__code__, {}, "f")
    module.f.__module__, module.f.__qualname__ = spec.name, "f"
    module.__spec__ = spec
    sys.modules[spec.name] = module
    text = gather([module.f], NAME, docstring="What it is.\n\nMore.\n", tail="\nrun = f\n")
    assert text == LAYOUT


def test_long_imports_are_broken_and_effects_marked(thrown, monkeypatch):
    names = [f"a_rather_long_name_{number}" for number in range(6)]
    thrown.write({
        "../outside/__init__.py": "",
        "../outside/one.py": "\n".join(f"{name} = 1" for name in [*names, "UNUSED"]),
        "../outside/two.py": "",
        "a.py": f"""
            import outside.two
            from outside.one import {", ".join(reversed(names))}
            from outside.one import UNUSED
            def f(): return {" + ".join(names)}
            """,
    })  # fmt: skip
    text = thrown.gather("a:f")
    block = ["    UNUSED,  # noqa: F401", *(f"    {name}," for name in names)]
    expected = ["import outside.two  # noqa: F401", "from outside.one import (", *block, ")", ""]
    assert "\n\n" + "\n".join(expected) in text
    assert execute(text, monkeypatch).f() == 6


def test_real_functions_are_gathered_in_good_style(tmp_path):
    roots = [errors.check_name, formats.find_format, truncation.ends_early, gather]
    (tmp_path / "made.py").write_text(gather(roots), encoding="utf-8")
    for command in (["check", "--select", "E,F,I,W,B", "--ignore", "F821"], ["format", "--check"]):
        answer = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "100",
             "--target-version", "py311", str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout


def test_docstrings_of_real_functions_still_hold(monkeypatch):
    roots = [errors.check_name, formats.find_format, truncation.ends_early]
    module = execute(gather(roots), monkeypatch)
    assert doctest.testmod(module) == (0, 5)


def test_gathering_gathers_itself(thrown, monkeypatch):
    """The gathered program gathers as the original does, so nothing of it was lost."""
    thrown.write(SAME["dataclasses"][0])
    expected = thrown.gather("a:f")
    module = execute(gather([gather]), monkeypatch)
    found = module.gather([thrown.get("a:f")], NAME)
    assert found.replace(module.__name__, "cvpipe.export.single_file") == expected


def test_version_of_an_installed_package():
    assert re.match(
        r"# Generated from the source text of cvpipe \d+\.\d+\.\d+ by ", gather([InputError])
    )


# Other text in an object's place

REPLACED = {
    "a.py": """
        from thrown.b import decode, Error
        def f(x): return decode(x)
        """,
    "b.py": """
        LIMIT = 3
        class Error(ValueError): pass
        def helper(): return 1
        # To be replaced.
        def decode(x):
            from thrown.c import heavy
            return heavy(x, helper())
        AFTER = decode
        def unused(): return 1
        X = Y = 1
        """,
    "c.py": "def heavy(x, y): return x + y\n",
}
OTHER = "def decode(x):\n    raise Error(f'not {x}, {LIMIT}')\n"


def test_other_text_stands_in_an_objects_place(thrown, monkeypatch):
    thrown.write(REPLACED)
    text = thrown.gather("a:f", without={"thrown.b.decode": OTHER})
    module = execute(text, monkeypatch)
    with pytest.raises(module.Error, match="not 1, 3"):
        module.f(1)
    assert not {"helper", "heavy", "AFTER"} & bound_names(text)
    assert "To be replaced" not in text


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ({"b.decoder": OTHER}, "cannot replace 'thrown.b.decoder', because no statement of"),
        ({"b.X": "X = 1"}, "cannot replace 'thrown.b.X', because no statement of"),
        ({"b.decode": OTHER, "b.unused": "unused = 1"}, "needs 'thrown.b.unused', for which"),
        ({"b.decode": OTHER, "b.helper": "helper = 1"}, "nothing that is gathered needs "),
        ({"b.decode": "def decode(:"}, "is not one statement; write one function"),
        ({"b.decode": "decode = 1\nx = 2"}, "is not one statement"),
        ({"b.decode": ""}, "is not one statement"),
        ({"b.decode": "decoder = 1"}, r"defines \['decoder'\]; define 'decode'\."),
        ({"b.decode": "decode = x = 1"}, r"defines \['decode', 'x'\]; define 'decode'\."),
        ({"b.decode": "decode = missing"}, "line 1 of thrown.b uses 'missing'"),
        ({"b.decode": "from thrown.c import heavy as decode"}, "decode in thrown.b imports thr"),
    ],
)
def test_other_text_that_cannot_be_used(without, message, thrown):
    thrown.write(REPLACED)
    with pytest.raises(InputError, match=message):
        thrown.gather("a:f", without={f"thrown.{key}": text for key, text in without.items()})


# What is refused. By name: the files and the message.

REFUSED = {
    "two functions of one name": (
        {
            "a.py": "from thrown.b import g\ndef f(): return g(), h()\ndef h(): return 1\n",
            "b.py": "def g(): return h()\ndef h(): return 2\n",
        },
        r"two different objects are called 'h': thrown\.[ab]\.h and thrown\.[ab]\.h; one file "
        "cannot hold both, so rename one of them",
    ),
    "a constant and an import of one name": (
        {
            "a.py": "import json\nfrom thrown.b import g\ndef f(): return g(), json\n",
            "b.py": "json = 1\ndef g(): return json\n",
        },
        r"are called 'json': (json and thrown\.b\.json|thrown\.b\.json and json);",
    ),
    "two imports of one name": (
        {
            "a.py": "from math import floor\nfrom thrown.b import g\ndef f(): return g(), floor\n",
            "b.py": "from numpy import floor\ndef g(): return floor\n",
        },
        r"are called 'floor': .*(math\.floor and numpy\.floor|numpy\.floor and math\.floor)",
    ),
    "an object that hides a builtin of another module": (
        {
            "a.py": "from thrown.b import max\nfrom thrown.c import g\ndef f(): return max, g()\n",
            "b.py": "def max(*args): return 1\n",
            "c.py": "def g(): return max(1, 2)\n",
        },
        r"are called 'max': (thrown\.b\.max and builtins\.max|builtins\.max and thrown\.b\.max)",
    ),
    "an alias that is another object elsewhere": (
        {
            "a.py": "from thrown.b import g as h\nfrom thrown.b import k\ndef f(): return h, k()\n",
            "b.py": "def g(): return 1\ndef h(): return 2\ndef k(): return h()\n",
        },
        r"are called 'h': ",
    ),
    "one name for two imports of a module": (
        {"a.py": "from math import floor as g\nfrom math import ceil as g\ndef f(): return g\n"},
        r"thrown\.a calls both math\.ceil and math\.floor 'g'; rename one",
    ),
    "a name that is imported and defined": (
        {"a.py": "from math import floor\nfloor = abs(floor(1))\ndef f(): return floor\n"},
        r"thrown\.a imports 'floor' and defines it, too; rename one",
    ),
    "a name that is nowhere": (
        {"a.py": "def f():\n    if False:\n        return missing\n"},
        r"line 3 of thrown\.a uses 'missing', which is neither defined nor imported there",
    ),
    "a name that only functions make": (
        {"a.py": "def f():\n    global made\n    made = 1\n"},
        r"line 3 of thrown\.a uses 'made', which is neither",
    ),
    "a name for type checkers": (
        {
            "a.py": """
                import typing
                if typing.TYPE_CHECKING:
                    from json import dumps
                def f(): return dumps(1)
                """
        },
        r"line 4 of thrown\.a uses 'dumps', which is there for type checkers only; import it at",
    ),
    "everything of a module": (
        {"a.py": "from thrown.b import *\ndef f(): return 1\n", "b.py": "x = 1\n"},
        r"thrown\.a imports `\*`; import the names",
    ),
    "everything of an outside module": (
        {"a.py": "from math import *\ndef f(): return floor(1)\n"},
        r"imports `\*`; import the names",
    ),
    "an import of the package inside a function": (
        {"a.py": "def f():\n    from thrown.b import x\n    return x\n", "b.py": "x = 1\n"},
        r"f in thrown\.a imports thrown\.b when it runs; import it at the top of the module, or",
    ),
    "a relative import inside a method": (
        {
            "a.py": """
                def f(): return C().g()
                class C:
                    def g(self):
                        from . import b
                        return b.x
                """,
            "b.py": "x = 1\n",
        },
        r"C in thrown\.a imports thrown when it runs",
    ),
    "an import of the package that may fail": (
        {
            "a.py": """
                try:
                    from thrown.b import x
                except ImportError:
                    x = None
                def f(): return x
                """,
            "b.py": "x = 1\n",
        },
        r"x in thrown\.a imports thrown\.b when it runs",
    ),
    "an import of the package by a text": (
        {
            "a.py": """
                import importlib
                def f(): return importlib.import_module("thrown.b").x
                """,
            "b.py": "x = 1\n",
        },
        r"f in thrown\.a imports thrown\.b when it runs",
    ),
    "a module of the package as a whole": (
        {"a.py": "from thrown import b\ndef f(): return b.x\n", "b.py": "x = 1\n"},
        r"thrown\.a imports the module thrown\.b as a whole, so it cannot be told what it needs",
    ),
    "a module of the package by its full name": (
        {"a.py": "import thrown.b\ndef f(): return thrown.b.x\n", "b.py": "x = 1\n"},
        r"thrown\.a imports the module thrown as a whole",
    ),
    "a module of the package under an alias": (
        {"a.py": "import thrown.b as c\ndef f(): return c.x\n", "b.py": "x = 1\n"},
        r"thrown\.a imports the module thrown\.b as a whole",
    ),
    "what a module makes when it is asked": (
        {
            "__init__.py": "def __getattr__(name): return 1\n",
            "a.py": "from thrown import lazily\ndef f(): return lazily\n",
        },
        r"thrown\.a imports 'lazily' from thrown, whose text does not define it; import it from",
    ),
    "a dotted module that is handed on": (
        {
            "a.py": "from thrown.b import os\ndef f(): return os.path\n",
            "b.py": "import os.path\n",
        },
        r"thrown\.a imports 'os' through thrown\.b; import it directly",
    ),
    "names by text": (
        {"a.py": "x = 1\ndef f(): return globals()['x']\n"},
        r"line 2 of thrown\.a uses 'globals', of which it cannot be told what it needs",
    ),
    "code by text": ({"a.py": "def f(): return eval('x')\n"}, "uses 'eval', of which"),
    "two statements in a line": (
        {"a.py": "x = 1\n\ny = 2; z = 3\ndef f(): return x\n"},
        r"line 3 of thrown\.a has two statements; write one in each line",
    ),
    "a statement that may change anything": (
        {"a.py": "import numpy as np\nnp.seterr(all='warn')\ndef f(): return np.pi\n"},
        r"line 2 of thrown\.a has an effect, but on none of the names that the module defines",
    ),
    "a call that may change anything": (
        {"a.py": "def g(): return 1\ng()\ndef f(): return 1\n"},
        r"line 2 of thrown\.a has an effect",
    ),
    "a check": ({"a.py": "assert 1\ndef f(): return 1\n"}, r"line 1 of thrown\.a has an effect"),
    "a variable that changes behind an import": (
        {
            "a.py": "from thrown.b import n, count\ndef f(): return count(), n\n",
            "b.py": "n = 0\ndef count():\n    global n\n    n += 1\n",
        },
        r"thrown\.b binds 'n' anew by `global`, which modules that import it do not see",
    ),
    "a function that is made by another name": (
        {"a.py": "import sys\nvars(sys.modules[__name__])['f'] = type('f', (), {})\n"},
        r"line 2 of thrown\.a has an effect|does not define 'f'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(case, thrown):
    files, message = REFUSED[case]
    thrown.write(files)
    with pytest.raises(InputError, match=message):
        thrown.gather("a:f")


def test_what_is_refused_elsewhere_does_not_matter(thrown, monkeypatch):
    """A module that gives nothing may hold anything."""
    thrown.write({
        "a.py": """
            from thrown.b import x
            import thrown.c
            from thrown.d import z
            def f(): return x
            """,
        "b.py": "if __name__ == '__main__':\n    raise SystemExit\n...\npass\nx = 1\n'text'\n",
        "c.py": "import numpy as np; np.seterr(all='warn')\nfrom thrown.b import *\n",
        "d.py": "z = __import__('thrown.b')\nassert z\ndef f(): return 2\nprint(end='')\n",
    })  # fmt: skip
    text = thrown.gather("a:f")
    assert execute(text, monkeypatch).f() == 1
    assert "__main__" not in text


class Here:
    def method(self):
        """Stands inside a class."""


@pytest.mark.parametrize(
    "root",
    [json.dumps, len, lambda: 1, Here, Here.method, Here().method, 3, None, errors, int],
    # Not by `repr`: an address differs from one process to the next.
    ids=["other", "builtin", "lambda", "test", "method", "bound", "3", "None", "module", "type"],
)
def test_roots_that_are_none(root):
    with pytest.raises(InputError, match=r"cannot gather .*; give functions and classes that"):
        gather([root])


def test_a_root_that_was_replaced_or_stands_inside(thrown):
    thrown.write({"a.py": "def f(): return 1\nclass C:\n    def g(self): return 1\n"})
    old = thrown.get("a:f")
    with pytest.raises(InputError, match="cannot gather"):
        gather([thrown.get("a:C").g], NAME)
    importlib.import_module(f"{NAME}.a").f = lambda: 2
    with pytest.raises(InputError, match="cannot gather"):
        gather([old], NAME)


def test_a_neighbour_whose_name_begins_alike_is_outside(thrown, monkeypatch, tmp_path):
    thrown.write({
        "a.py": "from thrown_too import x\ndef f(): return x\n",
        "../thrown_too.py": "x = 3\n",
    })  # fmt: skip
    text = thrown.gather("a:f")
    assert "from thrown_too import x" in text
    assert execute(text, monkeypatch).f() == 3


def test_a_module_without_source_is_refused(thrown):
    thrown.write({"a.py": "from thrown.b import x\ndef f(): return x\n", "b.py": "x = 1\n"})
    import py_compile

    py_compile.compile(str(thrown.folder / "b.py"), cfile=str(thrown.folder / "b.pyc"))
    (thrown.folder / "b.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"the module 'thrown\.b' has no source text"):
        thrown.gather("a:f")


def test_the_end_of_the_file(thrown, monkeypatch):
    thrown.write({"a.py": "def f(): return 1\n"})
    text = thrown.gather("a:f", tail="\n\nrun = f\nx, y = run(), len([])\n\n")
    assert text.endswith("def f(): return 1\n\n\nrun = f\nx, y = run(), len([])\n")
    assert execute(text, monkeypatch).x == 1
    with pytest.raises(InputError, match=r"are called 'f': thrown\.a\.f and the end of the file.f"):
        thrown.gather("a:f", tail="f = 1")
    with pytest.raises(InputError, match=r"the text names \['g'\], which it does not have"):
        thrown.gather("a:f", tail="run = g")


def test_missing_names_are_found():
    check_complete("import os.path\nfor x in y_ if (y_ := [1]) else (): print(os, x, __name__)")
    check_complete("def f(a: missing, *b: missing) -> missing:\n    c: missing = 1\n    return c")
    for text in ("def f(): return lambda: missing", "class C:\n    x = missing", "missing.x = 1"):
        with pytest.raises(InputError, match=r"names \['missing'\]"):
            check_complete(text)


def test_uses_are_those_that_the_compiler_sees():
    uses = find_uses(
        "@d\ndef f(a=b, *, c: ann = e) -> ann:\n"
        "    global g, h\n    g = i(a, c)\n    local: ann = g\n"
        "    return [x + j for x in local], lambda k: k + l, h\n"
    )
    assert uses.names == {"d", "b", "e", "g", "h", "i", "j", "l"}
    assert uses.rebound == {"g"}
    assert find_uses("class C:\n    x = x\n    y = z\n").perhaps == {"x"}
