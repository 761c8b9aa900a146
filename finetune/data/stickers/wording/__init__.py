"""Wordings of template phrases as varied as people's, with the same meaning."""
