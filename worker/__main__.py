"""`python -m worker`: the worker's commands without the others."""

from worker.cli.commands import app

if __name__ == "__main__":
    app(prog_name="python -m worker")
