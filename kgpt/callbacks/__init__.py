"""Callbacks for long runs: carry on after a crash, see samples and scores while training."""

from kgpt.callbacks.resumable_checkpoint import ResumableCheckpoint
from kgpt.callbacks.samples import GenerateSamples
from kgpt.callbacks.scores import Scores

__all__ = ["GenerateSamples", "ResumableCheckpoint", "Scores"]
