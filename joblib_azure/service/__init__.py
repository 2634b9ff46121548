"""The only package that imports ``azure.*``: Batch and Storage behind two narrow interfaces.

`interfaces` and `poolspec` say what the rest of the package may ask for, and the values that pass; `batch` (with
`pools` and `jobs`) and `blob` ask the real services through their unmodified SDKs, `credentials` makes their clients,
`management` creates through Azure Resource Manager what Batch itself cannot, and `faults` is the one place where
their errors become ours.
"""

from __future__ import annotations

from .interfaces import (
    BatchService,
    BlobItem,
    BlobService,
    ContainerItem,
    JobDetails,
    JobSpec,
    PoolService,
    TaskCounts,
    TaskEnd,
    TaskSpec,
    TaskState,
    Upload,
)
from .poolspec import (
    AutoscaleRun,
    AutoscaleSpec,
    ContainerSpec,
    FileSpec,
    ImageSpec,
    JobState,
    MountSpec,
    NodeCounts,
    NodeFile,
    NodeState,
    PoolSpec,
    PoolState,
    RegistrySpec,
    StartTaskSpec,
    SupportedImage,
    TaskContainer,
)

__all__ = [
    "AutoscaleRun",
    "AutoscaleSpec",
    "BatchService",
    "BlobItem",
    "BlobService",
    "ContainerItem",
    "ContainerSpec",
    "FileSpec",
    "ImageSpec",
    "JobDetails",
    "JobSpec",
    "JobState",
    "MountSpec",
    "NodeCounts",
    "NodeFile",
    "NodeState",
    "PoolService",
    "PoolSpec",
    "PoolState",
    "RegistrySpec",
    "StartTaskSpec",
    "SupportedImage",
    "TaskContainer",
    "TaskCounts",
    "TaskEnd",
    "TaskSpec",
    "TaskState",
    "Upload",
]
