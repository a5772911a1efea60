"""Averages in trainers that others wrote: Lightning (`lightning`), Hugging Face's Trainer (`transformers`).

Each module needs the extra of its name and nothing of the others.
"""
