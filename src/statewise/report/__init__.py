"""Reports of a finished study: a terminal summary, figures and one offline HTML page.

Reads `records.StudySummary` only, so an old run can be reported again without a model and without torch. Nothing is
imported here: matplotlib and jinja2 are paid for only by the command that needs them.
"""
