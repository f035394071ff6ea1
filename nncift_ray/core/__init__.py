"""The mathematics: numpy, torch and numba; knows no Ray, no files and no configuration."""
