"""Coverage-guided fuzzing of the compiled modules: `make fuzz`.  See run.py."""
