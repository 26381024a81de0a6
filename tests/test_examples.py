"""The notebooks of examples/, run by a kernel as a reader runs them."""

import os
from pathlib import Path

import pytest
from interop import import_or_skip

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")  # of the extra `dev`

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


def test_the_notebook_trains_and_shows_its_progress_in_plain_lines(tmp_path, monkeypatch):
    import_or_skip("timm")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    notebook = nbformat.read(ROOT / "examples/pretrain.ipynb", as_version=4)
    assert "steps=40" in notebook.cells[1].source
    notebook.cells[1].source = notebook.cells[1].source.replace("steps=40", "steps=4")  # which are enough for it
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert {output.output_type for cell in outputs for output in cell} <= {"stream", "display_data", "execute_result"}
    printed = "".join(output.text for output in outputs[0])
    assert "step 1/4" in printed
    assert "step 4/4" in printed
    assert not set("\r\b\x1b") & set(printed)  # what redraws a line on a terminal is rubbish in a notebook
    assert "image/png" in outputs[1][-1].data
    assert "image/png" in outputs[2][-1].data
    assert outputs[3][-1].data["text/plain"] == "torch.Size([1, 128])"
    assert (tmp_path / "runs/notebook/config.json").is_file()
