"""From a number to a file: a cell's quantized model as ONNX, whose integers a runtime computes with.

`remake` measures the cell again by the same path and holds it against its record; `onnx_file` writes what the method's
`Deployment` says, with `repeated` constants in less space; `runtimes` run it; `compare` and `speed` say what became of
it, `competitors` what others make of the same network, `card` how to run the file. `export` is all of it in order.

Nothing is taken for granted: accuracy is that of the runtime over the whole suite, and which products are of integers
is read from the graph that the runtime optimized.
"""
