"""A page to look with, by Gradio: sample, compare, encode, interpolate, look into one image."""
