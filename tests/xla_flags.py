"""How XLA compiles in tests: models are tiny, so that compiled code need not be good."""

from importlib.metadata import PackageNotFoundError, version

# XLA ends a process that gives it a flag it does not know, and these versions know the last one.
KNOWN = {"tensorflow": "2.21.", "jaxlib": "0.10."}


def is_known(package):
    try:
        return version(package).startswith(KNOWN[package])
    except PackageNotFoundError:
        return True  # it compiles nothing


XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if all(map(is_known, KNOWN)):
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"  # compiles in two thirds of the time
