"""The rules of the house, read off the source: imports, the backend, sizes."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import keras
import pytest

import kgpt

# Each part may import, at the top of a file, itself and the parts before it.
ORDER = (
    *("keywords", "arguments", "console", "files", "reading", "hdf5", "locks", "text", "tokenizer"),
    *("distribution", "data", "kernels"),
    *("initializers", "low_rank", "layers", "losses", "metrics", "adamw", "muon", "settings"),
    *("recipes", "generation", "models", "convert", "callbacks", "plot", "plan"),
)
# The files and folders that may ask for the backend.
BACKEND = (
    "kernels/",
    "generation/",
    "convert/",
    "data/batches.py",
    "data/sources.py",
    "data/text_sources.py",
    "data/windows.py",
    "settings.py",
    "callbacks/random_states.py",
    "models/task.py",
)
BACKENDS = ("tensorflow", "jax", "torch")
MOST_LINES, MOST_FUNCTION_LINES = 400, 50
# What one reads to understand a GPT and its training, and how many lines of code it may be.
TO_READ = ("layers/", "losses.py", "models/backbone.py", "models/causal_lm.py")
MOST_LINES_TO_READ = 700
MAPPED = (".", "data", "kernels", "layers", "models")  # of the other folders one line says enough
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Methods that Keras calls and documents, and what a fit asks callbacks for. Those of kgpt's models
# that a subclass may define are listed in the docstring of their class.
OF_KERAS = {
    *("build", "call", "compute_output_shape", "compute_output_spec", "load_own_variables"),
    *("get_config", "from_config", "get_compile_config", "compile_from_config"),
    *("make_train_function", "train_step", "test_step", "compute_metrics", "metrics"),
    *("update_state", "result", "add_variable", "update_step"),
    *("around_fit", *(name for name in dir(keras.callbacks.Callback) if name.startswith("on_"))),
}


# === The checks: each gives a list of violations, "file:line: rule" ===


def imports_to_the_right(root):
    """Imports at the top of a file that run against the order of the parts."""
    found = []
    for name, tree in sources(root):
        part = name.split("/")[0].removesuffix(".py")
        if name == "__init__.py":
            continue
        if part not in ORDER:
            found.append(f"{name}:1: {part!r} has no place in the order of imports")
            continue
        for node in top_level(tree):
            for module in imported_modules(node, name):
                package, _, other = module.partition(".")
                if package == "kgpt":
                    other = other.split(".")[0]
                    if other not in ORDER[: ORDER.index(part) + 1]:
                        found.append(
                            f"{name}:{node.lineno}: {part!r} must not know {module!r}, to its right"
                        )
    return found


def backend_outside_its_files(root):
    """Questions for the backend and imports of one, in files that are not for that."""
    found = []
    for name, tree in sources(root):
        if name.startswith(BACKEND):
            continue
        for node in ast.walk(tree):
            if asks_for_backend(node):
                found.append(f"{name}:{node.lineno}: asks for the backend")
            for module in imported_modules(node, name):
                if module.split(".")[0] in BACKENDS:
                    found.append(f"{name}:{node.lineno}: imports {module}")
    return found


def too_long(root):
    """Files and functions, without their docstrings, of too many lines."""
    found = []
    for path in sorted(root.rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines >= MOST_LINES:
            name = path.relative_to(root).as_posix()
            found.append(f"{name}:{lines}: a file must have fewer than {MOST_LINES} lines")
    for name, tree in sources(root):
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                lines = node.end_lineno - node.lineno + 1 - len(docstring_lines(node))
                if lines >= MOST_FUNCTION_LINES:
                    found.append(
                        f"{name}:{node.lineno}: {node.name} has {lines} lines; a function must "
                        f"have fewer than {MOST_FUNCTION_LINES} without its docstring"
                    )
    return found


def too_much_to_read(root):
    """The lines of code of what one reads to understand a GPT, if they are too many."""
    counts = {
        name: len(code_lines(root / name, tree))
        for name, tree in sources(root)
        if name.startswith(TO_READ)
    }
    total = sum(counts.values())
    if total <= MOST_LINES_TO_READ:
        return []
    return [
        f"{name}:{count}: of {total} lines of code to read, of at most {MOST_LINES_TO_READ}"
        for name, count in counts.items()
    ]


def incomplete_docstrings(objects):
    """Public functions, classes and methods without a section that applies to them."""
    found, seen = [], []
    for name, thing in objects:
        if any(thing is other for other in seen):
            continue
        seen.append(thing)
        if isinstance(thing, property):
            if not inspect.getdoc(thing):
                found.append(f"{name}: has no docstring")
            continue
        docstring = inspect.cleandoc(thing.__doc__ or "")
        is_class = inspect.isclass(thing)
        has_call = is_class and issubclass(thing, keras.layers.Layer)
        needed = {
            "Args": parameters(thing),
            "Call arguments": has_call,
            "Returns": has_call if is_class else returns(thing),
            "Raises": any(map(refuses, constructors(thing))) if is_class else refuses(thing),
            "Example": True,
        }
        missing = [part for part, is_needed in needed.items() if is_needed]
        missing = [part for part in missing if not section(docstring, part)]
        if "Args" not in missing:
            known = set(re.findall(r"\w+", " ".join(entries(section(docstring, "Args")))))
            missing += [f"argument {name}" for name in parameters(thing) if name not in known]
        if missing:
            found.append(f"{name}: its docstring lacks {', '.join(missing)}")
    return found


# === Reading docstrings ===


def public_objects(package):
    """`(name, object)` of the public functions and classes of a package, and of their methods."""
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.ismodule(thing):
            yield from ((f"{name}.{inner}", found) for inner, found in public_objects(thing))
            continue
        yield name, thing
        if inspect.isclass(thing):
            yield from ((f"{name}.{method}", found) for method, found in public_methods(thing))


def public_methods(thing):
    """`(name, method)` of what a class or its bases in kgpt define for users to call."""
    bases = [base for base in thing.__mro__ if base.__module__.startswith("kgpt.")]
    left_out = OF_KERAS.union(*(hooks(base) for base in bases))
    defined = {name: value for base in reversed(bases) for name, value in vars(base).items()}
    for name, value in defined.items():
        value = inspect.unwrap(getattr(value, "__func__", value))
        is_own = getattr(value, "__module__", "").startswith("kgpt.")
        is_method = inspect.isfunction(value) and is_own
        if name.startswith("_") or name in left_out:
            continue
        if is_method or isinstance(value, property):
            yield name, value


def hooks(thing):
    """The methods that a class's docstring lists under "A subclass defines", or may define."""
    lists = re.findall(r"^ *A subclass .*:\n((?: +.*\n|\n)+)", thing.__doc__ or "", re.M)
    return set(re.findall(r"^ +(\w+)\(", "\n".join(lists), re.M))


def section(docstring, name):
    """The indented lines under `name:`; a named tuple's arguments are its attributes."""
    name = "(?:Args|Attributes)" if name == "Args" else f"{name}s?"
    found = re.search(rf"^{name}:\n((?: +.*(?:\n|$)|\n)+)", docstring, re.M)
    return found[1] if found else ""


def entries(section):
    """What stands before the colons of a section's entries: names of arguments."""
    return re.findall(r"^    (\S[^:]*):", section, re.M)


def parameters(thing):
    """The names of a function's parameters, or of a constructor's; without `self` and `cls`."""
    function = constructors(thing)[0] if inspect.isclass(thing) else inspect.unwrap(thing)
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", "cls", "_cls")]


def constructors(thing):
    """What of a class takes and refuses its arguments; `__new__` is a named tuple's."""
    if issubclass(thing, tuple):
        return [thing.__new__]
    methods = (thing.__init__, getattr(thing, "build", None))
    return [inspect.unwrap(method) for method in methods if inspect.isfunction(method)]


def returns(function):
    """Whether a function returns or yields something."""
    node = definition(function)
    if isinstance(node.returns, ast.Constant):  # None
        return False
    return any(
        isinstance(part, ast.Yield | ast.YieldFrom)
        or (isinstance(part, ast.Return) and part.value is not None)
        for part in without_inner_functions(node)
    )


def refuses(function):
    """Whether a function raises errors, by itself or by `@checked`."""
    if not function.__module__.startswith("kgpt."):
        return False
    node = definition(function)
    is_checked = any("checked" in ast.dump(decorator) for decorator in node.decorator_list)
    return is_checked or any(isinstance(part, ast.Raise) for part in ast.walk(node))


def definition(function):
    """The node of a function's source."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]


def without_inner_functions(node):
    """The nodes of a function, without those of functions in it."""
    nodes = [node]
    for part in nodes:
        if part is node or not isinstance(part, (*FUNCTIONS, ast.Lambda)):
            nodes += ast.iter_child_nodes(part)
    return nodes


# === Reading the source ===


def sources(root):
    """`(name, tree)` of all files under a folder; names with `/`, from the folder on."""
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def top_level(tree):
    """The statements that run when a file is imported: those outside of functions."""
    nodes = [tree]
    for node in nodes:
        if not isinstance(node, (*FUNCTIONS, ast.expr)):
            nodes += ast.iter_child_nodes(node)
    return nodes


def imported_modules(node, name):
    """The modules that a statement imports; `from kgpt import data` imports `kgpt.data`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        parents = ["kgpt", *name.split("/")[:-1]]
        module = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [module])])
    if module == "kgpt":
        return [f"kgpt.{alias.name}" for alias in node.names]
    return [module]


def asks_for_backend(node):
    """Whether a node is `config.backend` or `backend.backend`, or imports one of them by name."""
    owners = ("config", "backend")
    if isinstance(node, ast.ImportFrom):
        is_owner = (node.module or "").split(".")[-1] in owners
        return is_owner and any(alias.name == "backend" for alias in node.names)
    if not isinstance(node, ast.Attribute) or node.attr != "backend":
        return False
    return getattr(node.value, "attr", getattr(node.value, "id", None)) in owners


def docstring_lines(node):
    """The numbers of the lines that a definition's or a file's docstring takes up."""
    if not isinstance(node, (*DEFINITIONS, ast.Module)) or ast.get_docstring(node) is None:
        return set()
    return set(range(node.body[0].lineno, node.body[0].end_lineno + 1))


def code_lines(path, tree):
    """The numbers of a file's lines that are neither docstring, nor comment, nor blank."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    code = {n for n, line in lines if line.strip() and not line.strip().startswith("#")}
    return code.difference(*(docstring_lines(node) for node in ast.walk(tree)))


# === kgpt ===

ROOT = Path(kgpt.__file__).parent


@pytest.mark.parametrize(
    "check", [imports_to_the_right, backend_outside_its_files, too_long, too_much_to_read]
)
def test_kgpt_keeps_the_rule_against(check):
    found = check(ROOT)

    assert not found, "\n".join(["", *found])


def test_public_docstrings_have_all_sections():
    found = incomplete_docstrings(public_objects(kgpt))

    assert not found, "\n".join(["", *sorted(set(found))])


# === The checks find what they look for ===


@pytest.fixture
def house(tmp_path):
    """A function that writes a package of files and gives its folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "kgpt" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path / "kgpt"

    return write


def test_the_map_of_the_code_has_each_file():
    text = (ROOT.parent / "docs" / "reading_the_code.md").read_text(encoding="utf-8")
    files = [path for folder in MAPPED for path in (ROOT / folder).glob("*.py")]

    missing = [path.name for path in files if f" {path.name}" not in text]

    assert set(missing) == {"__init__.py"}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("layers__a", "from kgpt.models.backbone import GPTBackbone"),
        ("layers__a", "from kgpt import losses"),
        ("layers__a", "import kgpt.losses"),
        ("layers__a", "import kgpt"),
        ("layers__a", "from kgpt import CausalLM"),
        ("layers__a", "from ..models import backbone"),
        ("layers__a", "from .. import models"),
        ("layers__a", "class A:\n    from kgpt import models"),
        ("layers__a", "try:\n    import keras\nexcept ImportError:\n    from kgpt import models"),
        ("text", "from kgpt.tokenizer import Tokenizer"),
        ("helpers", ""),
    ],
)
def test_an_import_to_the_right_is_found(house, name, line):
    (found,) = imports_to_the_right(house(**{name: line}))

    assert found.startswith(name.replace("__", "/") + ".py:")


def test_other_imports_are_none_to_the_right(house):
    root = house(
        layers__a="""
            import keras
            from kgpt import data
            from kgpt.kernels.attention import attend
            from kgpt.layers.b import B
            from .c import C

            def f():
                from kgpt import models
            """,
        plan="import kgpt.plot",
        text="import re",
    )
    (root / "__init__.py").write_text("from kgpt import plan, text")

    assert imports_to_the_right(root) == []


@pytest.mark.parametrize(
    "line",
    [
        "x = keras.config.backend()",
        "x = keras.backend.backend()",
        "x = backend.backend()",
        "from keras.config import backend",
        "from keras.src.backend import backend as b",
        "import torch",
        "import jax.numpy as jnp",
        "from tensorflow import nn",
        "def f():\n    import torch",
        "def f():\n    return keras.config.backend",
    ],
)
def test_a_question_for_the_backend_is_found(house, line):
    root = house(layers__a=line, data__tasks=line, models__task=line, kernels__a=line)

    found = backend_outside_its_files(root)

    assert [one.split(":")[0] for one in found] == ["data/tasks.py", "layers/a.py"]


def test_other_backends_are_no_question(house):
    root = house(layers__a="x = self.backend\nimport jaxtyping\nfrom keras import backend as b")

    assert backend_outside_its_files(root) == []


def test_long_files_and_functions_are_found(house):
    docstring = '"""A.\n' + "\n" * 60 + '"""\n'
    body = "    x = 1\n" * 48
    root = house(a="def f():\n    " + docstring + body, b="x = 1\n" * 399)
    assert too_long(root) == []

    found = too_long(house(a="def f():\n" + body + "    x = 1\n", b="x = 1\n" * 400))

    assert [one.split(":")[0] for one in found] == ["b.py", "a.py"]
    assert "f has 50 lines" in found[1]


def test_too_much_code_to_read_is_found(house):
    comment = '"""A\nB."""\n# C\n\n'
    half, rest = MOST_LINES_TO_READ // 2, MOST_LINES_TO_READ - MOST_LINES_TO_READ // 2
    root = house(layers__a=comment + "x = 1\n" * half, losses=comment + "x = 1\n" * rest)
    assert too_much_to_read(root) == []

    found = too_much_to_read(house(models__backbone="x = 1", models__head="x = 1"))

    assert [one.split(":")[0] for one in found] == [
        "layers/a.py",
        "losses.py",
        "models/backbone.py",
    ]


@pytest.mark.parametrize(
    ("section", "missing"),
    [
        ("Args:\n    x: int.\n    *others: ints.\n", "Args"),
        ("Returns:\n    int.\n", "Returns"),
        ("Raises:\n    ValueError: for 0.\n", "Raises"),
        ("Example:\n    f(1)\n", "Example"),
        ("    *others: ints.\n", "argument others"),
    ],
)
def test_a_section_that_is_missing_in_a_docstring_is_found(section, missing):
    def f(x, *others):
        if x == 0:
            raise ValueError
        return x

    f.__module__ = "kgpt.example"
    sections = "Args:\n    x: int.\n    *others: ints.\n", "Returns:\n    int.\n"
    sections += "Raises:\n    ValueError: for 0.\n", "Example:\n    f(1)\n"
    f.__doc__ = "Returns x.\n\n" + "\n".join(sections)
    assert incomplete_docstrings([("f", f)]) == []

    f.__doc__ = f.__doc__.replace(section, "")

    assert incomplete_docstrings([("f", f)]) == [f"f: its docstring lacks {missing}"]


def test_what_a_subclass_may_define_and_what_keras_calls_are_no_public_methods():
    class Model:
        """A model.

        A subclass may define, too:
            weigh(x): returns weights.
        """

        def weigh(self, x): ...

        def get_config(self): ...

        def fit(self, x): ...

    Model.__module__ = Model.fit.__module__ = "kgpt.example"

    assert [name for name, _ in public_methods(Model)] == ["fit"]
