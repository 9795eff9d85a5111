"""Recording a run: latents, activations and attention at each step, and what is made of them.

recording.py        a run, recorded: any layer, attention, latents;  reductions.py: what is kept
trace_file.py       a recording as safetensors and JSON, as `pare trace` writes it
attention_maps.py   attention weights by word and by query pixel, and their averages
self_attention.py   self-attention as a whole: its principal components
attention_sheet.py  maps on one page, as `pare attention` draws it
html_report.py      a run as one HTML page (page/), as `pare report` writes it; html_packing.py
run_frames.py       a recording as the frames of a film;  film_file.py: frames to GIF or MP4
setting_sweep.py    one prompt under many settings
image_grid.py       labelled images side by side;  heatmap.py: values as images;  plots.py: curves
token_table.py      a prompt's tokens and their embeddings
by_hand.py          layers computed step by step, with every intermediate tensor
"""
