"""Our detection head against transformers' OWLv2 on the same random weights."""

from __future__ import annotations

import torch
from transformers import Owlv2Config, Owlv2ForObjectDetection

from mm.encoders.base import ImageFeatures
from mm.heads.owlvit import OwlHead

RENAMED = {
    "class_head.": "class_head.",
    "box_head.dense0": "box_head.0",
    "box_head.dense1": "box_head.2",
    "box_head.dense2": "box_head.4",
    "objectness_head.dense0": "objectness_head.0",
    "objectness_head.dense1": "objectness_head.2",
    "objectness_head.dense2": "objectness_head.4",
    "layer_norm": "norm",
}


def tiny_owlv2() -> Owlv2ForObjectDetection:
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={**tower, "hidden_size": 16, "vocab_size": 99, "max_position_embeddings": 16},
            vision_config={**tower, "hidden_size": 24, "image_size": 40, "patch_size": 8},
            projection_dim=16,
        )
    ).eval()


def test_logits_boxes_and_objectness_equal_the_reference() -> None:
    reference = tiny_owlv2()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    head = OwlHead(width=24, embedding=16).eval()
    weights = {}
    for key, value in reference.state_dict().items():
        for theirs, ours in RENAMED.items():
            if key.startswith(theirs) and not key.startswith("owlv2."):
                weights[ours + key[len(theirs) :]] = value
    head.load_state_dict({k: v for k, v in weights.items() if k != "box_bias"})

    raw, text = torch.randn(3, 25, 24), torch.randn(7, 16)
    with torch.inference_mode():
        normed = reference.layer_norm(raw)
        queries = text.expand(3, -1, -1)
        logits, embeds = reference.class_predictor(normed, queries, torch.ones(3, 7, dtype=torch.bool))
        boxes = reference.box_predictor(normed, normed.reshape(3, 5, 5, 24))
        objectness = reference.objectness_predictor(normed)
        out = head(ImageFeatures(raw, (5, 5), raw[:, :0], raw.mean(1)), text)
    torch.testing.assert_close(out.logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.boxes_cxcywh, boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.objectness, objectness, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.embeds, embeds / (embeds.norm(dim=-1, keepdim=True) + 1e-6), atol=1e-5, rtol=1e-5)
