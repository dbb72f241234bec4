"""The commands of `python -m minimrcnn`: one file for models, one for data sets, one for the course."""
