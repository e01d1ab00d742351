"""The field's figures of quality, NumPy in and plain numbers out: boxes, masks and mattes against the truth.

Each class takes what was found and what is true picture by picture (`add`) and knows its figures at the end
(`figures`); each function is for one picture or one whole data set.
"""
