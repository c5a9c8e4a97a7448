"""Making the environments in .venv. Runs on any Python since 3.8, before anything is installed."""
