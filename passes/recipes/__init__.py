"""Pipelines that people copy, as TOML files. Each is a recipe: `planish compile --recipe FILE.toml`."""
