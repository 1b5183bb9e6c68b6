"""How jobs run: on Apache Beam, or on Ray Data.

What is done to a page, an item or a round are functions of the jobs' packages, which know no engine; each engine has a
package that wires them. The names that the command line offers are here, where they cost no import of either.
"""

BEAM, RAY = "beam", "ray"
ENGINES = (BEAM, RAY)
