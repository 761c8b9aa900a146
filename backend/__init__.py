"""The Flask service that answers Label Studio: phrases in, masks out."""
