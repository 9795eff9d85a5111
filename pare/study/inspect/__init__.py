"""Inspecting a model without running it: layer tables, the UNet's blocks, files of weights.

layer_table.py     every layer of a module: shapes, FLOPs, memory, its line of code
flops.py           the rules by which operations are counted
u_shape.py         the blocks of the UNet and the skip connections between them
model_summary.py   a model's parts, configs and files, and every problem with them
model_tables.py    the layer tables of a model's parts
weight_files.py    the content of a file of weights, whole or damaged
weight_values.py   statistics of its values
remote_headers.py  a repository on the Hub, without downloading its weights
inspection.py      all of it together, as `pare inspect` prints it
text_tables.py     as text;  as_json.py: as JSON;  source_lines.py: the code of a layer
"""

from pare.study.inspect.flops import Flops
from pare.study.inspect.inspection import Inspection, Settings, inspect_model
from pare.study.inspect.layer_table import Layer, LayerTable, layer_table, trace
from pare.study.inspect.model_summary import ModelSummary, PartSummary, describe
from pare.study.inspect.model_tables import layers
from pare.study.inspect.u_shape import Stage, UShape, u_shape
from pare.study.inspect.weight_files import StoredTensor, WeightFile, look_at
from pare.study.inspect.weight_values import Values, read_values

__all__ = [
    "Flops",
    "Inspection",
    "Layer",
    "LayerTable",
    "ModelSummary",
    "PartSummary",
    "Settings",
    "Stage",
    "StoredTensor",
    "UShape",
    "Values",
    "WeightFile",
    "describe",
    "inspect_model",
    "layer_table",
    "layers",
    "look_at",
    "read_values",
    "trace",
    "u_shape",
]
