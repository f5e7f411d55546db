"""Executes a notebook; a cell that fails is the error. With --write the notebook keeps its outputs.

usage: run_notebook.py NOTEBOOK [--write]
"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

path = Path(sys.argv[1])
notebook = nbformat.read(path, as_version=4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
texts = 0
for cell in notebook.cells:
    # What differs from run to run is not kept.
    cell.metadata.pop("execution", None)
    for output in cell.get("outputs", []):
        texts += 1
        assert output.output_type != "stream" or output.name != "stderr", output.text
if "--write" in sys.argv:
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)
print(f"{path}: {len(notebook.cells)} cells, {texts} outputs")
