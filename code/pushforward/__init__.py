"""Push-forward: every generative model of the book pushes noise forward, x = g(z).

A part of the book is a package, a chapter a module, a section a function or
class, a numbered equation a line that cites its label.
"""
