"""All parts on one machine: `up` and `demo`."""
