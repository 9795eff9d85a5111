"""Looking at a model: layer tables, the U, files of weights and what is wrong with them.

layers.py          every layer of a module: shapes, FLOPs, memory, its line of code
flops.py           the rules by which operations are counted
u_shape.py         the stages of the UNet and the skips between them
models.py          a model's parts, configs and files, and all that is wrong with them
model_layers.py    the layer tables of a model's parts
weight_files.py    what is in a file of weights, whole or broken
values.py          what its numbers are like
remote.py          a repository on the Hub, without downloading its weights
inspection.py      all of it put together, as `pare inspect` prints it
recording.py       a run, recorded: any layer, attention, latents; reductions.py: what is kept
trace_file.py      a recording as safetensors and JSON, as `pare trace` writes it
report.py          a run as one page, page/, as `pare report` writes it; packing.py, sources.py
show.py            as text;  as_json.py: as JSON

attention_maps.py  where the pixels look for each word, recorded and put together
self_attention.py  which pixels look alike: principal components
attention_sheet.py both on one page;  heat.py: maps in colours;  gallery.py: labelled images
walk.py            a run, moment by moment;  film.py: as a film
sweep.py           one prompt under many settings
pieces.py          layers by hand, step by step;  plots.py: curves
"""

from pare.study.inspect.flops import Flops
from pare.study.inspect.inspection import Inspection, Settings, inspect_model
from pare.study.inspect.layer_table import Layer, LayerTable, layer_table, trace
from pare.study.inspect.model_summary import Model, Part, describe
from pare.study.inspect.model_tables import layers
from pare.study.inspect.u_shape import Stage, UShape, u_shape
from pare.study.inspect.weight_files import StoredTensor, WeightFile, look_at
from pare.study.inspect.weight_values import Values, read_values

__all__ = [
    "Flops",
    "Inspection",
    "Layer",
    "LayerTable",
    "Model",
    "Part",
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
