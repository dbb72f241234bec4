"""A fresh kernel of this very Python.

A notebook names its kernel "python3", and what that name means on a machine is anybody's guess: it may be
another environment, without this package. Here it always means the interpreter that runs now.
"""

from __future__ import annotations

import os
from pathlib import Path

import ipykernel.kernelspec
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

NAME = "python3"
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package


class _ThisPython(KernelSpecManager):
    """Answers every question for a kernel with this interpreter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict()
        )


def fresh_client(notebook: NotebookNode, **settings: object) -> NotebookClient:
    """An nbclient for a notebook, its kernel not yet started.

    The kernel keeps no history, and its cells no timestamps. settings: of nbclient.NotebookClient, such as
    timeout=60 (seconds a cell) or allow_errors=True.
    """
    manager = AsyncKernelManager(kernel_name=NAME, kernel_spec_manager=_ThisPython())
    client = NotebookClient(
        notebook,
        km=manager,
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--HistoryManager.hist_file=:memory:", "--IPKernelApp.log_level=ERROR"],
        **settings,
    )
    client.owns_km = True  # so that nbclient ends the kernel too: by default it spares one that it was given
    return client


def kernel_environment() -> dict[str, str]:
    """The environment for a kernel: this one, with the package importable from any folder."""
    path = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), path] if path else [str(ROOT)])}
