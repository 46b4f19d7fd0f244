"""What every room of the package uses: files, the cache, optional packages, the terminal."""
