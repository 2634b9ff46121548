"""Packages by their conda names: what PyPI calls them, or what to write instead."""

from __future__ import annotations

import re

from ..errors import PackagesError

#: Where the two differ, among what people import; all other names are the same on both.
_NAMES = {
    "arrow-cpp": "pyarrow",
    "cuml": "cuml-cu12",
    "dask-core": "dask",
    "faiss": "faiss-cpu",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "numpy-base": "numpy",
    "opencv": "opencv-python-headless",
    "py-lightgbm": "lightgbm",
    "py-opencv": "opencv-python-headless",
    "py-xgboost": "xgboost",
    "pyarrow-core": "pyarrow",
    "pytables": "tables",
    "python-blosc": "blosc",
    "python-duckdb": "duckdb",
    "python-flatbuffers": "flatbuffers",
    "python-graphviz": "graphviz",
    "python-igraph": "igraph",
    "python-lmdb": "lmdb",
    "python-xxhash": "xxhash",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "ray-core": "ray",
    "seaborn-base": "seaborn",
    "tensorflow-base": "tensorflow",
    "tensorflow-cpu": "tensorflow-cpu",
    "xgboost-cpu": "xgboost",
}
#: What is no Python package. PyPI may have something else under the same name.
_SYSTEM = re.compile(
    r"(lib[a-z0-9_.+-]+|_.*|r-.+|bioconductor-.+|perl(-.*)?|gcc.*|gxx.*|gfortran.*|clang.*|binutils.*|ca-certificates|"
    r"openssl|mkl|openblas|blas|lapack|cudatoolkit|cuda-.*|cudnn|nccl|hdf5|netcdf4-c|ffmpeg|graphviz|imagemagick|"
    r"nodejs|openjdk|git|make|curl|wget|zlib|bzip2|xz|zstd|tk|readline|ncurses|sqlite|gdal-bin|samtools|bedtools|"
    r"pandoc|poppler|tesseract|openmpi|mpich|go|rust)"
)
_PART_OF_PYTHON = ("python", "pip", "setuptools", "wheel", "conda", "mamba")
_SPEC = re.compile(r"^(?:[^:]+::)?(?P<name>[A-Za-z0-9_.-]+)\s*(?P<version>.*)$")


def to_pypi(spec: str) -> str | None:
    """Return a conda specification as a requirement; None for what a node has in any case.

    Raises
    ------
    PackagesError
        For what is no Python package, or a version that cannot be said to PyPI.

    Examples
    --------
    >>> to_pypi("conda-forge::pytorch=2.4")
    'torch==2.4.*'
    >>> to_pypi("pytables >=3.9,<4")
    'tables>=3.9,<4'
    """
    match = _SPEC.match(spec.strip())
    if match is None:
        raise PackagesError(f"pythonPackages.conda: {spec!r} is no conda specification as 'pytables=3.9'")
    name, version = match["name"].lower(), match["version"].strip()
    if name in _PART_OF_PYTHON:
        return None
    if _SYSTEM.fullmatch(name):
        raise PackagesError(
            f"pythonPackages.conda: {name} is no Python package. Install it on the nodes with commandLine (for example "
            f"'apt-get update && apt-get install -y …'), or use a containerImage that has it"
        )
    return _NAMES.get(name, name) + _version(spec, version)


def _version(spec: str, text: str) -> str:
    # "=2.4=py312_0" and "2.4 py312_0": the build is conda's own.
    text = re.sub(r"^(==?[^=<>!,\s|]+)=[^=]*$", r"\1", text)
    text = re.sub(r"^([<>=!~]*\s*[^\s,|]+)\s+[A-Za-z0-9_*]+$", r"\1", text).replace(" ", "")
    if not text or text in ("*", "=*"):
        return ""
    if "|" in text:
        raise PackagesError(
            f"pythonPackages.conda: {spec!r} has alternatives, which PyPI's requirements cannot say; name one version "
            "in pythonPackages.pypi"
        )
    parts = []
    for part in text.split(","):
        if re.match(r"=[^=]", part):  # conda's fuzzy version
            number = part[1:]
            parts.append(f"=={number}" if number.endswith(".*") else f"=={number.rstrip('*').rstrip('.')}.*")
        elif re.match(r"\d", part):
            parts.append(f"=={part}")
        else:
            parts.append(part)
    return ",".join(parts)
