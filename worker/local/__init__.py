"""The service on one machine: `up` and `demo`."""
