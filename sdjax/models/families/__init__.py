"""The model families, one file each. To add one:

1. Write families/NAME.py, where NAME is its model_type in config.json. It ends with
   `FAMILY = Family(from_hf=..., to_hf=..., names=...)`; family.py describes the parts, llama.py is
   the shortest example, and files/hf.py has functions that read and write common fields.
   A layer's window and rotary embedding are its `LayerKind`; None in place of a Rope is a layer
   without one. An MLP that is not dense and gated is `Family.mlp`, with `Family.layer_shapes`.
2. Add NAME to the tuple in registry.py.
3. Add its cases to tests/models/family_cases.py, then run
   `pytest tests/models/test_models_parity.py tests/models/test_models_fields.py -k NAME`. They
   compare it with transformers' own model, which needs `pip install sdjax[parity]`.
"""
