"""Many jobs, each done once.

    for result in pare.batch.run(jobs, load_worker, "images"):
        print(result.job.name, result.status, result.seconds)

A job is a value that says which files it makes; a worker makes them.  What they are is no
concern of this package: `pare.cli.command_jobs` runs commands.  Needs the extra:
pip install "pare[batch]".
"""

from pare.batch.job import Job, JobResult, Worker
from pare.batch.job_runner import run

__all__ = ["Job", "JobResult", "Worker", "run"]
