"""README.md from nbs/index.ipynb: its text, its code (unless `echo: false`), and what each cell returns (not what it printed)."""
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

book = nbformat.read("nbs/index.ipynb", as_version=4)
book.metadata["language_info"] = {"name": "python"}  # cleaned notebooks do not say so, and GitHub would not colour the code
for cell in book.cells:
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.output_type == "execute_result"]
        if cell.source.startswith("#| echo: false"): cell.metadata["transient"] = {"remove_source": True}
text, _ = MarkdownExporter().from_notebook_node(book)
while "\n\n\n" in text: text = text.replace("\n\n\n", "\n\n")
Path(sys.argv[1]).write_text(text.strip() + "\n", encoding="utf-8")
