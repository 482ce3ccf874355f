"""The command line: `python -m ember_jax`, or `ember_jax`."""

import argparse
from collections.abc import Sequence

from ._demo import demo


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(prog="ember_jax", description="Networks of LLM calls as JAX programs.")
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("demo", help="answer questions with a network of simulated models; no key, no network")
    shown.add_argument("--questions", type=_positive, default=300, help="how many (300)")
    shown.add_argument("--seed", type=int, default=0, help="draws the questions and the samples (0)")
    given = parser.parse_args(arguments)
    demo(given.questions, given.seed)


def _positive(words: str) -> int:
    number = int(words)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number
