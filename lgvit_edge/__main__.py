"""``python -m lgvit_edge``."""

from lgvit_edge.cli.app import main

if __name__ == "__main__":
    main()
