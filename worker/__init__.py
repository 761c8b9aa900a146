"""RQ jobs and their schedule, and the commands that run everything together."""
