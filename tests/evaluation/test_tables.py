"""Tables of figures: those that do not compare stand apart."""

from ddim_hf.evaluation.tables import tables


def test_tables_tell_networks_and_etas_apart():
    """Figures that differ in how the network ran stand in two tables, and etas have all their digits."""
    row = {"metric": "fid", "num_images": 9, "reference": "x", "tau": "uniform", "num_inference_steps": 10}
    rows = [row | {"eta": eta, "network": "float32", "value": 10.0 + eta} for eta in (0.0, 0.2, 0.25, 1.0)]
    text = tables([*rows, row | {"eta": 0.0, "network": "fast sampling, bfloat16", "value": 11.5}])
    assert "| 0.0 | 10.00 |\n| 0.2 | 10.20 |\n| 0.25 | 10.25 |\n| 1.0 | 11.00 |\n" in text
    assert "network float32**" in text and "network fast sampling, bfloat16**\n\n| eta | S = 10 |" in text
