"""Images: preprocessing to the network's input, and folders of labelled images."""
