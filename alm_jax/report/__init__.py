"""The report of a run: one HTML page that holds its pictures and sounds and loads nothing.

`content.gather` collects, `page.render` writes; the other modules draw, encode and choose.
"""
