"""The camera application: from cameras to answers that other programs use; without PyTorch."""
