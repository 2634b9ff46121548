"""A storm over a local cluster: faults of every kind, by a schedule that a seed makes.

::

    schedule (seed or file) ──► storm: what happens to nodes, pools, jobs, Azurite ──► emulator, its control routes
                         └────► weather: what happens to requests
                                   │
    client, nodes ───────────────► proxies ──────────────────────────► Batch emulator, Azurite

The client does not know: it drives the unmodified SDKs against endpoints that happen to be the proxies'. The proxies,
the emulator and Azurite belong to one process (``python -m joblib_azure.chaos``), which `LocalCluster(chaos=…)` starts
in place of the two servers; what struck is counted by the names in `faults`. A program of its own, as the emulator is:
it imports nothing of the client.
"""

from __future__ import annotations
