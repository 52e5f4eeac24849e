"""TeX becomes MathML while the book is built."""
