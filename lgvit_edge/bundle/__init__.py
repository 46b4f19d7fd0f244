"""The bundle directory that ``export`` writes: manifest, files, engines, operating points."""
