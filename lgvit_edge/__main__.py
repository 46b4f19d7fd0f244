"""``python -m lgvit_edge``."""

from lgvit_edge.cli import main

if __name__ == "__main__":
    main()
