"""Declarative runs: YAML to objects, stages, `python -m pipelines.run NAME`."""
