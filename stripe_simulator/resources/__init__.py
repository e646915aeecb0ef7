"""One module for a resource and what belongs to it, all of one form: names of parameters, functions of a `Mode` and a
`Call`, and tables. `conventions` has what most of them share.

`ROUTES` lists the routes. `JOBS` maps the kinds of due jobs to functions. `INDEXED` names the fields by which the
objects of a kind are looked up. `registry.py` collects the tables.
"""
