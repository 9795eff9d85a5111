"""Many jobs, each done once: in this process, or by the workers of a Ray cluster.

    for result in pare.batch.run(jobs, load_worker, "images"):
        print(result.job.name, result.status, result.seconds)

A job is a value that says which files it makes; a worker makes them.  What they are is no
concern of this package: `pare.cli.batch_worker` runs commands, `roads.benchmark.tables`
measurements.  Needs the extra: pip install "pare[batch]".
"""

from pare.batch.job import Job, JobResult, Worker
from pare.batch.job_runner import run

__all__ = ["Job", "JobResult", "Worker", "run"]
