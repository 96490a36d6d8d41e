"""The command `umbel`: one file for each group of its commands."""
