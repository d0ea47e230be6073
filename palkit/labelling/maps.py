"""Maps of a pool: its features in two dimensions, at once or from a process of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import sleep

import numpy as np
import torch
from torch import Tensor

from palkit.errors import PalkitError
from palkit.progress import Progress, silent
from palkit.storage.files import atomic_path

TSNE = """
import sys
import numpy as np
from palkit.storage.formats import save_array
from palkit.studies.readouts import map_2d
save_array(map_2d(np.load(sys.argv[1])), sys.argv[2])
"""
WAIT = 0.1  # seconds between two looks at the other process


def pca(features: Tensor) -> np.ndarray:
    """(N, 2) float32 first principal components of (N, D) features; the largest loading of each is positive."""
    centred = (features - features.mean(0)).double()
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, [-1, -2]]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return (centred @ axes).float().numpy()


def tsne(features: np.ndarray, path: Path, progress: Progress = silent) -> None:
    """Write `palkit.studies.readouts.map_2d` of (N, D) features to a file, from a process that cancelling ends.

    Args:
        features: (N, D).
        path: .npy file, complete or absent.
        progress: called with ("t-SNE", 0, 1) while it is computed; what it raises ends the process.

    Raises:
        PalkitError: the process failed.
    """
    with atomic_path(path) as temporary, tempfile.NamedTemporaryFile(suffix=".npy") as source:
        np.save(source, features)
        source.flush()
        command = [sys.executable, "-c", TSNE, source.name, str(temporary)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while process.poll() is None:
                progress("t-SNE", 0, 1)
                sleep(WAIT)
            message = process.stderr.read() if process.stderr else ""
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise PalkitError(f"the t-SNE map failed: {message.strip().splitlines()[-1:]}. The PCA map still works.")
