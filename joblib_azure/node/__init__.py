"""What runs on a node. It imports the standard library, joblib, cloudpickle and (late) azure-storage-blob.

Read in this order::

    __main__.py   the command lines
    task.py       one Batch task: fetches its bundle, has it run, streams the outcomes to storage
    settings.py   what the service told it
    storage.py    the task's few requests to storage
    inputs.py     its buffers on their way to the node
    cache.py      where the node keeps them, for all tasks
    sender.py     outcomes on their way to storage
    journal.py    the files in which workers leave what they did, so that a death loses nothing
    runner.py     the process whose inner joblib.Parallel(n_jobs=-1) runs the chunks
    chunk.py      one chunk in the worker that runs it: unpickled here, its outcome always a value
    nested.py     the joblib backend that a Parallel inside a call meets
    overlay.py    the user's own modules, unpacked once a node
    versions.py   what the node has, against what a bundle needs

What makes it warm::

    begin.py        starts the supervisor, out of a Batch task and so that it outlives it
    supervisor.py   answers the tasks of one lock and code, and forks a host for each
    warm.py         its runners: how many there are, who has which, when one is at its end
    client.py       the Batch task's own process where a supervisor answers
    host.py         runs the task for it
    lease.py        the runner as the host sees it: leased, handed back
    baseline.py     what calls change of a process, put back between two tasks
    cores.py        the broker: no more workers compute than the node has cores
    proc.py         what /proc tells of a runner's processes

And before the first task of a job, under whatever Python the node has::

    place.py        the root of our own on the node
    prepare.py      the job preparation: the environment of the job's lock, then the node code
    environment.py  that environment: found, unpacked or installed
    archive.py      a ready environment in storage, for the nodes to come
    interpreter.py  which Python of the node runs it
    locks.py        one process of the node at a time

The seams between them are processes: the Batch task (`task`) holds the job's secrets and no user code; the
runner and its loky workers hold user code and no secrets.
"""
