"""An Azure Batch account on loopback: the REST API, with tasks as real processes on nodes that own cores.

It imports nothing of the rest of joblib_azure, and speaks to its clients in the service's own wire format only.

    BatchEmulator (process.py) ── starts ──► __main__ ─► server ─► app ─► handlers ─► engine

Besides what a client sees of Batch, a person or a test can

- serve https: ``BatchEmulator(tls=True)`` makes a certificate (`certificate` is its path), ``certfile=``, ``keyfile=``
  take others;
- use Entra tokens beside the account's key, signed by whom ``token_signer=`` names (see `tokens`): signature, audience,
  times and (with ``token_issuer=``) issuer are checked. ``refuse_shared_key=True`` is an account without keys,
  ``job_submitters=[oid]`` are people who may use pools and not change them. A subnet or an image of one's own needs a
  token, as on Azure; the emulator has neither, and goes on with a warning in its log;
- have things go wrong as they do on Azure, by documented means: ``dedicated_core_quota=``, ``spot_core_quota=``,
  ``failing_sizes=``, ``timing_out_sizes=`` (resize errors), ``active_job_quota=``, ``pool_quota=`` (409),
  ``failing_start_tasks=``, ``unusable_nodes=``, ``boot_seconds=``, ``dispatch_seconds=``, ``pool_deletion_seconds=``;
- do to nodes what happens to them: `BatchEmulator.preempt_node`, `mark_node_unusable`, `restore_node`, or by hand the
  routes of `control`::

      curl -X POST -H "x-emulator-key: $KEY" "$ENDPOINT/_emulator/pools/$POOL/nodes/$NODE/preempt?seconds=30"

- have autoscale, and resize timeouts, on a faster clock: with ``clock_rate=600`` five minutes take half a second. Only
  the service's own intervals are shortened, those that a formula looks back too; the time of day is not, so that the
  deadlines that clients write into formulas hold. The default is Azure's own timing;
- be as slow as Azure is: ``latency="azure"`` draws from what was published of it (see `latency`), on that clock too;
- have nodes without processes: ``executor=`` is a function that runs their tasks (see `simulated`).

`options.Options` describes each; ``python -m joblib_azure.emulator --help`` has the same as flags. What the emulator
does not do it refuses with 501 (`NotImplemented`): containers of tasks, Windows, VM extensions, application
packages, multi-instance tasks, logins to nodes. Mounts are empty folders, said in the log.
"""

from __future__ import annotations

from .process import BatchEmulator, EmulatorError

__all__ = ["BatchEmulator", "EmulatorError"]
