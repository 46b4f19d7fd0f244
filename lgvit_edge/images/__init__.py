"""From image files and camera frames to network input, and folders of labelled images."""
