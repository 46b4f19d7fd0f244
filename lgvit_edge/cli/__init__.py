"""The ``lgvit-edge`` command: one module per sub-command."""
