"""The encoder's arithmetic against that of PyTorch's own transformer layers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra that this environment lacks")

from fairlead.router.encoder import hear, load_encoder  # noqa: E402
from fairlead.router.wordpiece import pieces_of  # noqa: E402

TEXTS = [
    "my model is too slow in production and nobody profiled it",
    "why",
    "accuracy fell after the last release. " * 20,
]


def torch_layer(layer):
    width, inner = layer.widen.shape
    found = torch.nn.TransformerEncoderLayer(
        width, 12, inner, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    state = {
        "self_attn.in_proj_weight": layer.mix.T,
        "self_attn.in_proj_bias": layer.mix_bias,
        "self_attn.out_proj.weight": layer.join.T,
        "self_attn.out_proj.bias": layer.join_bias,
        "linear1.weight": layer.widen.T,
        "linear1.bias": layer.widen_bias,
        "linear2.weight": layer.narrow.T,
        "linear2.bias": layer.narrow_bias,
        "norm1.weight": layer.norms[0],
        "norm1.bias": layer.norms[1],
        "norm2.weight": layer.norms[2],
        "norm2.bias": layer.norms[3],
    }
    found.load_state_dict({name: torch.tensor(np.array(rows)) for name, rows in state.items()})
    return found.eval()


@pytest.mark.parametrize("text", TEXTS)
def test_it_agrees_with_torch(text):
    encoder = load_encoder()
    pieces = pieces_of(text, encoder.vocabulary)
    rows = encoder.pieces[pieces] * encoder.piece_scales[pieces, None]
    values = torch.tensor(rows + encoder.places[: len(pieces)])
    norms = [torch.tensor(part) for part in encoder.norms]
    values = torch.nn.functional.layer_norm(values, values.shape[-1:], *norms, eps=1e-12)[None]
    with torch.no_grad():
        for layer in encoder.layers:
            values = torch_layer(layer)(values)
    mean = values[0].mean(0).numpy()

    expected = encoder.answer_weights @ mean + encoder.answer_bias
    assert np.array(list(hear(text).answers.values())) == pytest.approx(expected, abs=0.05)
