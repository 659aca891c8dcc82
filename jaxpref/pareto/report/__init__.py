"""The report of a front: table, figure and HTML page."""
