"""The benchmark. A measurement goes through `cli`, `plan`, `run`, `results` and `report`, one folder per stage.

They stand on `catalog` (plugins), `identity` (names, cells, keys), `io` and `api`, which is what plugins import.
`check` looks at one plugin, `regress` is the regression gate. No method and no task is known here by name, apart from
the command line's defaults, the two reference sources and a method that a skip message gives as an example.
"""

__version__ = "0.1.0"
