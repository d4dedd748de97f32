"""What `dir` and `help` show: public names alone, and a line of text for each of them."""

import inspect
import pydoc

import pytest

import kgpt

MODULES = [kgpt, *(one for one in vars(kgpt).values() if inspect.ismodule(one))]
MODULES = [one for one in MODULES if one is kgpt or one.__name__.split(".")[-1] in kgpt.__all__]
CLASSES = {
    value: None
    for module in MODULES
    for name in module.__all__
    if inspect.isclass(value := getattr(module, name))
}
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_dir_shows_public_names_alone(module):
    public = {*module.__all__, "__version__"} if module is kgpt else set(module.__all__)

    assert set(dir(module)) == public
    assert all(hasattr(module, name) for name in public)


def test_all_public_modules_are_looked_at():
    names = {module.__name__ for module in MODULES}

    assert {"kgpt", "kgpt.callbacks", "kgpt.data", "kgpt.layers", "kgpt.metrics"} < names
    assert {kgpt.CausalLM, kgpt.Tokenizer, kgpt.callbacks.Scores} < set(CLASSES)


def own_members(of_class):
    """The public members of a class that kgpt defines, by name."""
    for name in dir(of_class):
        member = inspect.getattr_static(of_class, name)
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if not name.startswith("_") and getattr(function, "__module__", "").startswith("kgpt"):
            yield name, getattr(of_class, name)


@pytest.mark.parametrize("of_class", CLASSES, ids=lambda of_class: of_class.__name__)
def test_each_public_method_has_a_docstring(of_class):
    lacking = [name for name, member in own_members(of_class) if not inspect.getdoc(member)]

    assert not lacking


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_public_function_has_a_docstring(name):
    assert inspect.getdoc(FUNCTIONS[name])


def test_help_of_a_language_model_shows_what_its_methods_do():
    text = pydoc.plain(pydoc.render_doc(kgpt.CausalLM))

    for name in ("fit", "generate", "score", "embed", "from_preset", "call", "own_loss"):
        [line, *_] = inspect.getdoc(getattr(kgpt.CausalLM, name)).splitlines()
        assert line in text, name
