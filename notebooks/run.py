"""Runs the notebooks from their first cell to their last, in kernels of their own; an error in a cell is one here.
Then the programs, in processes of their own, where a warning is an error.

python notebooks/run.py            # all of them, and leaves the files alone
python notebooks/run.py --write    # and keeps what the cells print and draw
python notebooks/run.py --write notebooks/first_steps.ipynb
python notebooks/run.py notebooks/programs/debate.py
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parent
SECONDS_PER_CELL = 120
SECONDS_PER_PROGRAM = 120


def run_program(path: Path) -> None:
    """Runs one program; what it prints is shown only of one that fails.

    **Raises:** `subprocess.CalledProcessError` for one that fails, `subprocess.TimeoutExpired` for one that hangs.
    """
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-W", "error", path], stdout=subprocess.PIPE, text=True, timeout=SECONDS_PER_PROGRAM
    )
    if ran.returncode:
        print(ran.stdout)
    ran.check_returncode()
    print(f"{path.name}: {time.perf_counter() - start:.1f} s")


def run_notebook(path: Path, write: bool) -> None:
    """Executes one notebook.

    **Raises:** `nbclient.exceptions.CellExecutionError` with the traceback of the cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    nbclient.NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{path.name}: {cells} cells in {time.perf_counter() - start:.1f} s")
    if write:
        nbformat.write(_stable(notebook), path)


def _stable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from run to run though nothing has changed."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the notebooks and the programs.")
    every = [*sorted(FOLDER.glob("*.ipynb")), *sorted(FOLDER.glob("programs/*.py"))]
    parser.add_argument("files", nargs="*", type=Path, default=every)
    parser.add_argument("--write", action="store_true", help="keep the outputs of notebooks in the files")
    given = parser.parse_args()
    for path in given.files:
        if path.suffix == ".py":
            run_program(path)
        else:
            run_notebook(path, given.write)


if __name__ == "__main__":
    main()
