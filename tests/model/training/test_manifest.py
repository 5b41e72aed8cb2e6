import json

import torch
from torch import nn

from jobs.training.trainable import format_manifest, num_weights, trainable_table
from model.core.nextgpt import NextGPT


def test_the_table_has_every_trained_tensor_with_its_shape_and_count(tiny):
    model = NextGPT.from_config(tiny, adapter=True)
    parameters = dict(model.named_parameters())
    for stage in (1, 2, 3):
        names = model.set_stage(stage)
        rows = trainable_table(model, names)
        assert [row["name"] for row in rows] == names
        assert [tuple(row["shape"]) for row in rows] == [tuple(parameters[name].shape) for name in names]
        assert sum(row["count"] for row in rows) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert json.loads(json.dumps(rows)) == rows
    assert num_weights(model) == sum(p.numel() for p in model.parameters())


def test_alike_layers_and_modalities_stand_on_one_line():
    model = nn.ModuleDict(
        {
            "llm": nn.ModuleList(nn.Linear(3, 2, bias=False) for _ in range(12)),
            "out": nn.ModuleDict({"image": nn.Linear(2, 4), "video": nn.Linear(2, 4), "audio": nn.Linear(2, 5)}),
        }
    )
    names = [
        *(f"llm.{n}.weight" for n in range(12)),
        *(f"out.{modality}.weight" for modality in ("image", "video", "audio")),
    ]
    table = format_manifest(trainable_table(model, names), num_weights(model))
    assert table.splitlines() == [
        "llm.{0..11}.weight        2x3  x12  72",
        "out.{image,video}.weight  4x2   x2  16",
        "out.audio.weight          5x2   x1  10",
        "98 of 111 weights train (88.29%)",
    ]


def test_a_tensor_spread_over_ranks_or_packed_counts_whole():
    model = nn.Linear(4, 3)
    model.weight = nn.Parameter(torch.zeros(0))
    model.weight.ds_shape = torch.Size([3, 4])
    model.bias = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    model.bias.quant_state = type("QuantState", (), {"shape": torch.Size([3])})()
    assert trainable_table(model, ["weight"]) == [{"name": "weight", "shape": [3, 4], "count": 12}]
    assert num_weights(model) == 15
