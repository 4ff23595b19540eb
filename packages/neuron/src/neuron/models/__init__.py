"""The models of this node: from an id to a file, and from a file to a loaded model."""
