"""RQ: queues, workers, job processes, schedule, health check."""
