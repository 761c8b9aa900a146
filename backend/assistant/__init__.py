"""Answers to the annotator: phrases, clicks and boxes."""
